// BeamSearch alone, over log-probabilities that are made up: against every sequence that there is, and against a plain
// transcription of the rules that keeps whole score matrices.
#include <nvl/engine/beam_search.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

namespace beam_search_test {

using namespace nvl;

namespace {

using Tokens = std::vector<TokenId>;

/// Log-probabilities of every next token after any tokens, drawn once each.
class RandomModel {
 public:
  RandomModel(std::int32_t vocab_size, std::uint64_t seed) : vocab_size_(vocab_size), random_(seed) {}

  const std::vector<float>& next(const Tokens& tokens) {
    std::vector<float>& row = rows_[tokens];
    if (!row.empty()) { return row; }
    std::normal_distribution<float> normal(0, 2);
    double total = 0;
    for (std::int32_t i = 0; i < vocab_size_; ++i) { total += std::exp(double{row.emplace_back(normal(random_))}); }
    for (float& value : row) { value -= static_cast<float>(std::log(total)); }
    return row;
  }

 private:
  std::int32_t vocab_size_;
  std::mt19937_64 random_;
  std::map<Tokens, std::vector<float>> rows_;
};

struct Found {
  Tokens tokens;
  double logprob;
  double score;
};

SamplingParams params(std::int32_t width, float length_penalty, EarlyStopping early) {
  SamplingParams p;
  p.beam_width = width;
  p.length_penalty = length_penalty;
  p.early_stopping = early;
  return p;
}

/// What an engine does with the class: each beam's tokens, and only as many candidates as it asks for.
std::vector<Found> search(RandomModel& model, const SamplingParams& p, const Tokens& stop_ids, std::int32_t max_tokens) {
  BeamSearch beams(p, stop_ids, max_tokens);
  std::vector<Tokens> tokens(1);
  for (;;) {
    REQUIRE(beams.num_beams() == tokens.size());
    for (std::uint32_t beam = 0; beam < tokens.size(); ++beam) {
      CHECK_FALSE(beams.is_round_complete());
      const std::vector<float>& row = model.next(tokens[beam]);
      std::vector<TokenLogprob> best;
      for (std::size_t i = 0; i < row.size(); ++i) { best.push_back({static_cast<TokenId>(i), row[i]}); }
      std::ranges::stable_sort(best, std::greater<>(), &TokenLogprob::logprob);
      best.resize(std::min(best.size(), static_cast<std::size_t>(beams.num_candidates())));
      beams.offer(beam, best);
    }
    REQUIRE(beams.is_round_complete());
    std::vector<Tokens> next;
    for (const auto& extension : beams.advance()) {
      next.push_back(tokens[extension.parent]);
      next.back().push_back(extension.token);
    }
    if (next.empty()) { break; }
    tokens = std::move(next);
  }
  std::vector<Found> all;
  for (const auto& h : beams.hypotheses()) { all.push_back({h.tokens, h.logprob, h.score}); }
  return all;
}

/// The rules with nothing left out: all extensions of all beams, twice as many as needed kept, flags instead of lists.
std::vector<Found> reference(RandomModel& model, const SamplingParams& p, const Tokens& stop_ids, std::int32_t max_tokens) {
  const auto width = static_cast<std::size_t>(p.beam_width);
  const double none = -1e9;
  std::vector<Found> running{{{}, 0.0, 0.0}}, ended(width, {{}, 0.0, none});
  for (std::int32_t length = 1;; ++length) {
    std::vector<Found> all;
    for (const Found& beam : running) {
      const std::vector<float>& row = model.next(beam.tokens);
      for (std::size_t i = 0; i < row.size(); ++i) {
        Found extended{beam.tokens, beam.logprob + double{row[i]}, none};
        extended.tokens.push_back(static_cast<TokenId>(i));
        all.push_back(std::move(extended));
      }
    }
    std::ranges::stable_sort(all, std::greater<>(), &Found::logprob);
    all.resize(std::min(all.size(), std::max<std::size_t>(2, 1 + stop_ids.size()) * width));
    running.clear();
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      const bool ends = length == max_tokens || std::ranges::count(stop_ids, all[rank].tokens.back()) > 0;
      if (!ends) { running.push_back(all[rank]); }
      if (!ends || rank >= width) { continue; }
      ended.push_back(all[rank]);
      ended.back().score = all[rank].logprob / std::pow(double(length), double{p.length_penalty});
    }
    running.resize(std::min(running.size(), width));
    std::ranges::stable_sort(ended, std::greater<>(), &Found::score);
    ended.resize(width, {{}, 0.0, none});
    const bool all_ended = std::ranges::none_of(ended, [&](const Found& f) { return f.score == none; });
    if (running.empty()) { break; }
    if (all_ended && p.early_stopping == EarlyStopping::yes) { break; }
    const bool may_grow = p.early_stopping == EarlyStopping::never && p.length_penalty > 0;
    const double possible = running[0].logprob / std::pow(double(may_grow ? max_tokens : length), double{p.length_penalty});
    if (all_ended && !(possible > ended.back().score)) { break; }
  }
  std::erase_if(ended, [&](const Found& f) { return f.score == none; });
  return ended;
}

/// Every sequence that ends with a stop token or at full length, best first.
std::vector<Found> exhaustive(RandomModel& model, double length_penalty, const Tokens& stop_ids, std::int32_t max_tokens) {
  std::vector<Found> open{{{}, 0.0, 0.0}}, ended;
  for (std::int32_t length = 1; length <= max_tokens; ++length) {
    std::vector<Found> next;
    for (const Found& beam : open) {
      const std::vector<float> row = model.next(beam.tokens);
      for (std::size_t i = 0; i < row.size(); ++i) {
        Found f{beam.tokens, beam.logprob + double{row[i]}, 0.0};
        f.tokens.push_back(static_cast<TokenId>(i));
        f.score = f.logprob / std::pow(double(length), length_penalty);
        const bool ends = length == max_tokens || std::ranges::count(stop_ids, f.tokens.back()) > 0;
        (ends ? ended : next).push_back(std::move(f));
      }
    }
    open = std::move(next);
  }
  std::ranges::stable_sort(ended, std::greater<>(), &Found::score);
  return ended;
}

void check_equal(const std::vector<Found>& actual, const std::vector<Found>& expected) {
  REQUIRE(actual.size() == expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    CHECK(actual[i].tokens == expected[i].tokens);
    CHECK(actual[i].logprob == expected[i].logprob);
    CHECK(actual[i].score == expected[i].score);
  }
}

}  // namespace

