#pragma once
/// What goes into an engine and what comes out.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/step.hpp>
#include <nvl/sched/sequence.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

struct Request {
  std::vector<TokenId> prompt_ids{};
  SamplingParams sampling{};
  std::int32_t priority = 0;  // lower is served first, by schedulers that look
  std::uint64_t user = 0;     // whose it is, for schedulers that share fairly between users
  std::string cache_salt{};   // requests with different salts never share cached blocks
};

/// [seconds], from a monotonic clock.
struct RequestTimings {
  double queue = 0;  // submit to first scheduled
  double ttft = 0;   // submit to first token; 0 if there was none
  double tpot = 0;   // (last - first token) / (output tokens of the longest choice - 1); 0 below two tokens
  double e2e = 0;    // submit to finish
};

/// One of the outputs of a request.
struct Choice {
  std::uint32_t index = 0;          // which of the choices that were computed; TokenEvent::choice of its tokens
  std::vector<TokenId> output_ids;  // with the end-of-sequence or stop token, if one ended it
  std::string text;                 // of the output; empty if the engine has no TokenText
  FinishReason finish_reason = FinishReason::none;
  std::string stop_string;             // the one that ended it
  TokenId stop_token = -1;             // the end-of-sequence or stop token that ended it
  std::vector<SampledToken> logprobs;  // one an output token, if asked for
  double cumulative_logprob = 0;       // sum over the output tokens, if logprobs, best_of or a beam search asked for them
};

/// The end of a request: its result. Of several choices it is the first, the best one where they were rivals.
struct Completion : Choice {
  RequestId request{};
  std::vector<TokenId> prompt_ids;
  std::vector<Choice> others;          // the further n - 1
  std::uint64_t seed = 0;              // that the request was sampled with
  std::int32_t num_cached_tokens = 0;  // prompt tokens that the prefix cache held
  std::int32_t num_preemptions = 0;    // of all its sequences
  RequestTimings timings;
  std::string error;  // what went wrong, if the finish_reason of a choice is error
};

/// One more token of a request, as it is sampled. Views are valid during the call.
struct TokenEvent {
  RequestId request{};
  TokenId token = 0;
  std::string_view text;                  // that may be shown now: whole characters, nothing that a stop string may cut
  const SampledToken* sampled = nullptr;  // with its log-probabilities
  std::uint32_t choice = 0;
};

/// Called by `step`, on its thread. A callback may submit and abort. One that throws ends its own request with
/// FinishReason::error and touches no other.
struct RequestCallbacks {
  std::function<void(const TokenEvent&)> on_token{};   // never where choices are rivals (best_of > n, beam search)
  std::function<void(const Completion&)> on_finish{};  // exactly once a request
};

}  // namespace nvl::inline NVL_ABI
