#pragma once
/// Beam search over log-probabilities that somebody else computes: which beams go on with which tokens, which have ended, when
/// the search is over. Knows nothing of sequences, blocks or models.
/// Source: the rules, and so the results, are those of Hugging Face transformers 5 (GenerationMixin with num_beams).

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/step.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// [tokens] the most likely ones of each beam that a search has to know: no more can matter, because at most `num_stop_ids` of
/// them end a beam and at most `width` go on.
constexpr std::int32_t beam_candidates(std::int32_t width, std::size_t num_stop_ids) noexcept {
  return width + static_cast<std::int32_t>(num_stop_ids);
}

/// A round: each beam is offered its most likely next tokens, then `advance` says which beams the next round has. There is one
/// beam in the first round, that of the prompt.
///
/// Of all extensions of all beams the `width` likeliest that do not end are the next beams. One that ends, with a stop token or
/// because it is as long as it may become, is kept if it is among the `width` likeliest extensions, and of those kept so far
/// among the `width` of the best score: log-probability / length ^ length_penalty, the stop token counted. Equal ones rank by
/// their beam, then by their token's place.
class BeamSearch {
 public:
  /// One beam of the next round: beam `parent` of this one and a token.
  struct Extension {
    std::uint32_t parent = 0;
    TokenId token = 0;
  };

  struct Hypothesis {
    std::vector<TokenId> tokens;  // without the prompt, with the stop token
    double logprob = 0;
    double score = 0;
  };

  /// \param max_tokens of output
  BeamSearch(const SamplingParams& params, std::span<const TokenId> stop_ids, std::int32_t max_tokens)
      : width_(static_cast<std::size_t>(params.beam_width)),
        length_penalty_(params.length_penalty),
        early_stopping_(params.early_stopping),
        stop_ids_(stop_ids.begin(), stop_ids.end()),
        max_tokens_(max_tokens),
        beams_(1),
        offers_(1) {}

  std::uint32_t num_beams() const noexcept { return static_cast<std::uint32_t>(beams_.size()); }  ///< of this round
  std::int32_t num_candidates() const noexcept { return beam_candidates(static_cast<std::int32_t>(width_), stop_ids_.size()); }

  /// The most likely next tokens of a beam, best first: num_candidates() of them, or all that are possible. Once a round.
  void offer(std::uint32_t beam, std::span<const TokenLogprob> next) {
    offers_[beam].assign(next.begin(), next.end());
    ++num_offers_;
  }
  bool is_round_complete() const noexcept { return num_offers_ == beams_.size(); }

  /// The beams of the next round, likeliest first; none: the search is over. Valid until the next call.
  std::span<const Extension> advance() {
    const std::vector<Candidate> candidates = ranked_candidates();
    ++length_;
    extensions_.clear();
    std::vector<Beam> next;
    for (std::size_t rank = 0; rank < candidates.size(); ++rank) {
      const Candidate& c = candidates[rank];
      const bool ends = length_ >= max_tokens_ || std::ranges::count(stop_ids_, c.token) > 0;
      if (ends && rank < width_) { keep_ended(c); }
      if (ends || next.size() == width_) { continue; }
      next.push_back({.node = extend(c), .logprob = c.logprob});
      extensions_.push_back({c.parent, c.token});
    }
    beams_ = std::move(next);
    if (is_over()) { extensions_.clear(); }
    offers_.resize(beams_.size());
    num_offers_ = 0;
    return extensions_;
  }

  /// Those that have ended, best first; at most `width`.
  std::vector<Hypothesis> hypotheses() const {
    std::vector<Hypothesis> all;
    for (const Ended& ended : ended_) {
      Hypothesis h{.tokens = {}, .logprob = ended.logprob, .score = ended.score};
      for (std::uint32_t node = ended.node; node != root; node = nodes_[node].parent) { h.tokens.push_back(nodes_[node].token); }
      std::ranges::reverse(h.tokens);
      all.push_back(std::move(h));
    }
    return all;
  }

 private:
  static constexpr std::uint32_t root = ~std::uint32_t{0};

  /// The tokens of all beams, as a tree: each points at the one before it.
  struct Node {
    std::uint32_t parent = root;
    TokenId token = 0;
  };
  struct Beam {
    std::uint32_t node = root;
    double logprob = 0;
  };
  struct Ended {
    std::uint32_t node = root;
    double logprob = 0;
    double score = 0;
  };
  struct Candidate {
    std::uint32_t parent = 0;
    TokenId token = 0;
    double logprob = 0;  // of the beam and the token
  };

  std::vector<Candidate> ranked_candidates() const {
    std::vector<Candidate> all;
    for (std::uint32_t beam = 0; beam < beams_.size(); ++beam) {
      for (const TokenLogprob& next : offers_[beam]) {
        all.push_back({beam, next.token, beams_[beam].logprob + double{next.logprob}});
      }
    }
    std::ranges::stable_sort(all, std::greater<>(), &Candidate::logprob);
    return all;
  }

  std::uint32_t extend(const Candidate& c) {
    nodes_.push_back({.parent = beams_[c.parent].node, .token = c.token});
    return static_cast<std::uint32_t>(nodes_.size() - 1);
  }

  double score_of(double logprob, std::int32_t length) const { return logprob / std::pow(double(length), length_penalty_); }

  void keep_ended(const Candidate& c) {
    const double score = score_of(c.logprob, length_);
    const auto place = std::ranges::upper_bound(ended_, score, std::greater<>(), &Ended::score);
    if (place == ended_.end() && ended_.size() == width_) { return; }
    ended_.insert(place, {.node = extend(c), .logprob = c.logprob, .score = score});
    if (ended_.size() > width_) { ended_.pop_back(); }
  }

  bool is_over() const {
    if (beams_.empty()) { return true; }
    if (ended_.size() < width_) { return false; }
    if (early_stopping_ == EarlyStopping::yes) { return true; }
    const bool may_grow = early_stopping_ == EarlyStopping::never && length_penalty_ > 0;
    return !(score_of(beams_.front().logprob, may_grow ? max_tokens_ : length_) > ended_.back().score);
  }

  std::size_t width_;
  double length_penalty_;
  EarlyStopping early_stopping_;
  std::vector<TokenId> stop_ids_;
  std::int32_t max_tokens_;
  std::int32_t length_ = 0;                        // [tokens] of each beam
  std::vector<Beam> beams_;                        // likeliest first
  std::vector<std::vector<TokenLogprob>> offers_;  // of each of them
  std::size_t num_offers_ = 0;
  std::vector<Ended> ended_;  // best first
  std::vector<Node> nodes_;
  std::vector<Extension> extensions_;
};

}  // namespace nvl::inline NVL_ABI
