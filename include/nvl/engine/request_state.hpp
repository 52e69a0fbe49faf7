#pragma once
/// A request inside an engine: its sequence and everything that scheduling does not look at.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/text_stream.hpp>
#include <nvl/sched/sequence.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// The sequence is the base, so that a policy's Sequence& leads back to its request.
struct RequestState : Sequence {
  using Clock = std::chrono::steady_clock;

  SamplingParams sampling;
  std::uint64_t seed = 0;
  std::vector<TokenId> stop_ids;          // end-of-sequence (unless ignored) and stop tokens
  std::optional<TextStream> text_stream;  // if the engine has a TokenText
  std::string text;                       // of the output so far
  std::vector<SampledToken> logprobs;
  RequestCallbacks callbacks;
  Clock::time_point submitted, scheduled, first_token, last_token;
  bool was_scheduled = false;
  bool is_scheduled = false;           // the scheduler knows it
  std::int32_t num_pending = 0;        // [tokens] at the end of `tokens` that launched steps will choose
  std::int32_t num_cached_prompt = 0;  // [tokens] found in the prefix cache when it was first scheduled
  TokenId stop_token = -1;             // that ended it
};

}  // namespace nvl::inline NVL_ABI
