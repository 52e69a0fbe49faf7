#pragma once
/// Conformance suite of the concept RouterPolicy: tests the meaning column of its table on any router.
///
///     const auto broken = nvl::testing::check_router<MyRouter>();
///     if (!broken.empty()) { std::puts(broken.text().c_str()); }

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/router_policy.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

/// Everything that the table of RouterPolicy promises. Reproducible: randomness is of `seed` alone.
/// \param make called for each number of replicas: a router
template <RouterPolicy R, class Make>
Violations check_router(Make&& make, std::uint64_t seed = 1) {
  Violations broken;
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  // Prompts of many lengths and few beginnings; an empty one too, which no engine takes: the router is asked first.
  const auto any_request = [&] {
    Request request;
    request.prompt_ids.assign(below(4) == 0 ? below(3) : below(600), static_cast<TokenId>(below(3)));
    request.sampling.max_tokens = static_cast<std::int32_t>(1 + below(200));
    request.cache_salt = below(3) == 0 ? "salt" : "";
    request.user = below(4);
    return request;
  };
  for (std::size_t num_replicas = 1; num_replicas <= 9; ++num_replicas) {
    R router = make();
    for (int round = 0; round < 200 && broken.empty(); ++round) {
      broken.during(std::to_string(num_replicas) + " replicas, seed " + std::to_string(seed) + ", round " +
                    std::to_string(round));
      if (round == 100) {  // a router is a value
        R moved = std::move(router);
        router = std::move(moved);
      }
      std::vector<EngineLoad> loads(num_replicas);
      const std::uint64_t scale = std::uint64_t{1} << below(41);
      for (EngineLoad& load : loads) {
        load.num_tokens = static_cast<std::int64_t>(below(scale));
        load.num_reqs = load.num_tokens == 0 ? 0 : static_cast<std::int64_t>(1 + below(1000));
        load.is_open = below(4) != 0;
      }
      loads[below(num_replicas)].is_open = true;
      const Request request = any_request();
      const auto is_open = [](const EngineLoad& load) { return load.is_open; };
      // As a DataParallelEngine whose replicas refuse one after the other.
      while (std::ranges::any_of(loads, is_open) && broken.empty()) {
        const std::size_t chosen = router.route(request, loads);
        if (!broken.expect(chosen < num_replicas, "route: index " + std::to_string(chosen) + " of no replica")) { break; }
        broken.expect(loads[chosen].is_open, "route: replica " + std::to_string(chosen) + ", which is not open");
        loads[chosen].is_open = false;
      }
    }
  }
  return broken;
}

/// The same, of routers that are made without arguments.
template <RouterPolicy R>
Violations check_router(std::uint64_t seed = 1) {
  return check_router<R>([] { return R(); }, seed);
}

}  // namespace nvl::inline NVL_ABI::testing
