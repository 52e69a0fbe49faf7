#pragma once
/// The replica that has the least to do.

#include <nvl/core/config.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/router_policy.hpp>

#include <cstddef>
#include <span>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Of the loads for which `is_candidate(i)`, the one of the fewest tokens, then of the fewest requests, then the first.
template <class IsCandidate>
std::size_t least_loaded(std::span<const EngineLoad> loads, IsCandidate&& is_candidate) noexcept {
  std::size_t best = loads.size();
  for (std::size_t i = 0; i < loads.size(); ++i) {
    if (!is_candidate(i)) { continue; }
    if (best == loads.size() || loads[i].num_tokens < loads[best].num_tokens ||
        (loads[i].num_tokens == loads[best].num_tokens && loads[i].num_reqs < loads[best].num_reqs)) {
      best = i;
    }
  }
  return best;
}

}  // namespace detail

/// The open replica with the fewest tokens outstanding: of prompts not computed yet and of output that may still come. Greedy list
/// scheduling (Graham 1966): as long as nothing ends, no replica is more than the largest request above another one.
class LeastTokensRouter {
 public:
  std::size_t route(const Request&, std::span<const EngineLoad> loads) noexcept {
    return detail::least_loaded(loads, [&](std::size_t i) { return loads[i].is_open; });
  }
};
static_assert(RouterPolicy<LeastTokensRouter>);

}  // namespace nvl::inline NVL_ABI
