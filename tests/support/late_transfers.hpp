#pragma once
/// CPU ops whose transfers come as late as they may: a step computes before its blocks have moved, and they move when the next
/// step is staged. What releases, reads or writes a block too early then gives other tokens.

#include "support/ahead_ops.hpp"

#include <nvl/nvl.hpp>

#include <vector>

namespace nvl_test {

/// `Base`: nvl::CpuOps<float> or AheadOps
template <class Base>
class LateTransfers : public Base {
 public:
  using Base::Base;

  const nvl::StepInput& stage(const nvl::StepInput& in) {
    if (!out_.empty() || !in_.empty()) {
      nvl::BlockTransfers<float> call = call_;
      call.out = out_;
      call.in = in_;
      Base::transfer_blocks(call);
      out_.clear();
      in_.clear();
    }
    return Base::stage(in);
  }

  void transfer_blocks(const nvl::BlockTransfers<float>& call) {
    call_ = call;
    out_.assign(call.out.begin(), call.out.end());
    in_.assign(call.in.begin(), call.in.end());
  }

  void qk_norm_rope_store(const nvl::QkNormRopeStore<LateTransfers>& call) {
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
  nvl::BlockTransfers<float> call_;
  std::vector<nvl::BlockTransfer> out_, in_;
};

template <class Base>
class LateAttention : public nvl::CpuPagedAttention<float> {
 public:
  using Ops = LateTransfers<Base>;
  LateAttention(const nvl::AttentionShape& shape, Ops& ops) : nvl::CpuPagedAttention<float>(shape, ops) {}
};
template <>
class LateAttention<AheadOps> : public AheadAttentionOf<LateTransfers<AheadOps>> {
 public:
  using AheadAttentionOf<LateTransfers<AheadOps>>::AheadAttentionOf;
};
static_assert(nvl::TransferringOps<LateTransfers<nvl::CpuOps<float>>> && nvl::TransferringOps<LateTransfers<AheadOps>>);
static_assert(nvl::require_attention_backend<LateAttention<AheadOps>>());

}  // namespace nvl_test
