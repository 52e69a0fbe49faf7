#pragma once
/// Concept DeviceOps: the tensor arithmetic of one transformer layer at the granularity at which kernels are fused.
/// One model is of one device: CpuOps, CudaOps.

#include <nvl/core/config.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Arguments of `qk_norm_rope_store`. For each token: optional RMS norm over each Q and K head, RoPE on Q (in place) and K,
/// K and V into the slot of the token. A token with `no_slot` is computed and not stored.
template <class Ops>
struct QkNormRopeStore {
  using Element = typename Ops::Element;
  using Vector = typename Ops::Vector;
  using Rope = typename Ops::Rope;

  Element* qkv = nullptr;                   // [T, (num_q_heads + 2 num_kv_heads) * head_dim]: Q, then K, then V
  std::span<const std::int32_t> positions;  // [T]
  std::span<const SlotId> slot_mapping;     // [T]
  std::int32_t num_q_heads = 0;
  const Vector* q_norm = nullptr;  // [head_dim], nullptr: no norm
  const Vector* k_norm = nullptr;  // likewise
  float eps = 0.0f;
  const Rope* rope = nullptr;
  KvLayout layout;        // KV heads, head_dim, block size
  Element* kv = nullptr;  // one layer
};

/// The type of the residual, the sum of all layers so far: `O::Residual` of ops that keep it wider than their Element.
template <class O>
struct ResidualOf {
  using type = typename O::Element;
};
template <class O>
  requires requires { typename O::Residual; }
struct ResidualOf<O> {
  using type = typename O::Residual;
};
template <class O>
using Residual = typename ResidualOf<O>::type;

/// Matrices are row-major. `x` and `out` of one call do not overlap unless it says so. An op may return before it is done; ops
/// of one object run in the order of the calls. `linear` and its kin do not let one row's result depend on the other rows.
/// Spans and pointers of a step are those of the StepInput that `stage` returned.
///
/// | expression                                    | meaning                                                                |
/// |-----------------------------------------------|------------------------------------------------------------------------|
/// | `O::Element`                                  | type of activations and KV                                             |
/// | `O::Residual`                                 | optional: type of the residual, where that is wider. Residual<O> below |
/// | `O::Device`                                   | owns what its ops run on: threads or streams. Constructible from       |
/// |                                               | DeviceOptions. `Device::Buffer(device, bytes)`: zeroed device memory,  |
/// |                                               | movable, `template as<T>()`. `Device::memory(options)`: static         |
/// | `O::Weight`                                   | packed [out_features, in_features] with optional bias; also embedding  |
/// | `O::Vector`                                   | weight of a norm                                                       |
/// | `O::Rope`                                     | a RopeTable in the device's memory                                     |
/// | `O::runs_ahead`                               | bool constant: `execute` returns before the step is done, and a token  |
/// |                                               | of the step before may be named by sampled_in_row                      |
/// | `O(device, config, limits)`                   | all three outlive the ops                                              |
/// | `o.load_weight(parts, biases)`                | stacks `parts` along out_features; `biases`: none, or one per part     |
/// | `o.load_vector(tensor)`                       |                                                                        |
/// | `o.load_rope(table)`                          |                                                                        |
/// | `o.finish_loading()`                          | the loads before it are done; their sources may go                     |
/// | `o.stage(in)`                                 | the step as the ops read it, perhaps padded with rows that store       |
/// |                                               | nothing; valid until the next stage                                    |
/// | `o.execute(step, out, body)`                  | calls `body()`, which runs the ops of one staged step, `sample` last;  |
/// |                                               | or replays what it did for such a step                                 |
/// | `o.await(out)`                                | `out`, passed to `execute`, is complete                                |
/// | `o.read(values, n)`                           | device floats as a host span, valid until the next op                  |
/// | `o.embed(out, ids, table)`                    | out[t] = table row ids[t]; out is Residual<O>                          |
/// | `o.rms_norm(out, x, w, rows, eps)`            | x is Residual<O>; out may be x if that is Element                      |
/// | `o.add_rms_norm(out, residual, x, w, rows, e)`| residual += x, Residual<O>; out = norm(residual); out may be x         |
/// | `o.linear(out, x, w, rows)`                   | out[rows, out_features] = x w^T + bias                                 |
/// | `o.logits(out, x, w, rows)`                   | the same with float output                                             |
/// | `o.qk_norm_rope_store(call)`                  |                                                                        |
/// | `o.gated_activation(out, gate_up, rows, n, a)`| out[r, i] = a(gate_up[r, i]) * gate_up[r, n + i], i < n                |
/// | `o.gather_rows(out, x, rows, hidden)`         | out[i] = x[rows[i]], both Element or both Residual<O>                  |
/// | `o.copy_blocks(kv, layout, layers, copies)`   | each copy in every layer, in order; kv is [layers] x KvLayout          |
/// | `o.sample(in, logits, vocab_size, out)`       | logits [R, vocab_size] to out.sampled[R]                               |
template <class O>
concept DeviceOps =
    requires {
      typename O::Element;
      typename O::Weight;
      typename O::Vector;
      typename O::Rope;
      typename O::Device;
      typename O::Device::Buffer;
      { O::runs_ahead } -> std::convertible_to<bool>;
    } && std::constructible_from<O, typename O::Device&, const ModelConfig&, const StepLimits&> &&
    std::constructible_from<typename O::Device::Buffer, typename O::Device&, std::size_t> &&
    requires(O o, typename O::Element* out, const typename O::Element* x, float* logits, const float* const_logits,
             const typename O::Weight& weight, const typename O::Vector& vector, std::span<const HostTensor* const> tensors,
             Residual<O>* residual, const Residual<O>* const_residual, const HostTensor& tensor, RopeTable table,
             std::span<const TokenId> ids, std::span<const std::int32_t> indices, const QkNormRopeStore<O>& store,
             const KvLayout& layout, std::span<const BlockCopy> copies, const StepInput& in, StepOutput& sampled, void (*body)(),
             Activation activation, std::int32_t n, float eps) {
      { o.load_weight(tensors, tensors) } -> std::same_as<typename O::Weight>;
      { o.load_vector(tensor) } -> std::same_as<typename O::Vector>;
      { o.load_rope(std::move(table)) } -> std::same_as<typename O::Rope>;
      o.finish_loading();
      { o.stage(in) } -> std::same_as<const StepInput&>;
      o.execute(in, sampled, body);
      o.await(sampled);
      { o.read(const_logits, std::size_t{}) } -> std::same_as<std::span<const float>>;
      o.embed(residual, ids, weight);
      o.rms_norm(out, const_residual, vector, n, eps);
      o.add_rms_norm(out, residual, x, vector, n, eps);
      o.linear(out, x, weight, n);
      o.logits(logits, x, weight, n);
      o.qk_norm_rope_store(store);
      o.gated_activation(out, x, n, n, activation);
      o.gather_rows(out, x, indices, n);
      o.gather_rows(residual, const_residual, indices, n);
      o.copy_blocks(out, layout, n, copies);
      o.sample(in, const_logits, n, sampled);
    };

