#pragma once
/// How the choices of a request come to be: the first with the request, the others as copies of one that has computed what they
/// begin with.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/engine/beam_search.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_rules.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/scheduled_batch.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

inline ChoiceState& choice_of(Sequence& seq) noexcept { return static_cast<ChoiceState&>(seq); }
inline const ChoiceState& choice_of(const Sequence& seq) noexcept { return static_cast<const ChoiceState&>(seq); }

/// A request with its first choice, not queued: without ids, seed and root of the prefix cache. `request` is valid.
inline std::unique_ptr<RequestState> make_request(Request request, RequestCallbacks callbacks, const ModelConfig& config,
                                                  const EngineOptions& options, const MemoryPlan& plan) {
  auto state = std::make_unique<RequestState>();
  auto first = std::make_unique<ChoiceState>();
  first->owner = state.get();
  first->num_prompt = static_cast<std::int32_t>(request.prompt_ids.size());
  first->max_total_tokens = total_tokens(request, plan);
  first->priority = request.priority;
  first->user = request.user;
  first->tokens = std::move(request.prompt_ids);
  first->tokens.reserve(static_cast<std::size_t>(std::min(first->max_total_tokens, first->num_prompt + 1024)));
  if (options.token_text) { first->text_stream.emplace(*options.token_text, request.sampling); }
  state->stop_ids = stop_ids_of(request.sampling, config);
  state->sampling = std::move(request.sampling);
  const SamplingParams& sampling = state->sampling;
  state->num_logprobs = sampling.logprobs.value_or(sampling.has_rivals() ? 0 : -1);
  if (sampling.is_beam_search()) {
    state->beams.emplace(sampling, state->stop_ids, first->max_total_tokens - first->num_prompt);
    state->num_logprobs = state->beams->num_candidates();
  }
  state->callbacks = std::move(callbacks);
  state->submitted = RequestState::Clock::now();
  state->choices.push_back(std::move(first));
  state->choices.reserve(state->num_choices());
  state->num_live = state->num_choices();
  return state;
}

/// One more choice of `request`, with the prompt of the first and no blocks. Its ids follow those of the first.
inline ChoiceState& add_choice(RequestState& request, const TokenText* token_text) {
  const ChoiceState& first = *request.choices.front();
  auto added = std::make_unique<ChoiceState>();
  ChoiceState& choice = *added;
  choice.owner = &request;
  choice.index = static_cast<std::uint32_t>(request.choices.size());
  choice.id = SeqId{index_of(first.id) + choice.index};
  choice.request = request.id;
  choice.tokens.reserve(first.tokens.capacity());
  choice.tokens.assign(first.tokens.begin(), first.tokens.begin() + first.num_prompt);
  choice.num_prompt = first.num_prompt;
  choice.max_total_tokens = first.max_total_tokens;
  choice.priority = first.priority;
  choice.user = first.user;
  choice.prefix_root = choice.published_prefix = first.prefix_root;
  if (token_text != nullptr) { choice.text_stream.emplace(*token_text, request.sampling); }
  request.choices.push_back(std::move(added));
  return choice;
}

/// Decides for how many choices that have not begun the step samples a row beside that of their request's first, whose prompt it
/// completes; `max_rows` bounds the rows of the step. A choice that finds no place begins without a token.
inline void plan_forks(const ScheduledBatch& batch, std::int32_t max_rows) noexcept {
  auto left = static_cast<std::size_t>(
      max_rows - std::ranges::count_if(batch.seqs, [](const ScheduledSeq& entry) { return entry.needs_sample; }));
  for (const ScheduledSeq& entry : batch.seqs) {
    ChoiceState& choice = choice_of(*entry.seq);
    choice.num_forks = 0;
    if (!entry.needs_sample || !choice.owner->has_forks_pending()) { continue; }
    const std::size_t num_forks = std::min(choice.owner->num_choices() - 1, left);
    choice.num_forks = static_cast<std::int32_t>(num_forks);
    left -= num_forks;
  }
}

/// Makes the choices of a beam search the beams of its next round. The first extension of a beam goes on in its place; each
/// further one becomes a copy in the place of a beam that has none, sharing the blocks. Places that are left over own nothing.
/// Throws std::bad_alloc with each choice as it was or on its way; every block has its owners.
template <SharingAllocator A>
void extend_beams(RequestState& request, std::span<const BeamSearch::Extension> next, A& allocator, std::int32_t block_size,
                  const TokenText* token_text) {
  while (request.choices.size() < next.size()) { add_choice(request, token_text).index = ChoiceState::no_beam; }
  const auto beam = [&](std::uint32_t index) {
    return std::ranges::find(request.choices, index, [](const auto& choice) { return choice->index; })->get();
  };
  std::vector<ChoiceState*> parents, heirs(next.size(), nullptr);
  for (std::size_t i = 0; i < next.size(); ++i) {
    ChoiceState* const parent = beam(next[i].parent);
    if (std::ranges::count(parents, parent) == 0) { heirs[i] = parent; }
    parents.push_back(parent);
  }
  for (const auto& choice : request.choices) {
    if (std::ranges::count(parents, choice.get()) > 0) { continue; }
    release_blocks(*choice, allocator);
    choice->index = ChoiceState::no_beam;
    const auto place = std::ranges::find(heirs, nullptr);
    if (place == heirs.end()) { continue; }
    *place = choice.get();
    const ChoiceState& parent = *parents[static_cast<std::size_t>(place - heirs.begin())];
    choice->tokens = parent.tokens;
    fork_blocks(parent, *choice, allocator, block_size);
  }
  for (std::size_t i = 0; i < next.size(); ++i) {
    heirs[i]->tokens.push_back(next[i].token);
    heirs[i]->index = static_cast<std::uint32_t>(i);
  }
}

}  // namespace nvl::inline NVL_ABI
