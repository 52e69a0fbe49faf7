#pragma once
/// A SchedulerPolicy and a BlockAllocator in an engine without a model. Every promise that can be checked is checked after every
/// operation; the K and V of each token are simulated by a number, so that a wrong, stale or shared-and-written block shows.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

/// What a harness counted: a test that wants to see preemptions can ask whether there were any.
struct HarnessCounts {
  std::uint64_t steps = 0, preemptions = 0, cached_tokens = 0, finished = 0, refused = 0, chunks = 0, forks = 0, copies = 0;
  std::uint64_t swaps = 0, blocks_in = 0, blocks_out = 0;  // sequences that went out; blocks in each direction
  std::uint64_t loaded_tokens = 0;                         // found in host memory by admissions;
  std::uint64_t released = 0;                              // blocks behind the window, summed over planned sequences
};

template <class S, BlockAllocator A>
  requires SchedulerPolicy<S, A>
class SchedulerHarness {
 public:
  /// \param num_blocks of the pool   \param vocab_size the smaller, the more sequences look alike
  /// \param num_host_blocks of the second pool, for allocators that have one
  SchedulerHarness(const SchedulerOptions& options, std::uint32_t num_blocks, TokenId vocab_size = 2,
                   std::uint32_t num_host_blocks = 0)
      : options_(options),
        vocab_size_(vocab_size),
        allocator_(BlockPoolShape{.num_blocks = num_blocks,
                                  .block_size = static_cast<std::uint32_t>(options.block_size),
                                  .num_host_blocks = num_host_blocks}),
        scheduler_(options),
        kv_(std::size_t{num_blocks} * static_cast<std::size_t>(options.block_size), 0),
        host_kv_(std::size_t{num_host_blocks} * static_cast<std::size_t>(options.block_size), 0),
        damaged_(num_blocks, false) {
    check_resting("after construction");
  }

  /// Queues a sequence that becomes `num_choices` when its prompt has been computed: they share its blocks and go on with
  /// different tokens. False if it can never fit, which an engine refuses.
  bool submit(const std::vector<TokenId>& prompt, std::int32_t max_tokens, std::string_view salt = {}, std::int32_t priority = 0,
              std::int32_t num_choices = 1, std::uint64_t user = 0) {
    auto seq = std::make_unique<Simulated>();
    seq->num_prompt = static_cast<std::int32_t>(prompt.size());
    seq->max_total_tokens = seq->num_prompt + max_tokens;
    if (blocks_for(seq->max_total_tokens - 1, options_.block_size) > allocator_.num_blocks()) {
      ++counts_.refused;
      return false;
    }
    seq->id = SeqId{next_id_};
    seq->request = RequestId{next_id_++};
    seq->priority = priority;
    seq->user = user;
    seq->num_forks = num_choices - 1;
    seq->tokens = prompt;
    seq->salt = std::hash<std::string_view>{}(salt);
    if constexpr (PrefixCachingAllocator<A>) { seq->prefix_root = allocator_.root(salt); }
    seq->extend_content();
    live_.push_back(std::move(seq));
    scheduler_.add(*live_.back());
    check_resting("after add");
    return true;
  }

  /// One step of the engine. False if nothing was planned.
  bool step() {
    const std::vector<Before> before = snapshot();
    batch_.clear();
    scheduler_.schedule(allocator_, batch_);
    violations_.during("step " + std::to_string(counts_.steps));
    check_batch(before);
    if (!violations_.empty()) { return false; }
    begin_transfers();
    compute();
    end_transfers();
    commit();
    ++counts_.steps;
    check_resting("after step " + std::to_string(counts_.steps));
    return !batch_.empty();
  }

  /// Ends one of the live sequences, in whatever state it is.
  void abort(std::size_t which) {
    if (live_.empty()) { return; }
    end(which % live_.size());
    check_resting("after an abort");
  }

