#pragma once
/// Keyed hashes of the prefix cache. The key is drawn from the system, so that nobody who sends prompts can build collisions.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/xxhash.hpp>
#include <nvl/kv/block_allocator.hpp>

#include <array>
#include <concepts>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>

namespace nvl::inline NVL_ABI {

namespace detail {

/// The key of XXH3: bytes that stand for its built-in ones.
class HashSecret {
 public:
  HashSecret() {
    std::random_device source;
    for (std::uint32_t& word : words_) { word = source(); }
  }

  XXH128_hash_t hash128(const void* bytes, std::size_t size) const noexcept {
    return XXH3_128bits_withSecret(bytes, size, words_.data(), sizeof(words_));
  }
  std::uint64_t hash64(const void* bytes, std::size_t size) const noexcept {
    return XXH3_64bits_withSecret(bytes, size, words_.data(), sizeof(words_));
  }

 private:
  std::array<std::uint32_t, 48> words_;
  static_assert(sizeof(words_) >= XXH3_SECRET_SIZE_MIN);
};

}  // namespace detail

/// Hash of (the prefix before a block, the block's tokens): where the prefix cache looks for a block. It only has to spread:
/// what is found is compared token by token, so a collision costs time and never gives wrong blocks.
template <class H>
concept BlockHash = std::movable<H> && requires(const H& h, PrefixId parent, std::span<const TokenId> tokens) {
  { h(parent, tokens) } noexcept -> std::same_as<std::uint64_t>;
};

/// XXH3 with a secret of its own for each object.
class Xxh3BlockHash {
 public:
  std::uint64_t operator()(PrefixId parent, std::span<const TokenId> tokens) const noexcept {
    const XXH128_hash_t content = secret_.hash128(tokens.data(), tokens.size_bytes());
    const std::array<std::uint64_t, 4> link{parent.high, parent.low, content.high64, content.low64};
    return secret_.hash64(link.data(), sizeof(link));
  }

 private:
  detail::HashSecret secret_;
};
static_assert(BlockHash<Xxh3BlockHash>);

}  // namespace nvl::inline NVL_ABI
