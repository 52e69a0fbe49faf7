#pragma once
/// Logits to tokens on the CPU. Each row depends on its own request only, and one thread computes it from end to end, so the
/// result is the same bit for bit in any batch and with any number of threads.
///
/// A row goes through, in this order:
///   1. check that every logit is finite;
///   2. logit_bias, then repetition, frequency and presence penalty, then the banned tokens are taken out;
///   3. temperature (0: the most likely token is the answer);
///   4. log-probabilities, if wanted: log-softmax of what 3 left (with temperature 0: of what 2 left);
///   5. top-k, then top-p of the probabilities renormalised over those k, then min-p;
///   6. a draw from the probabilities renormalised over the tokens that are left.
/// Equal logits are ordered by id, the lower id first: top-k keeps exactly k tokens, and top_k = 1 is the arg max.
/// The draw is the first token, by ascending id, at which the cumulated probability exceeds uniform(seed, choice, output_index).
///
/// Oracle: kernels/reference/sampling.hpp.  The order is that of vLLM and Hugging Face transformers.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/philox.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/thread_pool.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

struct SamplerCandidate {
  float logit = 0;
  TokenId id = 0;
  double weight = 0;  // exp((logit - largest logit) / temperature)
};

/// The order of a vocabulary by likelihood: total, so every "k most likely" is one set.
constexpr bool more_likely(const SamplerCandidate& a, const SamplerCandidate& b) noexcept {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

}  // namespace detail

/// Memory of one thread that samples rows. Grows to the vocabulary once; owned by the caller.
struct SamplerScratch {
  std::vector<float> logits;                         // [vocab] of a row with bias, penalties or bans
  std::vector<float> weights;                        // [vocab]
  std::vector<double> block_sums;                    // of weights
  std::vector<std::int32_t> counts;                  // [vocab] of a token in the output; all zero between rows
  std::vector<detail::SamplerCandidate> candidates;  // by ascending id
  std::vector<detail::SamplerCandidate> selection;   // the same, partly ordered by likelihood
};

namespace detail {

#if defined(__AVX__)
inline constexpr std::size_t sampler_lanes = 8;
#else
inline constexpr std::size_t sampler_lanes = 4;  // twice the width of a register, selects are taken apart lane by lane
#endif
using SamplerFloats = float __attribute__((vector_size(sampler_lanes * 4)));
using SamplerInts = std::int32_t __attribute__((vector_size(sampler_lanes * 4)));
inline constexpr float lowest_logit = std::numeric_limits<float>::lowest();
inline constexpr float banned_logit = -std::numeric_limits<float>::infinity();

/// Vectors go by reference: passing them by value has a different ABI with and without AVX.
NVL_ALWAYS_INLINE void load(SamplerFloats& v, const float* p) noexcept { std::memcpy(&v, p, sizeof v); }
NVL_ALWAYS_INLINE void store(float* p, const SamplerFloats& v) noexcept { std::memcpy(p, &v, sizeof v); }

struct RowScan {
  float max = lowest_logit;  // of a row that is not finite: anything
  bool finite = true;
};

/// The largest logit and whether all are finite, in one pass.
inline RowScan scan_row(std::span<const float> row) noexcept {
  SamplerFloats max = SamplerFloats{} + lowest_logit;
  SamplerInts bad{};
  std::size_t i = 0;
  for (; i + sampler_lanes <= row.size(); i += sampler_lanes) {
    SamplerFloats v;
    load(v, row.data() + i);
    max = v > max ? v : max;
    bad |= (reinterpret_cast<SamplerInts>(v) & 0x7f800000) == 0x7f800000;  // the exponent of infinities and NaNs
  }
  RowScan scan;
  for (std::size_t lane = 0; lane < sampler_lanes; ++lane) {
    scan.max = std::max(scan.max, max[lane]);
    scan.finite = scan.finite && bad[lane] == 0;
  }
  for (; i < row.size(); ++i) {
    scan.max = std::max(scan.max, row[i]);
    scan.finite = scan.finite && std::isfinite(row[i]);
  }
  return scan;
}

/// v = exp(v) for v <= 0, exactly 1 at 0, relative error below 2e-7; 0 below -87.
/// Cody & Waite range reduction to |r| <= ln(2)/2, then the Taylor polynomial of degree 7.
NVL_ALWAYS_INLINE void exp_nonpositive(SamplerFloats& v) noexcept {
  const SamplerInts underflow = v < -87.0f;
  const SamplerFloats x = underflow ? v - v : v;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const SamplerFloats shifted = x * 1.44269504f + 12582912.0f;
  const SamplerFloats n = shifted - 12582912.0f;
  const SamplerFloats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  SamplerFloats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const SamplerInts scaled = reinterpret_cast<SamplerInts>(p) + (reinterpret_cast<SamplerInts>(shifted) << 23);
  v = underflow ? SamplerFloats{} : reinterpret_cast<SamplerFloats>(scaled);
}

/// A row of adjusted logits and its temperature. Banned tokens have the logit -infinity, and no other token has.
struct SamplerRow {
  std::span<const float> logits;  // [vocab]
  float max = 0;                  // the largest
  double inv_temperature = 1;

