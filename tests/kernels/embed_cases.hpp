#pragma once
/// Shapes of the embedding and of gather_rows that the test checks and the bench times.

#include <vector>

namespace nvl_test {

struct EmbedCase {
  int num_rows;
  int hidden;
  int table_rows;
  bool timed = false;  // the bench runs it
};

inline std::vector<EmbedCase> embed_cases() {
  std::vector<EmbedCase> cases;
  for (const int hidden : {8, 64, 248, 1032, 8200}) {
    cases.push_back({1, hidden, 3});
    cases.push_back({33, hidden, 70});
  }
  cases.push_back({0, 64, 3});
  for (const int rows : {1, 32, 256, 8192}) { cases.push_back({rows, 1024, 151936, true}); }
  return cases;
}

}  // namespace nvl_test
