#pragma once
/// A hash of the prefix cache that collides all the time.

#include <nvl/core/ids.hpp>
#include <nvl/kv/block_hash.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>

#include <cstdint>
#include <span>

/// Sixteen values for everything.
struct FourBitHash {
  std::uint64_t operator()(nvl::PrefixId parent, std::span<const nvl::TokenId> tokens) const noexcept {
    std::uint64_t sum = parent.low;
    for (const nvl::TokenId token : tokens) { sum += static_cast<std::uint64_t>(token); }
    return sum & 15u;
  }
};
static_assert(nvl::BlockHash<FourBitHash>);

/// Every block in one bucket.
struct ConstantHash {
  std::uint64_t operator()(nvl::PrefixId, std::span<const nvl::TokenId>) const noexcept { return 7; }
};

using FourBitCache = nvl::BasicPrefixCacheAllocator<FourBitHash>;
using OneBucketCache = nvl::BasicPrefixCacheAllocator<ConstantHash>;
using FourBitRadixCache = nvl::BasicRadixCacheAllocator<FourBitHash>;
using OneBucketRadixCache = nvl::BasicRadixCacheAllocator<ConstantHash>;