  double scaled(float logit) const noexcept { return (static_cast<double>(logit) - max) * inv_temperature; }
};

inline constexpr std::size_t weight_block = 1024;  // [weights] of one entry of block_sums

/// Fills scratch.weights and scratch.block_sums; returns the sum of all weights.
inline double compute_weights(const SamplerRow& row, SamplerScratch& scratch) {
  const std::size_t vocab = row.logits.size();
  scratch.weights.resize(vocab);
  scratch.block_sums.clear();
  // A temperature below 3e-39 has no finite reciprocal; the largest float keeps 0 * inverse = 0 at the largest logit.
  const auto inverse = static_cast<float>(std::min(row.inv_temperature, double{std::numeric_limits<float>::max()}));
  double total = 0;
  for (std::size_t begin = 0; begin < vocab; begin += weight_block) {
    const std::size_t end = std::min(begin + weight_block, vocab);
    SamplerFloats sums{};
    double sum = 0;
    std::size_t i = begin;
    for (; i + sampler_lanes <= end; i += sampler_lanes) {
      SamplerFloats v;
      load(v, row.logits.data() + i);
      v = (v - row.max) * inverse;
      exp_nonpositive(v);
      sums += v;
      store(scratch.weights.data() + i, v);
    }
    for (; i < end; ++i) {
      SamplerFloats v{};
      v[0] = (row.logits[i] - row.max) * inverse;
      exp_nonpositive(v);
      scratch.weights[i] = v[0];
      sum += v[0];
    }
    for (std::size_t lane = 0; lane < sampler_lanes; ++lane) { sum += sums[lane]; }
    scratch.block_sums.push_back(sum);
    total += sum;
  }
  return total;
}

/// How many logits are at least `threshold`.
inline std::size_t count_from(std::span<const float> logits, float threshold) noexcept {
  SamplerInts counts{};
  std::size_t i = 0;
  for (; i + sampler_lanes <= logits.size(); i += sampler_lanes) {
    SamplerFloats v;
    load(v, logits.data() + i);
    counts -= v >= threshold;  // true is -1
  }
  std::size_t count = 0;
  for (std::size_t lane = 0; lane < sampler_lanes; ++lane) { count += static_cast<std::size_t>(counts[lane]); }
  for (; i < logits.size(); ++i) { count += logits[i] >= threshold ? 1u : 0u; }
  return count;
}

/// The weight of all logits that are at least `threshold`.
inline double mass_from(std::span<const float> logits, std::span<const float> weights, float threshold) noexcept {
  double mass = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += weight_block) {
    const std::size_t end = std::min(begin + weight_block, logits.size());
    SamplerFloats sums{};
    std::size_t i = begin;
    for (; i + sampler_lanes <= end; i += sampler_lanes) {
      SamplerFloats v, w;
      load(v, logits.data() + i);
      load(w, weights.data() + i);
      sums += v >= threshold ? w : SamplerFloats{};
    }
    for (std::size_t lane = 0; lane < sampler_lanes; ++lane) { mass += sums[lane]; }
    for (; i < end; ++i) { mass += logits[i] >= threshold ? weights[i] : 0.0f; }
  }
  return mass;
}

