#include "support/device.cuh"
#include "support/expect_error.hpp"
#include "support/random_tensor.hpp"
#include "support/temp_dir.hpp"

#include <nvl/kernels/linear.cuh>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/linear.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using nvl::bf16;
using nvl::DType;
using nvl::fp16;
using nvl::kernels::GemmCacheStatus;
using nvl::kernels::GemmKey;
using nvl::kernels::GemmTuneReport;
using nvl::kernels::Linear;
using nvl_test::DeviceVector;
using nvl_test::random_values;

/// A Linear with its workspace.
template <bool kBatchInvariant = false>
struct WithWorkspace {
  WithWorkspace() : workspace(Linear<>::default_workspace_bytes), linear({workspace.data(), workspace.size()}) {}
  DeviceVector<std::byte> workspace;
  Linear<kBatchInvariant> linear;
};

template <class T, class Out, class Linears>
std::vector<Out> run(Linears& linear, const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& bias,
                     std::int32_t rows, std::int32_t n, std::int32_t k) {
  const DeviceVector<T> device_x(x), device_w(w), device_bias(bias);
  DeviceVector<Out> out(static_cast<std::size_t>(rows) * static_cast<std::size_t>(n));
  linear.run(out.data(), device_x.data(), device_w.data(), device_bias.data(), rows, n, k, nullptr);
  return out.to_host();
}

template <class T, class Out>
double error(const std::vector<Out>& out, const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& bias,
             std::int32_t rows, std::int32_t n, std::int32_t k) {
  const std::vector<float> weights(w.begin(), w.end()), biases(bias.begin(), bias.end());
  return nvl::reference::nmse(
      out, nvl::reference::linear(std::span<const T>(x), std::span<const float>(weights), std::span<const float>(biases),
                                  static_cast<std::size_t>(rows), static_cast<std::size_t>(k), static_cast<std::size_t>(n)));
}

/// Tensor cores cut the low bits of what they add to a sum, which shows where the result stays float.
template <class T, class Out>
constexpr double bound(std::size_t size) {
  if (sizeof(T) == 2 && sizeof(Out) == 4) { return 1e-11; }
  return size < 1000 ? nvl::reference::max_nmse_of_few<Out> : nvl::reference::max_nmse<Out>;
}

template <class T, class Out, class Linears>
void check_shapes(Linears& linear, const std::vector<std::int32_t>& row_counts,
                  const std::vector<std::pair<std::int32_t, std::int32_t>>& weights) {
  for (const std::int32_t rows : row_counts) {
    for (const auto& [n, k] : weights) {
      for (const bool with_bias : {false, true}) {
        if (with_bias && !std::is_same_v<T, Out>) { continue; }
        CAPTURE(rows, n, k, with_bias);
        const auto size_x = static_cast<std::size_t>(rows) * static_cast<std::size_t>(k);
        const auto x = random_values<T>(size_x, 1), w = random_values<T>(static_cast<std::size_t>(n * k), 2);
        const auto bias = random_values<T>(with_bias ? static_cast<std::size_t>(n) : 0, 3);
        const std::vector<Out> out = run<T, Out>(linear, x, w, bias, rows, n, k);
        CHECK(error(out, x, w, bias, rows, n, k) <= bound<T, Out>(out.size()));
      }
    }
  }
}

std::vector<GemmKey> some_keys() {
  std::vector<GemmKey> keys;
  for (const std::int32_t rows : {1, 16, 64, 256}) {
    keys.push_back({DType::bfloat16, DType::bfloat16, false, rows, 1024, 512});
    keys.push_back({DType::bfloat16, DType::bfloat16, true, rows, 512, 1536});
    keys.push_back({DType::bfloat16, DType::float32, false, rows, 4096, 512});
  }
  return keys;
}

}  // namespace

TEMPLATE_TEST_CASE("Linear layers of every number of rows agree with the oracle", "[kernel][gpu]", (std::tuple<bf16, bf16>),
                   (std::tuple<fp16, fp16>), (std::tuple<float, float>), (std::tuple<bf16, float>), (std::tuple<fp16, float>)) {
  nvl_test::require_device();
  using T = std::tuple_element_t<0, TestType>;
  using Out = std::tuple_element_t<1, TestType>;
  const std::vector<std::int32_t> row_counts{1, 2, 8, 9, 31, 64, 65, 130};
  const std::vector<std::pair<std::int32_t, std::int32_t>> weights{{8, 8}, {72, 64}, {192, 576}, {520, 264}, {64, 3072}};
  WithWorkspace<> fastest;
  check_shapes<T, Out>(fastest.linear, row_counts, weights);
  WithWorkspace<true> batch_invariant;
  check_shapes<T, Out>(batch_invariant.linear, row_counts, weights);
}

TEST_CASE("Linear layers of a few shapes agree with the oracle", "[kernel][gpu][sanitize]") {
  nvl_test::require_device();
  const std::vector<std::int32_t> row_counts{1, 9, 65};
  const std::vector<std::pair<std::int32_t, std::int32_t>> weights{{72, 64}, {520, 264}, {64, 1536}};
  WithWorkspace<> fastest;
  check_shapes<bf16, bf16>(fastest.linear, row_counts, weights);
  check_shapes<float, float>(fastest.linear, row_counts, weights);
  WithWorkspace<true> batch_invariant;
  check_shapes<fp16, float>(batch_invariant.linear, row_counts, weights);
}

