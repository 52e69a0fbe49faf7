#pragma once
/// Shapes of RMSNorm that the test checks and the bench times.

#include <vector>

namespace nvl_test {

struct RmsNormCase {
  int num_tokens;
  int hidden;
  bool adds_residual;
  int gap = 0;         // [elements] between rows of x, out and residual
  bool timed = false;  // the bench runs it
};

inline std::vector<RmsNormCase> rms_norm_cases() {
  std::vector<RmsNormCase> cases;
  for (const bool adds : {false, true}) {
    // Small and uneven rows: less than a warp, partial last vector of a block, chunks that are no multiple of four.
    for (const int hidden : {8, 64, 248, 256, 264, 1032, 2056, 5120, 8200, 16376}) {
      cases.push_back({1, hidden, adds});
      cases.push_back({3, hidden, adds, 24});
    }
    cases.push_back({0, 64, adds});
    cases.push_back({4301, 64, adds});  // many rows: one warp a row, four rows a block
    cases.push_back({4305, 136, adds, 8});
    cases.push_back({850, 1032, adds, 16});  // many rows of several warps
    cases.push_back({40, 16384, adds});
    for (const int tokens : {1, 8, 32, 128, 256, 2048, 8192}) {
      cases.push_back({tokens, 1024, adds, 0, true});
      cases.push_back({tokens, 4096, adds, 0, true});
    }
  }
  return cases;
}

}  // namespace nvl_test
