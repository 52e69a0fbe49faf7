#include <nvl/ops/cpu_sampler.hpp>

#include <nvl/core/philox.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/kernels/reference/sampling.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace cpu_sampler_test {

using namespace nvl;

namespace {

/// What a request adds to its SamplingRow.
struct Extras {
  std::vector<LogitBias> bias;
  std::vector<TokenId> banned;
  std::vector<TokenId> history;
};

/// The arrays of a StepInput, of as many rows as are added.
struct Step {
  std::vector<SamplingRow> rows;
  std::vector<LogitBias> bias;
  std::vector<TokenId> banned;
  std::vector<TokenId> history;
  std::vector<std::int32_t> sample_rows;

  void add(SamplingRow row, const Extras& extras = {}) {
    const auto append = [](auto& to, const auto& from) {
      const auto begin = static_cast<std::uint32_t>(to.size());
      to.insert(to.end(), from.begin(), from.end());
      return IndexRange{begin, static_cast<std::uint32_t>(to.size())};
    };
    row.bias = append(bias, extras.bias);
    row.banned = append(banned, extras.banned);
    row.history = append(history, extras.history);
    sample_rows.push_back(static_cast<std::int32_t>(rows.size()));
    rows.push_back(row);
  }

  StepInput input() {
    StepInput in;
    in.sampling = rows;
    in.logit_bias = bias;
    in.banned = banned;
    in.history = history;
    in.sample_rows = sample_rows;
    return in;
  }
};

std::vector<float> random_logits(std::size_t vocab, unsigned seed, float sigma = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> logits(vocab);
  for (float& l : logits) { l = normal(random); }
  return logits;
}

SampledToken sample_one(std::span<const float> logits, const SamplingRow& row, const Extras& extras = {}) {
  Step step;
  step.add(row, extras);
  SamplerScratch scratch;
  SampledToken out;
  sample_row(logits, step.input(), step.rows[0], scratch, out);
  return out;
}

SamplingRow sampled_row(float temperature = 1.0f) {
  SamplingRow row;
  row.temperature = temperature;
  row.seed = 42;
  return row;
}

struct Setting {
  std::string name;
  std::vector<float> logits;
  SamplingRow row;
  Extras extras;
  std::uint32_t num_draws = 20000;
};

std::vector<Setting> settings() {
  const std::vector<float> logits = random_logits(120, 5);
  std::vector<Setting> all;
  const auto add = [&](const std::string& name, auto&& change, const Extras& extras = {}) {
    SamplingRow row = sampled_row();
    change(row);
    all.push_back({name, logits, row, extras});
  };
  add("plain", [](SamplingRow&) {});
  add("cool", [](SamplingRow& r) { r.temperature = 0.6f; });
  add("hot", [](SamplingRow& r) { r.temperature = 100.0f; });
  add("top_k 1", [](SamplingRow& r) { r.top_k = 1; });
  add("top_k 7", [](SamplingRow& r) { r.top_k = 7; });
  add("top_k 119, hot", [](SamplingRow& r) { r.top_k = 119, r.temperature = 50.0f; });
  add("top_k beyond the vocabulary", [](SamplingRow& r) { r.top_k = 5000; });
  add("top_p 0.5", [](SamplingRow& r) { r.top_p = 0.5f; });
  add("top_p 0.99, hot", [](SamplingRow& r) { r.top_p = 0.99f, r.temperature = 4.0f; });
  add("tiny top_p", [](SamplingRow& r) { r.top_p = 1e-6f; });
  add("min_p 0.1", [](SamplingRow& r) { r.min_p = 0.1f; });
  add("min_p 1", [](SamplingRow& r) { r.min_p = 1.0f; });
  add("top_k 40, top_p 0.8", [](SamplingRow& r) { r.top_k = 40, r.top_p = 0.8f, r.temperature = 2.0f; });
  add("top_k 40, top_p 0.95, min_p 0.05",
      [](SamplingRow& r) { r.top_k = 40, r.top_p = 0.95f, r.min_p = 0.05f, r.temperature = 1.5f; });
  add("top_p 0.9, min_p 0.02", [](SamplingRow& r) { r.top_p = 0.9f, r.min_p = 0.02f, r.temperature = 1.5f; });
  add("banned", [](SamplingRow& r) { r.top_k = 10; }, {.bias = {}, .banned = {3, 7, 7, 119, 0}, .history = {}});
  add("bias", [](SamplingRow& r) { r.top_p = 0.9f; },
      {.bias = {{0, 8.0f}, {119, 7.5f}, {0, 0.5f}, {17, -100.0f}}, .banned = {}, .history = {}});
  add("penalties",
      [](SamplingRow& r) {
        r.repetition_penalty = 1.3f, r.presence_penalty = 0.4f, r.frequency_penalty = 0.2f, r.num_prompt = 3, r.top_k = 50;
      },
      {.bias = {{9, 2.0f}}, .banned = {11}, .history = {1, 2, 3, 3, 9, 9, 9, 11, 40}});
  Setting equal{"all equal", std::vector<float>(120, 1.5f), sampled_row(), {}};
  all.push_back(equal);
  equal.name = "all equal, top_k 10";
  equal.row.top_k = 10;
  all.push_back(equal);
  equal.name = "all equal, top_p 0.101";
  equal.row.top_k = 0;
  equal.row.top_p = 0.101f;
  all.push_back(equal);
  for (Setting& s : all) {
    const bool is_long =
        s.name == "plain" || s.name == "top_p 0.99, hot" || s.name == "top_k 40, top_p 0.95, min_p 0.05" || s.name == "penalties";
    if (is_long) { s.num_draws = 200000; }
  }
  return all;
}

/// Upper quantile of a chi-square distribution at which a right sampler fails with probability 1e-6 (Wilson & Hilferty 1931).
double chi_square_limit(double freedom) {
  const double a = 2.0 / (9.0 * freedom);
  const double root = 1 - a + 4.7534 * std::sqrt(a);
  return freedom * root * root * root;
}

}  // namespace

