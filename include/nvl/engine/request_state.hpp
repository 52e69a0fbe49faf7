#pragma once
/// A request inside an engine, and its choices: each a sequence and everything of it that scheduling does not look at.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/beam_search.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/text_stream.hpp>
#include <nvl/sched/sequence.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

struct RequestState;

/// The sequence is the base, so that a policy's Sequence& leads back to its choice.
struct ChoiceState : Sequence {
  static constexpr std::uint32_t no_beam = ~std::uint32_t{0};

  RequestState* owner = nullptr;
  std::uint32_t index = 0;                // of the choice; in a beam search of the beam in this round, or no_beam
  std::optional<TextStream> text_stream;  // if the engine has a TokenText
  std::string text;                       // of the output so far
  std::vector<SampledToken> logprobs;
  double cumulative_logprob = 0;
  bool is_scheduled = false;     // the scheduler knows it
  std::int32_t num_pending = 0;  // [tokens] at the end of `tokens` that launched steps will choose
  std::int32_t num_forks = 0;    // rows, after its own, that the launched step samples for choices that have not begun
  TokenId stop_token = -1;       // that ended it
};

struct RequestState {
  using Clock = std::chrono::steady_clock;

  RequestId id{};
  SamplingParams sampling;
  std::uint64_t seed = 0;
  std::vector<TokenId> stop_ids;    // end-of-sequence (unless ignored) and stop tokens
  std::int32_t num_logprobs = -1;   // of its sampled rows
  std::optional<BeamSearch> beams;  // if it is one
  /// Those that have begun. The first computes the prompt; the others begin with what it has computed. In a beam search they are
  /// the beams, in any order.
  std::vector<std::unique_ptr<ChoiceState>> choices;
  std::size_t num_live = 0;  // choices that have not ended, begun or not; 0: the request has ended
  RequestCallbacks callbacks;
  Clock::time_point submitted, scheduled, first_token, last_token;
  bool was_scheduled = false;
  std::int32_t num_cached_prompt = 0;  // [tokens] found in the prefix cache when it was first scheduled
  std::int32_t total_elsewhere = 0;    // [tokens] to which another engine brings it once its prompt is computed; 0: it stays
  std::string salt_elsewhere;          // of a request that does not stay: each cache has roots of its own

  bool has_ended() const noexcept { return num_live == 0; }
  std::size_t num_choices() const noexcept { return static_cast<std::size_t>(sampling.num_choices()); }
  /// The prompt is not computed yet, or was not when the step in flight was planned.
  bool has_forks_pending() const noexcept { return !beams && choices.size() < num_choices(); }
};

}  // namespace nvl::inline NVL_ABI
