#pragma once
/// DeviceOps on a CUDA device: the kernels of nvl/kernels in one stream. A step is staged, run ahead of the host, and, if it is
/// one of many of its kind, replayed from a CUDA graph that was recorded at start-up.

#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/kernels/block_copy.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/trace.cuh>
#include <nvl/kernels/embed.cuh>
#include <nvl/kernels/gated_activation.cuh>
#include <nvl/kernels/gemm_workspace.hpp>
#include <nvl/kernels/linear.cuh>
#include <nvl/kernels/qk_norm_rope_store.cuh>
#include <nvl/kernels/rms_norm.cuh>
#include <nvl/kernels/rope.cuh>
#include <nvl/kernels/sampling.cuh>
#include <nvl/ops/cuda_device.cuh>
#include <nvl/ops/cuda_graphs.cuh>
#include <nvl/ops/cuda_memory.hpp>
#include <nvl/ops/cuda_step_stage.cuh>
#include <nvl/ops/cuda_transfers.cuh>
#include <nvl/ops/cuda_upload.cuh>
#include <nvl/ops/device_ops.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {

/// A matrix in device memory, owned by the device's reserve.
template <class T>
struct CudaWeight {
  T* data = nullptr;  // [out_features, in_features]
  T* bias = nullptr;  // [out_features], or nullptr
  std::int32_t out_features = 0;
  std::int32_t in_features = 0;
};

template <class T>
struct CudaVector {
  T* data = nullptr;
  std::int32_t size = 0;
};

/// Element types: bf16, fp16, float. Norms, softmax and sums are in float. `kBatchInvariant`: a row's numbers do not depend on
/// what else is in the step, bit for bit, at some cost in speed.
template <class T, bool kBatchInvariant = false>
class CudaOps {
  static_assert(std::same_as<T, float> || std::same_as<T, bf16> || std::same_as<T, fp16>,
                "nvl: CudaOps computes with bf16, fp16 or float");

 public:
  using Element = T;
  using Residual = CudaResidual<T>;
  using Device = CudaDevice;
  using Weight = CudaWeight<T>;
  using Vector = CudaVector<T>;
  using Rope = kernels::DeviceRopeTable;
  static constexpr bool runs_ahead = true;

  /// What it will take of the device's reserve, and what the driver will for the graphs.
  static FixedMemory fixed_memory(const ModelConfig& config, const StepLimits& limits, const DeviceOptions& options) {
    return cuda_fixed_memory<T>(config, limits, options);
  }

  CudaOps(CudaDevice& device, const ModelConfig& config, const StepLimits& limits)
      : device_(device),
        limits_(limits),
        stage_(device, limits),
        transfers_(device),
        graphs_(device.options().use_graphs ? limits.max_num_seqs : 0, limits.max_num_tokens),
        graph_bytes_(CudaGraphs::estimated_bytes(config.num_layers, limits.max_num_seqs)),
        linear_workspace_(device, kernels::gemm_workspace_bytes),
        linear_(std::span(linear_workspace_.template as<std::byte>(), linear_workspace_.size_bytes())),
        results_layout_(sampling_results(limits)),
        sampler_workspace_(device, kernels::sampling_workspace_bytes(limits.max_num_seqs, config.vocab_size)),
        results_(device, results_layout_.bytes()),
        sampled_(device, static_cast<std::size_t>(limits.max_num_seqs) * sizeof(TokenId)),
        slots_{Slot(results_layout_.bytes()), Slot(results_layout_.bytes())} {
    require_multiple_of_8("hidden_size", config.hidden_size);
    require_multiple_of_8("intermediate_size", config.intermediate_size);
    require_multiple_of_8("head_dim", config.head_dim);
    uploader_.emplace(device.stream());
  }

  CudaOps(const CudaOps&) = delete;
  CudaOps& operator=(const CudaOps&) = delete;

  ~CudaOps() {
    if (!device_.has_hung()) { return; }
    stage_.abandon();
    graphs_.abandon();
    linear_.abandon();
    for (Slot& slot : slots_) { slot.results.abandon(); }
  }

