#pragma once
/// A fake model behind the real engine, runner and decoder: thousands of steps a second, and whatever goes wrong with blocks shows
/// in the tokens.
///
/// An activation is one 64-bit number. Layer 0 stores a number of the token and its position in the KV cache; attention adds up
/// what the query's positions hold, through the block table; layer 1 stores a number of that sum, and so of the whole history.
/// The token that follows is a hash of layer 1's sum. A slot that was not written, written by another history, moved without its
/// other layer or read too early changes every token from there on. `sim_tokens` computes the same without any cache.

#include <nvl/nvl.hpp>

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl_test {

/// SplitMix64's finaliser.
constexpr std::uint64_t sim_mix(std::uint64_t z) noexcept {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// What layer and sampler do with the numbers, shared by the device and by `sim_tokens`.
namespace sim {

inline constexpr std::int32_t vocab_size = 199;
inline constexpr int num_layers = 2;

constexpr std::uint64_t embedded(nvl::TokenId token) noexcept { return sim_mix(static_cast<std::uint64_t>(token)); }
constexpr std::uint64_t key(std::uint64_t state, std::int32_t position) noexcept {
  return sim_mix(state ^ (static_cast<std::uint64_t>(position) << 40));
}
constexpr std::uint64_t value(std::uint64_t state) noexcept { return state * 0x2545f4914f6cdd1du; }
/// What a query sees of the slot of `position`.
constexpr std::uint64_t seen(std::uint64_t key, std::uint64_t value, std::int32_t position) noexcept {
  return (key ^ value) * (2 * static_cast<std::uint64_t>(position) + 1);
}
constexpr std::uint64_t added(std::uint64_t residual, std::uint64_t x) noexcept { return sim_mix(residual * 3 + x); }

/// The token after `state`. Greedy unless the row has a temperature.
inline nvl::SampledToken sampled(std::uint64_t state, const nvl::SamplingRow& row, std::span<const nvl::TokenId> banned,
                                 std::span<const nvl::TokenId> history) {
  std::uint64_t h = state;
  if (row.temperature > 0) { h = sim_mix(h ^ sim_mix(row.seed * 31 + row.choice * 7 + row.output_index)); }
  if (row.has_penalty()) {
    for (const nvl::TokenId id : history) { h = sim_mix(h + static_cast<std::uint64_t>(id)); }
  }
  nvl::SampledToken out;
  out.token = static_cast<nvl::TokenId>(h % vocab_size);
  while (std::find(banned.begin(), banned.end(), out.token) != banned.end()) {
    h = sim_mix(h);
    out.token = static_cast<nvl::TokenId>(h % vocab_size);
  }
  for (std::int32_t i = 0; i < row.num_logprobs; ++i) {  // distinct, most likely first
    const auto id = static_cast<nvl::TokenId>((h + 7u * static_cast<unsigned>(i)) % vocab_size);
    const float logprob = -0.25f * static_cast<float>(i + 1) - static_cast<float>((h >> (i % 40)) & 7u) / 64;
    out.top_logprobs.push_back({id, logprob});
  }
  if (row.num_logprobs >= 0) { out.logprob = row.num_logprobs > 0 ? out.top_logprobs.front().logprob : -0.5f; }
  return out;
}

inline std::uint64_t load(const float* at) noexcept {
  std::uint64_t bits = 0;
  std::memcpy(&bits, at, sizeof(bits));
  return bits;
}
inline void store(float* at, std::uint64_t bits) noexcept { std::memcpy(static_cast<void*>(at), &bits, sizeof(bits)); }

}  // namespace sim

/// What a test does to the device, and what it is told.
struct SimFaults {
  std::function<void(const nvl::StepInput&)> on_step;                // may throw: the device has failed
  std::function<bool(const nvl::StepInput&, std::int32_t)> has_nan;  // the logits of this sampled row are not finite
  std::function<void(bool)> in_device;                               // what follows is the device's own doing, or not any more
};
inline SimFaults sim_faults;

struct InSimDevice {
  InSimDevice() {
    if (sim_faults.in_device) { sim_faults.in_device(true); }
  }
  InSimDevice(const InSimDevice&) = delete;
  InSimDevice& operator=(const InSimDevice&) = delete;
  ~InSimDevice() {
    if (sim_faults.in_device) { sim_faults.in_device(false); }
  }
};

/// One number a row, in the first two floats of it. kAhead: a step is done as late as the engine allows, or at once where the
/// hash of its number says so; its tokens are out of reach until it is awaited.
template <bool kAhead>
class SimOps {
 public:
  using Element = float;
  using Device = nvl::CpuDevice;
  struct Weight {
    std::int32_t out_features = 0, in_features = 0;
  };
  struct Vector {
    std::int32_t size = 0;
  };
  struct Rope {};
  static constexpr bool runs_ahead = kAhead;

  SimOps(Device&, const nvl::ModelConfig&, const nvl::StepLimits&) {}

  Weight load_weight(std::span<const nvl::HostTensor* const> parts, std::span<const nvl::HostTensor* const>) {
    Weight weight{0, static_cast<std::int32_t>(parts.front()->shape.at(1))};
    for (const nvl::HostTensor* part : parts) { weight.out_features += static_cast<std::int32_t>(part->shape.at(0)); }
    return weight;
  }
  Vector load_vector(const nvl::HostTensor& tensor) { return {static_cast<std::int32_t>(tensor.shape.at(0))}; }
  Rope load_rope(nvl::RopeTable) { return {}; }
  void finish_loading() {}

  const nvl::StepInput& stage(const nvl::StepInput& in) {
    if constexpr (!kAhead) { return in; }
    const InSimDevice here;
    Job& job = jobs_[num_staged_++ % jobs_.size()];
    job.source = &in;
    job.ids.resize(in.token_ids.size());
    job.input = in;
    job.input.token_ids = job.ids;
    return job.input;
  }

  template <class Body>
  void execute(const nvl::StepInput& in, nvl::StepOutput&, Body&& body) {
    const InSimDevice here;
    if constexpr (!kAhead) {
      if (sim_faults.on_step) { sim_faults.on_step(in); }
      run(in.step, body);
    } else {
      jobs_[num_launched_++ % jobs_.size()].body = std::forward<Body>(body);
      if (sim_mix(in.step) % 2 == 0) { run_until(num_launched_); }
    }
  }

  void await(nvl::StepOutput& out) {
    if constexpr (kAhead) {
      const InSimDevice here;
      run_until(num_awaited_ + 1);
      out.sampled = jobs_[num_awaited_++ % jobs_.size()].hidden.sampled;
    }
  }

  static std::span<const float> read(const float* values, std::size_t n) { return {values, n}; }

  void embed(float* out, std::span<const nvl::TokenId> ids, const Weight& table) {
    for (std::size_t t = 0; t < ids.size(); ++t) {
      sim::store(out + t * static_cast<std::size_t>(table.in_features), sim::embedded(ids[t]));
    }
  }
  void rms_norm(float* out, const float* x, const Vector& w, std::int32_t rows, float) { copy(out, w.size, x, w.size, rows); }
  void add_rms_norm(float* out, float* residual, const float* x, const Vector& w, std::int32_t rows, float) {
    for (std::int64_t at = 0; at < std::int64_t{rows} * w.size; at += w.size) {
      sim::store(residual + at, sim::added(sim::load(residual + at), sim::load(x + at)));
    }
    copy(out, w.size, residual, w.size, rows);
  }
  void linear(float* out, const float* x, const Weight& w, std::int32_t rows) {
    copy(out, w.out_features, x, w.in_features, rows);
  }
  void logits(float* out, const float* x, const Weight& w, std::int32_t rows) { linear(out, x, w, rows); }
  void gated_activation(float* out, const float* gate_up, std::int32_t rows, std::int32_t n, nvl::Activation) {
    copy(out, n, gate_up, 2 * n, rows);
  }
  void gather_rows(float* out, const float* x, std::span<const std::int32_t> rows, std::int32_t width) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      sim::store(out + static_cast<std::int64_t>(i) * width, sim::load(x + std::int64_t{rows[i]} * width));
    }
  }

  void qk_norm_rope_store(const nvl::QkNormRopeStore<SimOps>& call) {
    const std::int64_t width = std::int64_t{call.num_q_heads + 2 * call.layout.num_kv_heads} * call.layout.head_dim;
    for (std::size_t t = 0; t < call.positions.size(); ++t) {
      const nvl::SlotId slot = call.slot_mapping[t];
      if (slot == nvl::no_slot) { continue; }
      const std::uint64_t state = sim::load(call.qkv + static_cast<std::int64_t>(t) * width);
      const std::int64_t block = slot / call.layout.block_size;
      const auto offset = static_cast<std::int32_t>(slot % call.layout.block_size);
      sim::store(call.kv + call.layout.k_offset(block, 0, offset), sim::key(state, call.positions[t]));
      sim::store(call.kv + call.layout.v_offset(block, 0, offset), sim::value(state));
    }
  }

  void copy_blocks(float* kv, const nvl::KvLayout& layout, std::int32_t num_layers, std::span<const nvl::BlockCopy> copies) {
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      float* const base = kv + layer * layout.layer_elements();
      for (const nvl::BlockCopy& copy : copies) {
        std::memmove(static_cast<void*>(base + std::int64_t{index_of(copy.to)} * layout.block_elements()),
                     base + std::int64_t{index_of(copy.from)} * layout.block_elements(),
                     static_cast<std::size_t>(layout.block_elements()) * sizeof(float));
      }
    }
  }

  /// At once, after the step's tokens or before the next step's, by the hash of the step's number.
  void transfer_blocks(const nvl::BlockTransfers<float>& call) {
    const InSimDevice here;
    Transfers& mine = transfers_[num_transferring_++ % transfers_.size()];
    mine.call = call;
    mine.out.assign(call.out.begin(), call.out.end());
    mine.in.assign(call.in.begin(), call.in.end());
    if constexpr (kAhead) { jobs_[(num_staged_ - 1) % jobs_.size()].has_transfers = true; }
    if constexpr (!kAhead) { has_transfers_ = true; }
  }

  void sample(const nvl::StepInput& in, const float* logits, std::int32_t vocab_size, nvl::StepOutput& out) {
    nvl::StepOutput& to = kAhead ? jobs_[num_run_ % jobs_.size()].hidden : out;
    to.sampled.clear();
    chosen_.clear();
    for (std::size_t row = 0; row < in.sampling.size(); ++row) {
      const nvl::SamplingRow& how = in.sampling[row];
      nvl::SampledToken token = sim::sampled(sim::load(logits + static_cast<std::int64_t>(row) * vocab_size), how,
                                             in.banned.subspan(how.banned.begin, how.banned.size()),
                                             in.history.subspan(how.history.begin, how.history.size()));
      token.finite = !sim_faults.has_nan || !sim_faults.has_nan(in, static_cast<std::int32_t>(row));
      chosen_.push_back(token.token);
      to.sampled.push_back(std::move(token));
    }
    if constexpr (kAhead) {
      nvl::SampledToken nothing;
      nothing.token = -999;
      out.sampled.assign(to.sampled.size(), nothing);
    }
  }

 private:
  struct Transfers {
    nvl::BlockTransfers<float> call;
    std::vector<nvl::BlockTransfer> out, in;
  };

  struct Job {
    const nvl::StepInput* source = nullptr;  // the engine keeps it as it is until the step is collected
    nvl::StepInput input;
    std::vector<nvl::TokenId> ids;
    std::function<void()> body;
    nvl::StepOutput hidden;
    bool has_transfers = false;
  };

  static void copy(float* out, std::int64_t out_width, const float* x, std::int64_t x_width, std::int32_t rows) {
    for (std::int64_t r = 0; r < rows; ++r) { sim::store(out + r * out_width, sim::load(x + r * x_width)); }
  }

  /// The tokens of a step, and its transfers beside them.
  template <class Body>
  void run(std::uint64_t step, Body&& body) {
    transfer_until(num_transfers_begun_);  // those of the step before at the latest
    bool& mine = kAhead ? jobs_[num_run_ % jobs_.size()].has_transfers : has_transfers_;
    if (std::exchange(mine, false)) { ++num_transfers_begun_; }
    const std::uint64_t when = sim_mix(step ^ 0x7ea) % 3;
    if (when == 0) { transfer_until(num_transfers_begun_); }
    body();
    if (when == 1) { transfer_until(num_transfers_begun_); }
  }

  void transfer_until(std::uint64_t end) {
    for (; num_transferred_ < end; ++num_transferred_) {
      const Transfers& now = transfers_[num_transferred_ % transfers_.size()];
      const nvl::KvLayout& layout = now.call.layout;
      const auto bytes = static_cast<std::size_t>(layout.block_elements()) * sizeof(float);
      for (std::int32_t layer = 0; layer < now.call.num_layers; ++layer) {
        const auto on_device = [&](const nvl::BlockTransfer& t) {
          return now.call.kv + layer * layout.layer_elements() + std::int64_t{index_of(t.device)} * layout.block_elements();
        };
        const auto on_host = [&](const nvl::BlockTransfer& t) {
          return now.call.host + layout.whole_block_offset(index_of(t.host), layer, now.call.num_layers);
        };
        for (const nvl::BlockTransfer& t : now.out) { std::memcpy(static_cast<void*>(on_host(t)), on_device(t), bytes); }
        for (const nvl::BlockTransfer& t : now.in) { std::memcpy(static_cast<void*>(on_device(t)), on_host(t), bytes); }
      }
    }
  }

  void run_until(std::uint64_t end) {
    while (num_run_ < end) {
      Job& job = jobs_[num_run_ % jobs_.size()];
      // Everything is read only now: what the engine changed since the launch would show.
      job.ids.assign(job.source->token_ids.begin(), job.source->token_ids.end());
      for (nvl::TokenId& id : job.ids) {
        if (id < 0) { id = chosen_.at(static_cast<std::size_t>(-1 - id)); }
      }
      if (sim_faults.on_step) { sim_faults.on_step(job.input); }
      run(job.input.step, job.body);
      ++num_run_;
    }
  }

  std::vector<nvl::TokenId> chosen_;  // by the last step that ran
  std::array<Job, 2> jobs_;
  std::array<Transfers, 3> transfers_;  // of two steps in flight and of the one before them
  std::uint64_t num_transferring_ = 0, num_transfers_begun_ = 0, num_transferred_ = 0;
  bool has_transfers_ = false;  // the step that is launched next
  std::uint64_t num_staged_ = 0, num_launched_ = 0, num_run_ = 0, num_awaited_ = 0;
};
static_assert(nvl::TransferringOps<SimOps<false>>);
static_assert(nvl::TransferringOps<SimOps<true>>);

