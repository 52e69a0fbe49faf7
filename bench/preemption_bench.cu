/// nvl-preemption-bench: what it costs to preempt a sequence of n tokens, by swap and by recomputation, beside steps that decode.
/// Prints the table of nvl::PreemptionCosts and how near to the better way each choice by it comes.
///     nvl-preemption-bench [MODEL [RESULT.json]]

#include "bench/support/presets.hpp"

#include <nvl/nvl.cuh>
#include <nvl/sched/cost_preemption.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace nvl;

using Attention = PagedAttention<bf16, 128>;
using Runner = ModelRunner<Attention, SingleDevice>;

constexpr std::int32_t block_size = Attention::block_size;
constexpr std::int32_t num_decodes = 64;     // sequences that run meanwhile ...
constexpr std::int32_t context = 1024;       // ... with so many tokens each
constexpr std::int32_t longest = 32768;      // [tokens] of a victim
constexpr std::int32_t chunk_tokens = 8192;  // of a recomputation, in one step
constexpr std::int32_t num_steps = 6;        // timed together: the first has something beside it
constexpr int num_repeats = 5;               // the median counts

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median_of(const std::function<double()>& measure) {
  static_cast<void>(measure());
  std::vector<double> all;
  for (int i = 0; i < num_repeats; ++i) { all.push_back(measure()); }
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

/// The engine's part of a GPU: one model, its cache and host pool, and a stream of steps, one ahead of the other.
class Bench {
 public:
  Bench(const ModelConfig& config, const EngineOptions& options)
      : config_(config),
        plan_(plan_memory<Attention>(config_, options)),
        device_(options.device),
        runner_(config_, RandomWeights(config_, 1, {.dtype = DType::bfloat16}), step_limits(config_, plan_, options, block_size),
                reserved(device_, plan_.allocated_bytes()), context_) {}

  /// Steps of `num_decodes` decoding sequences, at `extra(i)` with a chunk of a prompt or with transfers besides.
  struct Extra {
    std::int32_t first = 0, num_tokens = 0;  // of the victim, to compute
    std::int32_t out_blocks = 0, in_blocks = 0;
    bool by_copy_engine = false;  // the blocks move by cudaMemcpyBatchAsync, for comparison
  };
  double run(std::int32_t count, bool decodes, const std::function<Extra(std::int32_t)>& extra) {
    return seconds_of([&] {
      for (std::int32_t i = 0; i < count; ++i) {
        Extra now = extra(i);
        const Extra copied = now.by_copy_engine ? std::exchange(now, {}) : Extra{};
        runner_.launch(build(buffers_[i % 2], decodes, now));
        if (copied_.has_value()) { NVL_CUDA_CHECK(cudaStreamWaitEvent(device_.stream(), copied_->get(), 0)); }
        copied_.reset();
        if (copied.by_copy_engine) { start_copies(copied); }
        if (i > 0) { runner_.collect(); }
      }
      runner_.collect();
      if (copied_.has_value()) { NVL_CUDA_CHECK(cudaStreamWaitEvent(device_.stream(), copied_->get(), 0)); }
      copied_.reset();
      runner_.launch(build(buffers_[0], false, {}));  // waits for the last transfers
      runner_.collect();
    });
  }

 private:
  static CudaDevice& reserved(CudaDevice& device, std::int64_t num_bytes) {
    device.reserve(num_bytes);
    return device;
  }

  /// Beside the step after the one that was launched last.
  void start_copies(const Extra& extra) {
    const cudaStream_t stream = device_.copy_stream();
    CudaEvent ready;
    ready.record(device_.stream());
    NVL_CUDA_CHECK(cudaStreamWaitEvent(stream, ready.get(), 0));
    const KvLayout& layout = runner_.kv_layout();
    const bool out = extra.out_blocks > 0;
    targets_.clear(), sources_.clear();
    for (std::int32_t b = 0; b < std::max(extra.out_blocks, extra.in_blocks); ++b) {
      for (std::int32_t layer = 0; layer < config_.num_layers; ++layer) {
        void* const device = runner_.kv() + layer * layout.layer_elements() + (first_victim_block + b) * layout.block_elements();
        void* const host = runner_.host_kv() + layout.whole_block_offset(b, layer, config_.num_layers);
        targets_.push_back(out ? host : device);
        sources_.push_back(out ? device : host);
      }
    }
    const std::vector<std::size_t> sizes(targets_.size(), static_cast<std::size_t>(layout.block_elements()) * sizeof(bf16));
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t first = 0;
    NVL_CUDA_CHECK(
        cudaMemcpyBatchAsync(targets_.data(), sources_.data(), sizes.data(), sizes.size(), &attributes, &first, 1, stream));
    copied_.emplace().record(stream);
  }

  StepInput& build(StepBuffer& buffer, bool decodes, const Extra& extra) {
    const std::int32_t num_running = decodes ? num_decodes : 0;
    const std::int32_t num_seqs = num_running + (extra.num_tokens > 0 ? 1 : 0);
    const std::int32_t end = extra.first + extra.num_tokens;
    const std::int32_t width = std::max(decodes ? context / block_size + 1 : 0, (end + block_size - 1) / block_size);
    StepInput& in = buffer.layout({.num_tokens = static_cast<std::size_t>(num_running + extra.num_tokens),
                                   .num_seqs = static_cast<std::size_t>(num_seqs),
                                   .max_blocks_per_seq = static_cast<std::size_t>(width),
                                   .num_samples = static_cast<std::size_t>(num_seqs),
                                   .num_swap_out = static_cast<std::size_t>(extra.out_blocks),
                                   .num_swap_in = static_cast<std::size_t>(extra.in_blocks)});
    in.step = step_++;
    in.min_query_len = num_seqs > 0 ? (decodes ? 1 : extra.num_tokens) : 0;
    in.max_query_len = std::max(decodes ? 1 : 0, extra.num_tokens);
    in.cu_query_lens[0] = 0;
    std::size_t token = 0;
    for (std::int32_t s = 0; s < num_seqs; ++s) {
      const bool is_victim = s == num_running;
      const std::int32_t begin = is_victim ? extra.first : context, count = is_victim ? extra.num_tokens : 1;
      const std::int32_t base = is_victim ? first_victim_block : s * (context / block_size + 1);
      for (std::int32_t b = 0; b < width; ++b) {
        in.block_tables[static_cast<std::size_t>(s) * static_cast<std::size_t>(width) + static_cast<std::size_t>(b)] =
            BlockId{static_cast<std::uint32_t>(base + b)};
      }
      for (std::int32_t p = begin; p < begin + count; ++p, ++token) {
        in.token_ids[token] = (p * 31 + s) % config_.vocab_size;
        in.positions[token] = p;
        in.slot_mapping[token] = static_cast<SlotId>(base) * block_size + p;
      }
      in.seq_lens[static_cast<std::size_t>(s)] = begin + count;
      in.cu_query_lens[static_cast<std::size_t>(s) + 1] = static_cast<std::int32_t>(token);
      in.sample_rows[static_cast<std::size_t>(s)] = static_cast<std::int32_t>(token) - 1;
      in.sampling[static_cast<std::size_t>(s)] = {};
    }
    for (auto* list : {&in.swap_out, &in.swap_in}) {
      for (std::size_t i = 0; i < list->size(); ++i) {
        (*list)[i] = {.device = BlockId{static_cast<std::uint32_t>(first_victim_block) + static_cast<std::uint32_t>(i)},
                      .host = HostBlockId{static_cast<std::uint32_t>(i)}};
      }
    }
    return in;
  }

  static constexpr std::int32_t first_victim_block = num_decodes * (context / block_size + 1);  // behind those that decode

  ModelConfig config_;
  MemoryPlan plan_;
  CudaDevice device_;
  SingleDevice::Context context_;
  Runner runner_;
  StepBuffer buffers_[2];
  std::optional<CudaEvent> copied_;
  std::vector<void*> targets_;
  std::vector<const void*> sources_;
  std::uint64_t step_ = 0;
};

/// Of one length of a victim. All in seconds.
struct Costs {
  std::int32_t tokens = 0;
  double out = 0, in = 0;  // with nothing beside
  double swap = 0;         // what out and in add to the steps that decode
  double swap_by_copy_engine = 0;
  double recompute_alone = 0, recompute = 0;  // likewise
  std::int32_t blocks() const noexcept { return tokens / block_size; }
};

Costs measure(Bench& bench, std::int32_t tokens, double idle, double decode) {
  const std::int32_t blocks = tokens / block_size;
  const std::int32_t chunks = (tokens + chunk_tokens - 1) / chunk_tokens;
  using Extra = Bench::Extra;
  const auto chunk = [&](std::int32_t i) {
    return i >= chunks ? Extra{}
                       : Extra{.first = i * chunk_tokens, .num_tokens = std::min(chunk_tokens, tokens - i * chunk_tokens)};
  };
  const auto at_first = [](Extra extra) { return [extra](std::int32_t i) { return i == 0 ? extra : Extra{}; }; };
  const Extra out{.out_blocks = blocks}, in{.in_blocks = blocks};
  Costs costs{.tokens = tokens};
  costs.out = median_of([&] { return bench.run(1, false, at_first(out)); }) - idle;
  costs.in = median_of([&] { return bench.run(1, false, at_first(in)); }) - idle;
  costs.recompute_alone = median_of([&] { return bench.run(chunks, false, chunk); });
  costs.swap = median_of([&] { return bench.run(num_steps, true, at_first(out)); }) - decode;
  costs.swap += median_of([&] { return bench.run(num_steps, true, at_first(in)); }) - decode;
  for (Extra by_engine : {out, in}) {
    by_engine.by_copy_engine = true;
    costs.swap_by_copy_engine += median_of([&] { return bench.run(num_steps, true, at_first(by_engine)); }) - decode;
  }
  costs.recompute = median_of([&] { return bench.run(num_steps, true, chunk); }) - decode;
  return costs;
}

/// The table that CostPreemption takes: every other of the lengths measured. The others show what a choice by it is worth.
PreemptionCosts costs_of(const std::vector<Costs>& all) {
  PreemptionCosts costs;
  costs.points = {};
  for (std::size_t i = 0; i < all.size(); i += 2) {
    costs.points.at(i / 2) = {all[i].tokens, std::max(all[i].swap, 0.0) * 1e3, std::max(all[i].recompute, 0.0) * 1e3};
  }
  return costs;
}

void print_choices(const std::vector<Costs>& all) {
  const PreemptionCosts costs = costs_of(all);
  std::printf("\nPreemptionCosts [ms]: {{");
  for (std::size_t i = 0; i < costs.num_points(); ++i) {
    const PreemptionCost& point = costs.points[i];
    std::printf("%s{%d, %.3f, %.3f}", i > 0 ? ", " : "", point.tokens, point.swap, point.recompute);
  }
  std::printf("}}\n");
  double worst = 0;
  for (const Costs& c : all) {
    const bool swaps = costs.swap(c.tokens) < costs.recompute(c.tokens);
    const double chosen = swaps ? c.swap : c.recompute, better = std::min(c.swap, c.recompute);
    worst = std::max(worst, chosen / better - 1);
    std::printf("%8d: chooses %-9s %9.3f ms, the better way takes %9.3f ms (%+.1f %%)\n", c.tokens,
                swaps ? "swap," : "recompute,", chosen * 1e3, better * 1e3, (chosen / better - 1) * 100);
  }
  std::printf("a choice costs at most %.1f %% more than the better way\n", worst * 100);
}

/// For bench/results.
void write_json(const std::string& path, const std::string& model, double decode_step, const std::vector<Costs>& all) {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) { raise(FileError(path, "cannot be written")); }
  std::fprintf(file, "{\n \"benchmark\": \"preemption\", \"model\": \"%s\", \"dtype\": \"bfloat16\",\n", model.c_str());
  std::fprintf(file, " \"decodes_beside\": %d, \"context\": %d, \"decode_step_ms\": %.3f,\n \"lengths\": [", num_decodes, context,
               decode_step * 1e3);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Costs& c = all[i];
    std::fprintf(file,
                 "%s\n  {\"tokens\": %d, \"out_ms\": %.3f, \"in_ms\": %.3f, \"recompute_alone_ms\": %.3f, \"swap_ms\": %.3f, "
                 "\"swap_by_copy_engine_ms\": %.3f, \"recompute_ms\": %.3f}",
                 i > 0 ? "," : "", c.tokens, c.out * 1e3, c.in * 1e3, c.recompute_alone * 1e3, c.swap * 1e3,
                 c.swap_by_copy_engine * 1e3, c.recompute * 1e3);
  }
  std::fprintf(file, "\n ]\n}\n");
  std::fclose(file);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string model = argc > 1 ? argv[1] : "qwen3-0.6b";
  const std::optional<ModelConfig> config = nvl_bench::preset(model);
  if (!config || config->head_dim != 128) {
    std::fprintf(stderr, "nvl-preemption-bench: error: no preset %s with a head dim of 128\n", model.c_str());
    return 2;
  }
  try {
    EngineOptions options;
    options.max_num_seqs = num_decodes + 1;
    options.max_num_batched_tokens = chunk_tokens + num_decodes;
    options.max_model_len = longest;
    options.num_blocks = num_decodes * (context / block_size + 1) + longest / block_size;
    const std::int64_t block_bytes = std::int64_t{config->num_layers} * 2 * config->kv_size() * block_size * 2;
    options.swap_space_bytes = longest / block_size * block_bytes;
    double start_up = 0;
    std::unique_ptr<Bench> bench;
    start_up = seconds_of([&] { bench = std::make_unique<Bench>(*config, options); });
    std::printf("%s, bf16, blocks of %d tokens, %lld bytes; start-up %.1f s\n", model.c_str(), block_size,
                static_cast<long long>(block_bytes), start_up);
    const auto nothing = [](std::int32_t) { return Bench::Extra{}; };
    const double idle = median_of([&] { return bench->run(1, false, nothing); });
    const double decode = median_of([&] { return bench->run(num_steps, true, nothing); });
    std::printf("%d decodes at %d tokens: %.3f ms a step\n\n", num_decodes, context, decode / num_steps * 1e3);
    std::printf("%8s | %9s %7s %9s %7s | %11s | %9s %9s %9s | %s\n", "tokens", "out ms", "GB/s", "in ms", "GB/s", "compute ms",
                "swap ms", "(copied)", "recomp ms", "cheaper; the last three: added to the steps beside");
    std::vector<Costs> all;
    for (const std::int32_t tokens : {64,   96,   128,  192,  256,  384,  512,   768,   1024,  1280,  1536,  1792,  2048, 2560,
                                      3072, 3584, 4096, 6144, 8192, 9216, 10240, 11264, 12288, 14336, 16384, 24576, 32768}) {
      const Costs c = measure(*bench, tokens, idle, decode);
      const double bytes = static_cast<double>(c.blocks()) * static_cast<double>(block_bytes);
      std::printf("%8d | %9.3f %7.1f %9.3f %7.1f | %11.3f | %9.3f %9.3f %9.3f | %s\n", tokens, c.out * 1e3, bytes / c.out * 1e-9,
                  c.in * 1e3, bytes / c.in * 1e-9, c.recompute_alone * 1e3, c.swap * 1e3, c.swap_by_copy_engine * 1e3,
                  c.recompute * 1e3, c.swap < c.recompute ? "swap" : "recompute");
      all.push_back(c);
    }
    print_choices(all);
    if (argc > 2) { write_json(argv[2], model, decode / num_steps, all); }
  } catch (const Error& error) {
    std::fprintf(stderr, "nvl-preemption-bench: error: %s\n", error.what());
    return 1;
  }
  return 0;
}
