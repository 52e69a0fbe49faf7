#include "kernels/embed_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/embed.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl::TokenId;
using nvl_test::DeviceVector;
using nvl_test::to_floats;

template <class T>
std::vector<T> rows_of(const std::vector<T>& table, const std::vector<TokenId>& ids, std::size_t hidden) {
  std::vector<T> rows;
  for (const TokenId id : ids) {
    const auto row = table.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(id) * hidden);
    rows.insert(rows.end(), row, row + static_cast<std::ptrdiff_t>(hidden));
  }
  return rows;
}

std::vector<TokenId> random_ids(int count, int limit, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<TokenId> id(0, limit - 1);
  std::vector<TokenId> ids(static_cast<std::size_t>(count));
  for (TokenId& x : ids) { x = id(random); }
  return ids;
}

TEMPLATE_TEST_CASE("embed copies the rows of its ids", "[kernel][gpu]", bf16, fp16, float) {
  using T = TestType;
  nvl_test::require_device();
  for (const nvl_test::EmbedCase& c : nvl_test::embed_cases()) {
    if (c.timed) { continue; }
    CAPTURE(c.num_rows, c.hidden, c.table_rows);
    const auto hidden = static_cast<std::size_t>(c.hidden);
    const std::vector<T> table = nvl_test::random_values<T>(static_cast<std::size_t>(c.table_rows) * hidden, 1);
    const std::vector<TokenId> ids = random_ids(c.num_rows, c.table_rows, 2);
    const DeviceVector<T> device_table(table);
    const DeviceVector<TokenId> device_ids(ids);
    DeviceVector<T> out(ids.size() * hidden), gathered(ids.size() * hidden);
    nvl::kernels::launch_embed<T>(
        {.out = out.data(), .table = device_table.data(), .ids = device_ids.data(), .num_rows = c.num_rows, .hidden = c.hidden},
        nullptr);
    nvl::kernels::launch_gather_rows(gathered.data(), device_table.data(), device_ids.data(), c.num_rows, c.hidden, nullptr);
    const std::vector<float> expected = to_floats(rows_of(table, ids, hidden));
    CHECK(to_floats(out.to_host()) == expected);
    CHECK(to_floats(gathered.to_host()) == expected);
  }
}

TEMPLATE_TEST_CASE("embed widens the rows of 16 bits to float", "[kernel][gpu]", bf16, fp16) {
  nvl_test::require_device();
  const std::size_t hidden = 264;
  const std::vector<TestType> table = nvl_test::random_values<TestType>(50 * hidden, 1);
  const std::vector<TokenId> ids = random_ids(70, 50, 2);
  const DeviceVector<TestType> device_table(table);
  const DeviceVector<TokenId> device_ids(ids);
  DeviceVector<float> out(ids.size() * hidden);
  nvl::kernels::launch_embed<TestType, float>({.out = out.data(),
                                               .table = device_table.data(),
                                               .ids = device_ids.data(),
                                               .num_rows = static_cast<int>(ids.size()),
                                               .hidden = static_cast<int>(hidden)},
                                              nullptr);
  CHECK(out.to_host() == to_floats(rows_of(table, ids, hidden)));
}

TEST_CASE("embed takes the ids that only the device knows from the sampled tokens", "[kernel][gpu]") {
  nvl_test::require_device();
  const std::size_t hidden = 72;
  const std::vector<float> table = nvl_test::random_values<float>(50 * hidden, 1);
  const std::vector<TokenId> sampled{7, 49, 0}, ids{3, -2, 12, -1, -3, 49};
  const DeviceVector<float> device_table(table);
  const DeviceVector<TokenId> device_ids(ids), device_sampled(sampled);
  DeviceVector<float> out(ids.size() * hidden);
  nvl::kernels::launch_embed<float>({.out = out.data(),
                                     .table = device_table.data(),
                                     .ids = device_ids.data(),
                                     .sampled = device_sampled.data(),
                                     .num_rows = static_cast<int>(ids.size()),
                                     .hidden = static_cast<int>(hidden)},
                                    nullptr);
  CHECK(out.to_host() == rows_of(table, {3, 49, 12, 7, 0, 49}, hidden));
}

TEST_CASE("embed reads rows beyond 2^31 elements of the table", "[kernel][gpu]") {
  nvl_test::require_device();
  const int hidden = 1 << 16;
  const TokenId first = (1 << 15) + 3;  // times hidden: 2^31 and more
  const std::vector<bf16> rows = nvl_test::random_values<bf16>(std::size_t{2} * hidden, 1);
  const DeviceVector<bf16> device_rows(rows);
  const DeviceVector<TokenId> ids(std::vector<TokenId>{first + 1, first});
  DeviceVector<bf16> out(rows.size());
  // Where the table would begin if it were all there.
  const std::uintptr_t table = reinterpret_cast<std::uintptr_t>(device_rows.data()) - sizeof(bf16) * std::int64_t{first} * hidden;
  nvl::kernels::launch_embed<bf16>(
      {.out = out.data(), .table = reinterpret_cast<const bf16*>(table), .ids = ids.data(), .num_rows = 2, .hidden = hidden},
      nullptr);
  CHECK(to_floats(out.to_host()) == to_floats(rows_of(rows, {1, 0}, hidden)));
}

TEST_CASE("embed refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  CHECK_THROWS_AS(nvl::kernels::launch_embed<bf16>({.num_rows = 1, .hidden = 4}, nullptr), nvl::InvalidArgument);
  CHECK_THROWS_AS(nvl::kernels::launch_embed<bf16>({.num_rows = -1, .hidden = 8}, nullptr), nvl::InvalidArgument);
}

}  // namespace