  /// The logits of one of the live sequences are not finite: its blocks are forgotten, and it ends.
  void damage(std::size_t which) {
    if (live_.empty()) { return; }
    Simulated& seq = *live_[which % live_.size()];
    if constexpr (PrefixCachingAllocator<A>) {
      for (auto i = static_cast<std::size_t>(seq.num_released); i < seq.block_table.size(); ++i) {
        const BlockId id = seq.block_table[i];
        allocator_.forget(id);
        // A block that is not full yet and that a fork owns too goes on as that one's, whose logits say if it is good.
        damaged_[index_of(id)] = static_cast<std::int32_t>(i) < seq.num_published || allocator_.num_owners(id) == 1;
      }
    }
    end(which % live_.size());
    check_resting("after damage");
  }

  /// Steps until every sequence has ended, in bounded time, with all blocks free.
  void drain() {
    // Each sequence, in turn, ends after a decode step a token; between two of those every other may be prefilled anew, or go
    // out and come in, which takes four steps.
    std::uint64_t decodes = 1, prefills = 2;
    for (const auto& seq : live_) {
      decodes += static_cast<std::uint64_t>(seq->max_total_tokens - seq->num_tokens()) + 1;
      prefills += static_cast<std::uint64_t>(1 + seq->max_total_tokens / shortest_chunk());
    }
    for (std::uint64_t bound = 4 * decodes * prefills; bound > 0 && !live_.empty() && violations_.empty(); --bound) { step(); }
    violations_.during("drain");
    violations_.expect(live_.empty(), std::to_string(live_.size()) + " sequences did not end");
    if (!live_.empty()) { return; }
    step();  // may release what the last transfers used
    violations_.expect(allocator_.num_free() == allocator_.num_blocks(), "blocks leaked");
    if constexpr (TieredAllocator<A>) {
      violations_.expect(allocator_.num_free_host() == allocator_.num_host_blocks(), "host blocks leaked");
    }
  }

  std::size_t num_live() const noexcept { return live_.size(); }
  const Sequence& live(std::size_t i) const { return *live_.at(i); }
  const ScheduledBatch& batch() const noexcept { return batch_; }  ///< of the last step; its sequences may have ended
  A& allocator() noexcept { return allocator_; }
  S& scheduler() noexcept { return scheduler_; }
  const HarnessCounts& counts() const noexcept { return counts_; }
  const Violations& violations() const noexcept { return violations_; }

 private:
  struct Simulated : Sequence {
    std::uint64_t salt = 0;
    std::int32_t num_forks = 0;          // to be made when its first token is sampled
    std::vector<std::uint64_t> content;  // [tokens] what the K and V of each token have to be: a function of all before it

    void extend_content() {
      while (content.size() < tokens.size()) {
        std::uint64_t x = (content.empty() ? salt : content.back()) ^ static_cast<std::uint64_t>(tokens[content.size()] + 1);
        x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;  // SplitMix64
        content.push_back(x ^ (x >> 29));
      }
    }
  };

  struct Before {
    Simulated* seq;
    std::vector<BlockId> table;
    std::int32_t num_computed;
    SeqStatus status;
  };

  std::vector<Before> snapshot() const {
    std::vector<Before> all;
    all.reserve(live_.size());
    for (const auto& seq : live_) { all.push_back({seq.get(), seq->block_table, seq->num_computed, seq->status}); }
    return all;
  }

  /// [tokens] that a prompt gets in a step at least, if any
  std::int32_t shortest_chunk() const noexcept {
    std::int32_t chunk = std::max(1, options_.max_num_batched_tokens);
    for (const std::int32_t limit :
         {options_.scheduling.max_prefill_tokens_beside_decodes, options_.scheduling.long_prefill_token_threshold}) {
      if (limit > 0) { chunk = std::min(chunk, limit); }
    }
    return chunk;
  }

  static std::string name(const Sequence& seq) { return "sequence " + std::to_string(index_of(seq.id)); }
  bool expect(bool holds, const std::string& what) { return violations_.expect(holds, what); }

