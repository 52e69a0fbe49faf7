// A cache that finds heads of blocks in its own way is reported: nobody would ask it.
// EXPECT: nvl: the allocator has `match_head` but is no PartialMatchAllocator
#include <nvl/kv/prefix_cache_allocator.hpp>

struct MyCache : nvl::PrefixCacheAllocator {
  using BasicPrefixCacheAllocator::BasicPrefixCacheAllocator;
#ifdef NVL_FIXED
  nvl::PartialMatch match_head(nvl::PrefixId, std::span<const nvl::TokenId>) noexcept;
#else
  nvl::BlockId match_head(nvl::PrefixId, std::span<const nvl::TokenId>) noexcept;
#endif
};
static_assert(nvl::require_block_allocator<MyCache>());
