// A cache whose host tier is almost one is reported: its copies on the host would never be found.
// EXPECT: nvl: the allocator has `match_host` but is no TieredPrefixCache
#include <nvl/kv/prefix_cache_allocator.hpp>

struct MyCache : nvl::PrefixCacheAllocator {
  using BasicPrefixCacheAllocator::BasicPrefixCacheAllocator;
#ifdef NVL_FIXED
  nvl::PrefixId match_host(nvl::PrefixId, std::span<const nvl::TokenId>, std::vector<nvl::HostBlockId>&);
#else
  nvl::PrefixId match_host(nvl::PrefixId, std::span<const nvl::TokenId>, std::vector<nvl::BlockId>&);
#endif
};
static_assert(nvl::require_block_allocator<MyCache>());
