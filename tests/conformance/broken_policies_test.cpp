/// The conformance suites on policies with one defect each: every defect has to be reported.
#include "support/host_caches.hpp"

#include <nvl/attention/cpu_paged_attention.hpp>
#include <nvl/attention/kv_transfer.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/round_robin_router.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/parallel/context_parallel.hpp>
#include <nvl/parallel/local_ranks.hpp>
#include <nvl/parallel/rank_threads.hpp>
#include <nvl/parallel/single_device.hpp>
#include <nvl/parallel/thread_group.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/check_attention_backend.hpp>
#include <nvl/testing/check_block_allocator.hpp>
#include <nvl/testing/check_kv_transfer.hpp>
#include <nvl/testing/check_parallel_strategy.hpp>
#include <nvl/testing/check_router.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace broken_policies_test {

using namespace nvl;

namespace {

// Allocators

struct KeepsBlocksWhenItFails : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  bool try_allocate(std::span<BlockId> out) noexcept {
    if (FreeListAllocator::try_allocate(out)) { return true; }
    FreeListAllocator::try_allocate(out.first(num_free()));
    return false;
  }
};

struct LosesABlock : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  void release(std::span<const BlockId> ids) noexcept { FreeListAllocator::release(ids.size() > 2 ? ids.first(2) : ids); }
};

struct HandsOutABlockTwice : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  bool try_allocate(std::span<BlockId> out) noexcept {
    const bool ok = FreeListAllocator::try_allocate(out);
    if (ok && out.size() > 1) { out[1] = out[0]; }
    return ok;
  }
};

struct RefusesRequestsForNothing : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  bool try_allocate(std::span<BlockId> out) noexcept { return num_free() > 0 && FreeListAllocator::try_allocate(out); }
};

struct CountsWrong : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  std::uint32_t num_free() const noexcept { return std::max(FreeListAllocator::num_free(), 1u); }
};

struct ForgetsItsSize : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  std::uint32_t num_blocks() const noexcept { return FreeListAllocator::num_free(); }
};

struct IgnoresSalts : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixId root(std::string_view) const noexcept { return PrefixCacheAllocator::root(""); }
};

struct IgnoresWhatIsBefore : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixId publish(PrefixId, std::span<const TokenId> tokens, BlockId block) {
    return PrefixCacheAllocator::publish(root(""), tokens, block);
  }
};

struct NeverForgets : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  void forget(BlockId) noexcept {}
};

struct MatchesWithoutReference : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixId match(PrefixId prefix, std::span<const TokenId> tokens, std::vector<BlockId>& blocks) {
    const std::size_t before = blocks.size();
    const PrefixId end = PrefixCacheAllocator::match(prefix, tokens, blocks);
    release(std::span<const BlockId>(blocks).subspan(before));
    return end;
  }
};

struct LooksUpTooMuch : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    return PrefixCacheAllocator::lookup(prefix, tokens) + 1;
  }
};

struct MatchesAPartOfABlock : PrefixCacheAllocator {
  explicit MatchesAPartOfABlock(const BlockPoolShape& shape) : PrefixCacheAllocator(shape), size_(shape.block_size) {}
  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    return PrefixCacheAllocator::lookup(prefix, padded(tokens));
  }
  PrefixId match(PrefixId prefix, std::span<const TokenId> tokens, std::vector<BlockId>& blocks) {
    return PrefixCacheAllocator::match(prefix, padded(tokens), blocks);
  }
  std::vector<TokenId> padded(std::span<const TokenId> tokens) const {
    std::vector<TokenId> all(tokens.begin(), tokens.end());
    while (all.size() % size_ != 0) { all.push_back(1); }
    return all;
  }
  std::size_t size_;
};

struct SharesOnce : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  void share(std::span<const BlockId> ids) noexcept { PrefixCacheAllocator::share(ids.size() > 1 ? ids.first(1) : ids); }
};

struct NeverFinds : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixId match(PrefixId prefix, std::span<const TokenId>, std::vector<BlockId>&) { return prefix; }
  std::uint32_t lookup(PrefixId, std::span<const TokenId>) const noexcept { return 0; }
};

// Host pools

struct KeepsHostBlocksWhenItFails : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  bool try_allocate_host(std::span<HostBlockId> out) noexcept {
    if (FreeListAllocator::try_allocate_host(out)) { return true; }
    FreeListAllocator::try_allocate_host(out.first(num_free_host()));
    return false;
  }
};

