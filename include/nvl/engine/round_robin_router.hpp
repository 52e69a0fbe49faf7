#pragma once
/// One replica after the other.

#include <nvl/core/config.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/router_policy.hpp>

#include <cstddef>
#include <span>

namespace nvl::inline NVL_ABI {

/// Of any n requests in a row no replica gets two, as long as all n replicas are open. Right where requests are alike.
class RoundRobinRouter {
 public:
  std::size_t route(const Request&, std::span<const EngineLoad> loads) noexcept {
    while (!loads[next_ % loads.size()].is_open) { ++next_; }
    return next_++ % loads.size();
  }

 private:
  std::size_t next_ = 0;
};
static_assert(RouterPolicy<RoundRobinRouter>);

}  // namespace nvl::inline NVL_ABI
