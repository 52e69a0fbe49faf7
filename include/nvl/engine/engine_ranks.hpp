#pragma once
/// All ranks of an engine as one. Where all are in its process, this is LocalRunners and nothing else.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/local_runners.hpp>
#include <nvl/engine/rank_agreement.hpp>
#include <nvl/engine/rank_leader.hpp>
#include <nvl/model/model_runner.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Of strategies without ranks elsewhere: nothing.
template <class Parallel>
struct LeaderOf {
  using type = std::monostate;
};
template <RemoteRanks Parallel>
struct LeaderOf<Parallel> {
  using type = RankLeader<std::remove_reference_t<decltype(std::declval<Parallel&>().processes())>>;
};

/// What a process has to say of its ranks.
template <class Attention, class Allocator, class Parallel>
RankFacts facts_of(const ModelConfig& config, const LocalRunners<Attention, Allocator, Parallel>& local) {
  return nvl::facts_of(config, local.limits(), dtype_of<typename Attention::Element>, local.world_size(), local.place());
}
template <class Attention, class Allocator, class Parallel>
RankHello hello_of(const RankFacts& facts, const LocalRunners<Attention, Allocator, Parallel>& local) {
  return {.digests = facts.digests(),
          .num_blocks = local.plan().num_blocks,
          .num_host_blocks = local.plan().num_host_blocks,
          .num_ranks = local.size(),
          .has_last_stage = local.has_last_stage() ? 1u : 0u};
}

}  // namespace detail

template <class Attention, class Allocator, class Parallel>
class EngineRanks {
 public:
  using Local = LocalRunners<Attention, Allocator, Parallel>;

  /// Plans the memory, with the ranks of other processes if there are any; nothing is allocated. `config` and `options` outlive this.
  EngineRanks(const ModelConfig& config, const EngineOptions& options, Parallel parallel)
      : config_(config),
        local_(config, options, std::move(parallel)) {
    if constexpr (is_remote) {
      leader_ = std::make_unique<Leader>(local_.parallel().processes(), local_.parallel().pulse());
      guard([&] {
        local_.plan_memory();
        const RankFacts facts = detail::facts_of(config, local_);
        const RankWelcome all = leader_->settle(facts, detail::hello_of(facts, local_), local_.world_size());
        local_.shrink(all.num_blocks, all.num_host_blocks);
      });
    } else {
      local_.plan_memory();
      NVL_EXPECTS(local_.size() == local_.world_size(), "ranks of the strategy", local_.size(),
                  "all " + std::to_string(local_.world_size()) + " of them: AcrossProcesses is the strategy of ranks elsewhere");
    }
  }

  Local& local() noexcept { return local_; }
  const Local& local() const noexcept { return local_; }

  /// As of LocalRunners; returns when all ranks are ready.
  template <WeightSource Source>
  void load(const Source& source, const LoadProgress& progress) {
    guard([&] {
      local_.load(source, progress);
      if constexpr (is_remote) { leader_->await_ready(local_.limits(), config_.vocab_size); }
    });
  }

  void launch(const StepInput& in) {
    guard([&] {
      if constexpr (is_remote) { leader_->launch(in); }
      local_.launch(in);
    });
  }

  /// What the oldest step sampled; valid until as many launches later as may be under way, and until the next call.
  const StepOutput& collect() {
    const StepOutput* output = nullptr;
    guard([&] {
      if constexpr (is_remote) { leader_->collect(); }
      output = local_.collect();
      if constexpr (is_remote) {
        if (leader_->asks()) { output = &leader_->collected(); }
      }
    });
    return *output;
  }

  /// Of the sampled rows: [R, vocab], valid until the next step.
  std::span<const float> logits(const StepInput& in) {
    std::span<const float> rows;
    guard([&] {
      if constexpr (is_remote) { leader_->logits(in); }
      rows = local_.logits(in);
      if constexpr (is_remote) {
        if (leader_->asks()) { rows = leader_->read_logits(in.num_samples()); }
      }
    });
    return rows;
  }

 private:
  static constexpr bool is_remote = RemoteRanks<Parallel>;
  using Leader = typename detail::LeaderOf<Parallel>::type;

  /// If a call fails here, the other processes do not wait for its end.
  template <class Work>
  void guard(Work&& work) {
    if constexpr (is_remote) {
      local_.guard(leader_->channel(), work);
    } else {
      work();
    }
  }

  const ModelConfig& config_;
  Local local_;
  [[no_unique_address]] std::conditional_t<is_remote, std::unique_ptr<Leader>, std::monostate> leader_;
};

}  // namespace nvl::inline NVL_ABI