TEST_CASE("Draws follow the distribution of the oracle and never leave its support", "[ops][host][slow]") {
  for (Setting& s : settings()) {
    Step step;
    step.add(s.row, s.extras);
    const StepInput in = step.input();
    const auto expected = reference::sampling_distribution(s.logits, in, step.rows[0]);
    REQUIRE(expected.top_p_margin > 1e-5);  // otherwise rounding may decide the set, and the test means nothing
    SamplerScratch scratch;
    SampledToken out;
    std::vector<std::uint32_t> counts(s.logits.size());
    SamplingRow row = step.rows[0];
    for (row.output_index = 0; row.output_index < s.num_draws; ++row.output_index) {
      sample_row(s.logits, in, row, scratch, out);
      ++counts.at(static_cast<std::size_t>(out.token));
    }
    INFO(s.name);
    double statistic = 0, cells = 0, rare_expected = 0, rare_counted = 0;
    bool stays_inside = true;
    const auto add_cell = [&](double counted, double wanted) {
      statistic += (counted - wanted) * (counted - wanted) / wanted;
      ++cells;
    };
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const double wanted = expected.probabilities[i] * s.num_draws;
      if (wanted == 0) { stays_inside = stays_inside && counts[i] == 0; }
      if (wanted >= 20) {
        add_cell(counts[i], wanted);
      } else {
        rare_expected += wanted;
        rare_counted += counts[i];
      }
    }
    CHECK(stays_inside);
    if (rare_expected > 5) { add_cell(rare_counted, rare_expected); }
    if (cells > 1) { CHECK(statistic < chi_square_limit(cells - 1)); }
  }
}

