#pragma once
/// The side of the process that has the engine: it tells the others what to do, and gets back what only they know.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/engine/rank_agreement.hpp>
#include <nvl/parallel/control_channel.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/parallel/step_message.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Every failure ends all processes, with the rank and the reason.
template <EagerRankGroup Group>
class RankLeader {
 public:
  RankLeader(Group& processes, std::chrono::milliseconds pulse) : channel_(processes, pulse) {
    NVL_EXPECTS(channel_.rank() == 0, "rank of the process that has the engine", channel_.rank(),
                "0: the others have a RankFollower");
  }
  ~RankLeader() {
    contain([&] { channel_.send_all({.command = Command::end}); }, [](const char*) {});  // a dead group needs no end
  }

  ControlChannel<Group>& channel() noexcept { return channel_; }

  /// Hears all others, and tells them on how many blocks all settle.
  /// \throws Error if one of them was started with something else
  RankWelcome settle(const RankFacts& facts, const RankHello& own, std::uint32_t world_size) {
    RankWelcome welcome{.num_blocks = own.num_blocks, .num_host_blocks = own.num_host_blocks};
    std::uint32_t num_ranks = own.num_ranks;
    for (std::uint32_t from = 1; from < channel_.size(); ++from) {
      const MessageHeader header = channel_.receive(from);
      channel_.expect(from, header, Command::hello);
      const auto hello = channel_.template receive_struct<RankHello>(from, header);
      const std::string difference = facts.difference_to(hello.digests);
      if (!difference.empty()) { channel_.fail("rank " + std::to_string(from) + " has " + difference); }
      welcome.num_blocks = std::min(welcome.num_blocks, hello.num_blocks);
      welcome.num_host_blocks = std::min(welcome.num_host_blocks, hello.num_host_blocks);
      num_ranks += hello.num_ranks;
      if (own.has_last_stage == 0 && hello.has_last_stage != 0 && answerer_ == 0) { answerer_ = from; }
    }
    if (num_ranks != world_size) {
      channel_.fail("the processes have " + std::to_string(num_ranks) + " ranks of a world of " + std::to_string(world_size));
    }
    const std::span<const std::byte> body(reinterpret_cast<const std::byte*>(&welcome), sizeof(welcome));
    channel_.send_all({.command = Command::welcome, .body_bytes = body.size()}, body);
    return welcome;
  }

  /// Returns when all others have loaded their weights, however long that takes.
  /// \param limits of the steps to come
  void await_ready(const StepLimits& limits, std::int32_t vocab_size) {
    limits_ = limits;
    for (std::uint32_t from = 1; from < channel_.size(); ++from) {
      for (;;) {
        const MessageHeader header = channel_.receive_any(from);
        if (header.command != Command::alive) {
          channel_.expect(from, header, Command::ready);
          break;
        }
        channel_.send_all({.command = Command::alive});  // this one waits all the time, which those that are ready cannot tell
      }
    }
    if (answerer_ == 0) { return; }
    answer_.resize(max_answer_bytes(limits));
    row_elements_ = static_cast<std::size_t>(vocab_size);
  }

  void launch(const StepInput& in) { channel_.send_all(header_of(Command::launch, in), body_of(in)); }

  /// True if what is sampled is known to another process only.
  bool asks() const noexcept { return answerer_ != 0; }

  /// The others collect, too.
  void collect() { channel_.send_all({.command = Command::collect, .answerer = answerer_}); }
  /// The answer to that, if it is asked for; valid until the next call.
  const StepOutput& collected() {
    const MessageHeader header = next_answer(answer_.size());
    const auto body = std::span(answer_).first(header.body_bytes);
    channel_.receive_body(answerer_, header, body);
    read_answer(header, body, limits_, output_);
    return output_;
  }

  void logits(const StepInput& in) {
    MessageHeader header = header_of(Command::logits, in);
    header.answerer = answerer_;
    channel_.send_all(header, body_of(in));
  }
  /// The answer to that, if it is asked for: [num_rows, vocab]; valid until the next call.
  std::span<const float> read_logits(std::int32_t num_rows) {
    rows_.resize(static_cast<std::size_t>(num_rows) * row_elements_);
    const auto bytes = std::as_writable_bytes(std::span(rows_));
    const MessageHeader header = next_answer(bytes.size());
    if (header.body_bytes != bytes.size()) {
      channel_.fail("rank " + std::to_string(answerer_) + " sent " + std::to_string(header.body_bytes) +
                    " bytes of logits where " + std::to_string(bytes.size()) + " are expected");
    }
    channel_.receive_body(answerer_, header, bytes);
    return rows_;
  }

 private:
  MessageHeader next_answer(std::size_t max_bytes) {
    const MessageHeader header = channel_.receive(answerer_);
    channel_.expect(answerer_, header, Command::answer);
    if (header.body_bytes > max_bytes) {
      channel_.fail("answer of rank " + std::to_string(answerer_) + " has " + std::to_string(header.body_bytes) +
                    " bytes where at most " + std::to_string(max_bytes) + " are planned");
    }
    return header;
  }

  ControlChannel<Group> channel_;
  StepLimits limits_;
  std::uint32_t answerer_ = 0;  // 0: nobody, the tokens are known here
  std::size_t row_elements_ = 0;
  std::vector<std::byte> answer_;
  std::vector<float> rows_;
  StepOutput output_;
};

}  // namespace nvl::inline NVL_ABI
