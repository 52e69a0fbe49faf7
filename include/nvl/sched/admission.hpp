#pragma once
/// How a sequence gets its blocks and loses them: the transactions that every scheduler shares. Each either happens whole or
/// changes nothing.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/sequence.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Gives up every block of `seq` and what was known of them; its tokens stay. The table is released in its order: allocators
/// evict the end of a sequence before its beginning.
template <BlockAllocator A>
void release_blocks(Sequence& seq, A& allocator) noexcept {
  allocator.release(seq.owned_blocks());
  seq.block_table.clear();
  seq.num_released = 0;
  seq.num_computed = 0;
  seq.num_published = 0;
  seq.published_prefix = seq.prefix_root;
}

/// Gives up the host blocks of `seq`, if it has any.
template <BlockAllocator A>
void release_host_blocks(Sequence& seq, A& allocator) noexcept {
  if constexpr (TieredAllocator<A>) { allocator.release_host(seq.host_table); }
  seq.host_table.clear();
}

/// Gives up all that `seq` owns, on the device and in host memory, in whatever state it is, also while a transfer moves it: who
/// gets the blocks next touches them in a step that waits for that transfer.
template <BlockAllocator A>
void release_all_blocks(Sequence& seq, A& allocator) noexcept {
  release_blocks(seq, allocator);
  release_host_blocks(seq, allocator);
}

/// Gives up the blocks of `seq` that no token it has still to compute reads, because they are behind the window of every layer.
/// Their entries stay in the table and mean nothing. A full block that a prefix cache does not know yet stays until it does: the
/// blocks after it are found through it. Steps in flight may still read what is given up: it is written by later ones only.
template <BlockAllocator A>
void release_behind_window(Sequence& seq, A& allocator, const SlidingWindow& window, std::int32_t block_size) noexcept {
  if (window.tokens == 0 || seq.keeps_all_blocks) { return; }
  std::int32_t end = full_blocks(window.first_read(seq.num_computed), block_size);
  if constexpr (PrefixCachingAllocator<A>) { end = std::min(end, seq.num_published); }
  if (end <= seq.num_released) { return; }
  allocator.release(seq.owned_blocks().first(static_cast<std::size_t>(end - seq.num_released)));
  seq.num_released = end;
}

namespace detail {

/// Of the blocks of `seq`, those that the computation of its tokens [num_computed, num_tokens) writes to.
inline std::span<BlockId> written_blocks(Sequence& seq, std::int32_t num_tokens, std::int32_t block_size) {
  const std::size_t end = std::min(blocks_for(num_tokens, block_size), seq.block_table.size());
  const std::size_t begin = std::min(static_cast<std::size_t>(seq.num_computed / block_size), end);
  return std::span(seq.block_table).subspan(begin, end - begin);
}

/// [blocks] of them that others own too
template <BlockAllocator A>
std::size_t num_shared_blocks(std::span<const BlockId> blocks, const A& allocator) noexcept {
  if constexpr (SharingAllocator<A>) {
    return static_cast<std::size_t>(
        std::ranges::count_if(blocks, [&](BlockId block) { return allocator.num_owners(block) > 1; }));
  }
  return 0;
}

}  // namespace detail

/// [blocks] that `try_grow` would take for the first `num_tokens` tokens of `seq`
template <BlockAllocator A>
std::size_t missing_blocks(Sequence& seq, const A& allocator, std::int32_t num_tokens, std::int32_t block_size) noexcept {
  const std::size_t need = blocks_for(num_tokens, block_size);
  return need - std::min(need, seq.block_table.size()) +
         detail::num_shared_blocks(detail::written_blocks(seq, num_tokens, block_size), allocator);
}

/// Makes `seq`, which has some blocks or none, ready to compute its tokens [num_computed, num_tokens): it gets the blocks that
/// are missing, and a copy of each that it would write to and that others own too (copy-on-write; the copies go into `batch`).
/// False: nothing changed. Throws std::bad_alloc, and then nothing changed either, but not if the sequence was admitted by
/// try_admit or forked by fork_blocks and batch.copies has room.
template <BlockAllocator A>
[[nodiscard]] bool try_grow(Sequence& seq, A& allocator, std::int32_t num_tokens, std::int32_t block_size,
                            ScheduledBatch& batch) {
  const std::size_t have = seq.block_table.size();
  const std::size_t need = std::max(blocks_for(num_tokens, block_size), have);
  const std::size_t num_shared = detail::num_shared_blocks(detail::written_blocks(seq, num_tokens, block_size), allocator);
  if (need == have && num_shared == 0) { return true; }
  if (need - have + num_shared > allocator.num_free()) { return false; }
  batch.copies.reserve(batch.copies.size() + num_shared);
  seq.block_table.resize(need);
  if (!allocator.try_allocate(std::span(seq.block_table).subspan(have))) {
    seq.block_table.resize(have);
    return false;
  }
  if constexpr (SharingAllocator<A>) {
    for (BlockId& block : detail::written_blocks(seq, num_tokens, block_size)) {
      BlockId copy{};
      if (allocator.num_owners(block) == 1 || !allocator.try_allocate(std::span(&copy, 1))) { continue; }  // there are enough
      batch.copies.push_back({.from = block, .to = copy});
      allocator.release(std::span(&block, 1));
      block = copy;
    }
  }
  return true;
}