TEST_CASE("The tokens that can be drawn are exactly those that the oracle keeps", "[ops][host]") {
  // Small vocabularies and high temperatures, so that every kept token is met within a number of draws that a test can afford.
  std::mt19937 random(3);
  int compared = 0;
  for (unsigned trial = 0; trial < 60; ++trial) {
    std::vector<float> logits = random_logits(60, trial, 1.0f);
    if (trial % 3 == 0) {
      for (float& l : logits) { l = std::round(l); }  // many ties
    }
    SamplingRow row = sampled_row(trial % 2 == 0 ? 20.0f : 1.5f);
    row.top_k = std::uniform_int_distribution<std::int32_t>(0, 70)(random);
    row.top_p = trial % 4 == 0 ? 1.0f : std::uniform_real_distribution<float>(0.05f, 0.99f)(random);
    row.min_p =
        trial % 5 == 0 ? 0.0f : std::uniform_real_distribution<float>(0.0f, 1.0f)(random) * (trial % 2 == 0 ? 1.0f : 0.2f);
    Step step;
    step.add(row);
    const StepInput in = step.input();
    const auto expected = reference::sampling_distribution(logits, in, row);
    if (expected.top_p_margin < 1e-6) { continue; }
    ++compared;
    std::set<TokenId> kept, drawn;
    double rarest = 1;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (expected.probabilities[i] > 0) {
        kept.insert(static_cast<TokenId>(i));
        rarest = std::min(rarest, expected.probabilities[i]);
      }
    }
    SamplerScratch scratch;
    SampledToken out;
    // P(a kept token is missed) < 60 * exp(-20) = 1.3e-7 a trial.
    const auto draws = static_cast<std::uint32_t>(20 / rarest) + 1;
    for (row.output_index = 0; row.output_index < draws; ++row.output_index) {
      sample_row(logits, in, row, scratch, out);
      drawn.insert(out.token);
    }
    INFO("trial " << trial << " top_k " << row.top_k << " top_p " << row.top_p << " min_p " << row.min_p);
    CHECK(drawn == kept);
  }
  CHECK(compared > 50);
}

TEST_CASE("A draw is the first token by id at which the cumulated probability exceeds the uniform number", "[ops][host]") {
  const std::vector<float> logits = random_logits(5000, 11);
  for (const std::int32_t top_k : {0, 300}) {
    SamplingRow row = sampled_row();
    row.top_k = top_k;
    Step step;
    step.add(row);
    const auto expected = reference::sampling_distribution(logits, step.input(), row);
    SamplerScratch scratch;
    SampledToken out;
    int unclear = 0;
    for (row.output_index = 0; row.output_index < 2000; ++row.output_index) {
      sample_row(logits, step.input(), row, scratch, out);
      const double u = uniform(row.seed, row.choice, row.output_index);
      double below = 0;
      for (TokenId i = 0; i < out.token; ++i) { below += expected.probabilities[static_cast<std::size_t>(i)]; }
      const double through = below + expected.probabilities[static_cast<std::size_t>(out.token)];
      CHECK(u > below - 1e-6);
      CHECK(u < through + 1e-6);
      unclear += u < below || u >= through ? 1 : 0;
    }
    CHECK(unclear < 5);  // rounding may move a bound, rarely past a number
  }
}

TEST_CASE("The vector exponential is exact at zero, close below and zero far below", "[ops][host]") {
  const auto exponential = [](float x) {
    detail::SamplerFloats v = detail::SamplerFloats{} + x;
    detail::exp_nonpositive(v);
    return v[0];
  };
  CHECK(exponential(0.0f) == 1.0f);
  CHECK(exponential(-88.0f) == 0.0f);
  CHECK(exponential(-std::numeric_limits<float>::infinity()) == 0.0f);
  double worst = 0;
  for (float x = -87.0f; x < 0.0f; x += 0.00137f) {
    const double expected = std::exp(double{x});
    worst = std::max(worst, std::abs(exponential(x) - expected) / expected);
  }
  CHECK(worst < 2e-7);
}

