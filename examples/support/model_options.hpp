#pragma once
/// The options that programs share: which model, how much memory, how tokens are chosen.

#include "support/options.hpp"

#include <nvl/core/dtype.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/engine/engine_options.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace nvl_examples {

/// Who decides what runs next and what is remembered. Names: support/policies.hpp.
struct PolicyOptions {
  std::string scheduler = "token-budget";
  std::string preemption = "recompute";
  std::string prefix_cache = "hash";

  void add_to(OptionParser& parser);
  friend bool operator==(const PolicyOptions&, const PolicyOptions&) = default;
};
/// As on the command line.
std::string to_string(const PolicyOptions& policies);

/// How many ranks share a model, and how many engines the work.
struct ParallelOptions {
  std::int32_t tensor_parallel_size = 1;
  std::int32_t pipeline_parallel_size = 1;
  std::int32_t data_parallel_size = 1;
  std::optional<std::string> router;

  static constexpr const char* default_router = "least-tokens";

  void add_to(OptionParser& parser);
  /// \throws UsageError
  void validate() const;
  /// Of one engine.
  std::int32_t num_ranks() const noexcept { return tensor_parallel_size * pipeline_parallel_size; }
  std::string router_name() const { return router.value_or(default_router); }
  /// The options of replica `i` of an engine with `options`: its share of the CPU, or its GPU.
  nvl::EngineOptions of_replica(std::int32_t i, bool is_on_cpu, nvl::EngineOptions options) const;
};

/// Which model runs where.
struct ModelOptions {
  std::filesystem::path model;
  std::string device = "cpu";
  std::string dtype = "auto";
  std::int32_t threads = 0;
  std::optional<double> gpu_memory_utilization, gemm_search_seconds;
  std::string gemm_cache;
  bool enforce_eager = false;
  bool memory_plan = false;
  bool check_tensors = false;
  PolicyOptions policies;
  ParallelOptions parallel;

  void add_model_to(OptionParser& parser);
  void add_device_to(OptionParser& parser);
  /// \throws UsageError unless --model names something and the device is there.
  void validate() const;
  std::optional<nvl::DType> element_type() const;
  /// --threads, else OMP_NUM_THREADS, else 0: one per core.
  nvl::DeviceOptions device_options() const;
};

/// What --swap-space asks for, in GiB. \throws UsageError if that is not sensible
std::int64_t swap_space_bytes(double swap_space);

/// How much an engine takes on at once. What is not given keeps the program's own choice.
struct CapacityOptions {
  std::optional<std::int32_t> max_model_len, max_num_seqs, max_num_batched_tokens;
  std::optional<std::int64_t> num_blocks;
  std::optional<ByteCount> kv_cache_memory;
  std::optional<double> swap_space;  // [GiB]
  nvl::SchedulingOptions scheduling{};

  void add_to(OptionParser& parser);
  nvl::EngineOptions over(nvl::EngineOptions options) const;
};

/// How tokens are chosen and when to stop. What is not given keeps the model's own recommendation.
struct SamplingOptions {
  static constexpr std::int32_t default_max_tokens = 256;

  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<std::int32_t> top_k, max_tokens, min_tokens, logprobs, n, best_of, beam_width;
  std::optional<float> length_penalty;
  std::string early_stopping = "no";
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<nvl::TokenId> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop = false;
  bool show_special = false;

  /// \param with_logprobs whether the program can show log-probabilities
  void add_to(OptionParser& parser, bool with_logprobs);
  /// The options of programs that print several answers to a prompt.
  void add_choices_to(OptionParser& parser);
  nvl::SamplingParams over(nvl::SamplingParams defaults) const;
};

}  // namespace nvl_examples