template <bool kAhead = false, std::int32_t kBlockSize = 4>
class SimAttention {
 public:
  using Element = float;
  using Ops = SimOps<kAhead>;
  static constexpr std::int32_t block_size = kBlockSize;
  static constexpr bool supports(std::int32_t head_dim) { return head_dim == 2; }

  SimAttention(const nvl::AttentionShape& shape, Ops&) : layout_(shape.kv) {}

  void plan(const nvl::AttentionMetadata& metadata) { metadata_ = metadata; }

  void run(const nvl::AttentionCall<float>& call) {
    for (std::int32_t s = 0; s < metadata_.num_seqs(); ++s) {
      const auto at = static_cast<std::size_t>(s);
      const auto blocks = metadata_.block_tables.subspan(at * static_cast<std::size_t>(metadata_.max_blocks_per_seq));
      const std::int32_t first_row = metadata_.cu_query_lens[at], end_row = metadata_.cu_query_lens[at + 1];
      std::uint64_t sum = 0;
      std::int32_t next = 0;  // the first position that `sum` lacks
      for (std::int32_t row = first_row; row < end_row; ++row) {
        const std::int32_t end = metadata_.seq_lens[at] - (end_row - 1 - row);
        if (call.window > 0) { sum = 0, next = std::max(0, end - call.window); }
        for (; next < end; ++next) {
          const std::int64_t block = index_of(blocks[static_cast<std::size_t>(next / kBlockSize)]);
          const std::int32_t offset = next % kBlockSize;
          sum += sim::seen(sim::load(call.kv + layout_.k_offset(block, 0, offset)),
                           sim::load(call.kv + layout_.v_offset(block, 0, offset)), next);
        }
        sim::store(call.out + std::int64_t{row} * 2, sum);
      }
    }
  }

