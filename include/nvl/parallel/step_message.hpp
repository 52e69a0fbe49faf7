#pragma once
/// What the process that has the engine says to those that only have ranks, and what they answer: a header of fixed size, and behind
/// it the bytes of a step as they lie in its StepBuffer. Nothing is converted, and no size is believed before it is checked.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/core/xxhash.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace nvl::inline NVL_ABI {

static_assert(std::endian::native == std::endian::little, "nvl: messages between ranks are written as they are in memory");

enum class Command : std::uint32_t {
  hello = 1,  // who I am and what I was started with; to the engine's process
  welcome,    // what all agreed on
  ready,      // the weights are loaded; to the engine's process
  alive,      // nothing else to say
  launch,     // a step
  collect,    // its result is wanted
  logits,     // a step whose logits are wanted, not what is sampled from them
  answer,     // a result; to the engine's process
  end
};

/// Goes in front of each message.
struct MessageHeader {
  static constexpr std::uint32_t the_magic = 0x534c564e;  // "NVLS"
  static constexpr std::uint32_t the_version = 1;
  static constexpr std::size_t num_counts = 10;

  std::uint32_t magic = the_magic;
  std::uint32_t version = the_version;
  Command command = Command::alive;
  std::uint32_t answerer = 0;                      // rank of the process that answers; 0: none
  std::uint64_t sequence = 0;                      // of the message, from its sender to its receiver
  std::uint64_t step = 0;                          // StepInput::step
  std::uint64_t body_bytes = 0;                    // that follow
  std::array<std::uint32_t, num_counts> counts{};  // StepShape, in the order of its members
  std::int32_t min_query_len = 0, max_query_len = 0;
  std::uint64_t body_digest = 0;
  std::uint64_t digest = 0;  // of everything before it
};
static_assert(sizeof(MessageHeader) == 104 && std::has_unique_object_representations_v<MessageHeader>);
static_assert(sizeof(StepShape) == MessageHeader::num_counts * sizeof(std::size_t));

/// Finds bytes that changed on their way, not somebody who changes them: that is the network's to prevent.
inline std::uint64_t digest_of(std::span<const std::byte> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }
inline std::uint64_t digest_of(const MessageHeader& header) noexcept {
  return XXH3_64bits(&header, offsetof(MessageHeader, digest));
}

inline std::string text_of(Command command) {
  static constexpr std::array<std::string_view, 9> names{"hello",   "welcome", "ready",  "alive", "launch",
                                                         "collect", "logits",  "answer", "end"};
  const auto which = static_cast<std::size_t>(command) - 1;
  return which < names.size() ? std::string(names[which]) : "an unknown command";
}

/// Empty, or why the header cannot be the next of its sender.
inline std::string problem_of(const MessageHeader& header, std::uint64_t sequence) {
  if (header.magic != MessageHeader::the_magic) { return "is no message of nvl"; }
  if (header.version != MessageHeader::the_version) {
    return "has version " + std::to_string(header.version) + ", this rank has " + std::to_string(MessageHeader::the_version);
  }
  if (header.digest != digest_of(header)) { return "was changed on its way: its header has another digest"; }
  if (header.sequence != sequence) {
    return "is number " + std::to_string(header.sequence) + " where " + std::to_string(sequence) + " comes next";
  }
  return {};
}

namespace detail::step_message {

inline std::array<std::uint32_t, MessageHeader::num_counts> counts_of(const StepShape& shape) noexcept {
  const auto wide = std::bit_cast<std::array<std::size_t, MessageHeader::num_counts>>(shape);
  std::array<std::uint32_t, MessageHeader::num_counts> counts{};
  std::ranges::transform(wide, counts.begin(), [](std::size_t n) { return static_cast<std::uint32_t>(n); });
  return counts;
}

inline StepShape shape_of(const std::array<std::uint32_t, MessageHeader::num_counts>& counts) noexcept {
  std::array<std::size_t, MessageHeader::num_counts> wide{};
  std::ranges::copy(counts, wide.begin());
  return std::bit_cast<StepShape>(wide);
}

/// A row of an answer; TokenLogprobs of all rows follow the last.
struct AnswerRow {
  TokenId token = 0;
  float logprob = 0;
  std::uint32_t is_finite = 1;
  std::uint32_t num_top = 0;
};
static_assert(sizeof(AnswerRow) == 16 && std::is_trivially_copyable_v<AnswerRow>);
static_assert(sizeof(TokenLogprob) == 8 && std::is_trivially_copyable_v<TokenLogprob>);

}  // namespace detail::step_message

// --- Steps ------------------------------------------------------------------------------------------------------------------------

/// \param in of a StepBuffer, whose arrays lie one behind the other
inline MessageHeader header_of(Command command, const StepInput& in) noexcept {
  const StepShape shape = shape_of(in);
  MessageHeader header{.command = command, .step = in.step, .body_bytes = step_bytes(shape)};
  header.counts = detail::step_message::counts_of(shape);
  header.min_query_len = in.min_query_len;
  header.max_query_len = in.max_query_len;
  return header;
}

/// The bytes that follow: those of all arrays.
inline std::span<const std::byte> body_of(const StepInput& in) noexcept {
  return {reinterpret_cast<const std::byte*>(in.block_stride.data()), step_bytes(shape_of(in))};
}
inline std::span<std::byte> body_of(StepInput& in) noexcept {
  return {reinterpret_cast<std::byte*>(in.block_stride.data()), step_bytes(shape_of(in))};
}

