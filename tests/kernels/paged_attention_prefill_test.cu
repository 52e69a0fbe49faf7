#include "kernels/paged_attention_prefill_problem.cuh"
#include "support/device.cuh"

#include <nvl/kernels/paged_attention_prefill.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace {

using nvl_test::PrefillCase;
template <class T>
using PrefillProblem = nvl_test::PrefillProblem<T, nvl_test::DeviceVector>;

/// Rounding P to 16 bits adds an error like that of rounding the output, which `max_nmse` bounds alone.
template <class T>
constexpr double max_error = (sizeof(T) == 2 ? 2.0 : 1.0) * nvl::reference::max_nmse<T>;

struct LaunchFastest {
  template <class T>
  void operator()(const nvl::kernels::PagedPrefillParams<T>& params) const {
    nvl::kernels::launch_paged_prefill<T>(params, nullptr);
  }
};

template <class T, class Launch = LaunchFastest>
void run(PrefillProblem<T>& problem, const Launch& launch = {}) {
  const auto params = problem.params();
  nvl::kernels::launch_paged_prefill_plan<T>(params, nullptr);
  launch(params);
}

template <class T, class Launch = LaunchFastest>
void check(const PrefillCase& shape, std::size_t max_rows = 150, const Launch& launch = {}) {
  INFO(shape.name << ", head dim " << shape.head_dim);
  PrefillProblem<T> problem(shape);
  run(problem, launch);
  const auto errors = problem.check(max_rows);
  CHECK(errors.out <= max_error<T>);
  CHECK(errors.lse <= 1e-4);
  CHECK(errors.touched == 0);
  CHECK(errors.unwritten == 0);
  CHECK(errors.checked > 0);
}

}  // namespace

TEMPLATE_TEST_CASE("prefill attention equals the oracle at every head dim", "[kernel][gpu]", nvl::bf16, nvl::fp16, float) {
  nvl_test::require_device();
  for (const std::int32_t head_dim : nvl::supported_head_dims) {
    for (const PrefillCase& shape : nvl_test::prefill_test_cases(head_dim)) { check<TestType>(shape); }
  }
}

TEMPLATE_TEST_CASE("prefill attention of small steps equals the oracle", "[kernel][gpu][sanitize]", nvl::bf16, float) {
  nvl_test::require_device();
  for (const std::int32_t head_dim : {64, 80, 128, 256}) {
    for (const PrefillCase& shape : nvl_test::small_prefill_cases(head_dim)) { check<TestType>(shape, 50); }
  }
}

TEST_CASE("prefill attention without Hopper's instructions equals the oracle too", "[kernel][gpu]") {
  nvl_test::require_device();
  for (const PrefillCase& shape : nvl_test::prefill_test_cases(128)) {
    if (shape.softcap > 0.0f) { continue; }
    check<nvl::bf16>(shape, 50, [](const auto& params) {
      nvl::kernels::launch_paged_prefill_mma<nvl::kernels::PagedPrefillMmaTraits<nvl::bf16, 128>>(params, nullptr);
    });
  }
}

TEST_CASE("prefill attention reads slots past 2^31 elements", "[kernel][gpu]") {
  nvl_test::require_device();
  // 2^31 elements in blocks of 2 * 8 * 16 * 128
  check<nvl::bf16>({.name = "far blocks",
                    .sequences = {{100, 300}, {33, 33}},
                    .num_q_heads = 16,
                    .num_kv_heads = 8,
                    .head_dim = 128,
                    .first_block = (std::int64_t{1} << 31) / (2 * 8 * 16 * 128)});
}

TEST_CASE("prefill attention of a sequence of 100,000 tokens", "[kernel][gpu]") {
  nvl_test::require_device();
  check<nvl::bf16>({.name = "long", .sequences = {{300, 100003}}, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 128}, 8);
}

TEST_CASE("prefill attention does not depend on how a prompt is cut into chunks", "[kernel][gpu]") {
  nvl_test::require_device();
  // The last 200 queries of a prompt of 700, alone and after 500 others of the same step.
  using T = nvl::bf16;
  const auto last_queries = [](std::int32_t query_len) {
    PrefillProblem<T> problem({.sequences = {{query_len, 700}}, .num_q_heads = 6, .num_kv_heads = 2, .head_dim = 128});
    problem.set_queries(700 - query_len, 5);
    run(problem);
    const std::vector<T> out = problem.out();
    return std::vector<T>(out.end() - 200 * 6 * 128, out.end());
  };
  const std::vector<T> alone = last_queries(200), together = last_queries(700);
  for (std::size_t i = 0; i < alone.size(); ++i) { REQUIRE(alone[i].bits == together[i].bits); }
}

TEST_CASE("prefill attention of no tokens launches nothing", "[kernel][gpu][sanitize]") {
  nvl_test::require_device();
  PrefillProblem<nvl::bf16> problem({.sequences = {{1, 1}}});
  auto params = problem.params();
  params.num_tokens = 0;
  nvl::kernels::launch_paged_prefill_plan<nvl::bf16>(params, nullptr);
  nvl::kernels::launch_paged_prefill<nvl::bf16>(params, nullptr);
  params.num_tokens = 1;
  params.num_seqs = 0;
  nvl::kernels::launch_paged_prefill<nvl::bf16>(params, nullptr);
  CHECK(problem.check().unwritten == 128 * 2);
}

TEMPLATE_TEST_CASE("prefill attention of nothing but padding leaves every row as it is", "[kernel][gpu][sanitize]", nvl::bf16,
                   float) {
  nvl_test::require_device();
  PrefillProblem<TestType> problem({.sequences = {{1, 0}, {1, 0}, {0, 0}, {5, 0}}, .padding_tokens = 3});
  for (int layer = 0; layer < 2; ++layer) { run(problem); }
  const auto errors = problem.check();
  CHECK(errors.checked == 0);
  CHECK(errors.touched == 0);
}

TEST_CASE("prefill attention names the argument that is wrong", "[kernel]") {
  alignas(16) static std::byte memory[64];
  using T = nvl::bf16;
  const nvl::kernels::PagedPrefillParams<T> good{
      .q = reinterpret_cast<const T*>(memory),
      .q_row_stride = 256,
      .kv = reinterpret_cast<const T*>(memory),
      .layout = {.num_blocks = 1, .block_size = 16, .num_kv_heads = 1, .head_dim = 128},
      .num_q_heads = 2,
      .workspace = memory};
  const auto field = [](const nvl::kernels::PagedPrefillParams<T>& params) -> std::string {
    try {
      nvl::kernels::launch_paged_prefill<T>(params, nullptr);
    } catch (const nvl::InvalidArgument& error) { return error.field(); }
    return "";
  };
  CHECK(field(good).empty());
  auto bad = good;
  bad.layout.head_dim = 72;
  CHECK(field(bad) == "head_dim");
  bad = good;
  bad.layout.block_size = 24;
  CHECK(field(bad) == "paged_prefill block_size");
  bad = good;
  bad.num_q_heads = 3;
  bad.layout.num_kv_heads = 2;
  CHECK(field(bad) == "paged_prefill num_q_heads");
  bad = good;
  bad.q_row_stride = 255;
  CHECK(field(bad) == "paged_prefill q_row_stride");
  bad = good;
  bad.scale = 0.0f;
  CHECK(field(bad) == "paged_prefill scale");
  bad = good;
  bad.workspace = nullptr;
  CHECK(field(bad) == "paged_prefill workspace");
}
