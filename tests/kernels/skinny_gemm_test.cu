#include "kernels/linear_problem.cuh"
#include "support/device.cuh"
#include "support/expect_error.hpp"

#include <nvl/kernels/skinny_gemm.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl::kernels::launch_skinny_gemm;
using nvl::kernels::launch_skinny_gemm_with;
using nvl::kernels::SkinnyGemmTile;
using nvl::kernels::SkinnyGemmTraits;
using nvl_test::LinearProblem;
using nvl_test::LinearShape;

template <class T, class Out>
void check_shapes(const std::vector<LinearShape>& shapes) {
  bool with_bias = false;
  for (const LinearShape& shape : shapes) {
    with_bias = !with_bias;
    LinearProblem<T, Out> problem(shape, with_bias);
    for (const bool fixed_order : {false, true}) {
      CAPTURE(shape.num_rows, shape.out_features, shape.in_features, with_bias, fixed_order);
      NVL_CUDA_CHECK(cudaMemset(problem.device_out.data(), 0xff, problem.device_out.size() * sizeof(Out)));
      launch_skinny_gemm(problem.params(), nullptr, fixed_order);
      CHECK(problem.error() <= problem.bound());
      CHECK(!problem.wrote_past_the_end());
    }
  }
}

template <SkinnyGemmTile tile>
void check_tile(const std::vector<LinearShape>& shapes) {
  for (const LinearShape& shape : shapes) {
    if (std::int64_t{shape.num_rows} * shape.out_features * shape.in_features > 20'000'000) { continue; }
    CAPTURE(shape.num_rows, shape.out_features, shape.in_features, tile.rows, tile.tokens, tile.splits);
    LinearProblem<bf16, float> problem(shape, false);
    launch_skinny_gemm_with<SkinnyGemmTraits<bf16, float, tile>>(problem.params(), nullptr);
    CHECK(problem.error() <= problem.bound());
    CHECK(!problem.wrote_past_the_end());
  }
}

}  // namespace

TEMPLATE_TEST_CASE("The skinny GEMM agrees with the oracle at odd shapes, with and without bias", "[kernel][gpu]",
                   (std::tuple<bf16, bf16>), (std::tuple<fp16, fp16>), (std::tuple<bf16, float>), (std::tuple<float, float>)) {
  nvl_test::require_device();
  check_shapes<std::tuple_element_t<0, TestType>, std::tuple_element_t<1, TestType>>(nvl_test::odd_linear_shapes());
}

TEMPLATE_TEST_CASE_SIG("Every kind of tile of the wide kernel agrees with the oracle", "[kernel][gpu]",
                       ((int rows, int tokens, int stages, int splits), rows, tokens, stages, splits), (64, 16, 3, 1),
                       (64, 80, 3, 2), (128, 96, 2, 1), (192, 32, 2, 4), (128, 112, 4, 8), (64, 160, 2, 1), (128, 256, 2, 2)) {
  nvl_test::require_device();
  if (!nvl::kernels::detail::gemm::is_hopper()) { SKIP("needs sm_90"); }
  check_tile<SkinnyGemmTile{.rows = rows, .tokens = tokens, .stages = stages, .splits = splits}>(nvl_test::odd_linear_shapes());
}

TEST_CASE("The skinny GEMM of a few shapes agrees with the oracle", "[kernel][gpu][sanitize]") {
  nvl_test::require_device();
  const std::vector<LinearShape> shapes = nvl_test::few_linear_shapes();
  check_shapes<bf16, bf16>(shapes);
  check_shapes<fp16, fp16>(shapes);
  check_shapes<float, float>(shapes);
  if (!nvl::kernels::detail::gemm::is_hopper()) { return; }
  check_tile<SkinnyGemmTile{.rows = 64, .tokens = 16, .stages = 3, .splits = 1}>(shapes);
  check_tile<SkinnyGemmTile{.rows = 192, .tokens = 32, .stages = 2, .splits = 4}>(shapes);
  check_tile<SkinnyGemmTile{.rows = 64, .tokens = 160, .stages = 2, .splits = 1}>(shapes);
}