struct LosesAHostBlock : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  void release_host(std::span<const HostBlockId> ids) noexcept {
    FreeListAllocator::release_host(ids.size() > 2 ? ids.first(2) : ids);
  }
};

struct HandsOutAHostBlockTwice : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  bool try_allocate_host(std::span<HostBlockId> out) noexcept {
    const bool ok = FreeListAllocator::try_allocate_host(out);
    if (ok && out.size() > 1) { out[1] = out[0]; }
    return ok;
  }
};

struct CountsDeviceBlocksAsHostBlocks : FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  std::uint32_t num_free_host() const noexcept { return num_free(); }
};

struct ResetsNothing : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  void reset() noexcept {}
};

struct PinsNothing : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  std::uint32_t pin(PrefixId root, std::span<const TokenId> tokens) noexcept { return lookup(root, tokens); }
};

struct IgnoresAdapters : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixId root(std::string_view salt, std::string_view = {}) const noexcept { return PrefixCacheAllocator::root(salt); }
};

struct HasNoEvents : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixCacheEvents& events() noexcept { return none; }
  PrefixCacheEvents none;
};

struct GivesUpHostBlocksTooEarly : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  PrefixId match_host(PrefixId prefix, std::span<const TokenId> tokens, std::vector<HostBlockId>& hosts) {
    const PrefixId end = PrefixCacheAllocator::match_host(prefix, tokens, hosts);
    std::vector<BlockTransfer> none;
    take_demotions(0, none);
    return end;
  }
};

struct NeverWritesToTheHost : RadixCacheAllocator {
  using RadixCacheAllocator::RadixCacheAllocator;
  void take_demotions(std::size_t, std::vector<BlockTransfer>& transfers) { RadixCacheAllocator::take_demotions(0, transfers); }
};

struct SwapsHostBlocks : RadixCacheAllocator {
  using RadixCacheAllocator::RadixCacheAllocator;
  PrefixId match_host(PrefixId prefix, std::span<const TokenId> tokens, std::vector<HostBlockId>& hosts) {
    const PrefixId end = RadixCacheAllocator::match_host(prefix, tokens, hosts);
    std::reverse(hosts.begin(), hosts.end());
    return end;
  }
};

struct MergesInSilence : RadixCacheAllocator {
  using RadixCacheAllocator::RadixCacheAllocator;
  PrefixId publish(PrefixId parent, std::span<const TokenId> tokens, BlockId block) {
    return RadixCacheAllocator::publish(parent, tokens, block);
  }
};

struct FindsHeadsTooLong : RadixCacheAllocator {
  using RadixCacheAllocator::RadixCacheAllocator;
  PartialMatch match_head(PrefixId prefix, std::span<const TokenId> tokens) noexcept {
    PartialMatch found = RadixCacheAllocator::match_head(prefix, tokens);
    found.num_tokens += found.num_tokens > 0 ? 1 : 0;
    return found;
  }
};

struct FindsHeadsWithoutReference : RadixCacheAllocator {
  using RadixCacheAllocator::RadixCacheAllocator;
  PartialMatch match_head(PrefixId prefix, std::span<const TokenId> tokens) noexcept {
    const PartialMatch found = RadixCacheAllocator::match_head(prefix, tokens);
    if (found.num_tokens > 0) { release(std::span(&found.block, 1)); }
    return found;
  }
};

// Schedulers

struct ComputesTooManyTokens : PrefillFirstScheduler {
  explicit ComputesTooManyTokens(SchedulerOptions options)
      : PrefillFirstScheduler({.max_num_seqs = options.max_num_seqs,
                               .max_num_batched_tokens = options.max_num_batched_tokens + 1,
                               .block_size = options.block_size}) {}
};

struct RunsTooManySequences : PrefillFirstScheduler {
  explicit RunsTooManySequences(SchedulerOptions options)
      : PrefillFirstScheduler({.max_num_seqs = options.max_num_seqs + 1,
                               .max_num_batched_tokens = options.max_num_batched_tokens,
                               .block_size = options.block_size}) {}
};

