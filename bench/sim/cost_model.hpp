#pragma once
/// How long a step takes on a device, from what it computes and reads.

#include "bench/support/roofline.hpp"

#include <nvl/core/model_config.hpp>
#include <nvl/sched/step_work.hpp>

#include <algorithm>
#include <array>
#include <cstdint>

namespace nvl_bench {

/// A device and the software on it, in nine numbers. Those of the H200 were fitted to logs of its steps (nvl-sim --fit); they are
/// what an engine reaches, not what the device could.
struct DeviceCost {
  double weight_bytes = 4.0e12;     // [bytes/s] of weights that matrix products read
  double kv_bytes = 4.2e12;         // [bytes/s] of K and V that attention reads
  double matmul_flops = 650e12;     // [1/s]
  double attention_flops = 250e12;  // [1/s] of causal attention over prompts
  double row_bytes = 2.5e12;        // [bytes/s] of activations and logits, written and read once an op
  double layer_us = 15;             // [us] a layer that no work explains: gaps between kernels, their ramps
  double prompt_layer_us = 10;      // [us] a layer more, if a step computes prompts
  double host_us = 30;              // [us] to plan and launch a step ...
  double host_seq_us = 0.3;         // [us] ... and for each of its sequences
  double link_bytes = 50e9;         // [bytes/s] between device and host memory
  bool runs_ahead = true;           // the host plans a step while the device computes the one before
};

/// The time of a step:
///
///     device = weights or arithmetic of the layers, whichever takes longer, the same of the output projection
///              + K and V of decodes and prompts + arithmetic of prompt attention + activations + layers * layer_us
///     beside it the transfers of its blocks; before it the copies of blocks
///     host   = host_us + sequences * host_seq_us, hidden behind the step before if the host runs ahead
class StepCost {
 public:
  /// \param element_bytes of weights, activations, K and V
  StepCost(const nvl::ModelConfig& model, const DeviceCost& device, std::int32_t block_size, std::int64_t element_bytes = 2)
      : device_(device),
        layers_(model.num_layers),
        body_flops_(ModelBytes(model, element_bytes, element_bytes).flops_per_prompt_token()),
        head_flops_(2.0 * model.hidden_size * model.vocab_size),
        weight_element_bytes_(static_cast<double>(element_bytes)),
        kv_token_bytes_(2.0 * model.num_layers * model.kv_size() * static_cast<double>(element_bytes)),
        pair_flops_(4.0 * model.num_layers * model.q_size()),
        // Each op of a layer reads what the one before wrote: residual and norm twice, q, k, v, attention output, gate and up, product.
        row_bytes_(2.0 * static_cast<double>(element_bytes) * model.num_layers *
                   (4.0 * model.hidden_size + model.qkv_size() + model.q_size() + 3.0 * model.intermediate_size)),
        logits_bytes_(8.0 * model.vocab_size),
        block_bytes_(kv_token_bytes_ * block_size) {}

  double device_seconds(const nvl::StepWork& work) const {
    const double tokens = work.num_tokens, samples = work.num_samples;
    const double layers =
        std::max(body_flops_ / 2 * weight_element_bytes_ / device_.weight_bytes, tokens * body_flops_ / device_.matmul_flops);
    const double head = samples == 0 ? 0
                                     : std::max(head_flops_ / 2 * weight_element_bytes_ / device_.weight_bytes,
                                                samples * head_flops_ / device_.matmul_flops);
    const double kv = static_cast<double>(work.decode_kv_tokens + work.prefill_kv_tokens) * kv_token_bytes_ / device_.kv_bytes;
    const double attention = static_cast<double>(work.prefill_pairs) * pair_flops_ / device_.attention_flops;
    const double rows = (tokens * row_bytes_ + samples * logits_bytes_) / device_.row_bytes;
    const double copies = work.num_copies * 2 * block_bytes_ / device_.kv_bytes;
    const double prompt_us = work.num_prefill_tokens() > 0 ? device_.prompt_layer_us : 0;
    const double gaps = tokens == 0 ? 0 : 1e-6 * layers_ * (device_.layer_us + prompt_us);
    return (tokens == 0 ? 0 : layers) + head + kv + attention + rows + copies + gaps;
  }

  /// Of all its transfers, one direction after the other.
  double transfer_seconds(const nvl::StepWork& work) const { return work.num_transfers * block_bytes_ / device_.link_bytes; }
  double host_seconds(const nvl::StepWork& work) const { return 1e-6 * (device_.host_us + work.num_seqs * device_.host_seq_us); }

  bool runs_ahead() const { return device_.runs_ahead; }
  double kv_token_bytes() const { return kv_token_bytes_; }  ///< K and V of one token
  const DeviceCost& device() const { return device_; }

 private:
  DeviceCost device_;
  double layers_, body_flops_, head_flops_, weight_element_bytes_, kv_token_bytes_, pair_flops_, row_bytes_, logits_bytes_,
      block_bytes_;
};

}  // namespace nvl_bench