TEST_CASE("Greedy takes the largest logit and the lowest id among equals", "[ops][host]") {
  std::vector<float> logits = random_logits(1003, 8);
  logits[700] = 50.0f;
  CHECK(sample_one(logits, {}).token == 700);
  logits[1002] = 50.0f;
  CHECK(sample_one(logits, {}).token == 700);
  logits[2] = 50.0f;
  CHECK(sample_one(logits, {}).token == 2);
  CHECK(sample_one(logits, {}, {.bias = {}, .banned = {2}, .history = {}}).token == 700);
  CHECK(sample_one(logits, {}, {.bias = {{1, 1000.0f}}, .banned = {}, .history = {}}).token == 1);
  const std::vector<float> negative(9, -3.0f);
  CHECK(sample_one(negative, {}).token == 0);
  const std::vector<float> zeros{-0.0f, 0.0f};
  CHECK(sample_one(zeros, {}).token == 0);
  // Truncation does not concern greedy rows.
  SamplingRow row;
  row.top_p = 0.1f;
  row.top_k = 3;
  row.min_p = 0.5f;
  CHECK(sample_one(logits, row).token == 2);
}

TEST_CASE("A row of any length is read to its end", "[ops][host]") {
  for (std::size_t vocab = 1; vocab < 40; ++vocab) {
    for (std::size_t best = 0; best < vocab; ++best) {
      std::vector<float> logits(vocab, -1.0f);
      logits[best] = 30.0f;
      SamplingRow row = sampled_row();
      CHECK(sample_one(logits, {}).token == static_cast<TokenId>(best));
      CHECK(sample_one(logits, row).token == static_cast<TokenId>(best));
      row.top_k = 1;
      CHECK(sample_one(logits, row).token == static_cast<TokenId>(best));
      row.top_k = 0;
      row.top_p = 0.5f;
      CHECK(sample_one(logits, row).token == static_cast<TokenId>(best));
      logits[best] = std::numeric_limits<float>::quiet_NaN();
      CHECK_FALSE(sample_one(logits, {}).finite);
    }
  }
}

TEST_CASE("Extreme but legal parameters give the limit that mathematics gives", "[ops][host]") {
  std::vector<float> logits = random_logits(2000, 21);
  const TokenId best = sample_one(logits, {}).token;
  logits[static_cast<std::size_t>(best)] += 1.0f;  // a clear winner
  for (const float temperature : {1e-3f, 1e-30f, std::numeric_limits<float>::denorm_min()}) {
    for (const auto& change :
         {+[](SamplingRow&) {}, +[](SamplingRow& r) { r.top_k = 50; }, +[](SamplingRow& r) { r.top_p = 0.9f; },
          +[](SamplingRow& r) { r.min_p = 0.1f; }, +[](SamplingRow& r) { r.num_logprobs = 5; }}) {
      SamplingRow row = sampled_row(temperature);
      change(row);
      for (row.output_index = 0; row.output_index < 20; ++row.output_index) {
        const SampledToken out = sample_one(logits, row);
        CHECK(out.token == best);
        CHECK(out.finite);
        for (const TokenLogprob& t : out.top_logprobs) { CHECK(std::isfinite(t.logprob)); }
      }
    }
  }

  SECTION("logits of the largest magnitudes") {
    std::vector<float> huge(100, -std::numeric_limits<float>::max());
    huge[60] = std::numeric_limits<float>::max();
    for (const float temperature : {0.0f, 1e-3f, 1.0f, 100.0f}) {
      for (const std::int32_t top_k : {0, 5}) {
        SamplingRow row = sampled_row(temperature);
        row.top_k = top_k;
        row.top_p = top_k == 0 ? 0.9f : 1.0f;
        row.num_logprobs = 3;
        const SampledToken out = sample_one(huge, row, {.bias = {{60, 1e4f}, {3, -1e4f}}, .banned = {}, .history = {}});
        CHECK(out.token == 60);
        CHECK(out.logprob == 0.0f);
        REQUIRE(out.top_logprobs.size() == 3);
        CHECK(std::isfinite(out.top_logprobs[2].logprob));
      }
    }
  }
  SECTION("a penalty that would overflow stays finite") {
    std::vector<float> large(10, 1e37f);
    SamplingRow row;
    row.repetition_penalty = 1e-3f;
    row.num_logprobs = 1;
    const SampledToken out = sample_one(large, row, {.bias = {}, .banned = {}, .history = {4}});
    CHECK(out.finite);
    CHECK(out.token == 4);
  }
  SECTION("one token is left") {
    Extras extras;
    for (TokenId id = 0; id < 2000; ++id) {
      if (id != 1234) { extras.banned.push_back(id); }
    }
    for (const float temperature : {0.0f, 1e-3f, 1.0f, 100.0f}) {
      for (const float top_p : {1.0f, 0.3f}) {
        for (const std::int32_t top_k : {0, 1, 10}) {
          SamplingRow row = sampled_row(temperature);
          row.top_p = top_p;
          row.top_k = top_k;
          row.num_logprobs = 4;
          const SampledToken out = sample_one(logits, row, extras);
          CHECK(out.token == 1234);
          CHECK(out.logprob == Catch::Approx(0.0).margin(1e-6));
          CHECK(out.top_logprobs.size() == 1);
        }
      }
    }
    extras.banned.push_back(1234);
    CHECK_FALSE(sample_one(logits, {}, extras).finite);
    CHECK_FALSE(sample_one(logits, sampled_row(), extras).finite);
  }
  SECTION("a vocabulary of one") {
    const std::vector<float> one{-7.0f};
    SamplingRow row = sampled_row();
    row.num_logprobs = 0;
    const SampledToken out = sample_one(one, row);
    CHECK(out.token == 0);
    CHECK(out.logprob == 0.0f);
  }
}

