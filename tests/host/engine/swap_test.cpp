// Sequences go out to host memory and come back while others run. Nothing that a request gets may change.

#include "support/ahead_ops.hpp"
#include "support/expect_error.hpp"
#include "support/late_transfers.hpp"
#include "support/tiny_model.hpp"

#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace swap_test {

using namespace nvl;
using namespace nvl_test;

namespace {

template <class Preemption>
using Scheduler = TokenBudgetScheduler<FcfsOrder, Preemption>;

template <class Attention, class Allocator, class Preemption = SwapPreemption>
using EngineWith = Engine<Scheduler<Preemption>, Allocator, Attention, SingleDevice>;

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 42);
  return weights;
}

constexpr std::int64_t block_bytes = 3 * 2 * 2 * 16 * 16 * 4;  // layers, K and V, heads, tokens, head dim, float

/// Room for few of the requests at a time.
EngineOptions scarce_options(std::int64_t num_host_blocks) {
  EngineOptions options = roomy_options();
  options.num_blocks = 12;
  options.swap_space_bytes = num_host_blocks * block_bytes;
  options.scheduling.swap_in_steps = 4;
  return options;
}

/// Prompts within 60 tokens and outputs within 40, greedy and drawn; some begin alike.
std::vector<Request> requests(int count) {
  std::vector<Request> all;
  for (int i = 0; i < count; ++i) {
    Request request = greedy_request(tiny_prompt(i % 3 == 0 ? 0 : i, 1 + (i * 37) % 60), 1 + (i * 29) % 40);
    if (i % 4 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = 100u + static_cast<unsigned>(i);
    }
    if (i % 5 == 2) { request.sampling.repetition_penalty = 1.3f; }
    if (i % 4 == 3) {
      request.sampling.ignore_eos = false;
      request.sampling.stop_token_ids = {11, 50, 90, 120, 160};
    }
    all.push_back(std::move(request));
  }
  return all;
}

std::vector<std::vector<TokenId>> outputs(const std::vector<Completion>& completions) {
  std::vector<std::vector<TokenId>> all;
  for (const Completion& done : completions) { all.push_back(done.output_ids); }
  return all;
}

const std::vector<std::vector<TokenId>>& undisturbed() {
  static const auto expected = outputs(TinyEngine<>(tiny_config(), weights(), roomy_options()).generate(requests(32)));
  return expected;
}

template <class E>
void check_nothing_left(E& engine) {
  CHECK(engine.failure().empty());
  CHECK_FALSE(engine.has_work());
  CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
  CHECK(engine.stats().num_free_host_blocks == engine.stats().num_host_blocks);
}

}  // namespace

TEMPLATE_TEST_CASE("swapped requests get what they get undisturbed", "[engine][host]", CpuPagedAttention<float>, AheadAttention,
                   LateAttention<CpuOps<float>>, LateAttention<AheadOps>) {
  const auto check = [&]<class Allocator>(std::type_identity<Allocator>) {
    EngineWith<TestType, Allocator> engine(tiny_config(), weights(), scarce_options(64));
    CHECK(outputs(engine.generate(requests(32))) == undisturbed());
    const EngineStats stats = engine.stats();
    CHECK(stats.num_host_blocks == 64);
    CHECK(stats.num_swaps > 5);
    CHECK(stats.swapped_out_blocks >= stats.swapped_in_blocks);
    CHECK(stats.swapped_in_blocks > 0);
    check_nothing_left(engine);
  };
  SECTION("free list") { check(std::type_identity<FreeListAllocator>{}); }
  SECTION("prefix cache") { check(std::type_identity<PrefixCacheAllocator>{}); }
}

TEST_CASE("what is swapped is not computed again", "[engine][host]") {
  EngineWith<CpuPagedAttention<float>, FreeListAllocator> swapping(tiny_config(), weights(), scarce_options(64));
  EngineWith<CpuPagedAttention<float>, FreeListAllocator, RecomputePreemption> recomputing(tiny_config(), weights(),
                                                                                           scarce_options(0));
  EngineOptions roomy = roomy_options();
  EngineWith<CpuPagedAttention<float>, FreeListAllocator> undisturbed_engine(tiny_config(), weights(), roomy);
  CHECK(outputs(swapping.generate(requests(32))) == undisturbed());
  CHECK(outputs(recomputing.generate(requests(32))) == undisturbed());
  undisturbed_engine.generate(requests(32));
  CHECK(swapping.stats().num_swaps == swapping.stats().num_preemptions);
  CHECK(swapping.stats().computed_tokens == undisturbed_engine.stats().computed_tokens);
  CHECK(recomputing.stats().num_swaps == 0);
  CHECK(recomputing.stats().computed_tokens > swapping.stats().computed_tokens);
}

TEST_CASE("when the host pool is full the rest is recomputed", "[engine][host]") {
  for (const std::int64_t num_host_blocks : {0, 1, 2, 3}) {
    INFO(num_host_blocks << " host blocks");
    EngineWith<LateAttention<AheadOps>, FreeListAllocator> engine(tiny_config(), weights(), scarce_options(num_host_blocks));
    CHECK(outputs(engine.generate(requests(32))) == undisturbed());
    CHECK(engine.stats().num_preemptions > engine.stats().num_swaps);
    CHECK((engine.stats().num_swaps > 0) == (num_host_blocks > 0));
    check_nothing_left(engine);
  }
}

