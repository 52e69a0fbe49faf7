#pragma once
/// Requests that begin alike go to one replica, whose prefix cache knows the beginning, unless it has too much to do.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/router_policy.hpp>
#include <nvl/kv/block_hash.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

struct PrefixAffinityOptions {
  std::int32_t block_size = 16;      // [tokens] of the engines: only whole blocks are shared
  std::int32_t num_blocks = 16;      // of the beginning of a prompt that are looked at
  double epsilon = 0.25;             // a replica is passed over above (1 + epsilon) x the mean load
  std::int64_t slack_tokens = 8192;  // + this: a few requests are no imbalance
};

/// The first blocks of the prompt and the cache salt are hashed, and rank the replicas (highest random weight: Thaler and
/// Ravishankar 1998, "Using name-based mappings to increase hit rates"), so that a replica that dies moves its own prefixes only.
/// The request goes to the first in rank that is open and not above the bound, as in consistent hashing with bounded loads
/// (Mirrokni, Thorup, Zadimoghaddam 2016, arXiv:1608.01350). A prompt without a whole block goes where the least is to do.
///
/// Bound: a request of w tokens leaves its replica with at most (1 + epsilon) x m + slack_tokens + w, where m is the mean load of
/// the open replicas before it. So, as long as nothing ends, no replica is ever above (1 + epsilon) x mean + slack_tokens + the
/// tokens of the largest request.
class PrefixAffinityRouter {
 public:
  /// \throws InvalidArgument
  explicit PrefixAffinityRouter(const PrefixAffinityOptions& options = {}) : options_(options) {
    NVL_EXPECTS(options.block_size >= 1, "block_size", options.block_size, "at least 1");
    NVL_EXPECTS(options.num_blocks >= 1, "num_blocks", options.num_blocks, "at least 1");
    NVL_EXPECTS(options.epsilon >= 0 && options.epsilon <= 1e6, "epsilon", options.epsilon, "0 to 1000000");
    NVL_EXPECTS(options.slack_tokens >= 0, "slack_tokens", options.slack_tokens, "not negative");
  }

  std::size_t route(const Request& request, std::span<const EngineLoad> loads) noexcept {
    const double bound = bound_of(loads);
    const auto has_room = [&](std::size_t i) { return loads[i].is_open && static_cast<double>(loads[i].num_tokens) <= bound; };
    const auto block_size = static_cast<std::size_t>(options_.block_size);
    const std::size_t num_blocks =
        std::min(request.prompt_ids.size() / block_size, static_cast<std::size_t>(options_.num_blocks));
    if (num_blocks == 0) { return detail::least_loaded(loads, has_room); }
    const std::uint64_t salt = XXH64(request.cache_salt.data(), request.cache_salt.size(), 0);
    const std::uint64_t prefix = XXH64(request.prompt_ids.data(), num_blocks * block_size * sizeof(TokenId), salt);
    std::size_t best = loads.size();
    std::uint64_t best_weight = 0;
    for (std::size_t i = 0; i < loads.size(); ++i) {
      if (!has_room(i)) { continue; }
      const std::array<std::uint64_t, 2> pair{prefix, i};
      const std::uint64_t weight = XXH64(pair.data(), sizeof(pair), 0);
      if (best == loads.size() || weight > best_weight) {
        best = i;
        best_weight = weight;
      }
    }
    return best;
  }

 private:
  /// [tokens] that a replica may have to do to get more. Never below the mean, so some replica is not above it.
  double bound_of(std::span<const EngineLoad> loads) const noexcept {
    double total = 0, num_open = 0;
    for (const EngineLoad& load : loads) {
      total += load.is_open ? static_cast<double>(load.num_tokens) : 0;
      num_open += load.is_open ? 1 : 0;
    }
    return (1 + options_.epsilon) * total / num_open + static_cast<double>(options_.slack_tokens);
  }

  PrefixAffinityOptions options_;
};
static_assert(RouterPolicy<PrefixAffinityRouter>);

}  // namespace nvl::inline NVL_ABI