/// A threshold that at least the tokens wanted reach: tries larger and larger distances below the largest logit until `enough`,
/// then halves the last step `refinements` times. A few passes over a row in cache cost less than ordering many candidates.
template <class Enough>
float find_threshold(float max, double unit, int refinements, Enough&& enough) {
  double too_near = 0;
  for (double distance = 1; distance <= 32; distance *= 2) {
    if (!(max - distance * unit > lowest_logit)) { break; }
    if (!enough(static_cast<float>(max - distance * unit))) {
      too_near = distance;
      continue;
    }
    for (int i = 0; i < refinements; ++i) {
      const double middle = (too_near + distance) / 2;
      (enough(static_cast<float>(max - middle * unit)) ? distance : too_near) = middle;
    }
    return static_cast<float>(max - distance * unit);
  }
  return lowest_logit;  // all but the banned ones
}

inline float top_k_threshold(const SamplerRow& row, std::size_t k) {
  return find_threshold(row.max, 1.0, 0, [&](float threshold) { return count_from(row.logits, threshold) >= k; });
}

/// Fills scratch.candidates with the tokens that reach `threshold`, by ascending id, weights left 0.
inline void gather_candidates(const SamplerRow& row, float threshold, SamplerScratch& scratch) {
  scratch.candidates.clear();
  std::size_t i = 0;
  const auto take = [&](std::size_t at) {
    if (row.logits[at] >= threshold) { scratch.candidates.push_back({row.logits[at], static_cast<TokenId>(at), 0.0}); }
  };
  for (; i + sampler_lanes <= row.logits.size(); i += sampler_lanes) {
    SamplerFloats v;
    load(v, row.logits.data() + i);
    const SamplerInts mask = v >= threshold;
    std::array<std::uint64_t, sizeof mask / 8> words;
    std::memcpy(&words, &mask, sizeof words);
    std::uint64_t any = 0;
    for (const std::uint64_t word : words) { any |= word; }
    if (any == 0) { continue; }
    for (std::size_t lane = 0; lane < sampler_lanes; ++lane) { take(i + lane); }
  }
  for (; i < row.logits.size(); ++i) { take(i); }
}

/// Length of the shortest run of the most likely of `items` whose weight reaches `mass`; at least 1. Reorders `items` so that the
/// run comes first. Quickselect by weight: linear in items.size().
inline std::size_t shortest_prefix(std::span<SamplerCandidate> items, double mass) {
  std::size_t low = 0;
  std::size_t high = items.size();
  while (high - low > 1) {
    const std::size_t middle = low + (high - low) / 2;
    const auto at = [&](std::size_t i) { return items.begin() + static_cast<std::ptrdiff_t>(i); };
    std::nth_element(at(low), at(middle), at(high), more_likely);
    double upper = 0;
    for (std::size_t i = low; i < middle; ++i) { upper += items[i].weight; }
    if (upper >= mass) {
      high = middle;
    } else {
      mass -= upper;
      low = middle;
    }
  }
  return high;
}

/// The token at which the cumulated weight, by ascending id, exceeds the fraction `u` of all weights.
inline TokenId draw_from_all(double u, double total, const SamplerScratch& scratch) noexcept {
  double target = u * total;
  std::size_t block = 0;
  while (block + 1 < scratch.block_sums.size() && target >= scratch.block_sums[block]) { target -= scratch.block_sums[block++]; }
  const auto scan = [&](std::size_t b) {
    std::size_t last = scratch.weights.size();
    const std::size_t end = std::min((b + 1) * weight_block, scratch.weights.size());
    for (std::size_t i = b * weight_block; i < end; ++i) {
      if (scratch.weights[i] > 0.0f) {
        last = i;
        target -= scratch.weights[i];
        if (target < 0) { break; }
      }
    }
    return last;
  };
  // Rounding may leave the target just past a block's end, or in a last block of zeros: then it is the last token before that.
  std::size_t found = scan(block);
  while (found == scratch.weights.size() && block > 0) { found = scan(--block); }
  return static_cast<TokenId>(found);
}

