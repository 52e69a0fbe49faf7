#pragma once
/// What prefix caches have in common: statistics, events, the ids of empty prefixes, and the concept of what one does with a
/// cache as a whole.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_hash.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// What a prefix cache was asked for and what it found, since it was constructed.
struct PrefixCacheStats {
  std::uint64_t queried_tokens = 0;       // given to `match`
  std::uint64_t hit_tokens = 0;           // of them found in blocks of the device
  std::uint64_t host_hit_tokens = 0;      // and found after those in host memory
  std::uint64_t partial_hit_tokens = 0;   // and found at the head of a block that differs later
  std::uint64_t stored_blocks = 0;        // published with content that the device did not hold
  std::uint64_t merged_blocks = 0;        // published with content that it held: given up for the block that was there
  std::uint64_t evicted_blocks = 0;       // cached blocks that were taken for other content
  std::uint64_t demoted_blocks = 0;       // of which a copy went to host memory
  std::uint64_t evicted_host_blocks = 0;  // such copies that were taken for other content

  double hit_rate() const noexcept {
    const std::uint64_t hits = hit_tokens + host_hit_tokens + partial_hit_tokens;
    return queried_tokens == 0 ? 0.0 : static_cast<double>(hits) / static_cast<double>(queried_tokens);
  }

  PrefixCacheStats& operator+=(const PrefixCacheStats& more) noexcept {
    queried_tokens += more.queried_tokens;
    hit_tokens += more.hit_tokens;
    host_hit_tokens += more.host_hit_tokens;
    partial_hit_tokens += more.partial_hit_tokens;
    stored_blocks += more.stored_blocks;
    merged_blocks += more.merged_blocks;
    evicted_blocks += more.evicted_blocks;
    demoted_blocks += more.demoted_blocks;
    evicted_host_blocks += more.evicted_host_blocks;
    return *this;
  }
};

/// One change of what a cache holds.
struct PrefixCacheEvent {
  enum class Kind : std::uint8_t { stored, evicted, stored_on_host, evicted_from_host, cleared };
  Kind kind = Kind::stored;
  PrefixId prefix{};  // that the block ends; of `cleared`: nothing
  PrefixId parent{};  // the prefix before the block, if stored
  friend constexpr bool operator==(const PrefixCacheEvent&, const PrefixCacheEvent&) = default;
};

/// The events since they were last drained. Off until it gets a capacity; while off, an event costs one comparison.
class PrefixCacheEvents {
 public:
  /// Notes up to `most` events between two drains; what comes after them is counted and dropped. 0: off.
  /// Throws std::bad_alloc, and then nothing changed.
  void set_capacity(std::size_t most) {
    events_.reserve(most);
    capacity_ = most;
    if (events_.size() > most) { events_.resize(most); }
  }

  void note(PrefixCacheEvent::Kind kind, PrefixId prefix = {}, PrefixId parent = {}) noexcept {
    if (events_.size() < capacity_) {
      events_.push_back({kind, prefix, parent});  // within the reserved capacity: cannot throw
    } else if (capacity_ > 0) {
      ++num_lost_;
    }
  }

  /// Appends the events to `out`, oldest first. Throws std::bad_alloc, and then nothing changed.
  void drain(std::vector<PrefixCacheEvent>& out) {
    out.insert(out.end(), events_.begin(), events_.end());
    events_.clear();
  }

  std::uint64_t num_lost() const noexcept { return num_lost_; }

 private:
  std::vector<PrefixCacheEvent> events_;
  std::size_t capacity_ = 0;
  std::uint64_t num_lost_ = 0;
};

namespace detail {

/// `shape`, if a prefix cache can have it: its tables, which hold both tiers, are numbered by 31 bits. Before anything is allocated.
inline const BlockPoolShape& checked_cache_shape(const BlockPoolShape& shape) {
  constexpr std::uint32_t end = std::uint32_t{1} << 31;
  NVL_EXPECTS(shape.block_size >= 1, "BlockPoolShape::block_size", shape.block_size, "at least 1");
  NVL_EXPECTS(shape.num_blocks < end && shape.num_host_blocks < end - shape.num_blocks, "BlockPoolShape::num_blocks",
              shape.num_blocks, "below 2^31, with num_host_blocks");
  return shape;
}

/// Ids of empty prefixes: keyed 128-bit hashes (127 bits kept), because remembering salts would let clients fill the memory.
class PrefixRoots {
 public:
  /// Set in the upper half of every root, and of no other id.
  static constexpr std::uint64_t bit = std::uint64_t{1} << 63;

  PrefixId operator()(std::string_view salt, std::string_view adapter) const noexcept {
    XXH128_hash_t digest = secret_.hash128(salt.data(), salt.size());
    if (!adapter.empty()) {
      const XXH128_hash_t other = secret_.hash128(adapter.data(), adapter.size());
      const std::array<std::uint64_t, 4> both{digest.high64, digest.low64, other.high64, other.low64};
      digest = secret_.hash128(both.data(), sizeof(both));
    }
    return {.high = digest.high64 | bit, .low = digest.low64};
  }

 private:
  HashSecret secret_;
};

}  // namespace detail

/// Refinement: the cache as a whole can be watched and steered. Called between steps.
///
/// | expression                  | returns          | meaning                                                               |
/// |-----------------------------|------------------|-----------------------------------------------------------------------|
/// | `ca.root(salt, adapter)`    | PrefixId         | the empty prefix of a tenant's salt and of an adapter of the weights   |
/// | `a.pin(root, tokens)`       | uint32_t         | [tokens] at the beginning that are cached and are evicted only when no |
/// |                             |                  | other block is left; as far as max_pinned_blocks goes                  |
/// | `a.unpin(root, tokens)`     | uint32_t         | [tokens] at the beginning that are cached and not pinned any more      |
/// | `a.set_max_pinned(blocks)`  | void             | the bound; a quarter of the pool if it is never set                    |
/// | `a.reset()`                 | void             | nothing that was published is found any more; owners keep their blocks |
/// | `ca.stats()`                | PrefixCacheStats | since construction                                                    |
/// | `a.events()`                | PrefixCacheEvents| what was stored and evicted; off until it gets a capacity              |
///
/// A pin is no promise to the client: a pool that kept pinned blocks from sequences that are running would stall them.
template <class A>
concept ManagedPrefixCache = PrefixCachingAllocator<A> && requires(A a, const A& ca, std::string_view salt, PrefixId root,
                                                                   std::span<const TokenId> tokens, std::uint32_t blocks) {
  { ca.root(salt, salt) } -> std::same_as<PrefixId>;
  { a.pin(root, tokens) } noexcept -> std::same_as<std::uint32_t>;
  { a.unpin(root, tokens) } noexcept -> std::same_as<std::uint32_t>;
  { a.set_max_pinned(blocks) } noexcept;
  { a.reset() } noexcept;
  { ca.stats() } noexcept -> std::convertible_to<PrefixCacheStats>;
  { a.events() } noexcept -> std::same_as<PrefixCacheEvents&>;
};

}  // namespace nvl::inline NVL_ABI
