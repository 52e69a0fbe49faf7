#include "support/device.cuh"
#include "support/expect_error.hpp"
#include "support/random_tensor.hpp"

#include <nvl/kernels/cublaslt_gemm.cuh>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/linear.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

namespace {

using nvl::bf16;
using nvl::DType;
using nvl::fp16;
using nvl::kernels::CublasLtGemm;
using nvl::kernels::GemmAlgo;
using nvl::kernels::GemmKey;
using nvl::kernels::GemmParams;
using nvl_test::DeviceVector;
using nvl_test::random_values;

struct Shape {
  std::int32_t num_rows, out_features, in_features;
};

constexpr Shape shapes[] = {{1, 64, 64},   {1, 1, 8},       {2, 100, 36},   {3, 33, 77},     {7, 4096, 64}, {8, 64, 3072},
                            {9, 576, 576}, {16, 1024, 128}, {17, 128, 515}, {64, 192, 1536}, {65, 256, 96}, {200, 72, 264}};

/// A problem in device memory; the result's memory reads as NaN until it is written.
template <class T, class Out>
struct Problem {
  Problem(const Shape& s, bool with_bias)
      : shape(s),
        x(random_values<T>(static_cast<std::size_t>(s.num_rows) * s.in_features, 1)),
        w(random_values<T>(static_cast<std::size_t>(s.out_features) * s.in_features, 2)),
        bias(random_values<Out>(with_bias ? s.out_features : 0, 3)),
        device_x(x),
        device_w(w),
        device_bias(bias),
        device_out(static_cast<std::size_t>(s.num_rows) * s.out_features) {}

  GemmParams<T, Out> params() {
    return {.out = device_out.data(),
            .x = device_x.data(),
            .w = device_w.data(),
            .bias = bias.empty() ? nullptr : device_bias.data(),
            .num_rows = shape.num_rows,
            .out_features = shape.out_features,
            .in_features = shape.in_features};
  }
  double error() const {
    const std::vector<float> weights(w.begin(), w.end()), biases(bias.begin(), bias.end());
    const std::vector<double> expected =
        nvl::reference::linear(std::span<const T>(x), std::span<const float>(weights), std::span<const float>(biases),
                               shape.num_rows, shape.in_features, shape.out_features);
    return nvl::reference::nmse(device_out.to_host(), expected);
  }
  /// Tensor cores cut the low bits of what they add to a sum: of thousands of products, as float, 2e-12 to 4e-12 is measured.
  double bound() const {
    if (sizeof(T) == 2 && sizeof(Out) == 4) { return 1e-11; }
    // Its kernels for rows that are not aligned to 16 bytes round twice: the product, then the sum with the bias.
    const double roundings = !bias.empty() && shape.in_features * sizeof(T) % 16 != 0 ? 2.0 : 1.0;
    return roundings * (device_out.size() < 1000 ? nvl::reference::max_nmse_of_few<Out> : nvl::reference::max_nmse<Out>);
  }

  Shape shape;
  std::vector<T> x, w;
  std::vector<Out> bias;
  DeviceVector<T> device_x, device_w;
  DeviceVector<Out> device_bias, device_out;
};

/// A CublasLtGemm with its workspace.
struct Gemm {
  explicit Gemm(std::size_t workspace_bytes = CublasLtGemm::default_workspace_bytes)
      : workspace(workspace_bytes),
        gemm({workspace.data(), workspace_bytes}) {}
  DeviceVector<std::byte> workspace;
  CublasLtGemm gemm;
};

}  // namespace

TEMPLATE_TEST_CASE("cuBLASLt's linear layers agree with the oracle, with and without bias", "[kernel][gpu]",
                   (std::tuple<bf16, bf16>), (std::tuple<fp16, fp16>), (std::tuple<float, float>), (std::tuple<bf16, float>),
                   (std::tuple<fp16, float>)) {
  nvl_test::require_device();
  using T = std::tuple_element_t<0, TestType>;
  using Out = std::tuple_element_t<1, TestType>;
  Gemm gemm;
  for (const Shape& shape : shapes) {
    for (const bool with_bias : {false, true}) {
      CAPTURE(shape.num_rows, shape.out_features, shape.in_features, with_bias);
      Problem<T, Out> problem(shape, with_bias);
      gemm.gemm.run(problem.params(), nullptr);
      CHECK(problem.error() <= problem.bound());
    }
  }
}