TEST_CASE("Penalties equal a computation by hand", "[ops][host]") {
  // Prompt 0 1, output 1 2 2. Token:        0     1      2      3
  const std::vector<float> logits{2.0f, -1.0f, 4.0f, 1.0f};
  SamplingRow row;
  row.repetition_penalty = 2.0f;
  row.presence_penalty = 0.5f;
  row.frequency_penalty = 0.25f;
  row.num_prompt = 2;
  row.num_logprobs = 4;
  const SampledToken out = sample_one(logits, row, {.bias = {}, .banned = {}, .history = {0, 1, 1, 2, 2}});
  // 0: 2/2 = 1.   1: -1*2 - 0.5 - 0.25 = -2.75.   2: 4/2 - 0.5 - 2*0.25 = 1.   3: untouched, 1.
  const double total = std::log(3 * std::exp(1.0) + std::exp(-2.75));
  CHECK(out.token == 0);
  REQUIRE(out.top_logprobs.size() == 4);
  CHECK(out.top_logprobs[0].token == 0);
  CHECK(out.top_logprobs[1].token == 2);
  CHECK(out.top_logprobs[2].token == 3);
  CHECK(out.top_logprobs[3].token == 1);
  CHECK(out.top_logprobs[2].logprob == Catch::Approx(1 - total));
  CHECK(out.top_logprobs[3].logprob == Catch::Approx(-2.75 - total));

  SECTION("bias comes first, so a penalty sees its sign") {
    SamplingRow biased = row;
    biased.presence_penalty = 0;
    biased.frequency_penalty = 0;
    const SampledToken b = sample_one(logits, biased, {.bias = {{1, 3.0f}}, .banned = {}, .history = {1}});
    // 0: 2.   1: (-1 + 3) / 2 = 1.   2: 4.   3: 1.
    const double sum = std::log(std::exp(2.0) + 2 * std::exp(1.0) + std::exp(4.0));
    CHECK(b.token == 2);
    CHECK(b.top_logprobs[2].token == 1);
    CHECK(b.top_logprobs[2].logprob == Catch::Approx(1 - sum));
  }
  SECTION("counts do not leak into the next row of the same scratch") {
    Step step;
    step.add(row, {.bias = {}, .banned = {}, .history = {0, 1, 1, 2, 2, 99, -1}});
    SamplerScratch scratch;
    SampledToken first, second;
    sample_row(logits, step.input(), step.rows[0], scratch, first);
    sample_row(logits, step.input(), step.rows[0], scratch, second);
    CHECK(first.logprob == second.logprob);
    CHECK(first.logprob == out.logprob);
  }
}

