#pragma once
/// From a scheduler's answer to the plain data that a step's ranks receive.

#include <nvl/core/config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/choices.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/sched/scheduled_batch.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Tokens that this row must not choose: before min_tokens, everything that would end the sequence.
inline std::span<const TokenId> banned_tokens(const ChoiceState& choice) noexcept {
  const RequestState& request = *choice.owner;
  return choice.num_output() < request.sampling.min_tokens ? std::span<const TokenId>(request.stop_ids)
                                                           : std::span<const TokenId>();
}

inline bool needs_history(const SamplingParams& p) noexcept {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

inline StepShape shape_of(const ScheduledBatch& batch) {
  StepShape shape;
  shape.num_tokens = static_cast<std::size_t>(batch.num_tokens);
  shape.num_seqs = batch.seqs.size();
  shape.num_copies = batch.copies.size();
  shape.num_swap_out = batch.swap_out.size();
  shape.num_swap_in = batch.swap_in.size();
  for (const ScheduledSeq& entry : batch.seqs) {
    shape.max_blocks_per_seq = std::max(shape.max_blocks_per_seq, entry.seq->block_table.size());
    if (!entry.needs_sample) { continue; }
    const ChoiceState& choice = choice_of(*entry.seq);
    const SamplingParams& p = choice.owner->sampling;
    shape.num_samples += 1 + static_cast<std::size_t>(choice.num_forks);
    shape.num_logit_bias += p.logit_bias.size();
    shape.num_banned += banned_tokens(choice).size();
    if (needs_history(p)) { shape.num_history += choice.tokens.size(); }
  }
  return shape;
}

/// Copies `source` behind what `array` holds already and returns where it lies.
template <class T, class Range>
IndexRange append(std::span<T> array, std::uint32_t& used, const Range& source) {
  const IndexRange range{used, used + static_cast<std::uint32_t>(source.size())};
  std::copy(source.begin(), source.end(), array.begin() + used);
  used = range.end;
  return range;
}

}  // namespace detail

/// Writes `batch`, whose sequences are ChoiceStates, into `buffer`. Rows of one sequence are consecutive; sampled rows keep the
/// order of the batch, those of the choices that begin with a sequence right behind its own. `extra_samples` rows of sample_rows and sampling are left for the caller to fill.
inline StepInput& build_step_input(const ScheduledBatch& batch, std::int32_t block_size, std::uint64_t step, StepBuffer& buffer,
                                   std::int32_t extra_samples = 0) {
  StepShape shape = detail::shape_of(batch);
  shape.num_samples += static_cast<std::size_t>(extra_samples);
  StepInput& in = buffer.layout(shape);
  in.step = step;
  std::copy(batch.copies.begin(), batch.copies.end(), in.copies.begin());
  std::copy(batch.swap_out.begin(), batch.swap_out.end(), in.swap_out.begin());
  std::copy(batch.swap_in.begin(), batch.swap_in.end(), in.swap_in.begin());
  std::size_t token = 0, seq_idx = 0, row = 0;
  std::uint32_t num_bias = 0, num_banned = 0, num_history = 0;
  in.cu_query_lens[0] = 0;
  in.min_query_len = batch.seqs.empty() ? 0 : batch.seqs.front().num_tokens;
  in.max_query_len = in.min_query_len;
  for (const ScheduledSeq& entry : batch.seqs) {
    const ChoiceState& choice = choice_of(*entry.seq);
    const std::int32_t end = entry.first_position + entry.num_tokens;
    in.min_query_len = std::min(in.min_query_len, entry.num_tokens);
    in.max_query_len = std::max(in.max_query_len, entry.num_tokens);
    for (std::int32_t position = entry.first_position; position < end; ++position, ++token) {
      in.token_ids[token] = choice.tokens[static_cast<std::size_t>(position)];
      in.positions[token] = position;
      in.slot_mapping[token] = slot_of(choice.block_table, position, block_size);
    }
    std::copy(choice.block_table.begin(), choice.block_table.end(),
              in.block_tables.begin() + static_cast<std::ptrdiff_t>(seq_idx) * in.max_blocks_per_seq);
    in.seq_lens[seq_idx] = end;
    in.cu_query_lens[++seq_idx] = static_cast<std::int32_t>(token);
    if (!entry.needs_sample) { continue; }

    const SamplingParams& p = choice.owner->sampling;
    SamplingRow out;
    out.temperature = p.temperature;
    out.top_p = p.top_p;
    out.min_p = p.min_p;
    out.repetition_penalty = p.repetition_penalty;
    out.presence_penalty = p.presence_penalty;
    out.frequency_penalty = p.frequency_penalty;
    out.top_k = std::max(p.top_k, 0);
    out.num_logprobs = choice.owner->num_logprobs;
    out.seed = choice.owner->seed;
    out.output_index = static_cast<std::uint32_t>(choice.num_output());
    out.num_prompt = static_cast<std::uint32_t>(choice.num_prompt);
    out.banned = detail::append(in.banned, num_banned, detail::banned_tokens(choice));
    if (detail::needs_history(p)) { out.history = detail::append(in.history, num_history, choice.tokens); }
    out.bias = {num_bias, num_bias + static_cast<std::uint32_t>(p.logit_bias.size())};
    for (const auto& [id, bias] : p.logit_bias) { in.logit_bias[num_bias++] = {id, bias}; }
    for (std::int32_t fork = 0; fork <= choice.num_forks; ++fork) {
      out.choice = choice.index + static_cast<std::uint32_t>(fork);
      in.sample_rows[row] = static_cast<std::int32_t>(token) - 1;
      in.sampling[row++] = out;
    }
  }
  return in;
}

}  // namespace nvl::inline NVL_ABI
