#pragma once
/// Concept BlockAllocator: who owns which block of the KV cache. Deals in ids, never in memory.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>

#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// What an Engine constructs its allocator from.
struct BlockPoolShape {
  std::uint32_t num_blocks = 0;
  std::uint32_t block_size = 0;       // [tokens]
  std::uint32_t num_host_blocks = 0;  // of a second pool in host memory, for allocators that have one (TieredAllocator)
};

namespace detail::block_allocator {

template <class A>
concept has_try_allocate = requires(A a, std::span<BlockId> out) {
  { a.try_allocate(out) } noexcept -> std::same_as<bool>;
};
template <class A>
concept has_release = requires(A a, std::span<const BlockId> ids) {
  { a.release(ids) } noexcept;
};
template <class A>
concept has_num_free = requires(const A& a) {
  { a.num_free() } noexcept -> std::same_as<std::uint32_t>;
};
template <class A>
concept has_num_blocks = requires(const A& a) {
  { a.num_blocks() } noexcept -> std::same_as<std::uint32_t>;
};

}  // namespace detail::block_allocator

/// Hands out KV cache blocks. Called by the engine thread only. Movable.
///
/// | expression            | returns       | throws | meaning                                                       |
/// |-----------------------|---------------|--------|---------------------------------------------------------------|
/// | `A(shape)`            |               | may    | all blocks of the `BlockPoolShape` free                       |
/// | `a.try_allocate(out)` | bool          | never  | fills `out` with distinct free ids; false: `a` is unchanged   |
/// | `a.release(ids)`      | void          | never  | gives up one reference to each id; any order                  |
/// | `ca.num_free()`       | std::uint32_t | never  | [blocks] the largest `out` that would succeed now             |
/// | `ca.num_blocks()`     | std::uint32_t | never  | [blocks] fixed at construction                                |
template <class A>
concept BlockAllocator = std::movable<A> && std::constructible_from<A, const BlockPoolShape&> &&
                         detail::block_allocator::has_try_allocate<A> && detail::block_allocator::has_release<A> &&
                         detail::block_allocator::has_num_free<A> && detail::block_allocator::has_num_blocks<A>;

/// Refinement: a block may have several owners.
///
/// | expression         | returns       | meaning                                                      |
/// |--------------------|---------------|--------------------------------------------------------------|
/// | `a.share(ids)`     | void          | one more reference to each id, all of them allocated         |
/// | `ca.num_owners(b)` | std::uint32_t | references to `b`; a block with more than one is not written |
template <class A>
concept SharingAllocator = BlockAllocator<A> && requires(A a, const A& ca, std::span<const BlockId> ids, BlockId block) {
  { a.share(ids) } noexcept;
  { ca.num_owners(block) } noexcept -> std::same_as<std::uint32_t>;
};

/// Refinement: a second pool, in host memory, for sequences that are swapped out. A host block has one owner.
///
/// | expression                 | returns       | meaning                                                        |
/// |----------------------------|---------------|----------------------------------------------------------------|
/// | `a.try_allocate_host(out)` | bool          | fills `out` with distinct free ids; false: `a` is unchanged    |
/// | `a.release_host(ids)`      | void          | each id allocated and not yet released; any order              |
/// | `ca.num_free_host()`       | std::uint32_t | [host blocks] the largest `out` that would succeed now         |
/// | `ca.num_host_blocks()`     | std::uint32_t | [host blocks] fixed at construction, `shape.num_host_blocks`   |
template <class A>
concept TieredAllocator =
    BlockAllocator<A> && requires(A a, const A& ca, std::span<HostBlockId> out, std::span<const HostBlockId> ids) {
      { a.try_allocate_host(out) } noexcept -> std::same_as<bool>;
      { a.release_host(ids) } noexcept;
      { ca.num_free_host() } noexcept -> std::same_as<std::uint32_t>;
      { ca.num_host_blocks() } noexcept -> std::same_as<std::uint32_t>;
    };

/// Names one prefix: the tokens from the start of a sequence to the end of some block, under one salt. Opaque; never reused
/// for another prefix during the life of an allocator.
struct PrefixId {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  friend constexpr auto operator<=>(const PrefixId&, const PrefixId&) = default;
  friend constexpr bool operator==(const PrefixId&, const PrefixId&) = default;  // implied; nvcc 13.0 leaves it out if not said
};

/// Refinement: full blocks are found again by their content.
///
/// | expression                        | returns    | meaning                                                                     |
/// |-----------------------------------|------------|-----------------------------------------------------------------------------|
/// | `ca.root(salt)`                   | PrefixId   | the empty prefix of `salt`; different salts never share blocks              |
/// | `a.match(root, tokens, blocks)`   | PrefixId   | appends to `blocks` the longest cached run of full blocks of `tokens`, each |
/// |                                   |            | with one more reference; returns the prefix that they end, `root` if none   |
/// | `ca.lookup(root, tokens)`         | uint32_t   | [tokens] that `match` would find; changes nothing                           |
/// | `a.publish(parent, tokens, block)`| PrefixId   | `block`, owned by the caller, holds `tokens` (block_size of them) after     |
/// |                                   |            | `parent`; may be found from now on, even after its release until evicted.   |
/// |                                   |            | An allocator that merges takes `BlockId&`: if it has a block with equal     |
/// |                                   |            | content, the caller owns that one from then on, and this one no more        |
/// | `a.forget(block)`                 | void       | `block` is never found again (its content is damaged)                       |
///
/// Of the ids of one `release`, later ones are evicted before earlier ones: a block table is released as it is.
template <class A>
concept PrefixCachingAllocator =
    SharingAllocator<A> && requires(A a, const A& ca, std::string_view salt, PrefixId prefix, std::span<const TokenId> tokens,
                                    std::vector<BlockId>& blocks, BlockId block) {
      { ca.root(salt) } -> std::same_as<PrefixId>;
      { a.match(prefix, tokens, blocks) } -> std::same_as<PrefixId>;
      { ca.lookup(prefix, tokens) } -> std::same_as<std::uint32_t>;
      { a.publish(prefix, tokens, block) } -> std::same_as<PrefixId>;
      { a.forget(block) } noexcept;
    };

