#pragma once
/// Concept RouterPolicy: which of several engines gets a request.

#include <nvl/core/config.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/request.hpp>

#include <concepts>
#include <cstddef>
#include <span>

namespace nvl::inline NVL_ABI {

namespace detail::router {

template <class R>
concept has_route = requires(R r, const Request& request, std::span<const EngineLoad> loads) {
  { r.route(request, loads) } noexcept -> std::same_as<std::size_t>;
};

}  // namespace detail::router

/// Chooses among the replicas of a DataParallelEngine, which calls it for one request at a time.
///
/// | expression                | returns     | throws | meaning                                                                  |
/// |---------------------------|-------------|--------|--------------------------------------------------------------------------|
/// | `r.route(request, loads)` | std::size_t | never  | index of the replica that gets `request`, one that is_open; of `loads`,  |
/// |                           |             |        | one a replica and always as many, at least one is. Called again for the  |
/// |                           |             |        | same request, with less that is open, if that replica does not take it   |
template <class R>
concept RouterPolicy = std::movable<R> && detail::router::has_route<R>;

/// The least RouterPolicy. Declared, not defined.
struct RouterPolicyArchetype {
  std::size_t route(const Request&, std::span<const EngineLoad>) noexcept;
};

/// True if R is a RouterPolicy; else the compiler says which member is missing. For use beside a router of one's own:
/// `static_assert(nvl::require_router_policy<MyRouter>());`
template <class R>
consteval bool require_router_policy() {
  static_assert(std::movable<R>, "nvl: a RouterPolicy must be movable");
  static_assert(detail::router::has_route<R>,
                "nvl: a RouterPolicy needs `std::size_t route(const Request&, std::span<const EngineLoad>) noexcept`");
  return true;
}
static_assert(require_router_policy<RouterPolicyArchetype>());

}  // namespace nvl::inline NVL_ABI