/// Room in `buffer` for the step that `header` announces; its bytes go to `body_of` it.
/// \throws InvalidArgument for a step that is larger than the limits or whose sizes contradict each other; nothing is laid out then
inline StepInput& lay_out(const MessageHeader& header, const StepLimits& limits, StepBuffer& buffer) {
  static constexpr std::array<std::string_view, MessageHeader::num_counts> names{
      "tokens", "sequences",        "blocks of a sequence", "sampled rows", "logit biases", "banned tokens", "tokens of history",
      "copies", "blocks moved out", "blocks moved in"};
  StepShape largest = largest_step(limits);
  largest.num_copies = static_cast<std::size_t>(limits.num_blocks);
  const StepShape shape = detail::step_message::shape_of(header.counts);
  const auto most = std::bit_cast<std::array<std::size_t, MessageHeader::num_counts>>(largest);
  for (std::size_t i = 0; i < names.size(); ++i) {
    NVL_EXPECTS(header.counts[i] <= most[i], "number of " + std::string(names[i]) + " in a message", header.counts[i],
                "at most " + std::to_string(most[i]) + ", as planned");
  }
  NVL_EXPECTS(header.body_bytes == step_bytes(shape), "size of a message in bytes", header.body_bytes,
              "the " + std::to_string(step_bytes(shape)) + " of its arrays");
  StepInput& in = buffer.layout(shape);
  in.step = header.step;
  in.min_query_len = header.min_query_len;
  in.max_query_len = header.max_query_len;
  return in;
}

// --- Answers ----------------------------------------------------------------------------------------------------------------------

/// [bytes] of the longest answer
inline std::size_t max_answer_bytes(const StepLimits& limits) noexcept {
  const auto top = static_cast<std::size_t>(limits.max_logprobs);
  return static_cast<std::size_t>(limits.max_num_seqs) * (sizeof(detail::step_message::AnswerRow) + top * sizeof(TokenLogprob));
}

/// Writes `output` to `buffer`, which has max_answer_bytes.
inline MessageHeader write_answer(const StepOutput& output, std::span<std::byte> buffer) {
  using detail::step_message::AnswerRow;
  std::byte* next = buffer.data() + output.sampled.size() * sizeof(AnswerRow);
  for (std::size_t i = 0; i < output.sampled.size(); ++i) {
    const SampledToken& sampled = output.sampled[i];
    const AnswerRow row{.token = sampled.token,
                        .logprob = sampled.logprob,
                        .is_finite = sampled.finite ? 1u : 0u,
                        .num_top = static_cast<std::uint32_t>(sampled.top_logprobs.size())};
    std::memcpy(buffer.data() + i * sizeof(row), &row, sizeof(row));
    const std::size_t num_bytes = sampled.top_logprobs.size() * sizeof(TokenLogprob);
    if (num_bytes > 0) { std::memcpy(next, sampled.top_logprobs.data(), num_bytes); }
    next += num_bytes;
  }
  MessageHeader header{.command = Command::answer, .step = output.step};
  header.body_bytes = static_cast<std::uint64_t>(next - buffer.data());
  header.counts = detail::step_message::counts_of({.num_samples = output.sampled.size()});
  return header;
}

/// \throws InvalidArgument for an answer that has not the form or the size that it can have
inline void read_answer(const MessageHeader& header, std::span<const std::byte> body, const StepLimits& limits,
                        StepOutput& output) {
  using detail::step_message::AnswerRow;
  const std::size_t num_rows = detail::step_message::shape_of(header.counts).num_samples;
  NVL_EXPECTS(num_rows <= static_cast<std::size_t>(limits.max_num_seqs), "number of sampled rows in a message", num_rows,
              "at most " + std::to_string(limits.max_num_seqs) + ", as planned");
  const auto expect_bytes = [&](std::size_t num_bytes) {
    NVL_EXPECTS(num_bytes <= body.size(), "size of a message in bytes", body.size(),
                "the " + std::to_string(num_bytes) + " of its rows at least");
  };
  std::size_t end = num_rows * sizeof(AnswerRow);
  expect_bytes(end);
  output.step = header.step;
  output.sampled.resize(num_rows);
  for (std::size_t i = 0; i < num_rows; ++i) {
    AnswerRow row;
    std::memcpy(&row, body.data() + i * sizeof(row), sizeof(row));
    NVL_EXPECTS(row.num_top <= static_cast<std::uint32_t>(limits.max_logprobs), "number of likely tokens in a message",
                row.num_top, "at most " + std::to_string(limits.max_logprobs) + ", as planned");
    const std::size_t num_bytes = row.num_top * sizeof(TokenLogprob);
    expect_bytes(end + num_bytes);
    SampledToken& sampled = output.sampled[i];
    sampled.token = row.token;
    sampled.logprob = row.logprob;
    sampled.finite = row.is_finite != 0;
    sampled.top_logprobs.resize(row.num_top);
    if (num_bytes > 0) { std::memcpy(static_cast<void*>(sampled.top_logprobs.data()), body.data() + end, num_bytes); }
    end += num_bytes;
  }
  NVL_EXPECTS(end == body.size(), "size of a message in bytes", body.size(), "the " + std::to_string(end) + " of its rows");
}

}  // namespace nvl::inline NVL_ABI
