#pragma once
/// The host blocks of a prefix cache with two tiers: who has each of them, and in which order cached content is dropped.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/free_ids.hpp>
#include <nvl/kv/index_list.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// A host block is free; or owned, by a sequence that is swapped out; or cached: it has content that can be dropped, least
/// recently used first; or held: cached, and a transfer that is being planned reads or writes it. Deals in ids. Memory is fixed at
/// construction; nothing throws after it.
///
/// `drop(h)` is called before cached block `h` is used for something else; its content is forgotten then.
class HostTier {
 public:
  explicit HostTier(std::uint32_t num_blocks) : free_(num_blocks), links_(num_blocks), states_(num_blocks, State::other) {
    held_.reserve(num_blocks);
  }

  template <class Drop>
  bool try_allocate(std::span<HostBlockId> out, Drop&& drop) noexcept {
    if (out.size() > num_free()) { return false; }
    for (HostBlockId& id : out) { id = HostBlockId{take(drop)}; }
    return true;
  }

  /// One block; no_index: all are owned or held.
  template <class Drop>
  std::uint32_t take(Drop&& drop) noexcept {
    HostBlockId id{};
    if (free_.try_take(std::span(&id, 1))) { return index_of(id); }
    const std::uint32_t h = cached_.front();
    if (h != no_index) {
      cached_.remove(links_, h);
      states_[h] = State::other;
      drop(h);
    }
    return h;
  }

  void give_back(std::span<const HostBlockId> ids) noexcept { free_.give_back(ids); }

  /// `h`, which was taken, has content from now on.
  void cache(std::uint32_t h) noexcept {
    states_[h] = State::cached;
    cached_.push_back(links_, h);
  }

  /// The content of `h` is worth nothing any more.
  void uncache(std::uint32_t h) noexcept {
    if (states_[h] == State::cached) {
      cached_.remove(links_, h);
      states_[h] = State::other;
      const HostBlockId id{h};
      free_.give_back(std::span(&id, 1));
    } else {
      states_[h] = State::held_for_nothing;  // a transfer still needs it
    }
  }

  /// `h`, which is cached, keeps its content until `end_holds`. Then it is the one used last.
  void hold(std::uint32_t h) noexcept {
    if (states_[h] != State::cached) { return; }
    cached_.remove(links_, h);
    states_[h] = State::held;
    held_.push_back(h);  // within the reserved capacity: cannot throw
  }

  void end_holds() noexcept {
    // Backwards: what was found last in a prompt is dropped first.
    for (; !held_.empty(); held_.pop_back()) {
      const std::uint32_t h = held_.back();
      const bool is_cached = states_[h] == State::held;
      cache(h);
      if (!is_cached) { uncache(h); }
    }
  }

  std::uint32_t num_free() const noexcept { return free_.size() + cached_.size(); }
  std::uint32_t num_blocks() const noexcept { return free_.capacity(); }

 private:
  enum class State : std::uint8_t { other, cached, held, held_for_nothing };  // other: free or owned

  FreeIds<HostBlockId> free_;
  IndexList cached_;  // least recently used first
  std::vector<IndexLink> links_;
  std::vector<State> states_;
  std::vector<std::uint32_t> held_;
};

}  // namespace nvl::inline NVL_ABI
