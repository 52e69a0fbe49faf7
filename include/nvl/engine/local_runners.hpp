#pragma once
/// The ranks that this process has: a device and a ModelRunner for each, and the plan of their memory.

#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/model/model_runner.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// \throws InvalidArgument or Unsupported for a model that an engine with this attention backend cannot run
template <class Attention>
const ModelConfig& checked_config(const ModelConfig& config) {
  nvl::validate(config);
  if (!Attention::supports(config.head_dim)) {
    raise(Unsupported("head_dim " + std::to_string(config.head_dim) +
                      " is not one that this engine's attention backend is compiled for"));
  }
  return config;
}

/// All calls come from one thread.
template <class Attention, class Allocator, class Parallel>
class LocalRunners {
 public:
  using Context = typename Parallel::Context;
  using Device = typename Attention::Ops::Device;
  using Runner = ModelRunner<Attention, Parallel>;

  /// `config` and `options` outlive this.
  LocalRunners(const ModelConfig& config, const EngineOptions& options, Parallel parallel)
      : config_(config),
        options_(options),
        parallel_(std::move(parallel)),
        ranks_(parallel_.num_local_ranks()) {}

  /// Before anything else. Stages differ in their layers: what the one with the most needs is planned for each.
  void plan_memory() {
    std::vector<ModelConfig> configs(size());
    std::vector<RankPlace> places(size());
    parallel_.for_each_rank([&](Context& context, std::uint32_t i) {
      if (i == 0) { world_size_ = context.world_size(); }
      places[i] = place_of(context);
      configs[i] = config_of(shard_of(config_, places[i]), config_);
    });
    place_ = places.front();
    sampling_rank_ = static_cast<std::size_t>(std::ranges::find_if(places, &RankPlace::is_last_stage) - places.begin());
    const RankCount ranks{.num_local = size(),
                          .num_slices = place_.num_slices,
                          .shares_tokens = TokenSharingContext<Context>,
                          .num_shares = place_.num_shares};
    const ModelConfig& largest = *std::ranges::max_element(configs, {}, &ModelConfig::num_layers);
    plan_ = nvl::plan_memory<Attention, Allocator>(largest, options_, ranks);
  }

  Parallel& parallel() noexcept { return parallel_; }
  const MemoryPlan& plan() const noexcept { return plan_; }
  const RankPlace& place() const noexcept { return place_; }  ///< of the first
  std::uint32_t world_size() const noexcept { return world_size_; }
  bool has_last_stage() const noexcept { return sampling_rank_ < ranks_.size(); }
  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(ranks_.size()); }
  Device& device(std::uint32_t rank) noexcept { return ranks_[rank]->device; }
  Runner& runner(std::uint32_t rank) noexcept { return ranks_[rank]->runner; }
  const Runner& runner(std::uint32_t rank) const noexcept { return ranks_[rank]->runner; }

  /// Blocks of the KV cache that the ranks of all processes have room for.
  void shrink(std::int64_t num_blocks, std::int64_t num_host_blocks) noexcept {
    plan_.num_blocks = std::min(plan_.num_blocks, num_blocks);
    plan_.kv_bytes = plan_.num_blocks * plan_.kv_bytes_per_block;
    plan_.num_host_blocks = std::min(plan_.num_host_blocks, num_host_blocks);
  }

  StepLimits limits() const noexcept {
    StepLimits limits = step_limits(config_, plan_, options_, Attention::block_size);
    limits.num_in_flight = std::max(static_cast<std::int32_t>(place_.num_stages), 2);
    return limits;
  }

  /// Allocates what is planned on every rank and loads the weights. What `launch` gets has to outlive this.
  template <WeightSource Source>
  void load(const Source& source, const LoadProgress& progress) {
    parallel_.for_each_rank([&](Context& context, std::uint32_t i) {
      const DeviceOptions device = for_rank(options_.device, i, size());
      ranks_[i] = std::make_unique<RankState>(config_, source, limits(), device, plan_.allocated_bytes(), context,
                                              i == 0 ? progress : LoadProgress{});
    });
  }

  /// As of ModelRunner, on all ranks.
  void launch(const StepInput& in) {
    parallel_.for_each_rank([&](Context&, std::uint32_t i) { ranks_[i]->runner.launch(in); });
  }
  bool is_done() {
    return std::ranges::all_of(ranks_, [](const auto& rank) { return rank->runner.is_done(); });
  }
  /// What a rank of the last stage sampled: they all have the tokens. Null if there is none here.
  const StepOutput* collect() {
    parallel_.for_each_rank([&](Context&, std::uint32_t i) { ranks_[i]->output = &ranks_[i]->runner.collect(); });
    return has_last_stage() ? ranks_[sampling_rank_]->output : nullptr;
  }
  /// Likewise; empty if there is none here.
  std::span<const float> logits(const StepInput& in) {
    std::span<const float> rows;
    parallel_.for_each_rank([&](Context&, std::uint32_t i) {
      const std::span<const float> logits = ranks_[i]->runner.logits(in);
      if (i == sampling_rank_) { rows = logits; }
    });
    return rows;
  }

  /// Calls `work()`; if that throws, neither the processes of `channel` nor ranks elsewhere wait for this one any more.
  template <class Channel, class Work>
  void guard(Channel& channel, Work&& work) {
#if defined(__cpp_exceptions)
    try {
      work();
    } catch (const std::exception& error) {
      channel.abort(error.what());
      abandon(error.what());
      throw;
    }
#else
    static_cast<void>(channel);
    work();
#endif
  }

 private:
  struct RankState {
    template <class Source>
    RankState(const ModelConfig& config, const Source& source, const StepLimits& limits, const DeviceOptions& options,
              std::int64_t num_bytes, Context& context, const LoadProgress& progress)
        : device(options),
          runner(config, source, limits, reserved(device, num_bytes), context, progress) {}

    static Device& reserved(Device& device, std::int64_t num_bytes) {
      if constexpr (requires { device.reserve(num_bytes); }) { device.reserve(num_bytes); }
      return device;
    }

    Device device;
    Runner runner;
    const StepOutput* output = nullptr;
  };

  /// A rank whose work throws ends its groups: that is how a strategy hears of it.
  void abandon(const std::string& why) {
    contain([&] { parallel_.for_each_rank([&](Context&, std::uint32_t) { raise(Error(why)); }); }, [](const char*) {});
  }

  const ModelConfig& config_;
  const EngineOptions& options_;
  Parallel parallel_;
  MemoryPlan plan_;
  RankPlace place_;
  std::uint32_t world_size_ = 1;
  std::size_t sampling_rank_ = 0;
  std::vector<std::unique_ptr<RankState>> ranks_;
};

}  // namespace nvl::inline NVL_ABI