TEMPLATE_TEST_CASE("A batch-invariant row has the same bits whatever rows are beside it", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  WithWorkspace<true> fixture;
  for (const auto& [n, k] : {std::pair{1024, 2048}, {576, 1536}, {4096, 1024}}) {
    constexpr std::int32_t max_rows = 400;
    const auto x = random_values<TestType>(static_cast<std::size_t>(max_rows) * static_cast<std::size_t>(k), 1);
    const auto w = random_values<TestType>(static_cast<std::size_t>(n) * static_cast<std::size_t>(k), 2);
    const DeviceVector<TestType> device_x(x), device_w(w);
    const auto rows_from = [&](std::int32_t first, std::int32_t rows) {
      DeviceVector<float> out(static_cast<std::size_t>(rows) * static_cast<std::size_t>(n));
      fixture.linear.run(out.data(), device_x.data() + std::int64_t{first} * k, device_w.data(),
                         static_cast<const TestType*>(nullptr), rows, n, k, nullptr);
      return out.to_host();
    };
    const std::vector<float> all = rows_from(0, max_rows);
    for (const std::int32_t rows : {1, 2, 8, 9, 17, 33, 64, 65, 129, 256, 300}) {
      for (const std::int32_t first : {0, 5, max_rows - rows}) {
        CAPTURE(n, k, rows, first);
        const std::vector<float> some = rows_from(first, rows);
        CHECK(std::equal(some.begin(), some.end(), all.begin() + std::int64_t{first} * n));
      }
    }
  }
}

TEST_CASE("After a search the layers are still right, and its records serve another Linear and a cache file", "[kernel][gpu]") {
  nvl_test::require_device();
  WithWorkspace<> fixture;
  DeviceVector<std::byte> scratch(64 << 20);
  const std::vector<GemmKey> keys = some_keys();
  const GemmTuneReport report =
      fixture.linear.tune<bf16>({.keys = keys, .scratch = {scratch.data(), scratch.size()}, .max_seconds = 60.0});
  CHECK(report.num_tuned == static_cast<std::int32_t>(keys.size()));
  CHECK(report.num_left + report.num_skipped + report.num_known == 0);
  REQUIRE(fixture.linear.records().size() == keys.size());
  for (const auto& record : fixture.linear.records()) { CHECK(record.time_us > 0.0f); }

  const auto check_all = [&](auto& linear) {
    for (const GemmKey& key : keys) {
      const std::int32_t rows = key.num_rows, n = key.out_features, k = key.in_features;
      CAPTURE(rows, n, k);
      const auto x = random_values<bf16>(static_cast<std::size_t>(rows * k), 1),
                 w = random_values<bf16>(static_cast<std::size_t>(n * k), 2);
      const auto bias = random_values<bf16>(key.has_bias ? static_cast<std::size_t>(n) : 0, 3);
      if (key.out == DType::float32) {
        CHECK(error(run<bf16, float>(linear, x, w, bias, rows, n, k), x, w, bias, rows, n, k) <= 1e-11);
      } else {
        CHECK(error(run<bf16, bf16>(linear, x, w, bias, rows, n, k), x, w, bias, rows, n, k) <= nvl::reference::max_nmse<bf16>);
      }
    }
  };
  check_all(fixture.linear);

  const nvl_test::TempDir folder;
  const auto path = folder.path() / "gemm.cache";
  fixture.linear.save_cache(path);
  WithWorkspace<> other;
  const auto contents = other.linear.load_cache(path);
  CHECK(contents.status == GemmCacheStatus::loaded);
  CHECK(other.linear.records().size() == keys.size());
  check_all(other.linear);
  // What is known is not searched again.
  const GemmTuneReport again = other.linear.tune<bf16>({.keys = keys, .scratch = {scratch.data(), scratch.size()}});
  CHECK(again.num_known == static_cast<std::int32_t>(keys.size()));
  CHECK(again.num_tuned == 0);
}

TEST_CASE("A search ends when its time is over and leaves out what does not fit", "[kernel][gpu]") {
  nvl_test::require_device();
  WithWorkspace<> fixture;
  DeviceVector<std::byte> scratch(4 << 20);
  const std::vector<GemmKey> keys = some_keys();
  const GemmTuneReport none =
      fixture.linear.tune<bf16>({.keys = keys, .scratch = {scratch.data(), scratch.size()}, .max_seconds = 0.0});
  CHECK(none.num_left == static_cast<std::int32_t>(keys.size()));
  CHECK(fixture.linear.records().empty());
  const GemmKey large{DType::bfloat16, DType::bfloat16, false, 1, 4096, 1024};
  const GemmKey small{DType::bfloat16, DType::bfloat16, false, 1, 64, 64};
  const GemmKey both[] = {large, small};
  const GemmTuneReport some = fixture.linear.tune<bf16>({.keys = both, .scratch = {scratch.data(), scratch.size()}});
  CHECK(some.num_skipped == 1);
  CHECK(some.num_tuned == 1);
}

TEST_CASE("A cache file that is damaged or of another kind changes nothing", "[kernel][gpu][sanitize]") {
  nvl_test::require_device();
  WithWorkspace<> fixture;
  const nvl_test::TempDir folder;
  CHECK(fixture.linear.load_cache(folder.path() / "none").status == GemmCacheStatus::missing);
  CHECK(fixture.linear.load_cache(folder.write("text", "hello\n")).status == GemmCacheStatus::other_format);
  CHECK(fixture.linear.load_cache(folder.path()).status == GemmCacheStatus::unreadable);
  // Right in form, with an algorithm that cuBLASLt does not know: not taken.
  nvl::kernels::GemmRecord record{some_keys().front(), {}, 1.0f};
  record.algo.words.fill(0x1234567812345678ull);
  const auto path = folder.path() / "nonsense";
  nvl::kernels::write_gemm_cache(path, nvl::kernels::CublasLtGemm::identity(), std::span(&record, 1));
  CHECK(fixture.linear.load_cache(path).status == GemmCacheStatus::loaded);
  CHECK(fixture.linear.records().empty());
}