  /// What `schedule` answered, against what was there before.
  void check_batch(const std::vector<Before>& before) {
    std::unordered_map<const Sequence*, const ScheduledSeq*> planned;
    std::unordered_set<const Sequence*> preempted(batch_.preempted.begin(), batch_.preempted.end()),
        swapped(batch_.swapped.begin(), batch_.swapped.end()), known;
    for (const Before& b : before) { known.insert(b.seq); }
    std::int64_t sum = 0;
    for (const ScheduledSeq& entry : batch_.seqs) {
      sum += entry.num_tokens;
      if (!expect(known.contains(entry.seq), "a sequence is in the batch that was not added, or was removed")) { return; }
      expect(planned.emplace(entry.seq, &entry).second, name(*entry.seq) + " is in the batch twice");
    }
    expect(preempted.size() == batch_.preempted.size(), "a sequence is preempted twice in one step");
    expect(sum == batch_.num_tokens, "num_tokens of the batch is not the sum of its entries");
    expect(sum <= options_.max_num_batched_tokens, "the step has more tokens than max_num_batched_tokens");
    expect(std::ssize(batch_.seqs) <= options_.max_num_seqs, "the step has more sequences than max_num_seqs");
    expect(!batch_.empty() || before.empty(), "nothing is planned though sequences have tokens to compute");
    for (const Sequence* victim : batch_.preempted) {
      if (!expect(known.contains(victim), "a sequence is preempted that was not added, or was removed")) { return; }
      expect(!planned.contains(victim), name(*victim) + " is preempted and in the batch");
    }
    expect(swapped.size() == batch_.swapped.size(), "a sequence is swapped twice in one step");
    for (const Sequence* victim : batch_.swapped) {
      if (!expect(known.contains(victim), "a sequence is swapped that was not added, or was removed")) { return; }
      expect(!planned.contains(victim) && !preempted.contains(victim), name(*victim) + " is swapped and something else too");
    }
    counts_.preemptions += batch_.preempted.size();
    counts_.swaps += batch_.swapped.size();
    for (const Before& was : before) {
      const auto entry = planned.find(was.seq);
      if (entry != planned.end()) {
        check_planned(was, *entry->second);
      } else if (preempted.contains(was.seq)) {
        expect(!was.table.empty(), name(*was.seq) + " had no blocks and was preempted");
        expect(was.seq->block_table.empty() && was.seq->num_computed == 0, name(*was.seq) + " was preempted and kept blocks");
        expect(was.seq->status == SeqStatus::preempted, name(*was.seq) + " was preempted and has another status");
      } else if (swapped.contains(was.seq)) {
        expect(was.status == SeqStatus::running || was.status == SeqStatus::loading,
               name(*was.seq) + " was swapped and did not run");
        expect(was.seq->block_table == was.table && was.seq->num_computed == was.num_computed,
               name(*was.seq) + " was swapped and gave its blocks up before they were copied");
        expect(was.seq->status == SeqStatus::swapped, name(*was.seq) + " was swapped and has another status");
        expect(was.seq->host_table.size() >= blocks_for(was.num_computed, options_.block_size),
               name(*was.seq) + " was swapped and has no host blocks for its tokens");
      } else if (was.seq->status == SeqStatus::loading) {
        expect(was.status != SeqStatus::running && was.status != SeqStatus::loading,
               name(*was.seq) + " had its blocks and is loading");
        expect(blocks_for(was.seq->num_computed, options_.block_size) <= was.seq->block_table.size(),
               name(*was.seq) + " is loading and has no blocks");
        if (was.status != SeqStatus::swapped) { check_loading(*was.seq); }
      } else if (was.status == SeqStatus::swapped) {
        expect(was.seq->status == SeqStatus::swapped && was.seq->num_computed == was.num_computed && was.seq->block_table.empty(),
               name(*was.seq) + " stays swapped and lost tokens, or keeps blocks that were copied out");
      } else {
        expect(was.seq->block_table == was.table && was.seq->num_computed == was.num_computed,
               name(*was.seq) + " got nothing in this step and did not keep what it had");
        expect(was.seq->status == (was.status == SeqStatus::loading ? SeqStatus::running : was.status),
               name(*was.seq) + " got nothing in this step and has another status");
      }
    }
    check_transfers();
  }