TEST_CASE("a search as wide as all sequences finds the best of them", "[engine][host]") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (const float penalty : {0.0f, 1.0f, 2.0f}) {
      RandomModel model(4, seed);
      const auto found = search(model, params(64, penalty, EarlyStopping::never), {3}, 3);
      const auto all = exhaustive(model, double{penalty}, {3}, 3);
      INFO("seed " << seed << ", length penalty " << penalty);
      REQUIRE(found.size() == std::min<std::size_t>(all.size(), 64));
      for (std::size_t i = 0; i < found.size(); ++i) { CHECK(found[i].tokens == all[i].tokens); }
    }
  }
}

TEST_CASE("a search finds what the rules written out find", "[engine][host]") {
  int num_stopped_early = 0, num_ended_by_stop = 0;
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<std::int32_t>(random() % n); };
    const std::int32_t vocab_size = 6 + below(8), width = 2 + below(5), max_tokens = 1 + below(12);
    Tokens stop_ids;
    for (std::int32_t i = below(4); i > 0; --i) { stop_ids.push_back(i); }
    const float penalty = static_cast<float>(below(9) - 4) / 2.0f;
    const auto p = params(width, penalty, static_cast<EarlyStopping>(below(3)));
    RandomModel model(vocab_size, seed);
    INFO("seed " << seed);
    const auto found = search(model, p, stop_ids, max_tokens);
    check_equal(found, reference(model, p, stop_ids, max_tokens));
    std::size_t longest = 0;
    for (const Found& f : found) {
      longest = std::max(longest, f.tokens.size());
      num_ended_by_stop += std::ranges::count(stop_ids, f.tokens.back()) > 0 ? 1 : 0;
    }
    num_stopped_early += longest < static_cast<std::size_t>(max_tokens) ? 1 : 0;
  }
  // A run in which nothing happened proves nothing.
  CHECK(num_stopped_early > 200);
  CHECK(num_ended_by_stop > 2000);
}

TEST_CASE("beams may be offered in any order, and fewer candidates than asked for", "[engine][host]") {
  BeamSearch beams(params(2, 1.0f, EarlyStopping::no), Tokens{9}, 3);
  CHECK(beams.num_candidates() == 3);
  beams.offer(0, std::vector<TokenLogprob>{{5, -0.1f}, {6, -0.5f}, {9, -3.0f}});
  REQUIRE(beams.is_round_complete());
  REQUIRE(beams.advance().size() == 2);
  beams.offer(1, std::vector<TokenLogprob>{{7, -0.01f}});
  CHECK_FALSE(beams.is_round_complete());
  beams.offer(0, std::vector<TokenLogprob>{{9, -0.2f}});
  const auto next = beams.advance();
  REQUIRE(next.size() == 1);  // the other beam has ended and nothing else can follow it
  CHECK(next[0].parent == 1);
  CHECK(next[0].token == 7);
  beams.offer(0, std::vector<TokenLogprob>{{9, -1.0f}});
  CHECK(beams.advance().empty());
  const auto found = beams.hypotheses();
  REQUIRE(found.size() == 2);
  CHECK(found[0].tokens == Tokens{5, 9});
  CHECK(found[1].tokens == Tokens{6, 7, 9});
}

}  // namespace beam_search_test