/// Makes `child`, which has the same first tokens and no blocks, a second owner of the blocks of what `parent` has computed.
/// Each of the two goes on by itself: whoever writes to a block that both own gets a copy of it (try_grow).
/// Throws std::bad_alloc, and then nothing changed.
template <SharingAllocator A>
void fork_blocks(const Sequence& parent, Sequence& child, A& allocator, std::int32_t block_size) {
  const auto known = std::span(parent.block_table).first(blocks_for(parent.num_computed, block_size));
  // The longest table, as try_admit does it.
  child.block_table.reserve(blocks_for(std::max(child.num_tokens(), child.max_total_tokens), block_size));
  child.block_table.assign(known.begin(), known.end());
  child.num_released = parent.num_released;
  allocator.share(child.owned_blocks());
  child.num_computed = parent.num_computed;
  child.num_published = parent.num_published;
  child.published_prefix = parent.published_prefix;
  child.status = SeqStatus::running;
}

/// [tokens] that `seq`, without blocks, would have to compute if it were admitted now.
template <BlockAllocator A>
std::int32_t uncached_tokens(const Sequence& seq, const A& allocator) {
  if constexpr (PrefixCachingAllocator<A>) {
    // The last token is always computed: its logits give the next one.
    const auto known = std::span(seq.tokens).first(seq.tokens.size() - 1);
    return seq.num_tokens() - static_cast<std::int32_t>(allocator.lookup(seq.prefix_root, known));
  }
  return seq.num_tokens();
}

namespace detail {

/// Calls `work`, which reserves memory. False if there was none.
template <class Work>
bool has_memory_for(Work&& work) noexcept {
  bool ok = false;
  contain(
      [&] {
        work();
        ok = true;
      },
      [](const char*) {});
  return ok;
}

}  // namespace detail

/// Gives `seq`, which has no blocks, all that its tokens need: those that the prefix cache holds, at most up to the last token,
/// which is always computed, and new ones for the rest. At least `reserve` blocks stay free. Its status becomes running.
/// False, also if there is no memory for the block table: `seq` and `allocator` own what they did before.
template <BlockAllocator A>
[[nodiscard]] bool try_admit(Sequence& seq, A& allocator, std::int32_t block_size, std::uint32_t reserve = 0) {
  // The memory for the longest table comes first, so that from here to its end no step of the sequence needs any.
  if (!detail::has_memory_for(
          [&] { seq.block_table.reserve(blocks_for(std::max(seq.num_tokens(), seq.max_total_tokens), block_size)); })) {
    return false;
  }
  PrefixId prefix = seq.prefix_root;
  if constexpr (PrefixCachingAllocator<A>) {
    prefix = allocator.match(prefix, std::span<const TokenId>(seq.tokens).first(seq.tokens.size() - 1), seq.block_table);
  }
  const std::size_t num_matched = seq.block_table.size();
  const std::size_t missing = blocks_for(seq.num_tokens(), block_size) - num_matched;
  const bool has_room = missing + reserve <= allocator.num_free();
  if (has_room) { seq.block_table.resize(num_matched + missing); }
  if (!has_room || !allocator.try_allocate(std::span(seq.block_table).subspan(num_matched))) {
    seq.block_table.resize(num_matched);
    release_blocks(seq, allocator);
    return false;
  }
  seq.num_published = static_cast<std::int32_t>(num_matched);
  seq.published_prefix = prefix;
  seq.num_cached = seq.num_computed = seq.num_published * block_size;
  seq.status = SeqStatus::running;
  return true;
}