/// Schedules, then does `Defect` to the answer.
template <class Defect>
struct Spoiled : PrefillFirstScheduler {
  using PrefillFirstScheduler::PrefillFirstScheduler;
  template <BlockAllocator A>
  void schedule(A& allocator, ScheduledBatch& batch) {
    PrefillFirstScheduler::schedule(allocator, batch);
    if (!batch.empty()) { Defect{}(allocator, batch); }
  }
};

struct SamplesTooEarly {
  void operator()(auto&, ScheduledBatch& batch) const { batch.seqs.back().needs_sample = true; }
};
struct CountsTokensWrong {
  void operator()(auto&, ScheduledBatch& batch) const { ++batch.num_tokens; }
};
struct PlansTwice {
  void operator()(auto&, ScheduledBatch& batch) const { batch.seqs.push_back(batch.seqs.front()); }
};
struct LeaksABlock {
  void operator()(auto& allocator, ScheduledBatch&) const {
    BlockId lost{};
    static_cast<void>(allocator.try_allocate(std::span(&lost, 1)));
  }
};
struct HidesPreemptions {
  void operator()(auto&, ScheduledBatch& batch) const { batch.preempted.clear(); }
};
struct SwapsBlocks {
  void operator()(auto&, ScheduledBatch& batch) const {
    if (batch.seqs.size() > 1) { std::swap(batch.seqs[0].seq->block_table[0], batch.seqs[1].seq->block_table[0]); }
  }
};
struct PlansNothing {
  void operator()(auto&, ScheduledBatch& batch) const { batch.clear(); }
};
struct SkipsAToken {
  void operator()(auto&, ScheduledBatch& batch) const {
    ScheduledSeq& entry = batch.seqs.front();
    if (entry.num_tokens == 1) { return; }
    ++entry.first_position;
    --entry.num_tokens;
    --batch.num_tokens;
  }
};
struct LeavesTheStatus {
  void operator()(auto&, ScheduledBatch& batch) const { batch.seqs.front().seq->status = SeqStatus::waiting; }
};

struct LosesCopies {
  void operator()(auto&, ScheduledBatch& batch) const { batch.copies.clear(); }
};
struct CopiesTheWrongBlock {
  void operator()(auto& allocator, ScheduledBatch& batch) const {
    for (BlockCopy& copy : batch.copies) { copy.from = BlockId{(index_of(copy.from) + 1) % allocator.num_blocks()}; }
  }
};
struct WritesToSharedBlocks {
  void operator()(auto& allocator, ScheduledBatch& batch) const {
    for (const BlockCopy& copy : batch.copies) {
      for (const ScheduledSeq& entry : batch.seqs) {
        auto& table = entry.seq->block_table;
        if (std::ranges::count(table, copy.to) == 0) { continue; }
        allocator.share(std::span(&copy.from, 1));
        allocator.release(std::span(&copy.to, 1));
        std::ranges::replace(table, copy.to, copy.from);
      }
    }
    batch.copies.clear();
  }
};
/// Gives up the block that the first key seen lies in.
struct ReleasesTooMuch : PrefillFirstScheduler {
  explicit ReleasesTooMuch(SchedulerOptions options) : PrefillFirstScheduler(narrower(options)) {}
  static SchedulerOptions narrower(SchedulerOptions options) {
    if (options.window.tokens > 0) { options.window = {.tokens = std::max(options.window.tokens - 1, 1), .alignment = 1}; }
    return options;
  }
};
struct DropsForks : PrefillFirstScheduler {
  using PrefillFirstScheduler::PrefillFirstScheduler;
  static bool try_add_running(Sequence&) { return true; }
};
struct ForksPastTheLimit : PrefillFirstScheduler {
  using PrefillFirstScheduler::PrefillFirstScheduler;
  bool try_add_running(Sequence& seq) {
    if (PrefillFirstScheduler::try_add_running(seq)) { return true; }
    add(seq);  // it waits, but its blocks are said to be in use
    return true;
  }
};

// Preemptions

struct FreesBlocksThatLeave : SwapPreemption {
  using SwapPreemption::SwapPreemption;
  template <class A>
  bool try_swap_out(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    const bool ok = SwapPreemption::try_swap_out(seq, allocator, batch);
    if (ok) {
      allocator.release(seq.block_table);
      seq.block_table.clear();
    }
    return ok;
  }
};

