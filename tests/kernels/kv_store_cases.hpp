#pragma once
/// Shapes of the KV store that the test checks and the bench times.

#include <vector>

namespace nvl_test {

struct KvStoreCase {
  int num_tokens;
  int num_kv_heads;
  int head_dim;
  int block_size;
  int gap = 0;         // [elements] between rows of K and of V
  bool timed = false;  // the bench runs it
};

inline std::vector<KvStoreCase> kv_store_cases() {
  std::vector<KvStoreCase> cases;
  for (const int head_dim : {16, 32, 64, 80, 96, 128, 256}) {
    cases.push_back({1, 2, head_dim, 16});
    cases.push_back({37, 3, head_dim, 16, 8});
    cases.push_back({1501, 1, head_dim, 1});
    cases.push_back({1503, 8, head_dim, 24});  // more vectors than threads of a block; block size no power of two
  }
  cases.push_back({0, 2, 64, 16});
  for (const int tokens : {1, 8, 32, 128, 256, 2048, 8192}) { cases.push_back({tokens, 8, 128, 16, 0, true}); }
  return cases;
}

}  // namespace nvl_test
