#pragma once
/// How long a step takes on a device, from what it computes and reads.

#include "bench/support/roofline.hpp"

#include <nvl/core/model_config.hpp>
#include <nvl/sched/scheduling_options.hpp>
#include <nvl/sched/step_work.hpp>

#include <algorithm>
#include <cstdint>

namespace nvl_bench {

/// A device and the software on it, in a few numbers. Those of the H200 were fitted to logs of its steps (nvl-sim --fit); they are
/// what an engine reaches, not what the device could.
struct DeviceCost {
  double weight_bytes = 4.05e12;     // [bytes/s] of weights that matrix products read
  double kv_bytes = 4.20e12;         // [bytes/s] of K and V that attention reads
  double shared_kv_bytes = 11.8e12;  // [bytes/s] of those that several sequences share: they come from the L2 cache
  double matmul_flops = 690e12;      // [1/s]
  double attention_flops = 377e12;   // [1/s] of causal attention over prompts
  double row_bytes = 7.5e12;         // [bytes/s] of activations and logits, written and read once an op
  // [us] a layer that no work explains: gaps between kernels, their ramps. Matrix products of few rows have kernels of their own,
  // so it depends on the rows of the step:
  double layer_us_2 = 14.8;    // up to 2
  double layer_us_16 = 16.7;   // up to 16
  double layer_us_128 = 25.1;  // up to 128
  double layer_us_more = 31.7;
  double prompt_layer_us = 3.8;   // [us] a layer more, if a step computes prompts
  double mixed_layer_us = 14.5;   // [us] a layer more, if it computes decodes beside them: a second attention kernel
  double host_us = 30;            // [us] to plan a step and launch its graph ...
  double host_seq_us = 0.3;       // [us] ... and for each of its sequences
  double launch_layer_us = 54.8;  // [us] of the host a layer, if the step's kernels are launched one by one
  double link_bytes = 50e9;       // [bytes/s] between device and host memory
  bool runs_ahead = true;         // the host plans and launches a step while the device computes the one before
};

/// The time of a step:
///
///     device = weights or arithmetic of the layers, whichever takes longer, the same of the output projection
///              + K and V of decodes and prompts + arithmetic of prompt attention + activations + layers * layer_us
///              + copies of blocks; not less than the transfers, which run beside it
///     host   = host_us + sequences * host_seq_us, then layers * launch_layer_us if there is no graph of the step
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

  /// \param shared_tokens of work.decode_kv_tokens, those in blocks that several sequences own
  double device_seconds(const nvl::StepWork& work, std::int64_t shared_tokens = 0) const {
    const double tokens = work.num_tokens, samples = work.num_samples;
    const double layers =
        std::max(body_flops_ / 2 * weight_element_bytes_ / device_.weight_bytes, tokens * body_flops_ / device_.matmul_flops);
    const double head = samples == 0 ? 0
                                     : std::max(head_flops_ / 2 * weight_element_bytes_ / device_.weight_bytes,
                                                samples * head_flops_ / device_.matmul_flops);
    const auto own_tokens = static_cast<double>(work.decode_kv_tokens + work.prefill_kv_tokens - shared_tokens);
    const double kv =
        kv_token_bytes_ * (own_tokens / device_.kv_bytes + static_cast<double>(shared_tokens) / device_.shared_kv_bytes);
    const double attention = static_cast<double>(work.prefill_pairs) * pair_flops_ / device_.attention_flops;
    const double rows = (tokens * row_bytes_ + samples * logits_bytes_) / device_.row_bytes;
    const double copies = work.num_copies * 2 * block_bytes_ / device_.kv_bytes;
    const bool has_prompts = work.num_prefill_tokens() > 0;
    const double prompt_us =
        (has_prompts ? device_.prompt_layer_us : 0) + (has_prompts && work.num_decodes > 0 ? device_.mixed_layer_us : 0);
    const double layer_us = tokens <= 2     ? device_.layer_us_2
                            : tokens <= 16  ? device_.layer_us_16
                            : tokens <= 128 ? device_.layer_us_128
                                            : device_.layer_us_more;
    const double gaps = tokens == 0 ? 0 : 1e-6 * layers_ * (layer_us + prompt_us);
    return (tokens == 0 ? 0 : layers) + head + kv + attention + rows + copies + gaps;
  }

  /// Of all its transfers, one direction after the other.
  double transfer_seconds(const nvl::StepWork& work) const { return work.num_transfers * block_bytes_ / device_.link_bytes; }
  /// Until the device can begin.
  double plan_seconds(const nvl::StepWork& work) const { return 1e-6 * (device_.host_us + work.num_seqs * device_.host_seq_us); }
  /// From then on, beside the device; it does not end before.
  double launch_seconds(const nvl::StepWork& work) const {
    return has_graph(work) ? 0 : 1e-6 * layers_ * device_.launch_layer_us;
  }

  /// As CudaGraphs (nvl/ops) decides: decodes of up to 512 sequences, and one prompt of up to 1,024 tokens whose padding, to a
  /// multiple of 64 or from 512 on of 128, is no more than an eighth.
  static bool has_graph(const nvl::StepWork& work) {
    if (work.num_prefill_tokens() == 0) { return work.num_seqs <= 512; }
    const std::int32_t n = work.num_tokens, unit = n <= 512 ? 64 : 128;
    return work.num_seqs == 1 && n > 32 && n <= 1024 && (n + unit - 1) / unit * unit - n <= std::max(n / 8, 1);
  }

  /// What moving the blocks of a token out and in costs, and the attention of a long prompt, in prompt tokens.
  nvl::PreemptionCosts preemption_costs() const {
    const double token = body_flops_ / device_.matmul_flops + row_bytes_ / device_.row_bytes;
    return nvl::PreemptionCosts::of(2 * kv_token_bytes_ / device_.link_bytes / token,
                                    token * 2 * device_.attention_flops / pair_flops_);
  }

  bool runs_ahead() const { return device_.runs_ahead; }
  double kv_token_bytes() const { return kv_token_bytes_; }  ///< K and V of one token
  const DeviceCost& device() const { return device_; }

 private:
  DeviceCost device_;
  double layers_, body_flops_, head_flops_, weight_element_bytes_, kv_token_bytes_, pair_flops_, row_bytes_, logits_bytes_,
      block_bytes_;
};

/// Host and device beside each other: when steps begin and end.
class Timeline {
 public:
  explicit Timeline(const StepCost& cost) : cost_(cost) {}

  /// The host plans and launches a step now. \return [s] when the device will have computed it
  double launch(const nvl::StepWork& work, std::int64_t shared_tokens = 0) {
    host_ += cost_.plan_seconds(work);
    const double start = std::max(host_, device_);
    host_ += cost_.launch_seconds(work);
    const double seconds = std::max(cost_.device_seconds(work, shared_tokens), cost_.transfer_seconds(work));
    device_ = std::max(start + seconds, host_);
    busy_ += device_ - start;
    return device_;
  }
  /// The host waits.
  void wait_until(double time) { host_ = std::max(host_, time); }

  double now() const { return host_; }   ///< [s] of the host
  double busy() const { return busy_; }  ///< [s] that the device has computed, or waited inside a step for the host

 private:
  StepCost cost_;
  double host_ = 0, device_ = 0, busy_ = 0;
};

}  // namespace nvl_bench