struct RunsBeforeItsBlocksAreThere : SwapPreemption {
  using SwapPreemption::SwapPreemption;
  template <class A>
  bool try_resume(Sequence& seq, A& allocator, ScheduledBatch& batch, std::uint32_t reserve) noexcept {
    const bool ok = SwapPreemption::try_resume(seq, allocator, batch, reserve);
    if (ok) { seq.status = SeqStatus::running; }
    return ok;
  }
};

struct ForgetsABlock : SwapPreemption {
  using SwapPreemption::SwapPreemption;
  template <class A>
  bool try_resume(Sequence& seq, A& allocator, ScheduledBatch& batch, std::uint32_t reserve) noexcept {
    const bool ok = SwapPreemption::try_resume(seq, allocator, batch, reserve);
    if (!batch.swap_in.empty()) { batch.swap_in.pop_back(); }
    return ok;
  }
};

struct KeepsHostBlocks : SwapPreemption {
  using SwapPreemption::SwapPreemption;
  template <class A>
  bool try_resume(Sequence& seq, A& allocator, ScheduledBatch& batch, std::uint32_t reserve) noexcept {
    const bool ok = SwapPreemption::try_resume(seq, allocator, batch, reserve);
    if (ok) { seq.host_table.clear(); }
    return ok;
  }
};

struct ForgetsToRemove : PrefillFirstScheduler {
  using PrefillFirstScheduler::PrefillFirstScheduler;
  void remove(Sequence& seq) {
    if (seq.num_output() > 0) { PrefillFirstScheduler::remove(seq); }
  }
};

// Attention

using GoodAttention = CpuPagedAttention<float, 16, 4>;

template <class Defect>
struct SpoiledAttention : GoodAttention {
  using GoodAttention::GoodAttention;
  void run(AttentionCall<float> call) {
    Defect{}(call);
    GoodAttention::run(call);
  }
};
struct IgnoresTheWindow {
  void operator()(AttentionCall<float>& call) const { call.window = 0; }
};
struct IgnoresTheScale {
  void operator()(AttentionCall<float>& call) const { call.scale *= 1.01f; }
};
struct AssumesDenseRows {
  void operator()(AttentionCall<float>& call) const { call.q_row_stride -= 32; }
};
struct ForgetsTheLogSumExp {
  void operator()(AttentionCall<float>& call) const { call.lse = nullptr; }
};
template <class Defect>
struct MisreadsMetadata : GoodAttention {
  using GoodAttention::GoodAttention;
  void plan(AttentionMetadata metadata) {
    Defect{}(metadata);
    GoodAttention::plan(metadata);
  }
};
struct SeesTheFirstKeys {
  void operator()(AttentionMetadata& metadata) const { metadata.key_begins = {}; }
};
struct IsAlwaysCausal {
  void operator()(AttentionMetadata& metadata) const { metadata.is_causal = true; }
};
struct ClaimsMoreHeadDims : GoodAttention {
  using GoodAttention::GoodAttention;
  static constexpr bool supports(std::int32_t head_dim) { return head_dim == 32; }
};

// Strategies