TEST_CASE("blocks that are on the device meanwhile are shared, not copied back", "[engine][host]") {
  // The same prompt over and over: who comes back finds its beginning in the blocks of the others.
  std::vector<Request> same;
  for (int i = 0; i < 8; ++i) {
    same.push_back(greedy_request(tiny_prompt(1, 33), 40));
    same.back().sampling.temperature = 0.8f;
    same.back().sampling.seed = static_cast<std::uint64_t>(i);
  }
  const auto expected = outputs(TinyEngine<>(tiny_config(), weights(), roomy_options()).generate(same));
  EngineWith<LateAttention<AheadOps>, PrefixCacheAllocator> engine(tiny_config(), weights(), scarce_options(64));
  CHECK(outputs(engine.generate(same)) == expected);
  CHECK(engine.stats().num_swaps > 0);
  CHECK(engine.stats().swapped_in_blocks < engine.stats().swapped_out_blocks);
  check_nothing_left(engine);
}

TEMPLATE_TEST_CASE("an abort at any step, in whatever state, frees what the request had", "[engine][host]",
                   CpuPagedAttention<float>, LateAttention<AheadOps>) {
  const std::vector<Request> all = requests(10);
  bool any_left = true;
  std::size_t num_swaps = 0;
  for (std::size_t at = 0; any_left; ++at) {
    INFO("after step " << at);
    EngineWith<TestType, PrefixCacheAllocator> engine(tiny_config(), weights(), scarce_options(16));
    std::vector<std::vector<TokenId>> tokens(all.size());
    std::vector<RequestId> ids;
    for (std::size_t i = 0; i < all.size(); ++i) {
      ids.push_back(engine.submit(
          all[i], {.on_token = {}, .on_finish = [&tokens, i](const Completion& done) { tokens[i] = done.output_ids; }}));
    }
    for (std::size_t step = 0; step < at; ++step) { engine.step(); }
    std::vector<bool> aborted(all.size());
    for (std::size_t i = at % 3; i < all.size(); i += 3) { aborted[i] = engine.abort(ids[i]); }
    any_left = engine.has_work();
    while (engine.has_work()) { engine.step(); }
    for (std::size_t i = 0; i < all.size(); ++i) {
      INFO("request " << i);
      if (!aborted[i]) { CHECK(tokens[i] == undisturbed()[i]); }
    }
    num_swaps += engine.stats().num_swaps;
    check_nothing_left(engine);
  }
  CHECK(num_swaps > 10);
}

namespace {

/// Ops that move no blocks, and an allocator that has none to move to.
struct StayingOps : CpuOps<float> {
  using CpuOps<float>::CpuOps;
  void transfer_blocks(const BlockTransfers<float>&) = delete;
  void qk_norm_rope_store(const QkNormRopeStore<StayingOps>&) {}
};
struct StayingAttention : CpuPagedAttention<float> {
  using Ops = StayingOps;
  StayingAttention(const AttentionShape& shape, StayingOps& ops) : CpuPagedAttention<float>(shape, ops) {}
};
static_assert(DeviceOps<StayingOps> && !TransferringOps<StayingOps>);

class OneTierAllocator {
 public:
  explicit OneTierAllocator(const BlockPoolShape& shape) : blocks_(shape) {}
  bool try_allocate(std::span<BlockId> out) noexcept { return blocks_.try_allocate(out); }
  void release(std::span<const BlockId> ids) noexcept { blocks_.release(ids); }
  std::uint32_t num_free() const noexcept { return blocks_.num_free(); }
  std::uint32_t num_blocks() const noexcept { return blocks_.num_blocks(); }

 private:
  FreeListAllocator blocks_;
};

}  // namespace

TEST_CASE("swap space is refused beside ops that move no blocks and allocators without host blocks", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.swap_space_bytes = 4 * block_bytes;
  using Staying = Engine<PrefillFirstScheduler, FreeListAllocator, StayingAttention, SingleDevice>;
  using OneTier = TinyEngine<PrefillFirstScheduler, OneTierAllocator>;
  expect_error<InvalidArgument>([&] { Staying engine(tiny_config(), weights(), options); },
                                {"swap_space_bytes", "49152", "TransferringOps"});
  expect_error<InvalidArgument>([&] { OneTier engine(tiny_config(), weights(), options); },
                                {"swap_space_bytes", "49152", "TieredAllocator"});
  options.swap_space_bytes = 0;
  Staying staying(tiny_config(), weights(), options);
  OneTier one_tier(tiny_config(), weights(), options);
  CHECK(one_tier.stats().num_host_blocks == 0);
}

TEST_CASE("swap space that cannot be used is refused with the reason", "[engine][host]") {
  EngineOptions options = roomy_options();
  const auto refused = [&](std::int64_t bytes, std::vector<std::string> words) {
    options.swap_space_bytes = bytes;
    expect_error<InvalidArgument>([&] { TinyEngine<> engine(tiny_config(), weights(), options); }, words);
  };
  refused(-1, {"swap_space_bytes", "-1", "not negative"});
  refused(block_bytes - 1, {"swap_space_bytes", "12287", "12288"});
  options.swap_space_bytes = 5 * block_bytes + 1;
  TinyEngine<> engine(tiny_config(), weights(), options);
  CHECK(engine.memory_plan().num_host_blocks == 5);
  CHECK(to_table(engine.memory_plan()).find("swap space            61440 bytes") != std::string::npos);
}

}  // namespace swap_test