/// Refinement: cached blocks have copies in host memory, which outlive those of the device.
///
/// | expression                           | returns  | meaning                                                               |
/// |--------------------------------------|----------|-----------------------------------------------------------------------|
/// | `a.match_host(prefix, tokens, hosts)`| PrefixId | appends to `hosts` the longest run of blocks of `tokens` after        |
/// |                                      |          | `prefix` (that `match` returned) that only host memory holds; returns |
/// |                                      |          | the prefix that they end. Up to the next `take_demotions` they keep   |
/// |                                      |          | their content                                                         |
/// | `a.take_demotions(most, transfers)`  | void     | appends at most `most` cached blocks that nobody owns and that host   |
/// |                                      |          | memory does not hold, each with a host block, which holds it from now |
/// |                                      |          | on. Called once in each `schedule`, at its end (finish_plan)          |
template <class A>
concept TieredPrefixCache = PrefixCachingAllocator<A> && TieredAllocator<A> &&
                            requires(A a, PrefixId prefix, std::span<const TokenId> tokens, std::vector<HostBlockId>& hosts,
                                     std::size_t most, std::vector<BlockTransfer>& transfers) {
                              { a.match_host(prefix, tokens, hosts) } -> std::same_as<PrefixId>;
                              a.take_demotions(most, transfers);
                            };

/// A block of which only the first tokens are of use.
struct PartialMatch {
  BlockId block{};
  std::uint32_t num_tokens = 0;  // 0: there is none
};

/// Refinement: of a block that differs from what is looked for, the equal head can be copied.
///
/// | expression                     | returns      | meaning                                                                  |
/// |--------------------------------|--------------|--------------------------------------------------------------------------|
/// | `a.match_head(prefix, tokens)` | PartialMatch | a cached block after `prefix` that begins like `tokens`, with one more   |
/// |                                |              | reference, and how many tokens (below block_size) are equal              |
template <class A>
concept PartialMatchAllocator = PrefixCachingAllocator<A> && requires(A a, PrefixId prefix, std::span<const TokenId> tokens) {
  { a.match_head(prefix, tokens) } noexcept -> std::same_as<PartialMatch>;
};

/// The least BlockAllocator. Declared, not defined: code that compiles against it asks for nothing more.
struct BlockAllocatorArchetype {
  explicit BlockAllocatorArchetype(const BlockPoolShape&);
  bool try_allocate(std::span<BlockId>) noexcept;
  void release(std::span<const BlockId>) noexcept;
  std::uint32_t num_free() const noexcept;
  std::uint32_t num_blocks() const noexcept;
};
/// True if A is a BlockAllocator; else the compiler says which member is missing. For use beside an allocator of one's own:
/// `static_assert(nvl::require_block_allocator<MyAllocator>());`
template <class A>
consteval bool require_block_allocator() {
  namespace has = detail::block_allocator;
  static_assert(std::movable<A>, "nvl: a BlockAllocator must be movable");
  static_assert(std::constructible_from<A, const BlockPoolShape&>,
                "nvl: a BlockAllocator needs a constructor from `const BlockPoolShape&`");
  static_assert(has::has_try_allocate<A>, "nvl: a BlockAllocator needs `bool try_allocate(std::span<BlockId>) noexcept`");
  static_assert(has::has_release<A>, "nvl: a BlockAllocator needs `void release(std::span<const BlockId>) noexcept`");
  static_assert(has::has_num_free<A>, "nvl: a BlockAllocator needs `std::uint32_t num_free() const noexcept`");
  static_assert(has::has_num_blocks<A>, "nvl: a BlockAllocator needs `std::uint32_t num_blocks() const noexcept`");
  // A refinement with a spelling mistake would otherwise be left unused without a word.
  static_assert(
      !requires { &A::share; } || SharingAllocator<A>,
      "nvl: the allocator has `share` but is no SharingAllocator: compare with the table in nvl/kv/block_allocator.hpp");
  static_assert(
      !requires { &A::match; } || PrefixCachingAllocator<A>,
      "nvl: the allocator has `match` but is no PrefixCachingAllocator: compare with the table in nvl/kv/block_allocator.hpp");
  static_assert(
      !requires { &A::try_allocate_host; } || TieredAllocator<A>,
      "nvl: the allocator has `try_allocate_host` but is no TieredAllocator: compare with the table in "
      "nvl/kv/block_allocator.hpp");
  static_assert(
      !requires { &A::match_host; } || TieredPrefixCache<A>,
      "nvl: the allocator has `match_host` but is no TieredPrefixCache: compare with the table in nvl/kv/block_allocator.hpp");
  static_assert(
      !requires { &A::match_head; } || PartialMatchAllocator<A>,
      "nvl: the allocator has `match_head` but is no PartialMatchAllocator: compare with the table in "
      "nvl/kv/block_allocator.hpp");
  return true;
}
static_assert(require_block_allocator<BlockAllocatorArchetype>());

}  // namespace nvl::inline NVL_ABI