TEST_CASE("Log-probabilities are those of the oracle, sorted, and sum to one over the vocabulary", "[ops][host]") {
  for (const Setting& s : settings()) {
    Step step;
    SamplingRow options = s.row;
    options.num_logprobs = 120;
    step.add(options, s.extras);
    const SamplingRow row = step.rows[0];
    SamplerScratch scratch;
    SampledToken out;
    sample_row(s.logits, step.input(), row, scratch, out);
    const auto expected = reference::sampling_distribution(s.logits, step.input(), row);
    INFO(s.name);
    REQUIRE(out.top_logprobs.size() == expected.by_likelihood.size());
    double sum = 0;
    bool right_order = true, close = true;
    for (std::size_t i = 0; i < out.top_logprobs.size(); ++i) {
      const TokenLogprob& t = out.top_logprobs[i];
      sum += std::exp(double{t.logprob});
      right_order = right_order && t.token == expected.by_likelihood[i];
      close = close && std::abs(t.logprob - expected.logprobs[static_cast<std::size_t>(t.token)]) < 2e-5;
    }
    CHECK(right_order);
    CHECK(close);
    CHECK(sum == Catch::Approx(1.0).epsilon(1e-5));
    CHECK(out.logprob == Catch::Approx(expected.logprobs[static_cast<std::size_t>(out.token)]).margin(2e-5));
  }
}

TEST_CASE("num_logprobs says how many tokens are listed", "[ops][host]") {
  const std::vector<float> logits = random_logits(1000, 4);
  for (const float temperature : {0.0f, 0.7f}) {
    SamplingRow row = sampled_row(temperature);
    const SampledToken none = sample_one(logits, row);
    CHECK(none.top_logprobs.empty());
    CHECK(none.logprob == 0.0f);
    row.num_logprobs = 0;
    const SampledToken own = sample_one(logits, row);
    CHECK(own.top_logprobs.empty());
    CHECK(own.logprob < 0.0f);
    CHECK(own.token == none.token);  // asking for log-probabilities changes no token
    row.num_logprobs = 20;
    const SampledToken twenty = sample_one(logits, row);
    CHECK(twenty.top_logprobs.size() == 20);
    CHECK(twenty.token == none.token);
    CHECK(twenty.logprob == own.logprob);
    row.num_logprobs = 5000;
    CHECK(sample_one(logits, row).top_logprobs.size() == 1000);
  }
}

TEST_CASE("A request's tokens do not depend on batch mates or on the number of threads", "[ops][host]") {
  constexpr std::int32_t vocab = 3001;
  Step batch;
  std::vector<float> logits;
  std::vector<SampledToken> alone;
  const std::vector<Setting> all = settings();
  for (unsigned i = 0; i < 40; ++i) {
    const Setting& s = all[i % all.size()];
    SamplingRow row = s.row;
    row.seed = i;
    row.choice = i % 3;
    row.output_index = i * 7;
    row.num_logprobs = i % 4 == 0 ? 3 : -1;
    const std::vector<float> own = random_logits(vocab, 100 + i);
    logits.insert(logits.end(), own.begin(), own.end());
    batch.add(row, s.extras);
    alone.push_back(sample_one(own, row, s.extras));
  }
  const StepInput in = batch.input();
  for (const std::int32_t threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CpuSampler sampler;
    StepOutput out, fresh;
    for (int repeat = 0; repeat < 3; ++repeat) {  // the later ones with memory of the earlier ones
      sampler.sample_rows(pool, in, logits.data(), vocab, out);
      sample_rows(pool, in, logits.data(), vocab, fresh);
      REQUIRE(out.sampled.size() == alone.size());
      for (std::size_t i = 0; i < alone.size(); ++i) {
        CHECK(out.sampled[i].token == alone[i].token);
        CHECK(out.sampled[i].logprob == alone[i].logprob);
        REQUIRE(out.sampled[i].top_logprobs.size() == alone[i].top_logprobs.size());
        for (std::size_t n = 0; n < alone[i].top_logprobs.size(); ++n) {
          CHECK(out.sampled[i].top_logprobs[n].token == alone[i].top_logprobs[n].token);
          CHECK(out.sampled[i].top_logprobs[n].logprob == alone[i].top_logprobs[n].logprob);
        }
        CHECK(fresh.sampled[i].token == alone[i].token);
      }
    }
  }
}

