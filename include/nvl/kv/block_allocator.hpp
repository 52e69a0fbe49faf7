#pragma once
/// Concept BlockAllocator: who owns which block of the KV cache. Deals in ids, never in memory.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <compare>
#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Hands out KV cache blocks. Called by the engine thread only. Constructible from `BlockPoolShape`.
///
/// | expression            | returns       | throws | meaning                                                       |
/// |-----------------------|---------------|--------|---------------------------------------------------------------|
/// | `a.try_allocate(out)` | bool          | never  | fills `out` with distinct free ids; false: `a` is unchanged   |
/// | `a.release(ids)`      | void          | never  | gives up one reference to each id; any order                  |
/// | `ca.num_free()`       | std::uint32_t | never  | [blocks] the largest `out` that would succeed now             |
/// | `ca.num_blocks()`     | std::uint32_t | never  | [blocks] fixed at construction                                |
template <class A>
concept BlockAllocator =
    std::movable<A> && requires(A a, const A& ca, std::span<BlockId> out, std::span<const BlockId> ids) {
      { a.try_allocate(out) } noexcept -> std::same_as<bool>;
      { a.release(ids) } noexcept;
      { ca.num_free() } noexcept -> std::same_as<std::uint32_t>;
      { ca.num_blocks() } noexcept -> std::same_as<std::uint32_t>;
    };

/// What an Engine constructs its allocator from.
struct BlockPoolShape {
  std::uint32_t num_blocks = 0;
  std::uint32_t block_size = 0;  // [tokens]
};

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

/// Names one prefix: the tokens from the start of a sequence to the end of some block, under one salt. Opaque; never reused
/// for another prefix during the life of an allocator.
struct PrefixId {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  friend constexpr auto operator<=>(const PrefixId&, const PrefixId&) = default;
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
/// |                                   |            | `parent`; may be found from now on, even after its release until evicted    |
/// | `a.forget(block)`                 | void       | `block` is never found again (its content is damaged)                       |
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

/// The least BlockAllocator. Declared, not defined: code that compiles against it asks for nothing more.
struct BlockAllocatorArchetype {
  explicit BlockAllocatorArchetype(const BlockPoolShape&);
  bool try_allocate(std::span<BlockId>) noexcept;
  void release(std::span<const BlockId>) noexcept;
  std::uint32_t num_free() const noexcept;
  std::uint32_t num_blocks() const noexcept;
};
static_assert(BlockAllocator<BlockAllocatorArchetype>);

}  // namespace nvl::inline NVL_ABI