  /// Newly admitted: what it need not compute lies in blocks of the device or comes in from the host.
  void check_loading(const Simulated& seq) {
    const auto num_loaded = static_cast<std::int32_t>(std::ranges::count_if(batch_.swap_in, [&](const BlockTransfer& in) {
      return std::ranges::count(std::span(seq.block_table).subspan(static_cast<std::size_t>(seq.num_published)), in.device) > 0;
    }));
    expect(seq.num_cached == seq.num_computed && seq.num_computed < seq.num_tokens() &&
               seq.num_computed == (seq.num_published + num_loaded) * options_.block_size,
           name(seq) + " is loading other blocks than it does not compute");
    counts_.loaded_tokens += static_cast<std::uint64_t>(num_loaded * options_.block_size);
    for (std::size_t i = 0; i < static_cast<std::size_t>(seq.num_published) && i < seq.block_table.size(); ++i) {
      expect(!damaged_[index_of(seq.block_table[i])], name(seq) + " found a block that was forgotten");
    }
  }

  /// The copies of a step run in any order beside it: no block may be touched by two of them, or by one and the step.
  void check_transfers() {
    std::unordered_set<std::uint32_t> moving, host_written;
    for (const auto* list : {&batch_.swap_out, &batch_.swap_in}) {
      for (const BlockTransfer& transfer : *list) {
        if (!expect(index_of(transfer.device) < damaged_.size() &&
                        index_of(transfer.host) * static_cast<std::size_t>(options_.block_size) < host_kv_.size(),
                    "a transfer of a block that is out of range")) {
          return;
        }
        const bool is_unmoved = moving.insert(index_of(transfer.device)).second;
        expect(is_unmoved || list == &batch_.swap_out, "a block is written and in another transfer of one step");
        const bool is_new = !host_written.contains(index_of(transfer.host));
        if (list == &batch_.swap_out) { host_written.insert(index_of(transfer.host)); }
        expect(is_new, "a host block is written and in another transfer of one step");
      }
    }
    for (const BlockCopy& copy : batch_.copies) {
      expect(!moving.contains(index_of(copy.to)), "a block is copied to and moved in one step");
      const auto comes_in = [&](const BlockTransfer& in) { return in.device == copy.from; };
      expect(std::ranges::none_of(batch_.swap_in, comes_in), "a block is copied and written by a transfer in one step");
    }
    for (const ScheduledSeq& entry : batch_.seqs) {
      const std::int32_t last = entry.first_position + entry.num_tokens - 1;
      for (std::int32_t i = entry.first_position / options_.block_size; i <= last / options_.block_size; ++i) {
        const auto place = static_cast<std::size_t>(i);
        if (place >= entry.seq->block_table.size()) { break; }
        expect(!moving.contains(index_of(entry.seq->block_table[place])), name(*entry.seq) + " writes a block that is moving");
      }
    }
  }