TEST_CASE("Seed, choice and output index each give other tokens", "[ops][host]") {
  const std::vector<float> logits(10000, 0.0f);
  std::set<TokenId> tokens;
  SamplingRow row = sampled_row();
  for (std::uint32_t i = 0; i < 5; ++i) {
    row.seed = i;
    row.choice = 0;
    row.output_index = 0;
    tokens.insert(sample_one(logits, row).token);
    row.choice = i + 1;
    tokens.insert(sample_one(logits, row).token);
    row.output_index = i + 1;
    tokens.insert(sample_one(logits, row).token);
  }
  CHECK(tokens.size() == 15);
}

TEST_CASE("A row that is not finite is reported and harms no other row", "[ops][host]") {
  constexpr std::int32_t vocab = 517;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  ThreadPool pool(2);
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
    for (const std::size_t at : {std::size_t{0}, std::size_t{300}, std::size_t{516}}) {
      Step step;
      std::vector<float> logits;
      for (unsigned r = 0; r < 9; ++r) {
        const std::vector<float> own = random_logits(vocab, r);
        logits.insert(logits.end(), own.begin(), own.end());
        SamplingRow row = sampled_row(r % 3 == 0 ? 0.0f : 1.0f);
        row.top_k = r % 2 == 0 ? 5 : 0;
        row.num_logprobs = 2;
        step.add(row, {.bias = {{1, 1.0f}}, .banned = {}, .history = {}});
      }
      StepOutput clean, poisoned;
      sample_rows(pool, step.input(), logits.data(), vocab, clean);
      for (const std::size_t bad : {std::size_t{0}, std::size_t{4}, std::size_t{5}}) { logits[bad * vocab + at] = poison; }
      sample_rows(pool, step.input(), logits.data(), vocab, poisoned);
      for (std::size_t r = 0; r < 9; ++r) {
        const bool bad = r == 0 || r == 4 || r == 5;
        CHECK(clean.sampled[r].finite);
        CHECK(poisoned.sampled[r].finite == !bad);
        CHECK(poisoned.sampled[r].top_logprobs.size() == (bad ? 0u : 2u));
        if (!bad) { CHECK(poisoned.sampled[r].token == clean.sampled[r].token); }
      }
    }
  }
}

TEST_CASE("A step without sampled rows gives an empty output", "[ops][host]") {
  ThreadPool pool(2);
  StepOutput out;
  out.sampled.resize(3);
  sample_rows(pool, StepInput{}, nullptr, 100, out);
  CHECK(out.sampled.empty());
}

TEST_CASE("Large vocabularies: truncated draws stay in the oracle's support", "[ops][host]") {
  const std::vector<float> logits = random_logits(50257, 77, 2.0f);
  SamplerScratch scratch;
  SampledToken out;
  for (const float temperature : {0.7f, 3.0f}) {
    for (const std::int32_t top_k : {0, 3, 1000, 50000}) {
      for (const float top_p : {1.0f, 0.9f}) {
        SamplingRow row = sampled_row(temperature);
        row.top_k = top_k;
        row.top_p = top_p;
        row.min_p = top_k == 3 ? 0.5f : 0.0f;
        Step step;
        step.add(row);
        const auto expected = reference::sampling_distribution(logits, step.input(), row);
        int outside = 0;
        for (row.output_index = 0; row.output_index < 50; ++row.output_index) {
          sample_row(logits, step.input(), row, scratch, out);
          outside += expected.probabilities[static_cast<std::size_t>(out.token)] == 0 ? 1 : 0;
        }
        CHECK(outside == 0);
      }
    }
  }
}

}  // namespace cpu_sampler_test
