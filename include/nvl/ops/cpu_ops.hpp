#pragma once
/// DeviceOps on the CPU. All sums are in float, in an order per row that does not depend on the other rows of the call.

#include <nvl/core/aligned_buffer.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/ops/cpu_device.hpp>
#include <nvl/ops/cpu_linear.hpp>
#include <nvl/ops/cpu_rows.hpp>
#include <nvl/ops/cpu_sampler.hpp>
#include <nvl/ops/cpu_weight.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Element types: float, bf16.
template <class T>
class CpuOps {
  static_assert(std::same_as<T, float> || std::same_as<T, bf16>, "nvl: CpuOps computes with float or bf16");

 public:
  using Element = T;
  using Device = CpuDevice;
  using Weight = CpuWeight<T>;
  using Vector = CpuVector;
  using Rope = RopeTable;
  static constexpr bool runs_ahead = false;

  explicit CpuOps(CpuDevice& device) : threads_(device.threads()), linear_(device.threads()) {}
  CpuOps(CpuDevice& device, const ModelConfig&, const StepLimits&) : CpuOps(device) {}

  ThreadPool& threads() noexcept { return threads_; }

  Weight load_weight(std::span<const HostTensor* const> parts, std::span<const HostTensor* const> biases = {}) {
    return Weight(parts, biases, arena_);
  }

  Vector load_vector(const HostTensor& tensor) {
    Vector v;
    std::int64_t n = 1;
    for (const std::int64_t extent : tensor.shape) { n *= extent; }
    v.values.resize(static_cast<std::size_t>(n));
    dequantize_row(tensor.dtype, tensor.data.data(), v.values.data(), n);
    return v;
  }

  static Rope load_rope(RopeTable table) { return table; }
  static void finish_loading() noexcept {}

  // A step is computed where it lies, and done when the ops have returned.
  static const StepInput& stage(const StepInput& in) noexcept { return in; }
  template <class Body>
  static void execute(const StepInput&, StepOutput&, Body&& body) {
    body();
  }
  static void await(StepOutput&) noexcept {}
  static std::span<const float> read(const float* values, std::size_t n) noexcept { return {values, n}; }

  void embed(T* out, std::span<const TokenId> ids, const Weight& table) {
    embed_rows(out, ids, table, [](TokenId id) { return id; });
  }

  void embed_shard(T* out, std::span<const TokenId> ids, const Weight& table, std::int32_t first) {
    embed_rows(out, ids, table,
               [&](TokenId id) { return id >= first && id - first < table.out_features() ? id - first : no_row; });
  }

