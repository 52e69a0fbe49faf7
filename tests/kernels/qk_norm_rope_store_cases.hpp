#pragma once
/// Shapes of the fused QK norm, RoPE and KV store that the test checks and the bench times.

#include <vector>

namespace nvl_test {

struct QkNormRopeStoreCase {
  int num_tokens;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int block_size;
  bool norm;
  int gap = 0;         // [elements] between rows of qkv
  bool timed = false;  // the bench runs it
};

inline std::vector<QkNormRopeStoreCase> qk_norm_rope_store_cases() {
  std::vector<QkNormRopeStoreCase> cases;
  for (const int head_dim : {16, 32, 48, 64, 80, 96, 128, 256}) {
    for (const bool norm : {false, true}) {
      cases.push_back({1, 1, 1, head_dim, 16, norm});
      cases.push_back({5, 6, 3, head_dim, 16, norm, 8});
      cases.push_back({261, 3, 1, head_dim, 5, norm});
    }
  }
  for (const int group : {1, 2, 3, 4, 7, 8}) { cases.push_back({19, 2 * group, 2, 64, 32, true}); }
  cases.push_back({0, 2, 1, 64, 16, true});
  for (const int tokens : {1, 8, 32, 128, 256, 2048, 8192}) {
    cases.push_back({tokens, 16, 8, 128, 16, true, 0, true});
    cases.push_back({tokens, 32, 8, 128, 16, true, 0, true});
  }
  return cases;
}

}  // namespace nvl_test
