#pragma once
/// Shapes of block copies that the test checks and the bench times.

#include <nvl/core/kv_layout.hpp>

#include <vector>

namespace nvl_test {

struct BlockCopyCase {
  nvl::KvLayout layout;
  int num_layers;
  int num_copies;
  bool timed = false;  // the bench runs it
};

inline std::vector<BlockCopyCase> block_copy_cases() {
  return {
      {{.num_blocks = 6, .block_size = 1, .num_kv_heads = 1, .head_dim = 16}, 1, 1},
      {{.num_blocks = 6, .block_size = 4, .num_kv_heads = 3, .head_dim = 80}, 3, 5},
      {{.num_blocks = 9, .block_size = 16, .num_kv_heads = 2, .head_dim = 64}, 2, 4},
      {{.num_blocks = 40, .block_size = 16, .num_kv_heads = 1, .head_dim = 96}, 5, 60},
      {{.num_blocks = 6, .block_size = 16, .num_kv_heads = 2, .head_dim = 16}, 2, 0},
      {{.num_blocks = 128, .block_size = 16, .num_kv_heads = 8, .head_dim = 128}, 28, 1, true},
      {{.num_blocks = 128, .block_size = 16, .num_kv_heads = 8, .head_dim = 128}, 28, 8, true},
      {{.num_blocks = 128, .block_size = 16, .num_kv_heads = 8, .head_dim = 128}, 28, 64, true},
  };
}

}  // namespace nvl_test