TEST_CASE("Float layers are computed in float, not in a shorter format", "[kernel][gpu]") {
  nvl_test::require_device();
  // The products of 1 + 2^-12 with themselves differ from 1 by more than a tf32 or bf16 input could say.
  const float value = 1.0f + 0x1p-12f;
  const DeviceVector<float> x(std::vector<float>(64 * 64, value)), w(std::vector<float>(64 * 64, value));
  DeviceVector<float> out(64 * 64);
  Gemm gemm;
  gemm.gemm.run(
      GemmParams<float>{.out = out.data(), .x = x.data(), .w = w.data(), .num_rows = 64, .out_features = 64, .in_features = 64},
      nullptr);
  const std::vector<double> expected(64 * 64, 64.0 * double{value} * double{value});
  CHECK(nvl::reference::nmse(out.to_host(), expected) <= 1e-13);
}

TEST_CASE("No rows launch nothing; wrong arguments are refused by name", "[kernel][gpu]") {
  nvl_test::require_device();
  Gemm gemm;
  Problem<bf16, bf16> problem({8, 64, 64}, false);
  const GemmParams<bf16> good = problem.params();
  gemm.gemm.run(GemmParams<bf16>{.num_rows = 0, .out_features = 64, .in_features = 64}, nullptr);
  const auto refused = [&](auto&& spoil, const char* field) {
    GemmParams<bf16> p = good;
    spoil(p);
    nvl_test::expect_error<nvl::InvalidArgument>([&] { gemm.gemm.run(p, nullptr); }, {field});
  };
  refused([](auto& p) { p.num_rows = -1; }, "num_rows");
  refused([](auto& p) { p.out_features = 0; }, "out_features");
  refused([](auto& p) { p.in_features = -8; }, "in_features");
  refused([](auto& p) { p.x += 1; }, "pointers");
  CHECK(problem.error() > 1.0);  // NaN still: nothing was written
}

TEST_CASE("Every algorithm that cuBLASLt offers is right, whatever the workspace", "[kernel][gpu]") {
  nvl_test::require_device();
  for (const std::size_t workspace : {std::size_t{0}, std::size_t{64} << 10, CublasLtGemm::default_workspace_bytes}) {
    Gemm gemm(workspace);
    Problem<bf16, bf16> problem({24, 512, 2048}, false);
    const GemmKey key = gemm_key(problem.params());
    const std::vector<GemmAlgo> algos = gemm.gemm.candidates(key, 16);
    REQUIRE(!algos.empty());
    for (const GemmAlgo& algo : algos) {
      CHECK(algo.workspace_bytes <= workspace);
      REQUIRE(gemm.gemm.set_algo(key, algo));
      problem.device_out = DeviceVector<bf16>(problem.device_out.size());
      gemm.gemm.run(problem.params(), nullptr);
      CHECK(problem.error() <= problem.bound());
    }
  }
}

TEST_CASE("An algorithm of a bucket serves every number of rows in it, after one of another bucket too", "[kernel][gpu]") {
  nvl_test::require_device();
  Gemm gemm;
  for (const std::int32_t rows : {64, 57, 129, 160, 1, 60, 136}) {
    CAPTURE(rows);
    Problem<bf16, bf16> problem({rows, 320, 512}, true);
    gemm.gemm.run(problem.params(), nullptr);
    CHECK(problem.error() <= problem.bound());
  }
}

TEST_CASE("What cuBLASLt cannot run is not taken, and the call still works", "[kernel][gpu]") {
  nvl_test::require_device();
  Gemm gemm;
  Problem<bf16, bf16> problem({16, 128, 256}, false);
  const GemmKey key = gemm_key(problem.params());
  GemmAlgo nonsense;
  nonsense.words.fill(0x7fffffffffffffffull);
  CHECK_FALSE(gemm.gemm.set_algo(key, nonsense));
  CHECK_FALSE(gemm.gemm.set_algo(key, GemmAlgo{}));
  CHECK_FALSE(gemm.gemm.set_algo(key, GemmAlgo{.own_variant = 1}));
  gemm.gemm.run(problem.params(), nullptr);
  CHECK(problem.error() <= problem.bound());
}

TEST_CASE("A captured call computes what the eager one does, bit for bit", "[kernel][gpu]") {
  nvl_test::require_device();
  Gemm gemm;
  Problem<bf16, float> problem({40, 640, 1024}, false);
  cudaStream_t stream = nullptr;
  NVL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  gemm.gemm.run(problem.params(), stream);
  const std::vector<float> eager = problem.device_out.to_host();
  problem.device_out = DeviceVector<float>(problem.device_out.size());

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  gemm.gemm.run(problem.params(), stream);
  NVL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  NVL_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (int replay = 0; replay < 3; ++replay) {
    NVL_CUDA_CHECK(cudaGraphLaunch(exec, stream));
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
    CHECK(problem.device_out.to_host() == eager);
  }
  static_cast<void>(cudaGraphExecDestroy(exec));
  static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaStreamDestroy(stream));
}