/// Finds more of the tokens of `seq`, which was admitted in this step and has computed nothing, where its allocator can:
/// - what follows and lies in host memory only is read back beside this step (batch.swap_in). The sequence is then `loading`: it
///   is not planned in this step and runs from the next one on;
/// - else, of a cached block that differs from the next one, the equal head is copied (batch.copies); then num_cached is no
///   multiple of the block size.
/// Less is found if there is no memory to note it. A scheduler that calls it ends its plans with finish_plan.
template <BlockAllocator A>
void extend_hit(Sequence& seq, A& allocator, std::int32_t block_size, ScheduledBatch& batch) noexcept {
  if constexpr (PrefixCachingAllocator<A>) {
    const auto size = static_cast<std::size_t>(block_size);
    const auto first = static_cast<std::size_t>(seq.num_published);
    // The last token is always computed.
    const auto rest = std::span<const TokenId>(seq.tokens).first(seq.tokens.size() - 1).subspan(first * size);
    if constexpr (TieredPrefixCache<A>) {
      const std::size_t longest =
          std::min(rest.size() / size,
                   allocator.num_host_blocks() - std::min<std::size_t>(allocator.num_host_blocks(), batch.swap_in.size()));
      if (allocator.num_host_blocks() > 0 && longest > 0 &&
          !batch.copies_from(std::span(seq.block_table).subspan(first, longest)) && detail::has_memory_for([&] {
            seq.host_table.reserve(longest);
            batch.swap_in.reserve(batch.swap_in.size() + longest);
          })) {
        allocator.match_host(seq.published_prefix, rest.first(longest * size), seq.host_table);
        for (std::size_t i = 0; i < seq.host_table.size(); ++i) {
          batch.swap_in.push_back({.device = seq.block_table[first + i], .host = seq.host_table[i]});
        }
        const auto num_loaded = static_cast<std::int32_t>(seq.host_table.size());
        seq.host_table.clear();
        if (num_loaded > 0) {
          seq.num_cached = seq.num_computed += num_loaded * block_size;
          seq.status = SeqStatus::loading;
          return;
        }
      }
    }
    if constexpr (PartialMatchAllocator<A>) {
      if (!detail::has_memory_for([&] {
            batch.copies.reserve(batch.copies.size() + 1);
            batch.held.reserve(batch.held.size() + 1);
          })) {
        return;
      }
      const PartialMatch found = allocator.match_head(seq.published_prefix, rest);
      if (found.num_tokens == 0) { return; }
      batch.copies.push_back({.from = found.block, .to = seq.block_table[first]});
      batch.held.push_back(found.block);
      seq.num_cached = seq.num_computed += static_cast<std::int32_t>(found.num_tokens);
    }
  }
}

/// Ends the plan of a step: gives up what only its copies needed, and writes at most `most_demotions` cached blocks that nobody
/// owns to host memory beside it, if the step has anything else to do.
template <BlockAllocator A>
void finish_plan(A& allocator, ScheduledBatch& batch, std::size_t most_demotions) noexcept {
  allocator.release(batch.held);
  batch.held.clear();
  if constexpr (TieredPrefixCache<A>) {
    const std::size_t most = std::min<std::size_t>(batch.empty() ? 0 : most_demotions, allocator.num_host_blocks());
    const bool has_memory = detail::has_memory_for([&] { batch.swap_out.reserve(batch.swap_out.size() + most); });
    allocator.take_demotions(has_memory ? most : 0, batch.swap_out);
  }
}

/// Takes the blocks of a running sequence back. Its tokens are computed again, from the first that the prefix cache has lost.
template <BlockAllocator A>
void preempt_by_recompute(Sequence& seq, A& allocator, ScheduledBatch& batch) {
  batch.preempted.push_back(&seq);
  // What is copied for it goes with it: who gets its blocks may want copies of his own there.
  const auto is_own = [&](BlockId block) { return std::ranges::count(seq.owned_blocks(), block) > 0; };
  std::erase_if(batch.copies, [&](const BlockCopy& copy) { return is_own(copy.to); });
  std::erase_if(batch.swap_in, [&](const BlockTransfer& in) { return is_own(in.device); });
  release_blocks(seq, allocator);
  seq.status = SeqStatus::preempted;
  ++seq.num_preemptions;
}

/// Plans the next `num_tokens` tokens of `seq`, whose blocks are there.
inline void append_to_batch(ScheduledBatch& batch, Sequence& seq, std::int32_t num_tokens) {
  batch.seqs.push_back({.seq = &seq,
                        .first_position = seq.num_computed,
                        .num_tokens = num_tokens,
                        .needs_sample = num_tokens == seq.num_uncomputed() && seq.num_held == 0});
  seq.num_computed += num_tokens;
  batch.num_tokens += num_tokens;
}

}  // namespace nvl::inline NVL_ABI
