#include "kernels/gated_activation_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/gated_activation.cuh>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/gated_activation.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace {

using nvl::Activation;
using nvl::bf16;
using nvl::fp16;
using nvl_test::DeviceVector;

constexpr std::int64_t max_elements = 1 << 20;  // of a case; larger ones are for the bench

TEMPLATE_TEST_CASE("gated activations agree with their oracle", "[kernel][gpu]", bf16, fp16, float) {
  using T = TestType;
  nvl_test::require_device();
  for (const nvl_test::GatedActivationCase& c : nvl_test::gated_activation_cases()) {
    if (std::int64_t{c.num_tokens} * c.n > max_elements) { continue; }
    for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
      CAPTURE(c.num_tokens, c.n, c.gap, static_cast<int>(activation));
      const auto n = static_cast<std::size_t>(c.n), gap = static_cast<std::size_t>(c.gap);
      const std::size_t size = static_cast<std::size_t>(c.num_tokens) * n;
      const std::vector<T> x = nvl_test::random_values<T>(2 * size, 5, 2.0f);
      const DeviceVector<T> gate_up(nvl_test::spread_rows(x, 2 * n, 2 * n + gap));
      DeviceVector<T> out(static_cast<std::size_t>(c.num_tokens) * (n + gap));
      nvl::kernels::launch_gated_activation<T>({.out = out.data(),
                                                .gate_up = gate_up.data(),
                                                .out_stride = c.n + c.gap,
                                                .gate_up_stride = 2 * c.n + c.gap,
                                                .num_tokens = c.num_tokens,
                                                .n = c.n,
                                                .activation = activation},
                                               nullptr);
      const std::vector<T> actual = nvl_test::dense_rows(out.to_host(), n, n + gap);
      const std::vector<double> expected = nvl::reference::gated_activation(std::span<const T>(x), n, activation);
      CHECK(nvl::reference::nmse(actual, expected) <=
            (size < 1000 ? nvl::reference::max_nmse_of_few<T> : nvl::reference::max_nmse<T>));
    }
  }
}

TEST_CASE("gated activations of extreme gates are finite, and NaN stays NaN", "[kernel][gpu]") {
  nvl_test::require_device();
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> x{-1000, -100, -88, -20, 0, 20, 100, nan, 2, 2, 2, 2, 2, 2, 2, 2};
    const DeviceVector<float> gate_up(x);
    DeviceVector<float> out(8);
    nvl::kernels::launch_gated_activation<float>(
        {.out = out.data(), .gate_up = gate_up.data(), .num_tokens = 1, .n = 8, .activation = activation}, nullptr);
    const std::vector<float> y = out.to_host();
    for (const std::size_t i : {0u, 1u, 2u, 3u}) { CHECK(std::abs(y[i]) < 1e-6f); }
    CHECK(y[4] == 0.0f);
    CHECK(y[5] == 40.0f);
    CHECK(y[6] == 200.0f);
    CHECK(y[7] != y[7]);
  }
}

TEST_CASE("gated_activation refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  nvl::kernels::GatedActivationParams<bf16> p{.num_tokens = 1, .n = 20};
  CHECK_THROWS_AS(nvl::kernels::launch_gated_activation(p, nullptr), nvl::InvalidArgument);
  p.n = 64;
  p.gate_up_stride = 120;
  CHECK_THROWS_AS(nvl::kernels::launch_gated_activation(p, nullptr), nvl::InvalidArgument);
}

}  // namespace