/// The most likely token of a row, in one rank's part of the vocabulary.
struct RowMaximum {
  float logit = 0;
  TokenId token = 0;
  std::int32_t is_finite = 0;  // 0: a logit of the part is NaN or infinite
};

/// Refinement: the vocabulary may be split over ranks. Device memory throughout.
///
/// | expression                                  | meaning                                                                  |
/// |---------------------------------------------|--------------------------------------------------------------------------|
/// | `o.embed_shard(out, ids, table, first)`     | as `embed`; `table` begins with row `first` of the whole, and the rows   |
/// |                                             | of ids that it does not have are zero                                    |
/// | `o.join_columns(out, parts, rows, columns)` | out[rows, n]: columns[i] of it from parts[i], [rows, columns[i].size()]  |
/// | `o.find_maxima(out, logits, rows, columns)` | out[r]: of logits [rows, columns.size()], ids from columns.begin on      |
/// | `o.choose_maxima(parts, in, out)`           | out.sampled[r]: the most likely of parts[i][r], the lower id among equals |
template <class O>
concept ShardingOps =
    DeviceOps<O> && requires(O o, Residual<O>* residual, std::span<const TokenId> ids, const typename O::Weight& table,
                             float* logits, const float* const_logits, std::span<const float* const> parts,
                             std::span<const Shard> columns, RowMaximum* maxima, std::span<const RowMaximum* const> all_maxima,
                             Shard shard, std::int32_t n, const StepInput& in, StepOutput& sampled) {
      o.embed_shard(residual, ids, table, n);
      o.join_columns(logits, parts, n, columns);
      o.find_maxima(maxima, const_logits, n, shard);
      o.choose_maxima(all_maxima, in, sampled);
    };

/// One token's K and V, from slot to slot.
struct SlotCopy {
  SlotId from = 0;
  SlotId to = 0;
};

