// A refinement that is almost one is reported, not silently left unused.
// EXPECT: nvl: the allocator has `match` but is no PrefixCachingAllocator
#include <nvl/kv/free_list_allocator.hpp>

struct MyCache : nvl::FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
  void share(std::span<const nvl::BlockId>) noexcept;
  std::uint32_t num_owners(nvl::BlockId) const noexcept;
  nvl::PrefixId root(std::string_view) const;
  nvl::PrefixId match(nvl::PrefixId, std::span<const nvl::TokenId>, std::vector<nvl::BlockId>&);
  std::uint32_t lookup(nvl::PrefixId, std::span<const nvl::TokenId>) const;
#ifdef NVL_FIXED
  nvl::PrefixId publish(nvl::PrefixId, std::span<const nvl::TokenId>, nvl::BlockId);
#else
  void publish(nvl::PrefixId, std::span<const nvl::TokenId>, nvl::BlockId);
#endif
  void forget(nvl::BlockId) noexcept;
};
static_assert(nvl::require_block_allocator<MyCache>());