 private:
  nvl::KvLayout layout_;
  nvl::AttentionMetadata metadata_;
};
static_assert(nvl::require_attention_backend<SimAttention<false>>());
static_assert(nvl::require_attention_backend<SimAttention<true>>());

inline nvl::ModelConfig sim_config() {
  nvl::ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = sim::vocab_size;
  config.hidden_size = 2;
  config.intermediate_size = 2;
  config.num_layers = sim::num_layers;
  config.num_q_heads = 1;
  config.num_kv_heads = 1;
  config.head_dim = 2;
  config.max_position_embeddings = 1024;
  config.tie_word_embeddings = true;
  config.eos_token_ids = {7};
  return config;
}

/// The shapes of sim_config's weights; there are no values.
class SimWeights {
 public:
  SimWeights() {
    for (nvl::WeightSpec& spec : nvl::expected_weights(sim_config())) {
      tensors_.emplace(spec.name, nvl::HostTensor{spec.name, nvl::DType::float32, std::move(spec.shape), {}});
    }
  }
  const nvl::HostTensor* find(std::string_view name) const {
    const auto found = tensors_.find(std::string(name));
    return found == tensors_.end() ? nullptr : &found->second;
  }

 private:
  std::map<std::string, nvl::HostTensor> tensors_;
};

template <class Scheduler = nvl::PrefillFirstScheduler, class Allocator = nvl::PrefixCacheAllocator, bool kAhead = false,
          std::int32_t kBlockSize = 4>
