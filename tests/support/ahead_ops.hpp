#pragma once
/// CPU ops that behave like those of an asynchronous device: a step's tokens are out of reach until it is awaited, and a step
/// may name tokens of the step before it by sampled_in_row. They test the engine's running ahead where there is no device.

#include <nvl/nvl.hpp>

#include <cstddef>
#include <vector>

namespace nvl_test {

class AheadOps : public nvl::CpuOps<float> {
 public:
  using Base = nvl::CpuOps<float>;
  using Base::Base;
  static constexpr bool runs_ahead = true;

  const nvl::StepInput& stage(const nvl::StepInput& in) {
    ids_.assign(in.token_ids.begin(), in.token_ids.end());
    for (nvl::TokenId& id : ids_) {
      if (id < 0) { id = chosen_.at(static_cast<std::size_t>(-1 - id)); }
    }
    staged_ = in;
    staged_.token_ids = ids_;
    return staged_;
  }

  void sample(const nvl::StepInput& in, const float* logits, std::int32_t vocab_size, nvl::StepOutput& out) {
    nvl::StepOutput& hidden = hidden_[num_sampled_++ % 2];
    Base::sample(in, logits, vocab_size, hidden);
    chosen_.clear();
    for (const nvl::SampledToken& row : hidden.sampled) { chosen_.push_back(row.token); }
    nvl::SampledToken nothing;
    nothing.token = -999;
    out.sampled.assign(hidden.sampled.size(), nothing);
  }

  void await(nvl::StepOutput& out) { out.sampled = hidden_[num_awaited_++ % 2].sampled; }

  void qk_norm_rope_store(const nvl::QkNormRopeStore<AheadOps>& call) {
    Base::qk_norm_rope_store({.qkv = call.qkv,
                              .positions = call.positions,
                              .slot_mapping = call.slot_mapping,
                              .num_q_heads = call.num_q_heads,
                              .q_norm = call.q_norm,
                              .k_norm = call.k_norm,
                              .eps = call.eps,
                              .rope = call.rope,
                              .layout = call.layout,
                              .kv = call.kv});
  }

 private:
  std::vector<nvl::TokenId> ids_, chosen_;
  nvl::StepInput staged_;
  nvl::StepOutput hidden_[2];
  std::size_t num_sampled_ = 0, num_awaited_ = 0;
};
static_assert(nvl::DeviceOps<AheadOps>);

class AheadAttention : public nvl::CpuPagedAttention<float> {
 public:
  using Ops = AheadOps;
  AheadAttention(const nvl::AttentionShape& shape, AheadOps& ops) : nvl::CpuPagedAttention<float>(shape, ops) {}
};
static_assert(nvl::require_attention_backend<AheadAttention>());

}  // namespace nvl_test
