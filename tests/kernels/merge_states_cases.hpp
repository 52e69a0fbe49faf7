#pragma once
/// Shapes of the merge of attention states that its test checks and its benchmark times.

#include <cstdint>
#include <vector>

namespace nvl_test {

struct MergeStatesCase {
  std::int64_t num_rows = 0;  // tokens * heads
  std::int32_t head_dim = 0;
};

inline std::vector<MergeStatesCase> merge_states_test_cases() {
  return {{1, 16}, {3, 32}, {9, 64}, {33, 80}, {31, 96}, {255, 128}, {256, 128}, {257, 128}, {77, 256}, {4099, 64}};
}

/// 32 heads of 128.
inline std::vector<MergeStatesCase> merge_states_bench_cases() { return {{32, 128}, {32 * 256, 128}, {32 * 16384, 128}}; }

}  // namespace nvl_test