struct CallsNobody : SingleDevice {
  template <class F>
  void for_each_rank(F&&) {}
};
struct SwallowsExceptions : SingleDevice {
  template <class F>
  void for_each_rank(F&& f) {
    contain([&] { SingleDevice::for_each_rank(f); }, [](const char*) {});
  }
};
struct HoldsHalf : SingleDevice {
  struct Context : SingleDevice::Context {
    static constexpr std::uint32_t num_slices() noexcept { return 2; }
  };
  template <class F>
  void for_each_rank(F&& f) {
    f(context, 0u);
  }
  Context context;
};
struct GathersInReverse {
  struct Context {
    Rank rank() const noexcept { return Rank{index}; }
    static constexpr std::uint32_t world_size() noexcept { return 2; }
    static constexpr std::uint32_t num_slices() noexcept { return 2; }
    std::uint32_t slice_index() const noexcept { return 1 - index; }
    static constexpr std::uint32_t num_stages() noexcept { return 1; }
    static constexpr std::uint32_t stage_index() noexcept { return 0; }
    template <class T>
    void all_reduce_sum(T* data, std::int64_t n) {
      end.all_reduce_sum(data, n);
    }
    template <class T>
    void all_gather(const T* mine, T* all, std::int64_t n) {
      end.all_gather(mine, all, n);
    }
    std::uint32_t index;
    ThreadGroup end;
  };
  static constexpr std::uint32_t num_local_ranks() noexcept { return 2; }
  template <class F>
  void for_each_rank(F&& f) {
    threads->run([&](std::uint32_t i) { f((*contexts)[i], i); }, [](std::uint32_t, const char*) noexcept {});
  }
  std::unique_ptr<RankThreads> threads = std::make_unique<RankThreads>(2);
  std::shared_ptr<std::vector<Context>> contexts = [] {
    std::vector<ThreadGroup> ends = ThreadGroup::make(2);
    return std::make_shared<std::vector<Context>>(std::vector<Context>{{0, ends[0]}, {1, ends[1]}});
  }();
};
/// A group of two processes that are the same one.
struct Mirror {
  static constexpr bool is_eager = true;
  static constexpr Rank rank() noexcept { return Rank{0}; }
  static constexpr std::uint32_t size() noexcept { return 2; }
  template <class T>
  void all_gather(const T* mine, T* all, std::int64_t n) {
    std::copy_n(mine, n, std::copy_n(mine, n, all));
  }
  template <class T>
  void all_reduce_sum(T*, std::int64_t) {}
  template <class T>
  void broadcast(T*, std::int64_t, Rank) {}
  template <class T>
  void send(const T*, std::int64_t, Rank) {}
  template <class T>
  void recv(T*, std::int64_t, Rank) {}
  void barrier() {}
  void abort(std::string_view) noexcept {}
};
struct DrivesARankTwice : SingleDevice {
  struct Context : SingleDevice::Context {
    static constexpr std::uint32_t world_size() noexcept { return 2; }
  };
  template <class F>
  void for_each_rank(F&& f) {
    f(context, 0u);
  }
  Mirror& processes() noexcept { return mirror; }
  static constexpr std::chrono::milliseconds pulse() noexcept { return std::chrono::milliseconds{1}; }
  Context context;
  Mirror mirror;
};
struct AddsItselfTwice : SingleDevice {
  struct Context : SingleDevice::Context {
    template <class T>
    static void all_reduce_sum(T* data, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) { data[i] *= 2; }
    }
  };
  template <class F>
  void for_each_rank(F&& f) {
    f(context, 0u);
  }
  Context context;
};

/// Two ranks that share tokens, with one defect.
template <class BadContext>
struct SharesBadly {
  using Context = BadContext;
  static constexpr std::uint32_t num_local_ranks() noexcept { return 2; }
  template <class F>
  void for_each_rank(F&& f) {
    ranks.for_each(f);
  }
  LocalRanks<Context> ranks = LocalRanks<Context>::of(ThreadGroup::make(2));
};
struct GathersSharesInReverse : ContextParallel<>::Context {
  using Context::Context;
  template <class T>
  void gather_shares(const T* mine, T* all, std::int64_t n) {
    Context::gather_shares(mine, all, n);
    std::swap_ranges(all, all + n, all + n);
  }
};
struct ExchangesNothing : ContextParallel<>::Context {
  using Context::Context;
  template <class T>
  static void exchange(const T*, std::int64_t, std::uint32_t, T*, std::int64_t, std::uint32_t) {}
};
struct CountsSharesAsSlices : ContextParallel<>::Context {
  using Context::Context;
  std::uint32_t num_slices() const noexcept { return num_shares(); }
  std::uint32_t slice_index() const noexcept { return share_index(); }
};

// Transfers

using HostTransfer = HostKvTransfer<float>;

struct ForgetsTheLastLayer : HostTransfer {
  ForgetsTheLastLayer(CpuDevice& a, const KvCache<float>& from, CpuDevice& b, KvCache<float> to)
      : HostTransfer(a, {from.kv, from.layout, from.num_layers - 1}, b, {to.kv, to.layout, to.num_layers - 1}) {}
};

struct MixesUpLayouts : HostTransfer {
  MixesUpLayouts(CpuDevice& a, KvCache<float> from, CpuDevice& b, KvCache<float> to)
      : HostTransfer(a, from, b,
                     {to.kv, from.layout.num_blocks < to.layout.num_blocks ? from.layout : to.layout, to.num_layers}) {}
};