TEST_CASE("In fixed order a token's result has the same bits for every number of tokens", "[kernel][gpu]") {
  nvl_test::require_device();
  for (const LinearShape& shape : {LinearShape{300, 1024, 1536}, LinearShape{300, 4096, 264}, LinearShape{300, 72, 3080}}) {
    LinearProblem<bf16, float> problem(shape, false);
    launch_skinny_gemm(problem.params(), nullptr, true);
    const std::vector<float> all = problem.result();
    for (const int tokens : {1, 8, 16, 17, 63, 64, 65, 128, 129, 257}) {
      CAPTURE(shape.out_features, tokens);
      NVL_CUDA_CHECK(cudaMemset(problem.device_out.data(), 0xff, problem.device_out.size() * sizeof(float)));
      launch_skinny_gemm(problem.params(tokens), nullptr, true);
      std::vector<float> some = problem.result();
      some.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(shape.out_features));
      CHECK(std::vector<float>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(some.size())) == some);
    }
  }
}

TEST_CASE("Layers that follow each other with overlap, in a graph, see each other's results", "[kernel][gpu]") {
  nvl_test::require_device();
  // Each layer's output is the next one's input; without overlap the result is the same.
  constexpr int width = 512, layers = 12;
  for (const int tokens : {1, 24, 130}) {
    CAPTURE(tokens);
    const std::vector<bf16> weights = nvl_test::random_values<bf16>(width * width * layers, 7, 0.044f);
    const std::vector<bf16> input = nvl_test::random_values<bf16>(static_cast<std::size_t>(tokens) * width, 8);
    const nvl_test::DeviceVector<bf16> w(weights);
    nvl_test::DeviceVector<bf16> a(input), b(input.size());
    const auto run = [&](cudaStream_t stream, bool overlap) {
      for (int layer = 0; layer < layers; ++layer) {
        launch_skinny_gemm<bf16, bf16>({.out = layer % 2 == 0 ? b.data() : a.data(),
                                        .x = layer % 2 == 0 ? a.data() : b.data(),
                                        .w = w.data() + static_cast<std::size_t>(layer) * width * width,
                                        .num_rows = tokens,
                                        .out_features = width,
                                        .in_features = width,
                                        .overlap_previous = overlap},
                                       stream);
      }
    };
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    NVL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    NVL_CUDA_CHECK(cudaDeviceSynchronize());  // the uploads
    run(stream, false);
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
    const std::vector<bf16> expected = a.to_host();
    NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    run(stream, true);
    NVL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    NVL_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    int differences = 0;
    for (int replay = 0; replay < 20; ++replay) {
      NVL_CUDA_CHECK(cudaMemcpyAsync(a.data(), input.data(), input.size() * sizeof(bf16), cudaMemcpyHostToDevice, stream));
      NVL_CUDA_CHECK(cudaGraphLaunch(exec, stream));
      NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
      const std::vector<bf16> result = a.to_host();
      for (std::size_t i = 0; i < result.size(); ++i) { differences += result[i].bits != expected[i].bits; }
    }
    CHECK(differences == 0);
    NVL_CUDA_CHECK(cudaGraphExecDestroy(exec));
    NVL_CUDA_CHECK(cudaGraphDestroy(graph));
    NVL_CUDA_CHECK(cudaStreamDestroy(stream));
  }
}

TEST_CASE("The skinny GEMM of no tokens launches nothing, and bad arguments are named", "[kernel][gpu]") {
  nvl_test::require_device();
  launch_skinny_gemm<bf16, bf16>({.num_rows = 0, .out_features = 8, .in_features = 8}, nullptr);
  LinearProblem<bf16, bf16> problem({40, 8, 16}, false);
  const auto fails = [&](auto change, const std::vector<std::string>& words) {
    auto p = problem.params();
    change(p);
    nvl_test::expect_error<nvl::InvalidArgument>([&] { launch_skinny_gemm(p, nullptr); }, words);
  };
  fails([](auto& p) { p.num_rows = -1; }, {"num_rows", "-1"});
  fails([](auto& p) { p.out_features = 0; }, {"out_features", "0"});
  fails([](auto& p) { p.w += 1; }, {"aligned to 16 bytes"});
}
