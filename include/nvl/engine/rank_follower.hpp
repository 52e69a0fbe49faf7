#pragma once
/// A process that has ranks and no engine: it does what the process with the engine tells it.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_ranks.hpp>
#include <nvl/engine/local_runners.hpp>
#include <nvl/engine/rank_agreement.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/model/model_runner.hpp>
#include <nvl/parallel/control_channel.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/step_message.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Of the same four types as the Engine, and made at the same time, with the same config, the same weights and options that mean the
/// same. One thread makes it and calls `run`.
template <class Scheduler, class Allocator, class Attention, class Parallel>
class RankFollower {
  static_assert(require_block_allocator<Allocator>());
  static_assert(require_attention_backend<Attention>());
  static_assert(require_parallel_strategy<Parallel>());
  static_assert(RemoteRanks<Parallel>,
                "nvl::RankFollower: with this strategy all ranks are in the engine's process: wrap it in nvl::AcrossProcesses");

 public:
  /// Settles with the other processes, allocates and loads the weights; `source` is not needed afterwards.
  /// \throws what the Engine's does; Error with the rank and the reason if another process does not go on, which all then hear
  template <WeightSource Source>
  RankFollower(const ModelConfig& config, const Source& source, const EngineOptions& options, Parallel parallel,
               const LoadProgress& progress = {})
      : config_(checked_config<Attention>(config)),
        options_(options),
        local_(config_, options_, std::move(parallel)),
        channel_(local_.parallel().processes(), local_.parallel().pulse()) {
    NVL_EXPECTS(channel_.rank() > 0, "rank of a process that follows", channel_.rank(), "above 0, which has the engine");
    local_.guard(channel_, [&] {
      local_.plan_memory();
      settle();
      limits_ = local_.limits();
      local_.load(source, progress);
      prepare_buffers();
      channel_.stop_pulse();
      channel_.send(leader, {.command = Command::ready});
    });
  }

  RankFollower(const RankFollower&) = delete;
  RankFollower& operator=(const RankFollower&) = delete;

  /// Returns when the engine ends.
  /// \throws Error with the rank and the reason if a process does not go on, this one among them
  void run() {
    local_.guard(channel_, [&] {
      while (do_next()) {}
    });
  }

  const MemoryPlan& memory_plan() const noexcept { return local_.plan(); }
  std::vector<std::string> warnings() const { return local_.runner(0).warnings(); }

 private:
  using Local = LocalRunners<Attention, Allocator, Parallel>;
  using Group = std::remove_reference_t<decltype(std::declval<Parallel&>().processes())>;
  static constexpr std::uint32_t leader = 0;

  void settle() {
    const RankHello hello = detail::hello_of(detail::facts_of(config_, local_), local_);
    const std::span<const std::byte> body(reinterpret_cast<const std::byte*>(&hello), sizeof(hello));
    channel_.send(leader, {.command = Command::hello, .body_bytes = body.size()}, body);
    const MessageHeader header = channel_.receive(leader);
    channel_.expect(leader, header, Command::welcome);
    const auto welcome = channel_.template receive_struct<RankWelcome>(leader, header);
    local_.shrink(welcome.num_blocks, welcome.num_host_blocks);
  }

  /// Room for what comes with every step; only texts of penalties, biases and bans may make it grow, once.
  void prepare_buffers() {
    steps_.resize(static_cast<std::size_t>(limits_.num_in_flight));
    StepShape shape = largest_step(limits_);
    shape.num_logit_bias = shape.num_banned = shape.num_history = 0;
    for (StepBuffer& step : steps_) { step.layout(shape); }
    answer_.resize(local_.has_last_stage() ? max_answer_bytes(limits_) : 0);
  }

  /// False at the end.
  bool do_next() {
    const MessageHeader header = channel_.receive(leader);
    switch (header.command) {
      case Command::launch: local_.launch(receive_step(header, steps_[num_launched_++ % steps_.size()])); return true;
      case Command::logits: {
        const StepInput& in = receive_step(header, probe_);
        answer(header, in.step, local_.logits(in));
        return true;
      }
      case Command::collect: {
        channel_.receive_body(leader, header, {});
        const StepOutput* const output = local_.collect();
        if (is_asked(header)) {
          const MessageHeader reply = write_answer(*output, answer_);
          channel_.send(leader, reply, std::span(answer_).first(reply.body_bytes));
        }
        return true;
      }
      case Command::end: return false;
      default: channel_.fail("rank 0 sent " + text_of(header.command) + " where a step is expected");
    }
  }

  StepInput& receive_step(const MessageHeader& header, StepBuffer& buffer) {
    StepInput& in = lay_out(header, limits_, buffer);
    channel_.receive_body(leader, header, body_of(in));
    return in;
  }

  bool is_asked(const MessageHeader& header) const noexcept { return header.answerer == channel_.rank(); }

  void answer(const MessageHeader& header, std::uint64_t step, std::span<const float> rows) {
    if (!is_asked(header)) { return; }
    const std::span<const std::byte> body = std::as_bytes(rows);
    channel_.send(leader, {.command = Command::answer, .step = step, .body_bytes = body.size()}, body);
  }

  const ModelConfig config_;
  const EngineOptions options_;
  std::vector<StepBuffer> steps_;  // of the steps under way; outlive the ranks, which read them
  StepBuffer probe_;
  Local local_;
  ControlChannel<Group> channel_;
  StepLimits limits_;
  std::vector<std::byte> answer_;
  std::uint64_t num_launched_ = 0;
};

}  // namespace nvl::inline NVL_ABI