  void rms_norm(T* out, const T* x, const Vector& w, std::int32_t rows, float eps) {
    const std::int32_t n = w.size();
    threads_.parallel_for(rows, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) { detail::rms_norm_row(out + r * n, x + r * n, w.data(), n, eps); }
    });
  }

  void add_rms_norm(T* out, T* residual, const T* x, const Vector& w, std::int32_t rows, float eps) {
    const std::int32_t n = w.size();
    threads_.parallel_for(rows, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        detail::add_row(residual + r * n, x + r * n, n);
        detail::rms_norm_row(out + r * n, residual + r * n, w.data(), n, eps);
      }
    });
  }

  void linear(T* out, const T* x, const Weight& w, std::int32_t rows) { linear_(out, x, w, rows); }
  void logits(float* out, const T* x, const Weight& w, std::int32_t rows) { linear_(out, x, w, rows); }

  void qk_norm_rope_store(const QkNormRopeStore<CpuOps>& call) {
    NVL_EXPECTS(call.layout.head_dim <= max_head_dim, "head_dim", call.layout.head_dim,
                "at most " + std::to_string(max_head_dim));
    const auto num_tokens = static_cast<std::int64_t>(call.positions.size());
    threads_.parallel_for(num_tokens, 8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) { rope_and_store(call, t); }
    });
  }

  void gated_activation(T* out, const T* gate_up, std::int32_t rows, std::int32_t n, Activation activation) {
    threads_.parallel_for(rows, 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        detail::gated_activation_row(out + r * n, gate_up + r * 2 * n, n, activation);
      }
    });
  }

  static void gather_rows(T* out, const T* x, std::span<const std::int32_t> rows, std::int32_t hidden) {
    gather_rows(out, x, std::int64_t{hidden}, rows, hidden);
  }
  static void gather_rows(T* out, const T* x, std::int64_t stride, std::span<const std::int32_t> rows, std::int32_t n) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(static_cast<void*>(out + static_cast<std::int64_t>(i) * n), x + rows[i] * stride,
                  static_cast<std::size_t>(n) * sizeof(T));
    }
  }

  void merge_states(const MergeStates<T>& call) {
    const std::int64_t num_states = std::ssize(call.rows) * call.num_heads;
    threads_.parallel_for(num_states, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t state =
            std::int64_t{call.rows[static_cast<std::size_t>(i / call.num_heads)]} * call.num_heads + i % call.num_heads;
        call.lse[state] = detail::merge_state(call.out + state * call.head_dim, call.lse[state], call.other + i * call.head_dim,
                                              call.other_lse[i], call.head_dim);
      }
    });
  }

  void copy_slots(T* to, const KvLayout& to_layout, const T* from, const KvLayout& from_layout,
                  std::span<const SlotCopy> copies) {
    const auto place = [](SlotId slot, std::int32_t size) {
      return std::pair(slot / size, static_cast<std::int32_t>(slot % size));
    };
    threads_.parallel_for(std::ssize(copies), 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto [from_block, from_offset] = place(copies[static_cast<std::size_t>(i)].from, from_layout.block_size);
        const auto [to_block, to_offset] = place(copies[static_cast<std::size_t>(i)].to, to_layout.block_size);
        for (std::int32_t head = 0; head < to_layout.num_kv_heads; ++head) {
          std::copy_n(from + from_layout.k_offset(from_block, head, from_offset), to_layout.head_dim,
                      to + to_layout.k_offset(to_block, head, to_offset));
          std::copy_n(from + from_layout.v_offset(from_block, head, from_offset), to_layout.head_dim,
                      to + to_layout.v_offset(to_block, head, to_offset));
        }
      }
    });
  }

  void copy_blocks(T* kv, const KvLayout& layout, std::int32_t num_layers, std::span<const BlockCopy> copies) {
    const auto bytes = static_cast<std::size_t>(layout.block_elements()) * sizeof(T);
    threads_.parallel_for(num_layers, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t layer = begin; layer < end; ++layer) {
        T* const base = kv + layer * layout.layer_elements();
        for (const BlockCopy& copy : copies) {
          std::memmove(static_cast<void*>(base + std::int64_t{index_of(copy.to)} * layout.block_elements()),
                       base + std::int64_t{index_of(copy.from)} * layout.block_elements(), bytes);
        }
      }
    });
  }

  /// Done when it returns.
  void transfer_blocks(const BlockTransfers<T>& call) {
    const KvLayout& layout = call.layout;
    const auto bytes = static_cast<std::size_t>(layout.block_elements()) * sizeof(T);
    const auto move_all = [&](std::span<const BlockTransfer> transfers, bool to_host) {
      threads_.parallel_for(std::ssize(transfers) * call.num_layers, 4, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const BlockTransfer& transfer = transfers[static_cast<std::size_t>(i / call.num_layers)];
          const auto layer = static_cast<std::int32_t>(i % call.num_layers);
          T* const device =
              call.kv + layer * layout.layer_elements() + std::int64_t{index_of(transfer.device)} * layout.block_elements();
          T* const host = call.host + layout.whole_block_offset(index_of(transfer.host), layer, call.num_layers);
          std::memcpy(static_cast<void*>(to_host ? host : device), to_host ? device : host, bytes);
        }
      });
    };
    move_all(call.out, true);
    move_all(call.in, false);
  }

  void sample(const StepInput& in, const float* logits, std::int32_t vocab_size, StepOutput& out) {
    sampler_.sample_rows(threads_, in, logits, vocab_size, out);
  }

  static void join_columns(float* out, std::span<const float* const> parts, std::int32_t rows, std::span<const Shard> columns) {
    const std::int64_t width = columns.back().end;
    for (std::size_t part = 0; part < parts.size(); ++part) {
      const std::int64_t n = columns[part].size();
      for (std::int64_t r = 0; r < rows; ++r) { std::copy_n(parts[part] + r * n, n, out + r * width + columns[part].begin); }
    }
  }

  void find_maxima(RowMaximum* out, const float* logits, std::int32_t rows, Shard columns) {
    const auto n = static_cast<std::size_t>(columns.size());
    threads_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::span<const float> row(logits + static_cast<std::size_t>(r) * n, n);
        const detail::RowScan scan = detail::scan_row(row);
        const auto best = std::find(row.begin(), row.end(), scan.max);
        const auto token = columns.begin + static_cast<TokenId>(best - row.begin());
        out[r] = {.logit = scan.max, .token = token, .is_finite = scan.finite ? 1 : 0};
      }
    });
  }

  static void choose_maxima(std::span<const RowMaximum* const> parts, const StepInput& in, StepOutput& out) {
    out.sampled.resize(in.sampling.size());
    for (std::size_t r = 0; r < out.sampled.size(); ++r) {
      const RowMaximum* best = &parts.front()[r];
      bool is_finite = true;
      for (const RowMaximum* const part : parts) {
        is_finite = is_finite && part[r].is_finite != 0;
        // Parts come in the order of their ids: of equals, the first stays.
        if (part[r].logit > best->logit) { best = &part[r]; }
      }
      SampledToken& sampled = out.sampled[r];
      sampled.token = is_finite ? best->token : 0;
      sampled.logprob = 0;
      sampled.finite = is_finite;
      sampled.top_logprobs.clear();
    }
  }

 private:
  static constexpr std::int32_t max_head_dim = 1024;

  static constexpr std::int32_t no_row = std::numeric_limits<std::int32_t>::min();

  /// `row_of(id)`: a row of the table, or no_row for zeros.
  template <class RowOf>
  void embed_rows(T* out, std::span<const TokenId> ids, const Weight& table, RowOf&& row_of) {
    const std::int32_t hidden = table.in_features();
    threads_.parallel_for(static_cast<std::int64_t>(ids.size()), 8, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> row(static_cast<std::size_t>(hidden));
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int32_t from = row_of(ids[static_cast<std::size_t>(t)]);
        if (from != no_row) {
          table.unpack_row(from, row.data());
        } else {
          std::ranges::fill(row, 0.0f);
        }
        for (std::int32_t i = 0; i < hidden; ++i) { out[t * hidden + i] = static_cast<T>(row[static_cast<std::size_t>(i)]); }
      }
    });
  }

  void rope_and_store(const QkNormRopeStore<CpuOps>& call, std::int64_t t) {
    const std::int32_t d = call.layout.head_dim;
    const std::int32_t kv_heads = call.layout.num_kv_heads;
    T* const row = call.qkv + t * (call.num_q_heads + 2 * kv_heads) * d;
    const std::int32_t position = call.positions[static_cast<std::size_t>(t)];
    const SlotId slot = call.slot_mapping[static_cast<std::size_t>(t)];
    const std::int64_t block = slot / call.layout.block_size;
    const auto offset = static_cast<std::int32_t>(slot % call.layout.block_size);
    for (std::int32_t h = 0; h < call.num_q_heads + kv_heads; ++h) {
      const T* const head = row + std::int64_t{h} * d;
      const bool is_q = h < call.num_q_heads;
      if (!is_q && slot == no_slot) { break; }
      T* const to = is_q ? row + std::int64_t{h} * d : call.kv + call.layout.k_offset(block, h - call.num_q_heads, offset);
      const Vector* const norm = is_q ? call.q_norm : call.k_norm;
      float values[max_head_dim];
      detail::convert_row(values, head, d);
      if (norm != nullptr) { detail::rms_norm_row(values, values, norm->data(), d, call.eps); }
      detail::rotate_head(values, call.rope->cos(position), call.rope->sin(position), d, call.rope->layout());
      detail::convert_row(to, values, d);
    }
    for (std::int32_t h = 0; h < kv_heads && slot != no_slot; ++h) {
      std::copy_n(row + std::int64_t{call.num_q_heads + kv_heads + h} * d, d, call.kv + call.layout.v_offset(block, h, offset));
    }
  }

  ThreadPool& threads_;
  CpuLinear<T> linear_;
  BufferArena arena_;  // of the weights
  CpuSampler sampler_;
};

static_assert(TransferringOps<CpuOps<float>> && ShardingOps<CpuOps<float>> && TokenSharingOps<CpuOps<float>>);
static_assert(TransferringOps<CpuOps<bf16>> && ShardingOps<CpuOps<bf16>> && TokenSharingOps<CpuOps<bf16>>);

}  // namespace nvl::inline NVL_ABI
