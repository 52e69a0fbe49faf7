#pragma once
/// The result of a request that has ended.

#include <nvl/core/config.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_state.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

inline Choice result_of(ChoiceState& choice) {
  Choice result;
  result.index = choice.index;
  result.output_ids.assign(choice.tokens.begin() + choice.num_prompt, choice.tokens.end());
  result.text = std::move(choice.text);
  result.finish_reason = choice.finish_reason;
  if (choice.text_stream) { result.stop_string = choice.text_stream->matched_stop(); }
  result.stop_token = choice.stop_token;
  result.logprobs = std::move(choice.logprobs);
  result.cumulative_logprob = choice.cumulative_logprob;
  return result;
}

}  // namespace detail

/// Takes the texts and the log-probabilities out of `request`, whose choices have ended. Tokens are copied: steps in flight may
/// still look at them. `reason`: of choices that have not begun
inline Completion completion_of(RequestState& request, FinishReason reason, std::string_view error) {
  const auto seconds = [](RequestState::Clock::time_point from, RequestState::Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  std::vector<Choice> choices;
  Completion done;
  for (const auto& choice : request.choices) {
    done.num_preemptions += choice->num_preemptions;
    choices.push_back(detail::result_of(*choice));
  }
  while (choices.size() < request.num_choices()) {
    choices.emplace_back().index = static_cast<std::uint32_t>(choices.size() - 1);
    choices.back().finish_reason = reason;
  }
  if (request.sampling.has_rivals() && !request.beams) {
    std::ranges::stable_sort(choices, std::greater<>(), &Choice::cumulative_logprob);
  }
  choices.resize(static_cast<std::size_t>(request.sampling.n));
  std::size_t longest = 0;
  for (const Choice& choice : choices) { longest = std::max(longest, choice.output_ids.size()); }
  static_cast<Choice&>(done) = std::move(choices.front());
  done.others.assign(std::move_iterator(choices.begin() + 1), std::move_iterator(choices.end()));

  const ChoiceState& first = *request.choices.front();
  done.request = request.id;
  done.prompt_ids.assign(first.tokens.begin(), first.tokens.begin() + first.num_prompt);
  done.seed = request.seed;
  done.num_cached_tokens = request.num_cached_prompt;
  done.error = error;
  done.timings.e2e = seconds(request.submitted, RequestState::Clock::now());
  if (request.was_scheduled) { done.timings.queue = seconds(request.submitted, request.scheduled); }
  if (longest > 0) { done.timings.ttft = seconds(request.submitted, request.first_token); }
  if (longest > 1) { done.timings.tpot = seconds(request.first_token, request.last_token) / static_cast<double>(longest - 1); }
  return done;
}

}  // namespace nvl::inline NVL_ABI
