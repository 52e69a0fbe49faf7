#pragma once
/// What one more token does to a choice: its text, and whether a stop rule ends it.

#include <nvl/core/config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/engine/text_stream.hpp>
#include <nvl/sched/sequence.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace nvl::inline NVL_ABI {

struct AcceptedToken {
  std::string piece;                         // text that may be shown now
  FinishReason reason = FinishReason::none;  // none: the choice goes on
};

/// `num_known`: [tokens] of the choice up to `sampled`; steps launched ahead may have put placeholders behind it.
inline AcceptedToken accept_token(ChoiceState& choice, const SampledToken& sampled, std::int32_t num_known) {
  const RequestState& request = *choice.owner;
  const std::int32_t num_output = num_known - choice.num_prompt;
  choice.cumulative_logprob += double{sampled.logprob};
  if (request.sampling.logprobs) { choice.logprobs.push_back(sampled); }

  const bool at_stop_id = std::ranges::count(request.stop_ids, sampled.token) > 0;
  const bool at_length = num_known >= choice.max_total_tokens;
  AcceptedToken accepted;
  bool at_stop_string = false;
  if (choice.text_stream) {
    TextStream& text = *choice.text_stream;
    if (!at_stop_id) { accepted.piece = text.push(sampled.token, num_output >= request.sampling.min_tokens); }
    if (at_stop_id || at_length) { accepted.piece += text.finish(); }
    at_stop_string = text.stopped();
    choice.text += accepted.piece;
  }
  if (at_stop_id) { choice.stop_token = sampled.token; }
  if (at_stop_id || at_stop_string) {
    accepted.reason = FinishReason::stop;
  } else if (at_length) {
    accepted.reason = FinishReason::length;
  }
  return accepted;
}

}  // namespace nvl::inline NVL_ABI
