#pragma once
/// Shapes of RoPE that the test checks and the bench times.

#include <vector>

namespace nvl_test {

struct RopeCase {
  int num_tokens;
  int num_heads;
  int head_dim;
  int gap = 0;         // [elements] between rows
  bool timed = false;  // the bench runs it
};

inline std::vector<RopeCase> rope_cases() {
  std::vector<RopeCase> cases;
  for (const int head_dim : {16, 32, 48, 64, 80, 96, 128, 256}) {
    cases.push_back({1, 1, head_dim});
    cases.push_back({7, 5, head_dim, 8});
    cases.push_back({259, 3, head_dim});
  }
  cases.push_back({0, 2, 64});
  for (const int tokens : {1, 32, 256, 8192}) { cases.push_back({tokens, 24, 128, 0, true}); }
  return cases;
}

}  // namespace nvl_test
