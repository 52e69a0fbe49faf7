#include "kernels/merge_states_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"

#include <nvl/kernels/merge_states.cuh>
#include <nvl/kernels/reference/attention.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/merge_states.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace {

constexpr float no_keys = -std::numeric_limits<float>::infinity();

/// Merges on the device; `in_place` writes over out_a.
template <class T>
struct Merge {
  std::vector<T> out;
  std::vector<float> lse;

  Merge(const std::vector<T>& out_a, const std::vector<float>& lse_a, const std::vector<T>& out_b,
        const std::vector<float>& lse_b, std::int32_t head_dim, bool in_place = false) {
    nvl_test::DeviceVector<T> a(out_a), b(out_b), merged(out_a.size());
    nvl_test::DeviceVector<float> la(lse_a), lb(lse_b), merged_lse(lse_a.size());
    nvl_test::DeviceVector<T>& to = in_place ? a : merged;
    nvl::kernels::launch_merge_states<nvl::kernels::MergeStatesTraits<T>>({.out = to.data(),
                                                                           .lse = merged_lse.data(),
                                                                           .out_a = a.data(),
                                                                           .lse_a = la.data(),
                                                                           .out_b = b.data(),
                                                                           .lse_b = lb.data(),
                                                                           .num_rows = static_cast<std::int64_t>(lse_a.size()),
                                                                           .head_dim = head_dim},
                                                                          nullptr);
    out = to.to_host();
    lse = merged_lse.to_host();
  }
};

}  // namespace

TEMPLATE_TEST_CASE("merged attention states equal the oracle", "[kernel][gpu]", nvl::bf16, nvl::fp16, float) {
  nvl_test::require_device();
  for (const nvl_test::MergeStatesCase& shape : nvl_test::merge_states_test_cases()) {
    INFO(shape.num_rows << " rows of " << shape.head_dim);
    const auto rows = static_cast<std::size_t>(shape.num_rows), d = static_cast<std::size_t>(shape.head_dim);
    auto out_a = nvl_test::random_values<TestType>(rows * d, 1), out_b = nvl_test::random_values<TestType>(rows * d, 2);
    auto lse_a = nvl_test::random_values<float>(rows, 3, 4.0f), lse_b = nvl_test::random_values<float>(rows, 4, 4.0f);
    // Rows without keys on one side or both hold NaN there.
    const auto empty = [&](std::vector<TestType>& out, std::vector<float>& lse, std::size_t row) {
      lse[row] = no_keys;
      for (std::size_t i = 0; i < d; ++i) { out[row * d + i] = static_cast<TestType>(std::numeric_limits<float>::quiet_NaN()); }
    };
    if (rows > 8) {
      empty(out_a, lse_a, 2);
      empty(out_b, lse_b, 4);
      empty(out_a, lse_a, 6);
      empty(out_b, lse_b, 6);
      lse_a[7] = 1000.0f;  // exp would overflow
      lse_b[7] = 999.0f;
    }
    std::vector<double> expected;
    const Merge<TestType> merge(out_a, lse_a, out_b, lse_b, shape.head_dim, rows % 2 == 0);
    for (std::size_t row = 0; row < rows; ++row) {
      const auto want = nvl::reference::merge_states<TestType>(std::span(out_a).subspan(row * d, d), double{lse_a[row]},
                                                               std::span(out_b).subspan(row * d, d), double{lse_b[row]});
      expected.insert(expected.end(), want.out.begin(), want.out.end());
      if (std::isinf(want.lse)) {
        CHECK(merge.lse[row] == no_keys);
      } else {
        CHECK(std::abs(double{merge.lse[row]} - want.lse) <= 1e-6 * std::max(1.0, std::abs(want.lse)));
      }
    }
    CHECK(nvl::reference::nmse(merge.out, expected) <=
          (rows * d < 1000 ? nvl::reference::max_nmse_of_few<TestType> : nvl::reference::max_nmse<TestType>));
  }
}

TEST_CASE("attention over two sets of keys, merged, is attention over both", "[kernel][gpu]") {
  nvl_test::require_device();
  constexpr std::size_t d = 64, keys = 50, cut = 13;
  const auto query = nvl_test::random_values<float>(d, 1), k = nvl_test::random_values<float>(keys * d, 2),
             v = nvl_test::random_values<float>(keys * d, 3);
  const auto attend = [&](std::size_t first, std::size_t last, double& lse) {
    return nvl::reference::attention<float>(query, k, v, first, last, 0.125, 0.0, &lse);
  };
  double lse_a = 0, lse_b = 0, lse = 0;
  const auto a = attend(0, cut, lse_a), b = attend(cut + 1, keys - 1, lse_b), whole = attend(0, keys - 1, lse);
  const Merge<float> merge(std::vector<float>(a.begin(), a.end()), {static_cast<float>(lse_a)},
                           std::vector<float>(b.begin(), b.end()), {static_cast<float>(lse_b)}, d);
  CHECK(nvl::reference::nmse(merge.out, whole) <= nvl::reference::max_nmse_of_few<float>);
  CHECK(std::abs(double{merge.lse[0]} - lse) <= 1e-6);
}

TEST_CASE("merge of no attention states launches nothing, wrong arguments are named", "[kernel]") {
  using T = nvl::bf16;
  using Traits = nvl::kernels::MergeStatesTraits<T>;
  nvl::kernels::MergeStatesParams<T> params{.head_dim = 128};
  nvl::kernels::launch_merge_states<Traits>(params, nullptr);
  const auto field = [&]() -> std::string {
    try {
      nvl::kernels::launch_merge_states<Traits>(params, nullptr);
    } catch (const nvl::InvalidArgument& error) { return error.field(); }
    return "";
  };
  params.head_dim = 100;
  CHECK(field() == "merge_states head_dim");
  params.head_dim = 128;
  params.num_rows = -1;
  CHECK(field() == "merge_states num_rows");
  params.num_rows = 0;
  alignas(16) static float lse[4];
  params.lse = lse;
  params.lse_b = lse;
  CHECK(field() == "merge_states lse");
}