  CudaDevice& device() noexcept { return device_; }
  cudaStream_t stream() const noexcept { return device_.stream(); }
  const StepLimits& limits() const noexcept { return limits_; }

  // --- Loading ---------------------------------------------------------------------------------------------------------------

  Weight load_weight(std::span<const HostTensor* const> parts, std::span<const HostTensor* const> biases = {}) {
    Weight w;
    w.in_features = static_cast<std::int32_t>(parts.front()->shape.back());
    for (const HostTensor* part : parts) { w.out_features += static_cast<std::int32_t>(part->num_rows()); }
    w.data = upload_stacked(parts, std::int64_t{w.out_features} * w.in_features);
    if (!biases.empty()) { w.bias = upload_stacked(biases, w.out_features); }
    return w;
  }

  Vector load_vector(const HostTensor& tensor) {
    const HostTensor* const parts[] = {&tensor};
    const auto size = num_elements(tensor);
    return {.data = upload_stacked(parts, size), .size = static_cast<std::int32_t>(size)};
  }

  Rope load_rope(const RopeTable& table) {
    const std::vector<float> packed = kernels::pack_rope_table(table);
    const std::size_t bytes = packed.size() * sizeof(float);
    auto* const cos_sin = reinterpret_cast<float*>(device_.take(bytes));
    NVL_CUDA_CHECK(cudaMemcpyAsync(cos_sin, packed.data(), bytes, cudaMemcpyHostToDevice, stream()));
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream()));
    return kernels::device_rope_table(table, cos_sin);
  }

  void finish_loading() {
    uploader_->finish();
    uploader_.reset();
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream()));
  }

  /// Takes the algorithms of matrix products from the cache file of the options, searches for those that are not there as long
  /// as the options allow, and writes the file again if it found some. A cache file that is of no use is as good as none, but
  /// one of the `warnings`.
  /// \param scratch zeroed again afterwards
  void tune(const ModelConfig& config, CudaDevice::Buffer& scratch) {
    const DeviceOptions& options = device_.options();
    const std::string& file = options.gemm_cache_file;
    const bool searches = options.gemm_search_seconds > 0.0;
    if constexpr (kBatchInvariant) {
      if (!file.empty() || searches) {
        warnings_.push_back(
            "a batch-invariant engine computes all matrix products in one way: it searches for no other, and uses "
            "no cache of them");
      }
    } else {
      const std::vector<kernels::GemmKey> keys = gemm_keys(config);
      if (!file.empty()) {
        const kernels::GemmCacheContents contents = linear_.load_cache(file);
        std::string warning = kernels::gemm_cache_warning(file, contents, linear_.num_known(keys), searches);
        if (!warning.empty()) { warnings_.push_back(std::move(warning)); }
      }
      if (!searches) { return; }
      const std::size_t scratch_bytes = std::min(scratch.size_bytes(), std::size_t{1} << 30);
      const kernels::GemmTuneReport report =
          linear_.template tune<T>({.keys = keys,
                                    .scratch = std::span(scratch.template as<std::byte>(), scratch_bytes),
                                    .max_seconds = options.gemm_search_seconds});
      NVL_CUDA_CHECK(cudaMemsetAsync(scratch.template as<void>(), 0, scratch_bytes, stream()));
      if (report.num_tuned > 0 && !file.empty()) { linear_.save_cache(file); }
    }
  }

  /// What was odd at the start but did no harm: one line each.
  const std::vector<std::string>& warnings() const noexcept { return warnings_; }

  /// Records the steps that are replayed. Each runs once before: the libraries load what they need.
  template <class Run>
  void capture_graphs(Run&& run) {
    device_.make_current();
    is_capturing_ = true;
    graphs_.capture(
        stream(), graph_bytes_,
        [&](CudaGraphs::Size size) {
          StepInput nothing;
          nothing.min_query_len = nothing.max_query_len = size.num_tokens / size.num_seqs;
          run(stage_.stage(nothing, size));
          NVL_CUDA_CHECK(cudaStreamSynchronize(stream()));  // the step's copy has left the stage's memory, which is for two steps
        },
        [&](CudaGraphs::Size size) { run(stage_.view_of(size)); });
    is_capturing_ = false;
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream()));
  }

  // --- Steps -----------------------------------------------------------------------------------------------------------------

  const StepInput& stage(const StepInput& in) {
    const kernels::detail::TraceSpan span("stage");
    device_.make_current();
    slots_[num_executed_ % slots_.size()].begin.record(stream());
    transfers_.join();
    staged_rows_ = in.sampling;
    staged_graph_ = graph_for(in);
    return stage_.stage(in, staged_graph_ != nullptr ? staged_graph_->size : CudaGraphs::Size{});
  }

  template <class Body>
  void execute(const StepInput& step, StepOutput&, Body&& body) {
    const kernels::detail::TraceSpan span("step");
    Slot& slot = slots_[num_executed_++ % slots_.size()];
    slot.num_rows = static_cast<std::int32_t>(staged_rows_.size());
    const bool is_general = kernels::needs_general_sampling(staged_rows_);
    if (staged_graph_ != nullptr) {
      graphs_.launch(*staged_graph_, stream());
      // The graph takes every row for a plain one; where some are not, all choose again.
      if (is_general) { launch_sampler(step, recorded_logits_, recorded_vocab_size_, true); }
    } else {
      body();
    }
    const bool has_logprobs =
        std::any_of(staged_rows_.begin(), staged_rows_.end(), [](const SamplingRow& row) { return row.num_logprobs > 0; });
    NVL_CUDA_CHECK(cudaMemcpyAsync(slot.results.data(), results_.template as<std::byte>(),
                                   results_layout_.bytes(slot.num_rows, has_logprobs), cudaMemcpyDeviceToHost, stream()));
    slot.end.record(stream());
  }

  /// False if `await` would wait; what has failed is there to be awaited.
  bool is_done() {
    device_.make_current();
    return cudaEventQuery(slots_[num_awaited_ % slots_.size()].end.get()) != cudaErrorNotReady;
  }

  void await(StepOutput& out) {
    device_.make_current();
    Slot& slot = slots_[num_awaited_++ % slots_.size()];
    device_.wait(slot.end);
    if (num_awaited_ > 1) { device_.add_idle(last_end_, slot.begin); }
    std::swap(last_end_, slot.end);
    out.sampled.resize(static_cast<std::size_t>(slot.num_rows));
    results_layout_.read(slot.results.data(), out.sampled);
  }

  std::span<const float> read(const float* values, std::size_t n) {
    read_back_.resize(n);
    NVL_CUDA_CHECK(cudaMemcpyAsync(read_back_.data(), values, n * sizeof(float), cudaMemcpyDeviceToHost, stream()));
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream()));
    return read_back_;
  }

  /// The one kernel of a step that does not overlap the one before it: whatever follows may count on all of the steps before,
  /// on this step's arrays and on the plan of its attention.
  void embed(Residual* out, std::span<const TokenId> ids, const Weight& table) {
    const kernels::detail::TraceSpan span("embed");
    kernels::launch_embed<T, Residual>({.out = out,
                                        .table = table.data,
                                        .ids = ids.data(),
                                        .sampled = sampled_.template as<TokenId>(),
                                        .num_rows = static_cast<int>(ids.size()),
                                        .hidden = table.in_features},
                                       stream(), false);
  }

  void rms_norm(T* out, const Residual* x, const Vector& w, std::int32_t rows, float eps) {
    const kernels::detail::TraceSpan span("rms_norm");
    kernels::RmsNormParams<T, Residual> params{.out = out, .weight = w.data, .num_tokens = rows, .hidden = w.size, .eps = eps};
    if constexpr (std::same_as<Residual, T>) {
      params.x = x;
    } else {
      params.residual = const_cast<Residual*>(x);  // read alone, where there is no x to add
    }
    kernels::launch_rms_norm<T, Residual>(params, stream());
  }

  void add_rms_norm(T* out, Residual* residual, const T* x, const Vector& w, std::int32_t rows, float eps) {
    const kernels::detail::TraceSpan span("add_rms_norm");
    kernels::launch_rms_norm<T, Residual>(
        {.out = out, .x = x, .residual = residual, .weight = w.data, .num_tokens = rows, .hidden = w.size, .eps = eps}, stream());
  }

  void linear(T* out, const T* x, const Weight& w, std::int32_t rows) { run_linear(out, x, w, rows); }
  void logits(float* out, const T* x, const Weight& w, std::int32_t rows) { run_linear(out, x, w, rows); }

  void qk_norm_rope_store(const QkNormRopeStore<CudaOps>& call) {
    const kernels::detail::TraceSpan span("qk_norm_rope_store");
    kernels::launch_qk_norm_rope_store<T>({.qkv = call.qkv,
                                           .positions = call.positions.data(),
                                           .slot_mapping = call.slot_mapping.data(),
                                           .q_norm = call.q_norm != nullptr ? call.q_norm->data : nullptr,
                                           .k_norm = call.k_norm != nullptr ? call.k_norm->data : nullptr,
                                           .rope = *call.rope,
                                           .layout = call.layout,
                                           .kv = call.kv,
                                           .num_q_heads = call.num_q_heads,
                                           .num_tokens = static_cast<int>(call.positions.size()),
                                           .eps = call.eps,
                                           .indices_ready = true},  // embed did not overlap their upload
                                          stream());
  }

  void gated_activation(T* out, const T* gate_up, std::int32_t rows, std::int32_t n, Activation activation) {
    const kernels::detail::TraceSpan span("gated_activation");
    kernels::launch_gated_activation<T>({.out = out, .gate_up = gate_up, .num_tokens = rows, .n = n, .activation = activation},
                                        stream());
  }

  /// Of T and of Residual.
  template <class U>
  void gather_rows(U* out, const U* x, std::span<const std::int32_t> rows, std::int32_t hidden) {
    const kernels::detail::TraceSpan span("gather_rows");
    kernels::launch_gather_rows<U>(out, x, rows.data(), static_cast<int>(rows.size()), hidden, stream());
  }

  void copy_blocks(T* kv, const KvLayout& layout, std::int32_t num_layers, std::span<const BlockCopy> copies) {
    const kernels::detail::TraceSpan span("copy_blocks");
    kernels::launch_block_copy<T>({.kv = kv,
                                   .layout = layout,
                                   .num_layers = num_layers,
                                   .copies = copies.data(),
                                   .num_copies = static_cast<int>(copies.size())},
                                  stream());
  }

  void transfer_blocks(const BlockTransfers<T>& transfers) {
    const kernels::detail::TraceSpan span("transfer_blocks");
    transfers_.start(transfers);
  }

  /// out.sampled is filled by `await`.
  void sample(const StepInput& in, const float* logits, std::int32_t vocab_size, StepOutput&) {
    recorded_logits_ = logits;
    recorded_vocab_size_ = vocab_size;
    launch_sampler(in, logits, vocab_size, !is_capturing_ && kernels::needs_general_sampling(staged_rows_));
  }

 private:
  using Linear = kernels::Linear<kBatchInvariant>;

  /// What the host needs of a step that runs.
  struct Slot {
    explicit Slot(std::size_t result_bytes) : results(result_bytes) {}
    PinnedBuffer results;
    CudaEvent begin{cudaEventDefault}, end{cudaEventDefault};
    std::int32_t num_rows = 0;
  };

  static void require_multiple_of_8(const char* what, std::int32_t value) {
    if (value % 8 != 0) {
      raise(Unsupported(std::string(what) + " is " + std::to_string(value) + ": the CUDA kernels need a multiple of 8"));
    }
  }

  /// The products of a step, for every number of rows that is recorded and some of prompts, largest first.
  std::vector<kernels::GemmKey> gemm_keys(const ModelConfig& config) const {
    std::vector<std::int32_t> rows = CudaGraphs::batch_sizes(limits_.max_num_seqs);
    for (std::int32_t n = 512; n <= limits_.max_num_tokens; n *= 2) { rows.push_back(n); }
    std::vector<kernels::GemmKey> keys;
    for (auto n = rows.rbegin(); n != rows.rend(); ++n) {
      const auto add = [&](DType out, bool has_bias, std::int32_t out_features, std::int32_t in_features) {
        const kernels::GemmKey key{dtype_of<T>, out, has_bias, kernels::gemm_token_bucket(*n), out_features, in_features};
        if (std::find(keys.begin(), keys.end(), key) == keys.end()) { keys.push_back(key); }
      };
      add(dtype_of<T>, config.qkv_bias, config.qkv_size(), config.hidden_size);
      add(dtype_of<T>, config.o_bias, config.hidden_size, config.q_size());
      add(dtype_of<T>, config.mlp_bias, 2 * config.intermediate_size, config.hidden_size);
      add(dtype_of<T>, config.mlp_bias, config.hidden_size, config.intermediate_size);
      if (*n <= limits_.max_num_seqs) { add(DType::float32, false, config.vocab_size, config.hidden_size); }
    }
    return keys;
  }

  const CudaGraphs::Graph* graph_for(const StepInput& in) const noexcept {
    if (!in.copies.empty() || in.num_samples() != in.num_seqs()) { return nullptr; }
    if (in.max_query_len == 1) { return graphs_.find_decode(in.num_seqs()); }
    return in.num_seqs() == 1 ? graphs_.find_prompt(in.num_tokens()) : nullptr;
  }

  static std::int64_t num_elements(const HostTensor& tensor) noexcept { return tensor.num_rows() * tensor.shape.back(); }

  T* upload_stacked(std::span<const HostTensor* const> parts, std::int64_t elements) {
    auto* const data = reinterpret_cast<T*>(device_.take(static_cast<std::size_t>(elements) * sizeof(T)));
    T* to = data;
    for (const HostTensor* part : parts) {
      uploader_->upload(*part, to);
      to += num_elements(*part);
    }
    return data;
  }

  template <class Out>
  void run_linear(Out* out, const T* x, const Weight& w, std::int32_t rows) {
    const kernels::detail::TraceSpan span("linear");
    linear_.run(out, x, w.data, w.bias, rows, w.out_features, w.in_features, stream());
  }

  void launch_sampler(const StepInput& in, const float* logits, std::int32_t vocab_size, bool is_general) {
    const kernels::detail::TraceSpan span("sample");
    auto* const results = results_.template as<std::byte>();
    const kernels::SampleParams<float> params{.logits = logits,
                                              .row_stride = vocab_size,
                                              .rows = in.sampling.data(),
                                              .logit_bias = in.logit_bias.data(),
                                              .banned = in.banned.data(),
                                              .history = in.history.data(),
                                              .tokens = sampled_.template as<TokenId>(),
                                              .results = results_layout_.rows(results),
                                              .top_logprobs = results_layout_.top_logprobs(results),
                                              .workspace = sampler_workspace_.template as<void>(),
                                              .max_top_logprobs = results_layout_.max_top_logprobs,
                                              .num_rows = in.num_samples(),
                                              .vocab = vocab_size};
    if (is_general) {
      kernels::launch_sample_general<kernels::SampleGeneralTraits<float>>(params, stream());
    } else {
      kernels::launch_sample_plain<kernels::SamplePlainTraits<float>>(params, stream());
    }
  }

  CudaDevice& device_;
  StepLimits limits_;
  CudaStepStage stage_;
  CudaTransfers transfers_;
  CudaGraphs graphs_;
  std::int64_t graph_bytes_;
  CudaDevice::Buffer linear_workspace_;
  Linear linear_;
  kernels::SamplingResultLayout results_layout_;
  CudaDevice::Buffer sampler_workspace_, results_, sampled_;
  std::optional<WeightUploader> uploader_;
  std::array<Slot, 2> slots_;  // of the step that runs and of the one launched ahead of it
  CudaEvent last_end_{cudaEventDefault};
  std::uint64_t num_executed_ = 0, num_awaited_ = 0;
  std::span<const SamplingRow> staged_rows_;  // of the step staged last, in host memory
  const CudaGraphs::Graph* staged_graph_ = nullptr;
  bool is_capturing_ = false;
  std::vector<std::string> warnings_;
  const float* recorded_logits_ = nullptr;
  std::int32_t recorded_vocab_size_ = 0;
  std::vector<float> read_back_;
};

}  // namespace nvl::inline NVL_ABI