/// Arguments of `merge_states`: row i of `other` is merged into row rows[i] of `out`. A state is out [num_heads, head_dim] and
/// the natural log of the sum of exp(scores) [num_heads].
template <class T>
struct MergeStates {
  T* out = nullptr;
  float* lse = nullptr;
  const T* other = nullptr;
  const float* other_lse = nullptr;  // -infinity: no keys, and that row of `other` counts for nothing
  std::span<const std::int32_t> rows;
  std::int32_t num_heads = 0;
  std::int32_t head_dim = 0;
};

/// Refinement: the tokens of a step may be shared out over ranks. Device memory throughout; spans as in DeviceOps.
///
/// | expression                                              | meaning                                                       |
/// |---------------------------------------------------------|---------------------------------------------------------------|
/// | `o.merge_states(call)`                                  | the states over both sets of keys (Rabe & Staats 2021,        |
/// |                                                         | arXiv:2112.05682, section 2)                                  |
/// | `o.copy_slots(to, to_layout, from, from_layout, copies)`| K and V of one layer; both layouts have the same heads         |
/// | `o.gather_rows(out, x, stride, rows, n)`                | out[i, k] = x[rows[i] * stride + k], k < n                    |
template <class O>
concept TokenSharingOps =
    DeviceOps<O> && requires(O o, const MergeStates<typename O::Element>& merge, typename O::Element* to,
                             const typename O::Element* from, const KvLayout& layout, std::span<const SlotCopy> copies,
                             std::span<const std::int32_t> rows, std::int64_t stride, std::int32_t n) {
      o.merge_states(merge);
      o.copy_slots(to, layout, from, layout, copies);
      o.gather_rows(to, from, stride, rows, n);
    };

/// Arguments of `transfer_blocks`.
template <class T>
struct BlockTransfers {
  T* kv = nullptr;  // [num_layers] x layout, device memory
  KvLayout layout;
  std::int32_t num_layers = 0;
  T* host = nullptr;                   // [host blocks][num_layers] x block (KvLayout::whole_block_offset), of a HostBuffer
  std::span<const BlockTransfer> out;  // device to host
  std::span<const BlockTransfer> in;   // host to device
};

/// Refinement: K and V of whole blocks move between the device and a pool in host memory, beside the steps (BlockTransfer).
///
/// | expression                          | meaning                                                                          |
/// |-------------------------------------|----------------------------------------------------------------------------------|
/// | `Device::HostBuffer(device, bytes)` | host memory that `device` reads and writes, movable, `template as<T>()`; its     |
/// |                                     | destruction waits for transfers under way                                        |
/// | `o.transfer_blocks(transfers)`      | those of the step staged last, before its `execute`: starts them; the next step  |
/// |                                     | that is staged begins when all are done                                          |
template <class O>
concept TransferringOps =
    DeviceOps<O> && std::constructible_from<typename O::Device::HostBuffer, typename O::Device&, std::size_t> &&
    requires(O o, const BlockTransfers<typename O::Element>& transfers) { o.transfer_blocks(transfers); };

/// The least DeviceOps. Declared, not defined: code that compiles against it asks for nothing more.
struct DeviceOpsArchetype {
  using Element = float;
  struct Device {
    struct Buffer {
      Buffer(Device&, std::size_t);
    };
  };
  struct Weight {};
  struct Vector {};
  struct Rope {};
  static constexpr bool runs_ahead = false;
  DeviceOpsArchetype(Device&, const ModelConfig&, const StepLimits&);
  Weight load_weight(std::span<const HostTensor* const>, std::span<const HostTensor* const>);
  Vector load_vector(const HostTensor&);
  Rope load_rope(RopeTable);
  void finish_loading();
  const StepInput& stage(const StepInput&);
  template <class Body>
  void execute(const StepInput&, StepOutput&, Body&&);
  void await(StepOutput&);
  std::span<const float> read(const float*, std::size_t);
  void embed(float*, std::span<const TokenId>, const Weight&);
  void rms_norm(float*, const float*, const Vector&, std::int32_t, float);
  void add_rms_norm(float*, float*, const float*, const Vector&, std::int32_t, float);
  void linear(float*, const float*, const Weight&, std::int32_t);
  void logits(float*, const float*, const Weight&, std::int32_t);
  void qk_norm_rope_store(const QkNormRopeStore<DeviceOpsArchetype>&);
  void gated_activation(float*, const float*, std::int32_t, std::int32_t, Activation);
  void gather_rows(float*, const float*, std::span<const std::int32_t>, std::int32_t);
  void copy_blocks(float*, const KvLayout&, std::int32_t, std::span<const BlockCopy>);
  void sample(const StepInput&, const float*, std::int32_t, StepOutput&);
};
static_assert(DeviceOps<DeviceOpsArchetype>);

}  // namespace nvl::inline NVL_ABI