  void check_planned(const Before& was, const ScheduledSeq& entry) {
    const Simulated& seq = *was.seq;
    const std::int32_t end = entry.first_position + entry.num_tokens;
    expect(entry.num_tokens >= 1, name(seq) + " is planned with no tokens");
    expect(end <= seq.num_tokens(), name(seq) + " is planned past its last token");
    expect(seq.num_computed == end, name(seq) + ": num_computed is not past the planned tokens");
    expect(entry.needs_sample == (end == seq.num_tokens()), name(seq) + ": needs_sample is wrong");
    expect(seq.status == SeqStatus::running, name(seq) + " is planned and its status is not running");
    expect(blocks_for(end, options_.block_size) <= seq.block_table.size(), name(seq) + " has no blocks for its tokens");
    counts_.chunks += entry.needs_sample ? 0 : 1;
    if (was.status == SeqStatus::running || was.status == SeqStatus::loading) {
      expect(entry.first_position == was.num_computed, name(seq) + " does not go on where it was");
      const auto is_copy = [&](BlockId from, BlockId to) {
        return std::ranges::any_of(batch_.copies, [&](const BlockCopy& copy) { return copy.from == from && copy.to == to; });
      };
      bool is_same = seq.block_table.size() >= was.table.size();
      for (std::size_t i = 0; is_same && i < was.table.size(); ++i) {
        is_same = was.table[i] == seq.block_table[i] || is_copy(was.table[i], seq.block_table[i]);
      }
      expect(is_same, name(seq) + ": its block table changed where K and V are stored");
      return;
    }
    if (was.status == SeqStatus::swapped) {  // all its blocks were found on the device
      expect(entry.first_position == was.num_computed, name(seq) + " does not go on where it was swapped");
      return;
    }
    const std::int32_t cached = entry.first_position;
    expect(cached == seq.num_cached, name(seq) + ": num_cached is not where its computation starts");
    const auto is_for_it = [&](const BlockCopy& copy) {
      return copy.to == seq.block_table[static_cast<std::size_t>(cached / options_.block_size)] && !damaged_[index_of(copy.from)];
    };
    expect(cached % options_.block_size == 0 || std::ranges::any_of(batch_.copies, is_for_it),
           name(seq) + " starts inside a block, and nothing is copied there");
    expect(cached == 0 || PrefixCachingAllocator<A>, name(seq) + " skips tokens without a prefix cache");
    counts_.cached_tokens += static_cast<std::uint64_t>(cached);
    for (std::size_t i = 0; i < static_cast<std::size_t>(cached / options_.block_size) && i < seq.block_table.size(); ++i) {
      expect(!damaged_[index_of(seq.block_table[i])], name(seq) + " found a block that was forgotten");
    }
  }

  /// Stores K and V of the planned tokens, then reads what attention would read.
  void compute() {
    const auto block_size = static_cast<std::size_t>(options_.block_size);
    counts_.copies += batch_.copies.size();
    for (const BlockCopy& copy : batch_.copies) {
      if (!expect(std::max(index_of(copy.from), index_of(copy.to)) < damaged_.size(), "a copy of a block that is out of range")) {
        return;
      }
      const auto from = kv_.begin() + static_cast<std::ptrdiff_t>(index_of(copy.from) * block_size);
      std::copy_n(from, block_size, kv_.begin() + static_cast<std::ptrdiff_t>(index_of(copy.to) * block_size));
      damaged_[index_of(copy.to)] = damaged_[index_of(copy.from)];
    }
    for (const ScheduledSeq& entry : batch_.seqs) {
      const auto& seq = static_cast<const Simulated&>(*entry.seq);
      for (std::int32_t p = entry.first_position; p < entry.first_position + entry.num_tokens; ++p) {
        const auto slot = static_cast<std::size_t>(slot_of(seq.block_table, p, options_.block_size));
        const BlockId block = seq.block_table[static_cast<std::size_t>(p / options_.block_size)];
        if constexpr (SharingAllocator<A>) { expect(allocator_.num_owners(block) == 1, name(seq) + " writes a shared block"); }
        if (p % options_.block_size == 0) { damaged_[index_of(block)] = false; }
        kv_[slot] = seq.content[static_cast<std::size_t>(p)];
      }
    }
    for (const ScheduledSeq& entry : batch_.seqs) {
      const auto& seq = static_cast<const Simulated&>(*entry.seq);
      const std::int32_t first = options_.window.first_read(entry.first_position);
      counts_.released += static_cast<std::uint64_t>(seq.num_released);
      expect(seq.num_released * options_.block_size <= first, name(seq) + " has given up a block that it reads");
      for (std::int32_t p = first; p < entry.first_position + entry.num_tokens; ++p) {
        const auto slot = static_cast<std::size_t>(slot_of(seq.block_table, p, options_.block_size));
        if (!expect(kv_[slot] == seq.content[static_cast<std::size_t>(p)],
                    name(seq) + ": the K and V of token " + std::to_string(p) + " are not its own")) {
          break;
        }
      }
    }
  }