/// The same over the tokens that top-k, top-p and min-p leave.
inline TokenId draw_truncated(double u, const SamplerRow& row, const SamplingRow& options, SamplerScratch& scratch) {
  const bool has_top_k = options.top_k > 0 && static_cast<std::size_t>(options.top_k) < row.logits.size();
  const bool has_top_p = options.top_p < 1.0f;
  const bool has_min_p = options.min_p > 0.0f;
  const double min_scaled = has_min_p ? std::log(std::min(double{options.min_p}, 1.0)) : -std::numeric_limits<double>::infinity();
  const auto k = static_cast<std::size_t>(has_top_k ? options.top_k : 0);
  const double temperature = 1.0 / row.inv_temperature;

  double total = 0;  // weight of what top-p is a part of
  float threshold = lowest_logit;
  if (has_top_k) {
    threshold = top_k_threshold(row, k);
  } else {
    if (has_top_p) {
      total = compute_weights(row, scratch);
      const auto reaches_p = [&](float t) { return mass_from(row.logits, scratch.weights, t) >= total * options.top_p; };
      threshold = find_threshold(row.max, temperature, 6, reaches_p);
    }
    if (has_min_p) {
      // One part in a million lower, so that rounding loses no candidate; the exact test is below.
      const double exact = row.max + min_scaled * temperature;
      const double lower = exact - 1e-6 * (std::abs(exact) + std::abs(row.max));
      threshold = std::max(threshold, static_cast<float>(std::max(lower, double{lowest_logit})));
    }
  }

  gather_candidates(row, threshold, scratch);
  for (SamplerCandidate& c : scratch.candidates) { c.weight = std::exp(row.scaled(c.logit)); }
  scratch.selection = scratch.candidates;
  std::span<SamplerCandidate> kept = scratch.selection;
  if (has_top_k && k < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(k), kept.end(), more_likely);
    kept = kept.first(k);
  }
  if (has_top_p) {
    if (has_top_k) {
      for (const SamplerCandidate& c : kept) { total += c.weight; }
    }
    kept = kept.first(shortest_prefix(kept, total * options.top_p));
  }
  const SamplerCandidate cut = *std::max_element(kept.begin(), kept.end(), more_likely);  // the least likely of them

  const auto is_kept = [&](const SamplerCandidate& c) { return !more_likely(cut, c) && row.scaled(c.logit) >= min_scaled; };
  double mass = 0;
  for (const SamplerCandidate& c : scratch.candidates) { mass += is_kept(c) ? c.weight : 0.0; }
  double target = u * mass;
  TokenId token = 0;
  for (const SamplerCandidate& c : scratch.candidates) {
    if (c.weight > 0.0 && is_kept(c)) {
      token = c.id;
      target -= c.weight;
      if (target < 0) { break; }
    }
  }
  return token;
}

/// Copies a row and applies bias, penalties and bans.
inline std::span<const float> adjust_logits(std::span<const float> logits, const StepInput& in, const SamplingRow& options,
                                            SamplerScratch& scratch) {
  scratch.logits.assign(logits.begin(), logits.end());
  const std::span<float> out = scratch.logits;
  const auto slice = [](auto array, IndexRange range) { return array.subspan(range.begin, range.size()); };
  // An id outside the vocabulary has no logit to change.
  const auto in_vocab = [&](TokenId id) { return id >= 0 && static_cast<std::size_t>(id) < out.size(); };
  // Only a ban may make a logit infinite.
  const auto set = [&](std::size_t i, float value) { out[i] = std::clamp(value, lowest_logit, -lowest_logit); };

  for (const LogitBias& b : slice(in.logit_bias, options.bias)) {
    if (in_vocab(b.token)) { set(static_cast<std::size_t>(b.token), out[static_cast<std::size_t>(b.token)] + b.bias); }
  }
  if (options.has_penalty()) {
    scratch.counts.resize(out.size());
    const std::span<const TokenId> history = slice(in.history, options.history);
    for (std::size_t i = options.num_prompt; i < history.size(); ++i) {
      if (in_vocab(history[i])) { ++scratch.counts[static_cast<std::size_t>(history[i])]; }
    }
    for (const TokenId id : history) {
      if (!in_vocab(id)) { continue; }
      const auto i = static_cast<std::size_t>(id);
      const std::int32_t count = scratch.counts[i];
      if (count < 0) { continue; }  // met before
      scratch.counts[i] = -1;
      const float repeated = out[i] > 0.0f ? out[i] / options.repetition_penalty : out[i] * options.repetition_penalty;
      const float presence = count > 0 ? options.presence_penalty : 0.0f;
      set(i, repeated - options.frequency_penalty * static_cast<float>(count) - presence);
    }
    for (const TokenId id : history) {
      if (in_vocab(id)) { scratch.counts[static_cast<std::size_t>(id)] = 0; }
    }
  }
  for (const TokenId id : slice(in.banned, options.banned)) {
    if (in_vocab(id)) { out[static_cast<std::size_t>(id)] = banned_logit; }
  }
  return out;
}

