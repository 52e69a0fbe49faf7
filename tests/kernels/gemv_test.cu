#include "kernels/linear_problem.cuh"
#include "support/device.cuh"
#include "support/expect_error.hpp"

#include <nvl/kernels/gemv.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <limits>
#include <tuple>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl::kernels::GemvParams;
using nvl::kernels::launch_gemv;
using nvl_test::LinearProblem;
using nvl_test::LinearShape;

template <class T>
std::vector<float> as_floats(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

}  // namespace

TEMPLATE_TEST_CASE("GEMV agrees with the oracle at odd shapes, with and without bias", "[kernel][gpu]", (std::tuple<bf16, bf16>),
                   (std::tuple<fp16, fp16>), (std::tuple<bf16, float>), (std::tuple<float, float>)) {
  nvl_test::require_device();
  using T = std::tuple_element_t<0, TestType>;
  using Out = std::tuple_element_t<1, TestType>;
  bool with_bias = false;
  for (const LinearShape& shape : nvl_test::odd_linear_shapes()) {
    with_bias = !with_bias;
    CAPTURE(shape.num_rows, shape.out_features, shape.in_features, with_bias);
    LinearProblem<T, Out> problem(shape, with_bias);
    launch_gemv(problem.params(), nullptr);
    CHECK(problem.error() <= problem.bound());
    CHECK(!problem.wrote_past_the_end());
  }
}

TEST_CASE("GEMV takes a K that is no multiple of eight", "[kernel][gpu]") {
  nvl_test::require_device();
  for (const int k : {1, 7, 100, 515}) {
    CAPTURE(k);
    LinearProblem<bf16, bf16> problem({3, 130, k}, true);
    launch_gemv(problem.params(), nullptr);
    CHECK(problem.error() <= problem.bound());
  }
}

TEST_CASE("A token's GEMV has the same bits for every number of tokens", "[kernel][gpu]") {
  nvl_test::require_device();
  for (const LinearShape& shape : {LinearShape{70, 1024, 1536}, LinearShape{70, 4096, 264}, LinearShape{70, 6151, 520}}) {
    LinearProblem<bf16, float> problem(shape, false);
    launch_gemv(problem.params(), nullptr);
    const std::vector<float> all = problem.result();
    for (const int tokens : {1, 5, 8, 9, 16, 17, 32, 33}) {
      CAPTURE(shape.out_features, tokens);
      NVL_CUDA_CHECK(cudaMemset(problem.device_out.data(), 0xff, problem.device_out.size() * sizeof(float)));
      launch_gemv(problem.params(tokens), nullptr);
      std::vector<float> some = problem.result();
      some.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(shape.out_features));
      CHECK(std::vector<float>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(some.size())) == some);
    }
  }
}

TEST_CASE("What lies beside a GEMV's operands does not reach its result", "[kernel][gpu]") {
  nvl_test::require_device();
  // Tokens behind the last and weight rows behind the last are NaN.
  const int tokens = 3, n = 13, k = 72;
  const LinearProblem<bf16, bf16> clean({tokens, n, k}, false);
  std::vector<bf16> x = clean.x, w = clean.w;
  x.resize(x.size() + 16 * static_cast<std::size_t>(k), bf16(std::numeric_limits<float>::quiet_NaN()));
  w.resize(w.size() + 64 * static_cast<std::size_t>(k), bf16(std::numeric_limits<float>::quiet_NaN()));
  const nvl_test::DeviceVector<bf16> device_x(x), device_w(w);
  nvl_test::DeviceVector<bf16> out(static_cast<std::size_t>(tokens) * n), expected(static_cast<std::size_t>(tokens) * n);
  const auto run = [&](bf16* to, const bf16* from_x, const bf16* from_w) {
    launch_gemv<bf16, bf16>({.out = to, .x = from_x, .w = from_w, .num_rows = tokens, .out_features = n, .in_features = k},
                            nullptr);
  };
  run(out.data(), device_x.data(), device_w.data());
  run(expected.data(), clean.device_x.data(), clean.device_w.data());
  CHECK(as_floats(out.to_host()) == as_floats(expected.to_host()));
}

TEST_CASE("GEMV of no tokens launches nothing, and bad arguments are named", "[kernel][gpu]") {
  nvl_test::require_device();
  launch_gemv<bf16, bf16>({.num_rows = 0, .out_features = 8, .in_features = 8}, nullptr);
  LinearProblem<bf16, bf16> problem({2, 8, 16}, false);
  const auto fails = [&](auto change, const std::vector<std::string>& words) {
    GemvParams<bf16> p = problem.params();
    change(p);
    nvl_test::expect_error<nvl::InvalidArgument>([&] { launch_gemv(p, nullptr); }, words);
  };
  fails([](auto& p) { p.num_rows = -1; }, {"num_rows", "-1"});
  fails([](auto& p) { p.out_features = 0; }, {"out_features", "0"});
  fails([](auto& p) { p.in_features = 0; }, {"in_features", "0"});
  fails([](auto& p) { p.w = nullptr; }, {"gemv w"});
  fails([](auto& p) { p.x += 1; }, {"16-byte aligned"});
}
