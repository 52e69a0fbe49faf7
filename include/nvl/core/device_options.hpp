#pragma once
/// Which device a backend runs on. Each backend reads the fields that concern it.

#include <nvl/core/config.hpp>

#include <nvl/core/thread_pool.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace nvl::inline NVL_ABI {

struct DeviceOptions {
  std::int32_t num_threads = 0;         // CPU: threads that compute, the caller's included; 0 = one per core
  std::int32_t ordinal = 0;             // CUDA: which of the visible devices
  double memory_utilization = 0.92;     // CUDA: share of the device's memory that may be in use, by whomever, with the engine
  bool use_graphs = true;               // CUDA: decode steps are recorded once and replayed
  double step_timeout_seconds = 300.0;  // CUDA: a step that takes longer has hung, and the engine fails
  std::string gemm_cache_file{};        // CUDA: where the matrix product algorithms found at start-up are kept; empty = nowhere
  double gemm_search_seconds = 0.0;     // CUDA: time to look for better ones at start-up than the library proposes
};

/// What `options` mean for the `index`-th of `count` ranks or engines of one process: a device of its own from `ordinal` on, its
/// part of the threads, one at least.
inline DeviceOptions for_rank(DeviceOptions options, std::uint32_t index, std::uint32_t count) noexcept {
  if (count == 1) { return options; }
  options.ordinal += static_cast<std::int32_t>(index);
  if (options.num_threads < 0) { return options; }  // the device refuses it
  const std::int32_t threads = options.num_threads > 0 ? options.num_threads : ThreadPool::default_num_threads();
  const auto n = static_cast<std::int32_t>(count);
  options.num_threads = std::max(1, threads / n + (static_cast<std::int32_t>(index) < threads % n ? 1 : 0));
  return options;
}

/// What an engine may plan with on a device.
struct DeviceMemory {
  std::int64_t budget_bytes = 0;
  bool is_for_kv_only = false;  // the budget is the KV cache's alone; else everything that an engine holds comes out of it
};

/// Memory that does not depend on the size of the KV cache.
struct FixedMemory {
  std::int64_t weight_bytes = 0;
  std::int64_t workspace_bytes = 0;  // of matrix products, attention, sampling; RoPE table; inputs and outputs of a step
  std::int64_t graph_bytes = 0;      // estimated: recorded steps, held by the driver
};

}  // namespace nvl::inline NVL_ABI
