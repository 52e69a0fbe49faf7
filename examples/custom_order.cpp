// An order of one's own in ten lines: short answers first, and waiting counts too.
#include <nvl/nvl.hpp>
#include <nvl/testing/check_order.hpp>

#include <cstdint>
#include <cstdio>

struct ShortAnswersFirst {
  /// Smaller is first. A step of waiting is worth 8 tokens, so that no long answer starves.
  std::int64_t operator()(const nvl::Sequence& seq, std::int64_t step_in_which_it_came) const noexcept {
    return seq.max_total_tokens - seq.num_prompt + 8 * step_in_which_it_came;
  }
};
using MyOrder = nvl::KeyedOrder<ShortAnswersFirst>;
using MyScheduler = nvl::TokenBudgetScheduler<MyOrder>;
using MyEngine = nvl::DefaultCpuEngine<float>::with_scheduler<MyScheduler>;

int main() {
  // Thousands of random requests against every promise of an order and of a scheduler.
  if (const auto broken = nvl::testing::check_order<MyOrder>(); !broken.empty()) {
    std::fprintf(stderr, "nvl-custom-order: error: %s", broken.text().c_str());
    return 1;
  }
  // An engine without a model: the scheduler and the allocator are the real ones.
  nvl::testing::SchedulerHarness<MyScheduler, nvl::PrefixCacheAllocator> engine({.max_num_seqs = 1, .block_size = 4}, 64);
  for (const std::int32_t max_tokens : {9, 3, 6}) { engine.submit({1, 2, 3}, max_tokens); }
  while (engine.num_live() > 0 && engine.step()) {
    const nvl::ScheduledSeq& planned = engine.batch().seqs.front();
    if (planned.first_position == 0) { std::printf("sequence %d starts\n", static_cast<int>(index_of(planned.seq->id))); }
  }
  return engine.violations().empty() ? 0 : 1;
}
