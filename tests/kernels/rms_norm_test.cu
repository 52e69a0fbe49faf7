#include "kernels/rms_norm_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/rms_norm.hpp>
#include <nvl/kernels/rms_norm.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl_test::dense_rows;
using nvl_test::DeviceVector;
using nvl_test::random_values;
using nvl_test::RmsNormCase;
using nvl_test::spread_rows;
using nvl_test::to_floats;

constexpr std::int64_t max_elements = 1 << 20;  // of a case; larger ones are for the bench

template <class T>
void check_case(const RmsNormCase& c, bool in_place) {
  CAPTURE(c.num_tokens, c.hidden, c.adds_residual, c.gap, in_place);
  const auto width = static_cast<std::size_t>(c.hidden), stride = static_cast<std::size_t>(c.hidden + c.gap);
  const std::size_t size = static_cast<std::size_t>(c.num_tokens) * width;
  const std::vector<T> x = random_values<T>(size, 1), old = random_values<T>(size, 2), weight = random_values<T>(width, 3);
  const float eps = 1e-5f;

  DeviceVector<T> device_x(spread_rows(x, width, stride)), device_residual(spread_rows(old, width, stride));
  DeviceVector<T> device_weight(weight), device_out(device_x.size());
  nvl::kernels::launch_rms_norm<T>({.out = in_place ? device_x.data() : device_out.data(),
                                    .x = device_x.data(),
                                    .residual = c.adds_residual ? device_residual.data() : nullptr,
                                    .weight = device_weight.data(),
                                    .out_stride = static_cast<std::int64_t>(stride),
                                    .x_stride = static_cast<std::int64_t>(stride),
                                    .residual_stride = static_cast<std::int64_t>(stride),
                                    .num_tokens = c.num_tokens,
                                    .hidden = c.hidden,
                                    .eps = eps},
                                   nullptr);

  std::vector<T> residual = old;
  const std::vector<float> w = to_floats(weight);
  const std::vector<double> expected =
      c.adds_residual
          ? nvl::reference::add_rms_norm(std::span<T>(residual), std::span<const T>(x), std::span<const float>(w), eps)
          : nvl::reference::rms_norm(std::span<const T>(x), std::span<const float>(w), eps);
  const std::vector<T> out = dense_rows((in_place ? device_x : device_out).to_host(), width, stride);
  const double bound = size < 1000 ? nvl::reference::max_nmse_of_few<T> : nvl::reference::max_nmse<T>;
  CHECK(nvl::reference::nmse(out, expected) <= bound);
  CHECK(to_floats(dense_rows(device_residual.to_host(), width, stride)) == to_floats(residual));
}

TEMPLATE_TEST_CASE("RMSNorm of rows agrees with its oracle, with and without the addition", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const RmsNormCase& c : nvl_test::rms_norm_cases()) {
    if (std::int64_t{c.num_tokens} * c.hidden <= max_elements) { check_case<TestType>(c, false); }
  }
}

/// Rows of a float residual, with x to add or as they are.
template <class T>
void check_wide_case(const RmsNormCase& c) {
  CAPTURE(c.num_tokens, c.hidden, c.adds_residual, c.gap);
  const auto width = static_cast<std::size_t>(c.hidden), stride = static_cast<std::size_t>(c.hidden + c.gap);
  const std::size_t size = static_cast<std::size_t>(c.num_tokens) * width;
  const std::vector<T> x = random_values<T>(size, 1), weight = random_values<T>(width, 3);
  const std::vector<float> old = random_values<float>(size, 2, 100.0f);
  const float eps = 1e-5f;
  const DeviceVector<T> device_x(spread_rows(x, width, stride)), device_weight(weight);
  DeviceVector<float> device_residual(spread_rows(old, width, stride));
  DeviceVector<T> device_out(device_x.size());
  nvl::kernels::launch_rms_norm<T, float>({.out = device_out.data(),
                                           .x = c.adds_residual ? device_x.data() : nullptr,
                                           .residual = device_residual.data(),
                                           .weight = device_weight.data(),
                                           .out_stride = static_cast<std::int64_t>(stride),
                                           .x_stride = static_cast<std::int64_t>(stride),
                                           .residual_stride = static_cast<std::int64_t>(stride),
                                           .num_tokens = c.num_tokens,
                                           .hidden = c.hidden,
                                           .eps = eps},
                                          nullptr);
  std::vector<float> sums = old;
  if (c.adds_residual) {
    for (std::size_t i = 0; i < size; ++i) { sums[i] += static_cast<float>(x[i]); }
  }
  const std::vector<float> w = to_floats(weight);
  const std::vector<double> expected = nvl::reference::rms_norm(std::span<const float>(sums), std::span<const float>(w), eps);
  const double bound = size < 1000 ? nvl::reference::max_nmse_of_few<T> : nvl::reference::max_nmse<T>;
  CHECK(nvl::reference::nmse(dense_rows(device_out.to_host(), width, stride), expected) <= bound);
  CHECK(dense_rows(device_residual.to_host(), width, stride) == sums);
}

TEMPLATE_TEST_CASE("RMSNorm takes a residual that stays float beside rows of 16 bits", "[kernel][gpu]", bf16, fp16) {
  nvl_test::require_device();
  for (const RmsNormCase& c : nvl_test::rms_norm_cases()) {
    if (std::int64_t{c.num_tokens} * c.hidden <= max_elements) { check_wide_case<TestType>(c); }
  }
}

TEMPLATE_TEST_CASE("RMSNorm may write over its input", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const bool adds : {false, true}) {
    check_case<TestType>({5, 1024, adds}, true);
    check_case<TestType>({270, 4096, adds}, true);
  }
}

TEMPLATE_TEST_CASE("a row's norm is the same bits whatever rows are beside it", "[kernel][gpu]", bf16, float) {
  using T = TestType;
  nvl_test::require_device();
  for (const int hidden : {64, 1024, 1032, 4096, 5120, 8192}) {
    const int many = 1100000 / hidden + 40;  // enough for the kernel of many rows
    const std::size_t width = static_cast<std::size_t>(hidden);
    DeviceVector<T> x(random_values<T>(width * many, 7)), weight(random_values<T>(width, 8)), out(width * many), alone(width * 3);
    nvl::kernels::RmsNormParams<T> p{
        .out = out.data(), .x = x.data(), .weight = weight.data(), .num_tokens = many, .hidden = hidden};
    nvl::kernels::launch_rms_norm(p, nullptr);
    p.out = alone.data();
    p.num_tokens = 3;
    nvl::kernels::launch_rms_norm(p, nullptr);
    std::vector<T> all = out.to_host();
    all.resize(width * 3);
    CAPTURE(hidden);
    CHECK(to_floats(all) == to_floats(alone.to_host()));
  }
}

TEST_CASE("RMSNorm refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  nvl::kernels::RmsNormParams<bf16> p{.num_tokens = 1, .hidden = 12};
  CHECK_THROWS_AS(nvl::kernels::launch_rms_norm(p, nullptr), nvl::InvalidArgument);
  p.hidden = 64;
  p.x_stride = 56;
  CHECK_THROWS_AS(nvl::kernels::launch_rms_norm(p, nullptr), nvl::InvalidArgument);
  p.x_stride = 0;
  p.num_tokens = -1;
  CHECK_THROWS_AS(nvl::kernels::launch_rms_norm(p, nullptr), nvl::InvalidArgument);
}

}  // namespace
