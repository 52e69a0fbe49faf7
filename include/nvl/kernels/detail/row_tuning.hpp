#pragma once
/// Numbers that measurements chose for the memory-bound kernels, in one place.

#include <nvl/core/config.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

struct RowTuning {
  std::int64_t max_cached_output = 0;  // [bytes] a call that writes more stores evict-first
  int max_latency_tokens = 0;          // up to here a call is bound by latency: a token is spread over as many warps as it fills
  int max_latency_threads = 0;         // the same in threads, for rows of any width
};

/// By compute capability (major * 10 + minor). Only sm_90 was measured (H200: 132 multiprocessors, 60 MB of L2); the others get
/// the same numbers, with the cached output in proportion to their L2.
///
/// max_cached_output: what is written stays in L2 until something else needs the room, and then has to be written to memory
/// before anything can be read. RMSNorm of 8192 x 4096 bf16: 35.4 us, evict-first 33.7; SiLU of 8192 x 12288: 144.8 and 138.7.
/// max_latency_tokens: QK norm + RoPE + store of 256 tokens, 16/8 heads of 128, behind fetched indices: 1.8 us with one step a
/// warp, 2.1 with two; of 8192 tokens 40 and 37.
constexpr RowTuning row_tuning(int compute_capability) noexcept {
  RowTuning tuning{.max_cached_output = std::int64_t{24} << 20, .max_latency_tokens = 256, .max_latency_threads = 132 * 1024};
  if (compute_capability < 90) { tuning.max_cached_output = std::int64_t{16} << 20; }
  return tuning;
}

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
