#include "kernels/rope_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/rope.hpp>
#include <nvl/kernels/rope.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl::RopeConfig;
using nvl::RopeScaling;
using nvl::RopeTable;
using nvl::RotaryLayout;
using nvl_test::DeviceVector;

constexpr int num_positions = 600;

std::vector<std::int32_t> random_positions(int count) {
  std::mt19937 random(11);
  std::uniform_int_distribution<std::int32_t> position(0, num_positions - 1);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
  for (std::int32_t& p : positions) { p = position(random); }
  return positions;
}

template <class T>
void check_case(const nvl_test::RopeCase& c, const RopeConfig& config) {
  CAPTURE(c.num_tokens, c.num_heads, c.head_dim, c.gap, static_cast<int>(config.layout), static_cast<int>(config.scaling));
  const RopeTable table(config, c.head_dim, num_positions);
  const DeviceVector<float> cos_sin(nvl::kernels::pack_rope_table(table));
  const std::vector<std::int32_t> positions = random_positions(c.num_tokens);
  const DeviceVector<std::int32_t> device_positions(positions);
  const auto d = static_cast<std::size_t>(c.head_dim), width = static_cast<std::size_t>(c.num_heads) * d;
  const std::size_t stride = width + static_cast<std::size_t>(c.gap);
  const std::vector<T> x = nvl_test::random_values<T>(positions.size() * width, 1);
  DeviceVector<T> device_x(nvl_test::spread_rows(x, width, stride));
  nvl::kernels::launch_rope<T>({.x = device_x.data(),
                                .positions = device_positions.data(),
                                .table = nvl::kernels::device_rope_table(table, cos_sin.data()),
                                .row_stride = static_cast<std::int64_t>(stride),
                                .num_tokens = c.num_tokens,
                                .num_heads = c.num_heads},
                               nullptr);

  const std::vector<double> frequencies = nvl::rope_inverse_frequencies(config, c.head_dim);
  std::vector<double> expected;
  for (std::size_t head = 0; head * d < x.size(); ++head) {
    const std::vector<double> rotated = nvl::reference::norm_and_rope(
        std::span<const T>(x).subspan(head * d, d), {}, 0.0, frequencies, nvl::rope_magnitude(config),
        static_cast<double>(positions[head / static_cast<std::size_t>(c.num_heads)]), config.layout);
    expected.insert(expected.end(), rotated.begin(), rotated.end());
  }
  const std::vector<T> actual = nvl_test::dense_rows(device_x.to_host(), width, stride);
  CHECK(nvl::reference::nmse(actual, expected) <=
        (x.size() < 1000 ? nvl::reference::max_nmse_of_few<T> : nvl::reference::max_nmse<T>));
}

TEMPLATE_TEST_CASE("RoPE rotates the pairs of every head by its token's position", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const RotaryLayout layout : {RotaryLayout::half, RotaryLayout::interleaved}) {
    for (const nvl_test::RopeCase& c : nvl_test::rope_cases()) {
      // A head of float has half as many elements a lane; 256 is the most that a warp holds.
      if (c.num_tokens <= 300) { check_case<TestType>(c, {.layout = layout}); }
    }
  }
}

TEST_CASE("RoPE follows the table for every scaling", "[kernel][gpu]") {
  nvl_test::require_device();
  const nvl_test::RopeCase c{40, 4, 128};
  check_case<bf16>(c, {.scaling = RopeScaling::linear, .factor = 4.0});
  check_case<bf16>(c, {.theta = 500000.0, .scaling = RopeScaling::llama3, .factor = 8.0, .original_max_positions = 128});
  check_case<bf16>(c, {.theta = 1e6, .scaling = RopeScaling::yarn, .factor = 4.0, .original_max_positions = 100});
}

TEST_CASE("rope refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  nvl::kernels::RopeParams<bf16> p{.table = {.num_positions = 1, .head_dim = 24}, .num_tokens = 1, .num_heads = 1};
  CHECK_THROWS_AS(nvl::kernels::launch_rope(p, nullptr), nvl::InvalidArgument);
  p.table.head_dim = 64;
  p.num_heads = 0;
  CHECK_THROWS_AS(nvl::kernels::launch_rope(p, nullptr), nvl::InvalidArgument);
}

}  // namespace
