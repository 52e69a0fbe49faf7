#pragma once
/// CUDA engines for the tiny model of tiny_model.hpp, with heads of a size that the fast kernels are for.

#include "support/device.cuh"
#include "support/teacher_forced.hpp"
#include "support/tiny_model.hpp"

#include <nvl/nvl.cuh>

#include <cstddef>
#include <vector>

namespace nvl_test {

inline constexpr std::int32_t cuda_head_dim = 64;

inline nvl::ModelConfig cuda_tiny_config() {
  nvl::ModelConfig config = tiny_config();
  config.head_dim = cuda_head_dim;
  config.hidden_size = 96;
  return config;
}

inline const nvl::RandomWeights& cuda_tiny_weights() {
  static const nvl::RandomWeights weights(cuda_tiny_config(), 42);
  return weights;
}

/// Little enough memory for several engines beside each other.
inline nvl::EngineOptions cuda_options() {
  nvl::EngineOptions options = roomy_options();
  options.device.memory_utilization = 1.0;
  return options;
}

template <class T, nvl::PagedAttentionOptions kOptions = nvl::PagedAttentionOptions{},
          class Allocator = nvl::PrefixCacheAllocator>
using TinyCudaEngine =
    nvl::Engine<nvl::PrefillFirstScheduler, Allocator, nvl::PagedAttention<T, cuda_head_dim, kOptions>, nvl::SingleDevice>;

/// Few sequences and short steps, so that few graphs are recorded: for tools that are slow.
inline nvl::EngineOptions small_cuda_options() {
  nvl::EngineOptions options = cuda_options();
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 64;
  options.num_blocks = 24;
  return options;
}

/// [bytes] in use on the device, by everyone.
inline std::size_t device_bytes_in_use() {
  std::size_t free_bytes = 0, total_bytes = 0;
  NVL_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  return total_bytes - free_bytes;
}

/// Requests of many lengths, some drawn with a seed of their own; every third sees a filter or a penalty.
inline std::vector<nvl::Request> varied_requests(int count, bool greedy_only = false) {
  std::vector<nvl::Request> requests;
  for (int i = 0; i < count; ++i) {
    nvl::Request request = greedy_request(tiny_prompt(i, 1 + (i * 37) % 90), 1 + (i * 13) % 40);
    if (!greedy_only && i % 2 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = 100u + static_cast<unsigned>(i);
    }
    if (!greedy_only && i % 6 == 2) { request.sampling.repetition_penalty = 1.3f; }
    if (!greedy_only && i % 6 == 5) { request.sampling.top_p = 0.9f; }
    requests.push_back(std::move(request));
  }
  return requests;
}

inline std::vector<std::vector<nvl::TokenId>> outputs_of(const std::vector<nvl::Completion>& completions) {
  std::vector<std::vector<nvl::TokenId>> outputs;
  for (const nvl::Completion& done : completions) { outputs.push_back(done.output_ids); }
  return outputs;
}

}  // namespace nvl_test
