#pragma once
/// The result of a request that has ended.

#include <nvl/core/config.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_state.hpp>

#include <chrono>
#include <string_view>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Takes the text and the log-probabilities out of `request`, whose `finish_reason` is set. Tokens are copied: steps in flight
/// may still look at them.
inline Completion completion_of(RequestState& request, std::string_view error) {
  const auto seconds = [](RequestState::Clock::time_point from, RequestState::Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  Completion done;
  done.request = request.request;
  const auto prompt_end = request.tokens.begin() + request.num_prompt;
  done.prompt_ids.assign(request.tokens.begin(), prompt_end);
  done.output_ids.assign(prompt_end, request.tokens.end());
  done.text = std::move(request.text);
  done.finish_reason = request.finish_reason;
  if (request.text_stream) { done.stop_string = request.text_stream->matched_stop(); }
  done.stop_token = request.stop_token;
  done.logprobs = std::move(request.logprobs);
  done.seed = request.seed;
  done.num_cached_tokens = request.num_cached_prompt;
  done.num_preemptions = request.num_preemptions;
  done.error = error;
  done.timings.e2e = seconds(request.submitted, RequestState::Clock::now());
  if (request.was_scheduled) { done.timings.queue = seconds(request.submitted, request.scheduled); }
  if (request.num_output() > 0) { done.timings.ttft = seconds(request.submitted, request.first_token); }
  if (request.num_output() > 1) {
    done.timings.tpot = seconds(request.first_token, request.last_token) / (request.num_output() - 1);
  }
  return done;
}

}  // namespace nvl::inline NVL_ABI