  std::span<std::uint64_t> block_of(std::vector<std::uint64_t>& kv, std::uint32_t block) const noexcept {
    const auto size = static_cast<std::size_t>(options_.block_size);
    return std::span(kv).subspan(block * size, size);
  }

  /// Whoever reads what is coming, on either side, before the next step reads this.
  void begin_transfers() {
    constexpr std::uint64_t half_copied = 0xdeadbeef;
    for (const BlockTransfer& in : batch_.swap_in) {
      std::ranges::fill(block_of(kv_, index_of(in.device)), half_copied);
      damaged_[index_of(in.device)] = false;
    }
    for (const BlockTransfer& out : batch_.swap_out) { std::ranges::fill(block_of(host_kv_, index_of(out.host)), half_copied); }
  }

  void end_transfers() {
    for (const BlockTransfer& in : batch_.swap_in) {
      std::ranges::copy(block_of(host_kv_, index_of(in.host)), block_of(kv_, index_of(in.device)).begin());
      damaged_[index_of(in.device)] = false;
    }
    for (const BlockTransfer& out : batch_.swap_out) {
      std::ranges::copy(block_of(kv_, index_of(out.device)), block_of(host_kv_, index_of(out.host)).begin());
    }
    counts_.blocks_in += batch_.swap_in.size();
    counts_.blocks_out += batch_.swap_out.size();
  }

  /// As an engine does: publish, fork, append, end.
  void commit() {
    std::vector<const Sequence*> ended;
    for (const ScheduledSeq& entry : batch_.seqs) {
      auto& seq = static_cast<Simulated&>(*entry.seq);
      publish_full_blocks(seq, allocator_, options_.block_size);
      if (!entry.needs_sample) { continue; }
      for (; seq.num_forks > 0; --seq.num_forks) { fork(seq); }
      append_token(seq, 0);
      if (seq.num_tokens() >= seq.max_total_tokens) { ended.push_back(&seq); }
    }
    for (const Sequence* seq : ended) {
      const auto found = std::find_if(live_.begin(), live_.end(), [&](const auto& s) { return s.get() == seq; });
      end(static_cast<std::size_t>(found - live_.begin()));
      ++counts_.finished;
    }
  }

  /// The next token follows from all before it, as with greedy sampling, and from the choice.
  void append_token(Simulated& seq, std::int32_t choice) {
    const auto next = seq.content.back() + static_cast<std::uint64_t>(choice);
    seq.tokens.push_back(static_cast<TokenId>(next % static_cast<std::uint64_t>(vocab_size_)));
    seq.extend_content();
  }

  /// One more choice of the request of `parent`. It starts with the blocks of `parent` if policies can do that, else with none.
  void fork(const Simulated& parent) {
    if (parent.num_tokens() + 1 >= parent.max_total_tokens) { return; }  // it ends with its first token
    auto child = std::make_unique<Simulated>();
    child->id = SeqId{next_id_++};
    child->request = parent.request;
    child->num_prompt = parent.num_prompt;
    child->max_total_tokens = parent.max_total_tokens;
    child->priority = parent.priority;
    child->user = parent.user;
    child->tokens = parent.tokens;
    child->salt = parent.salt;
    child->content = parent.content;
    child->prefix_root = child->published_prefix = parent.prefix_root;
    append_token(*child, parent.num_forks);
    Simulated& forked = *child;
    live_.push_back(std::move(child));
    ++counts_.forks;
    if constexpr (SharingAllocator<A> && ForkingScheduler<S, A>) {
      fork_blocks(parent, forked, allocator_, options_.block_size);
      if (scheduler_.try_add_running(forked)) { return; }
      release_blocks(forked, allocator_);
      forked.status = SeqStatus::waiting;
    }
    scheduler_.add(forked);
  }

