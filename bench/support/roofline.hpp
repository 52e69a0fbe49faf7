#pragma once
/// The least time that a load can take on a device: bytes that must be read and arithmetic that must be done, at the rates that
/// the device was measured to reach. Nothing is assumed to overlap, and all requests run together.

#include "bench/support/workload.hpp"

#include <nvl/core/dtype.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nvl_bench {

/// What a device was measured to reach. 0 = not known.
struct PeakRates {
  double read_bytes = 0;       // [bytes/s] of a kernel that only reads
  double matmul_flops = 0;     // [1/s] of bf16 matrix products on random values
  double attention_flops = 0;  // [1/s] of causal attention over many tokens

  bool known() const { return read_bytes > 0 && matmul_flops > 0 && attention_flops > 0; }
};

/// By the device's name as its driver gives it.
inline PeakRates known_peak_rates(std::string_view device_name) {
  if (device_name.find("H200") != std::string_view::npos) { return {4.65e12, 790e12, 550e12}; }
  return {};
}

/// Weights and KV bytes of a model in elements of one size.
class ModelBytes {
 public:
  ModelBytes(const nvl::ModelConfig& config, std::int64_t weight_element_bytes, std::int64_t kv_element_bytes)
      : config_(config),
        kv_bytes_(2 * std::int64_t{config.kv_size()} * kv_element_bytes) {
    for (const nvl::WeightSpec& spec : nvl::expected_weights(config)) {
      double count = 1;
      for (const std::int64_t extent : spec.shape) { count *= static_cast<double>(extent); }
      const bool is_embedding = spec.name == nvl::weight_names::embed;
      // An embedding of its own is read by the row; a tied one is the output projection too.
      if (is_embedding && !config.tie_word_embeddings) { continue; }
      read_params_ += count;
      if (!is_embedding && spec.name != nvl::weight_names::lm_head) { body_params_ += count; }
    }
    weight_bytes_ = read_params_ * static_cast<double>(weight_element_bytes);
  }

  double weight_bytes() const { return weight_bytes_; }                ///< read by every step
  double flops_per_decoded_token() const { return 2 * read_params_; }  ///< of matrix products
  double flops_per_prompt_token() const { return 2 * body_params_; }   ///< the output projection runs once a request only

  /// [bytes] of K and V that a query at the end of `context` tokens reads, all layers.
  double kv_read_bytes(std::int64_t context) const {
    double tokens = 0;
    for_each_window([&](double layers, std::int64_t window) {
      tokens += layers * static_cast<double>(window > 0 ? std::min(context, window) : context);
    });
    return tokens * static_cast<double>(kv_bytes_);
  }

  /// Of causal attention over a prompt: 4 q_size for each pair of a query and a key that it sees.
  double prefill_attention_flops(std::int64_t length) const {
    double pairs = 0;
    for_each_window([&](double layers, std::int64_t window) {
      const auto n = static_cast<double>(length), w = static_cast<double>(window > 0 ? std::min(length, window) : length);
      pairs += layers * (w * (w + 1) / 2 + (n - w) * w);
    });
    return 4.0 * config_.q_size() * pairs;
  }

 private:
  /// Calls `visit(number of layers, window)` for the layers without and with a window.
  template <class Visit>
  void for_each_window(Visit&& visit) const {
    const std::int32_t first =
        config_.sliding_window > 0 ? std::min(config_.first_windowed_layer, config_.num_layers) : config_.num_layers;
    visit(static_cast<double>(first), std::int64_t{0});
    visit(static_cast<double>(config_.num_layers - first), std::int64_t{config_.sliding_window});
  }

  nvl::ModelConfig config_;
  std::int64_t kv_bytes_;  // of one token in one layer
  double read_params_ = 0, body_params_ = 0, weight_bytes_ = 0;
};

/// What a load moves and computes at the least.
struct LoadWork {
  double kv_read_bytes = 0;  // by decode steps: each token after the first reads K and V of all tokens before it and its own
  double prefill_matmul_flops = 0, prefill_attention_flops = 0;
  std::vector<std::int32_t> decode_batches;  // sequences of each decode step when all requests start together

  static LoadWork of(const ModelBytes& model, std::span<const RequestLengths> requests) {
    LoadWork work;
    for (const RequestLengths& request : requests) {
      const std::int64_t input = request.input, output = request.output;
      for (std::int64_t j = 1; j < output; ++j) { work.kv_read_bytes += model.kv_read_bytes(input + j); }
      work.prefill_matmul_flops += model.flops_per_prompt_token() * static_cast<double>(input);
      work.prefill_attention_flops += model.prefill_attention_flops(input);
      const auto steps = static_cast<std::size_t>(std::max<std::int64_t>(output - 1, 0));
      if (work.decode_batches.size() < steps) { work.decode_batches.resize(steps); }
      for (std::size_t step = 0; step < steps; ++step) { ++work.decode_batches[step]; }
    }
    return work;
  }

  double prefill_seconds(const ModelBytes& model, const PeakRates& peak) const {
    return std::max(prefill_matmul_flops / peak.matmul_flops, model.weight_bytes() / peak.read_bytes) +
           prefill_attention_flops / peak.attention_flops;
  }
  double decode_seconds(const ModelBytes& model, const PeakRates& peak) const {
    double seconds = kv_read_bytes / peak.read_bytes;
    for (const std::int32_t batch : decode_batches) {
      seconds += std::max(model.weight_bytes() / peak.read_bytes, batch * model.flops_per_decoded_token() / peak.matmul_flops);
    }
    return seconds;
  }
  double seconds(const ModelBytes& model, const PeakRates& peak) const {
    return prefill_seconds(model, peak) + decode_seconds(model, peak);
  }
};

}  // namespace nvl_bench
