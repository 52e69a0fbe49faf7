// EXPECT: nvl: a RouterPolicy needs `std::size_t route(const Request&, std::span<const EngineLoad>) noexcept`
#include <nvl/engine/router_policy.hpp>

struct MyRouter {
#ifdef NVL_FIXED
  std::size_t route(const nvl::Request&, std::span<const nvl::EngineLoad>) noexcept;
#else
  std::size_t route(const nvl::Request&, std::span<const nvl::EngineLoad>);
#endif
};
static_assert(nvl::require_router_policy<MyRouter>());