  void end(std::size_t which) {
    Simulated& seq = *live_[which];
    scheduler_.remove(seq);
    release_all_blocks(seq, allocator_);
    seq.status = SeqStatus::finished;
    ended_.push_back(std::move(live_[which]));  // the batch may still point at it
    if (ended_.size() > 4096) { ended_.erase(ended_.begin(), ended_.begin() + 2048); }
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  /// What holds between operations.
  void check_resting(const std::string& when) {
    violations_.during(when);
    std::vector<std::uint32_t> owners(allocator_.num_blocks(), 0);
    std::uint32_t num_running = 0;
    std::unordered_set<std::uint32_t> host_owned;
    for (const auto& seq : live_) {
      const bool runs = seq->status == SeqStatus::running || seq->status == SeqStatus::loading;
      num_running += runs ? 1 : 0;
      expect(!runs || !seq->block_table.empty(), name(*seq) + " runs without blocks");
      expect(runs || seq->status == SeqStatus::swapped || seq->block_table.empty(), name(*seq) + " does not run and has blocks");
      expect(seq->status == SeqStatus::swapped ? !seq->host_table.empty() || seq->num_computed == 0
                                               : seq->status == SeqStatus::loading || seq->host_table.empty(),
             name(*seq) + " has host blocks and is neither swapped nor loading, or has none and is swapped");
      for (const HostBlockId id : seq->host_table) {
        expect(host_owned.insert(index_of(id)).second, "host block " + std::to_string(index_of(id)) + " has two owners");
      }
      const auto owned = seq->owned_blocks();
      std::vector<BlockId> distinct(owned.begin(), owned.end());
      std::sort(distinct.begin(), distinct.end());
      expect(std::adjacent_find(distinct.begin(), distinct.end()) == distinct.end(), name(*seq) + " has a block twice");
      for (const BlockId id : distinct) {
        if (!expect(index_of(id) < owners.size(), name(*seq) + " has a block that is out of range")) { return; }
        ++owners[index_of(id)];
      }
    }
    std::uint32_t unowned = 0;
    for (std::uint32_t b = 0; b < owners.size(); ++b) {
      unowned += owners[b] == 0 ? 1 : 0;
      if constexpr (SharingAllocator<A>) {
        expect(allocator_.num_owners(BlockId{b}) == owners[b],
               "block " + std::to_string(b) + " has another number of owners than sequences hold it");
      } else {
        expect(owners[b] <= 1, "block " + std::to_string(b) + " is in two block tables");
      }
    }
    expect(allocator_.num_free() == unowned, "num_free is " + std::to_string(allocator_.num_free()) + ", " +
                                                 std::to_string(unowned) + " blocks are in no block table");
    if constexpr (TieredAllocator<A>) {
      expect(allocator_.num_host_blocks() - allocator_.num_free_host() == host_owned.size(),
             "host blocks of a sequence are free, or others are not");
    }
    const std::uint32_t running = scheduler_.num_running(), waiting = scheduler_.num_waiting();
    expect(running + waiting == live_.size(), std::to_string(running) + " running and " + std::to_string(waiting) +
                                                  " waiting are not the " + std::to_string(live_.size()) +
                                                  " sequences that there are");
    expect(running == num_running, "num_running is not the number of sequences that are running or loading");
    expect(running <= static_cast<std::uint32_t>(options_.max_num_seqs), "more than max_num_seqs run");
    violations_.during("");
  }

  SchedulerOptions options_;
  TokenId vocab_size_;
  A allocator_;
  S scheduler_;
  std::vector<std::unique_ptr<Simulated>> live_, ended_;
  ScheduledBatch batch_;
  std::vector<std::uint64_t> kv_;  // [slots]
  std::vector<std::uint64_t> host_kv_;
  std::vector<bool> damaged_;  // [blocks] forgotten since it was last written
  HarnessCounts counts_;
  Violations violations_;
  std::uint64_t next_id_ = 0;
};

}  // namespace nvl::inline NVL_ABI::testing
