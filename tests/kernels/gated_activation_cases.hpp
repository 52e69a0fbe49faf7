#pragma once
/// Shapes of the gated activation that the test checks and the bench times.

#include <vector>

namespace nvl_test {

struct GatedActivationCase {
  int num_tokens;
  int n;               // [elements] of an output row
  int gap = 0;         // [elements] between rows of gate_up and of out
  bool timed = false;  // the bench runs it
};

inline std::vector<GatedActivationCase> gated_activation_cases() {
  std::vector<GatedActivationCase> cases;
  for (const int n : {8, 64, 136, 1016, 1024, 1032, 2056, 9728}) {
    cases.push_back({1, n});
    cases.push_back({5, n, 16});
    cases.push_back({300, n, 8});
  }
  cases.push_back({0, 64});
  for (const int tokens : {1, 8, 32, 128, 256, 2048, 8192}) {
    cases.push_back({tokens, 3072, 0, true});
    cases.push_back({tokens, 12288, 0, true});
  }
  return cases;
}

}  // namespace nvl_test