struct TakesAnyCaches : HostTransfer {
  TakesAnyCaches(CpuDevice& a, const KvCache<float>& from, CpuDevice& b, const KvCache<float>& to)
      : HostTransfer(a, from, b, {to.kv, as_in(from.layout, to.layout.num_blocks), from.num_layers}) {}
  static KvLayout as_in(KvLayout layout, std::int64_t num_blocks) {
    layout.num_blocks = num_blocks;
    return layout;
  }
};

struct CopiesBackwards : HostTransfer {
  using HostTransfer::HostTransfer;
  void start(std::span<const BlockCopy> copies) {
    std::vector<BlockCopy> turned;
    for (const BlockCopy& copy : copies) { turned.push_back({.from = copy.to, .to = copy.from}); }
    HostTransfer::start(turned);
  }
};

struct IgnoresEmptyCalls : HostTransfer {
  using HostTransfer::HostTransfer;
  void start(std::span<const BlockCopy> copies) {
    if (!copies.empty()) { HostTransfer::start(copies); }
  }
};

/// Copies when it is asked whether it is done.
struct LateTransfer : HostTransfer {
  using HostTransfer::HostTransfer;
  void start(std::span<const BlockCopy> copies) { lists.emplace_back(copies.begin(), copies.end()); }
  std::uint64_t num_done() {
    for (const std::vector<BlockCopy>& list : lists) { HostTransfer::start(list); }
    lists.clear();
    return HostTransfer::num_done();
  }
  std::vector<std::vector<BlockCopy>> lists;
};

struct DoneTooEarly : LateTransfer {
  using LateTransfer::LateTransfer;
  void start(std::span<const BlockCopy> copies) {
    if (!copies.empty()) { LateTransfer::start(copies); }
    ++started;
  }
  std::uint64_t num_done() {
    if (asked++ % 2 == 1) { LateTransfer::num_done(); }
    return started;
  }
  std::uint64_t started = 0;
  int asked = 1;
};

struct KeepsTheList : HostTransfer {
  using HostTransfer::HostTransfer;
  void start(std::span<const BlockCopy> copies) { lists.push_back(copies); }
  std::uint64_t num_done() {
    for (const std::span<const BlockCopy> list : lists) { HostTransfer::start(list); }
    lists.clear();
    return HostTransfer::num_done();
  }
  ~KeepsTheList() { num_done(); }
  std::vector<std::span<const BlockCopy>> lists;
};

// Routers

struct IgnoresWhoIsOpen {
  std::size_t route(const Request&, std::span<const EngineLoad> loads) noexcept { return next++ % loads.size(); }
  std::size_t next = 0;
};

struct CountsTheOpenOnly : RoundRobinRouter {
  std::size_t route(const Request& request, std::span<const EngineLoad> loads) noexcept {
    const std::size_t chosen = RoundRobinRouter::route(request, loads);
    return static_cast<std::size_t>(std::ranges::count_if(loads.first(chosen), [](const auto& load) { return load.is_open; }));
  }
};

struct GivesUpUnderLoad : LeastTokensRouter {
  std::size_t route(const Request& request, std::span<const EngineLoad> loads) noexcept {
    const std::size_t chosen = LeastTokensRouter::route(request, loads);
    return loads[chosen].num_tokens > 1'000'000'000 ? loads.size() : chosen;
  }
};

struct TrustsThePrompt : LeastTokensRouter {
  std::size_t route(const Request& request, std::span<const EngineLoad> loads) noexcept {
    return request.prompt_ids.empty() ? loads.size() : LeastTokensRouter::route(request, loads);
  }
};

struct StaysWhereItWas : LeastTokensRouter {
  std::size_t route(const Request& request, std::span<const EngineLoad> loads) noexcept {
    if (last >= loads.size() || request.user == 0) { last = LeastTokensRouter::route(request, loads); }
    return last;
  }
  std::size_t last = ~std::size_t{0};
};

}  // namespace

TEMPLATE_TEST_CASE("the suite reports an allocator that breaks a promise", "[conformance][host]", KeepsBlocksWhenItFails,
                   LosesABlock, HandsOutABlockTwice, RefusesRequestsForNothing, CountsWrong, ForgetsItsSize, IgnoresSalts,
                   IgnoresWhatIsBefore, NeverForgets, MatchesWithoutReference, LooksUpTooMuch, MatchesAPartOfABlock, SharesOnce,
                   NeverFinds, ResetsNothing, PinsNothing, IgnoresAdapters, HasNoEvents, GivesUpHostBlocksTooEarly,
                   NeverWritesToTheHost, SwapsHostBlocks, MergesInSilence, FindsHeadsTooLong, FindsHeadsWithoutReference) {
  CHECK_FALSE(testing::check_block_allocator<TestType>().empty());
}