using SimEngine = nvl::Engine<Scheduler, Allocator, SimAttention<kAhead, kBlockSize>, nvl::SingleDevice>;

inline nvl::EngineOptions sim_options(std::int64_t num_blocks, std::int64_t num_host_blocks = 0) {
  nvl::EngineOptions options;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 24;
  options.num_blocks = num_blocks;
  options.swap_space_bytes = num_host_blocks * sim::num_layers * 2 * 2 * 4 * 4;  // layers x (K, V) x head_dim x tokens x bytes
  options.device.num_threads = 1;
  options.seed = 1;
  return options;
}

/// The output of `request` without cache, batch or engine. Sampling: greedy or by `seed`; ends by length, end of sequence or
/// stop token.
inline std::vector<nvl::TokenId> sim_tokens(const nvl::Request& request, std::uint64_t seed = 0, std::uint32_t choice = 0) {
  const nvl::SamplingParams& p = request.sampling;
  std::vector<nvl::TokenId> stops = p.stop_token_ids;
  if (!p.ignore_eos) { stops.push_back(7); }
  std::vector<nvl::TokenId> output, ids = request.prompt_ids;
  std::uint64_t sums[sim::num_layers] = {};
  std::size_t done = 0;
  while (true) {
    std::uint64_t residual = 0;
    for (; done < ids.size(); ++done) {
      const auto position = static_cast<std::int32_t>(done);
      residual = sim::embedded(ids[done]);
      std::uint64_t hidden = residual;
      for (std::uint64_t& sum : sums) {
        sum += sim::seen(sim::key(hidden, position), sim::value(hidden), position);
        residual = sim::added(residual, sum);       // attention
        residual = sim::added(residual, residual);  // feed-forward
        hidden = residual;
      }
    }
    nvl::SamplingRow row;
    row.temperature = p.temperature;
    row.seed = seed;
    row.choice = choice;
    row.output_index = static_cast<std::uint32_t>(output.size());
    const bool is_banned = static_cast<std::int32_t>(output.size()) < p.min_tokens;
    const nvl::TokenId token = sim::sampled(residual, row, is_banned ? stops : std::vector<nvl::TokenId>(), {}).token;
    output.push_back(token);
    ids.push_back(token);
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) { return output; }
    if (static_cast<std::int32_t>(output.size()) == p.max_tokens) { return output; }
  }
}

}  // namespace nvl_test