/// Log-probabilities of out.token and of the `count` most likely tokens.
inline void add_logprobs(const SamplerRow& row, std::size_t count, SamplerScratch& scratch, SampledToken& out) {
  const double log_total = std::log(compute_weights(row, scratch));
  const auto logprob = [&](float logit) {
    return static_cast<float>(std::max(row.scaled(logit) - log_total, double{lowest_logit}));
  };
  out.logprob = logprob(row.logits[static_cast<std::size_t>(out.token)]);
  if (count == 0) { return; }
  gather_candidates(row, top_k_threshold(row, std::min(count, row.logits.size())), scratch);
  const std::size_t n = std::min(count, scratch.candidates.size());
  const auto end = scratch.candidates.begin() + static_cast<std::ptrdiff_t>(n);
  std::partial_sort(scratch.candidates.begin(), end, scratch.candidates.end(), more_likely);
  for (auto c = scratch.candidates.begin(); c != end; ++c) { out.top_logprobs.push_back({c->id, logprob(c->logit)}); }
}

}  // namespace detail

/// Samples one row. `logits`: [vocab], not empty. `out` is overwritten; its memory is reused.
/// A row with a NaN or an infinity, or whose tokens are all banned, gives `finite == false`.
inline void sample_row(std::span<const float> logits, const StepInput& in, const SamplingRow& options, SamplerScratch& scratch,
                       SampledToken& out) {
  out.token = 0;
  out.logprob = 0;
  out.finite = true;
  out.top_logprobs.clear();
  detail::RowScan scan = detail::scan_row(logits);
  out.finite = scan.finite;
  if (!scan.finite) { return; }

  detail::SamplerRow row{.logits = logits};
  if (options.has_penalty() || options.bias.size() > 0 || options.banned.size() > 0) {
    row.logits = detail::adjust_logits(logits, in, options, scratch);
    scan = detail::scan_row(row.logits);
  }
  row.max = scan.max;
  const auto best = std::find(row.logits.begin(), row.logits.end(), row.max);
  if (best == row.logits.end()) {  // every logit is -infinity
    out.finite = false;
    return;
  }
  if (options.temperature == 0.0f) {
    out.token = static_cast<TokenId>(best - row.logits.begin());
  } else {
    row.inv_temperature = 1.0 / double{options.temperature};
    const double u = uniform(options.seed, options.choice, options.output_index);
    const bool truncates = options.top_k > 0 || options.top_p < 1.0f || options.min_p > 0.0f;
    if (truncates) {
      out.token = detail::draw_truncated(u, row, options, scratch);
    } else {
      const double total = detail::compute_weights(row, scratch);
      out.token = detail::draw_from_all(u, total, scratch);
    }
  }
  if (options.num_logprobs >= 0) { detail::add_logprobs(row, static_cast<std::size_t>(options.num_logprobs), scratch, out); }
}

/// Samples the rows of steps. Keeps its memory from step to step, one scratch per thread; used by one thread at a time.
class CpuSampler {
 public:
  /// `logits`: [R, vocab_size], row-major, with R = in.num_samples() and vocab_size > 0. Writes out.sampled[R].
  void sample_rows(ThreadPool& pool, const StepInput& in, const float* logits, std::int32_t vocab_size, StepOutput& out) {
    const auto vocab = static_cast<std::size_t>(vocab_size);
    const std::size_t rows = in.sampling.size();
    out.sampled.resize(rows);
    const std::size_t groups = std::min(rows, static_cast<std::size_t>(pool.num_threads()));
    if (scratch_.size() < groups) { scratch_.resize(groups); }
    pool.parallel_for(static_cast<std::int64_t>(groups), 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto group = static_cast<std::size_t>(begin); group < static_cast<std::size_t>(end); ++group) {
        for (std::size_t row = group; row < rows; row += groups) {
          sample_row({logits + row * vocab, vocab}, in, in.sampling[row], scratch_[group], out.sampled[row]);
        }
      }
    });
  }

 private:
  std::vector<SamplerScratch> scratch_;
};

/// The same for one step, without memory to keep.
inline void sample_rows(ThreadPool& pool, const StepInput& in, const float* logits, std::int32_t vocab_size, StepOutput& out) {
  CpuSampler().sample_rows(pool, in, logits, vocab_size, out);
}

}  // namespace nvl::inline NVL_ABI