TEMPLATE_TEST_CASE("the suite reports a host pool that breaks a promise", "[conformance][host]", KeepsHostBlocksWhenItFails,
                   LosesAHostBlock, HandsOutAHostBlockTwice, CountsDeviceBlocksAsHostBlocks) {
  CHECK_FALSE(testing::check_block_allocator<TestType>().empty());
}

TEMPLATE_TEST_CASE("the suite reports a scheduler that breaks a promise", "[conformance][host]", ComputesTooManyTokens,
                   RunsTooManySequences, Spoiled<SamplesTooEarly>, Spoiled<CountsTokensWrong>, Spoiled<PlansTwice>,
                   Spoiled<LeaksABlock>, Spoiled<HidesPreemptions>, Spoiled<SwapsBlocks>, Spoiled<PlansNothing>,
                   Spoiled<SkipsAToken>, Spoiled<LeavesTheStatus>, ForgetsToRemove) {
  CHECK_FALSE(testing::check_scheduler_policy<TestType, FreeListAllocator>().empty());
}

TEMPLATE_TEST_CASE("the suite reports a scheduler that breaks a promise about forks or the window", "[conformance][host]",
                   Spoiled<LosesCopies>, Spoiled<CopiesTheWrongBlock>, Spoiled<WritesToSharedBlocks>, DropsForks,
                   ForksPastTheLimit) {
  CHECK_FALSE(testing::check_scheduler_policy<TestType, PrefixCacheAllocator>().empty());
}

TEMPLATE_TEST_CASE("the suite reports a preemption that breaks a promise", "[conformance][host]", FreesBlocksThatLeave,
                   RunsBeforeItsBlocksAreThere, ForgetsABlock, KeepsHostBlocks) {
  CHECK_FALSE(testing::check_scheduler_policy<TokenBudgetScheduler<FcfsOrder, TestType>, FreeListAllocator>().empty());
}

TEMPLATE_TEST_CASE("the suite reports an attention backend that breaks a promise", "[conformance][host]",
                   SpoiledAttention<IgnoresTheWindow>, SpoiledAttention<IgnoresTheScale>, SpoiledAttention<AssumesDenseRows>,
                   SpoiledAttention<ForgetsTheLogSumExp>, MisreadsMetadata<SeesTheFirstKeys>, MisreadsMetadata<IsAlwaysCausal>) {
  CHECK_FALSE(testing::check_attention_backend<TestType>().empty());
}

TEST_CASE("the suite reports an attention backend that does not take the head dimension it claims", "[conformance][host]") {
  CHECK_THROWS(testing::check_attention_backend<ClaimsMoreHeadDims>());
}

TEMPLATE_TEST_CASE("the suite reports a strategy that breaks a promise", "[conformance][host]", CallsNobody, SwallowsExceptions,
                   HoldsHalf, AddsItselfTwice, GathersInReverse, DrivesARankTwice, SharesBadly<GathersSharesInReverse>,
                   SharesBadly<ExchangesNothing>, SharesBadly<CountsSharesAsSlices>) {
  TestType strategy;
  CHECK_FALSE(testing::check_parallel_strategy(strategy).empty());
}

TEMPLATE_TEST_CASE("the suite reports a transfer that breaks a promise", "[conformance][host]", ForgetsTheLastLayer,
                   MixesUpLayouts, TakesAnyCaches, CopiesBackwards, IgnoresEmptyCalls, LateTransfer, DoneTooEarly, KeepsTheList) {
  nvl_test::HostCaches<float> caches;
  const auto broken = testing::check_kv_transfer<TestType>(caches);
  CAPTURE(broken.text());
  CHECK_FALSE(broken.empty());
}

TEMPLATE_TEST_CASE("the suite reports a router that breaks a promise", "[conformance][host]", IgnoresWhoIsOpen, CountsTheOpenOnly,
                   GivesUpUnderLoad, TrustsThePrompt, StaysWhereItWas) {
  CHECK_FALSE(testing::check_router<TestType>().empty());
}

}  // namespace broken_policies_test
