#pragma once
/// What CostPreemption compares: the cost of a swap and of a recomputation, by the length of the sequence.

#include <nvl/core/config.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Of a sequence with `tokens` computed ones. Any unit of time, the same for all.
struct PreemptionCost {
  std::int32_t tokens = 0;
  double swap = 0;       // its blocks out and, later, in
  double recompute = 0;  // its tokens computed again
};

/// A table, because neither cost is a formula: transfers hide behind the steps that they run beside, up to a length, and the
/// matrix products of a step of few tokens cost as much as those of many. Between two points costs lie on a straight line, from
/// no tokens and no cost on to the first; past the last they go on as between the last two.
struct PreemptionCosts {
  /// Tokens ascend; points that are not used have 0 tokens and stand at the end. As it stands: [ms] that Qwen3-0.6B in bf16 on an
  /// H200 loses beside 64 sequences that decode (nvl-preemption-bench, which measures any model and device).
  std::array<PreemptionCost, 16> points{{{64, 0.135, 0.507},
                                         {128, 0.313, 0.684},
                                         {256, 0.556, 0.966},
                                         {512, 1.161, 1.432},
                                         {1024, 1.937, 2.100},
                                         {1536, 3.302, 3.459},
                                         {2048, 5.478, 4.633},
                                         {3072, 9.835, 7.489},
                                         {4096, 14.181, 10.509},
                                         {8192, 31.701, 26.078},
                                         {10240, 40.274, 37.216},
                                         {12288, 48.936, 51.516},
                                         {16384, 66.528, 79.864},
                                         {32768, 138.796, 267.309}}};

  constexpr double swap(double tokens) const noexcept { return at(&PreemptionCost::swap, tokens); }
  constexpr double recompute(double tokens) const noexcept { return at(&PreemptionCost::recompute, tokens); }

  constexpr std::size_t num_points() const noexcept {
    const auto is_used = [](const PreemptionCost& point) { return point.tokens > 0; };
    return static_cast<std::size_t>(std::find_if_not(points.begin(), points.end(), is_used) - points.begin());
  }

  /// A swap costs `swap_per_token` in all; the recomputation of a token 1, and its attention as much again in a sequence of
  /// `attention_tokens` (0: nothing).
  static constexpr PreemptionCosts of(double swap_per_token, double attention_tokens) noexcept {
    PreemptionCosts costs;
    for (std::size_t i = 0; i < costs.points.size(); ++i) {
      const std::int32_t tokens = (i % 2 == 0 ? 256 : 384) << (i / 2);
      const double n = tokens;
      costs.points[i] = {tokens, swap_per_token * n, n + (attention_tokens > 0 ? n * n / attention_tokens : 0.0)};
    }
    return costs;
  }

 private:
  constexpr double at(double PreemptionCost::*cost, double tokens) const noexcept {
    const std::size_t count = num_points();
    std::size_t next = 0;
    while (next + 1 < count && points[next].tokens < tokens) { ++next; }
    if (count == 0) { return 0; }
    const PreemptionCost from = next > 0 ? points[next - 1] : PreemptionCost{};
    const double slope = (points[next].*cost - from.*cost) / (points[next].tokens - from.tokens);
    return std::max(0.0, from.*cost + slope * (tokens - from.tokens));
  }
};

}  // namespace nvl::inline NVL_ABI
