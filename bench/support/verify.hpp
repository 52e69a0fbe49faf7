#pragma once
/// The correctness gate in front of every speed: greedy answers of the measured engine, judged by the float32 CPU engine.
///
/// The judge does not generate. It is given prompt and answer and computes the logits in front of each token of the answer
/// (teacher forcing), so one near tie does not make all later tokens differ. The regret of a token is the judge's highest logit
/// less the token's own; 0 says that the judge would have chosen it too. A regret above the limit is a wrong answer: then the
/// judge's two best tokens are further apart than rounding explains, or the token is none of them.

#include "bench/support/workload.hpp"

#include <nvl/core/dtype.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/request.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nvl_bench {

struct VerifyOptions {
  std::int32_t num_requests = 16;  // of the load, evenly chosen
  std::int32_t input_len = 256;    // [tokens] prompts are cut to
  std::int32_t output_len = 32;    // [tokens] generated at most
};

/// Up to where another choice than the judge's is a tie that rounding decides: the smaller of the two counts.
struct RegretLimit {
  double logits = 0;      // [logits]
  double deviations = 0;  // of the judge's logits: random weights make logits many times smaller than trained ones

  /// For activations of this type. The absolute ones are where greedy choices of a trained model were seen to flip.
  static RegretLimit of(nvl::DType dtype) {
    switch (dtype) {
      case nvl::DType::bfloat16: return {0.5, 0.2};
      case nvl::DType::float16: return {0.02, 0.2};
      default: return {0.001, 0.2};
    }
  }
};

/// Prompt and greedy continuation of one request.
struct Answer {
  std::vector<nvl::TokenId> prompt, output;
};

/// What the judge found.
struct Verdict {
  std::size_t num_requests = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_same = 0;      // tokens that the judge would have chosen
  std::int64_t num_decisive = 0;  // positions where the judge's best two are further apart than the limit
  std::int64_t num_wrong = 0;     // tokens whose regret is above the limit
  double limit = 0;               // [logits]
  double worst_regret = 0, mean_regret = 0;
  double logit_deviation = 0;  // standard deviation of the judge's logits: the scale of all these numbers
  std::string worst;           // which token had the worst regret

  bool passed() const { return num_tokens > 0 && num_wrong == 0; }
};

/// The load of the check: the same requests, shorter and greedy.
inline Workload verification_load(const Workload& load, const VerifyOptions& options) {
  Workload shorter = load;
  shorter.temperature = 0;
  for (auto& prompt : shorter.prompts) { prompt.resize(std::min(prompt.size(), static_cast<std::size_t>(options.input_len))); }
  for (std::int32_t& length : shorter.output_lens) { length = std::min(length, options.output_len); }
  return shorter;
}

/// Runs all requests of `load`, `batch` at a time, and returns the answers of `num_answers` of them: those that are verified run
/// among as many others as those that are measured.
/// \throws std::runtime_error if a request fails or stops early
inline std::vector<Answer> greedy_answers(nvl::AnyEngine& engine, const Workload& load, std::size_t num_answers,
                                          std::size_t batch) {
  std::vector<nvl::Request> requests = load.requests();
  std::vector<nvl::Completion> done;
  for (std::size_t begin = 0; begin < requests.size(); begin += batch) {
    std::vector<nvl::Request> group;
    for (std::size_t i = begin; i < std::min(begin + batch, requests.size()); ++i) {
      requests[i].cache_salt = "verify";  // the prefix cache must not have parts of the measured prompts
      group.push_back(std::move(requests[i]));
    }
    for (nvl::Completion& one : engine.generate(std::move(group))) { done.push_back(std::move(one)); }
  }
  std::vector<Answer> answers;
  num_answers = std::min(num_answers, done.size());
  for (std::size_t i = 0; i < num_answers; ++i) {
    const std::size_t chosen = i * done.size() / num_answers;
    nvl::Completion& one = done[chosen];
    if (std::ssize(one.output_ids) != load.output_lens[chosen]) {
      throw std::runtime_error("request " + std::to_string(chosen + 1) + " of the check ended after " +
                               std::to_string(one.output_ids.size()) + " of " + std::to_string(load.output_lens[chosen]) +
                               " tokens" + (one.error.empty() ? "" : ": " + one.error));
    }
    answers.push_back({std::move(one.prompt_ids), std::move(one.output_ids)});
  }
  return answers;
}

namespace detail {

/// Collects what the judge thinks of each token.
class RegretStatistics {
 public:
  /// \param name of the token, for the message about the worst one
  template <class Name>
  void add(std::span<const float> logits, nvl::TokenId chosen, Name&& name) {
    float best = -std::numeric_limits<float>::infinity(), second = best;
    double sum = 0, squares = 0;
    for (const float logit : logits) {
      sum += logit;
      squares += double{logit} * logit;
      if (logit > best) {
        second = std::exchange(best, logit);
      } else {
        second = std::max(second, logit);
      }
    }
    if (!std::isfinite(squares)) { throw std::runtime_error("the check itself failed: logits of the CPU engine are not finite"); }
    sum_ += sum;
    squares_ += squares;
    count_ += static_cast<double>(logits.size());
    regrets_.push_back(double{best} - logits[static_cast<std::size_t>(chosen)]);
    margins_.push_back(double{best} - second);
    if (worst_.empty() || regrets_.back() > worst_regret_) {
      worst_regret_ = regrets_.back();
      worst_ = name();
    }
  }

  Verdict verdict(const RegretLimit& limit) const {
    Verdict v;
    if (regrets_.empty()) { return v; }
    v.logit_deviation = std::sqrt(std::max(0.0, squares_ / count_ - (sum_ / count_) * (sum_ / count_)));
    v.limit = std::min(limit.logits, limit.deviations * v.logit_deviation);
    v.num_tokens = std::ssize(regrets_);
    for (const double regret : regrets_) {
      v.num_same += regret == 0 ? 1 : 0;
      v.num_wrong += regret > v.limit ? 1 : 0;
      v.mean_regret += regret / static_cast<double>(regrets_.size());
    }
    for (const double margin : margins_) { v.num_decisive += margin > v.limit ? 1 : 0; }
    v.worst_regret = worst_regret_;
    v.worst = worst_;
    return v;
  }

 private:
  double sum_ = 0, squares_ = 0, count_ = 0;  // of all logits
  std::vector<double> regrets_, margins_;     // a token
  double worst_regret_ = 0;
  std::string worst_;
};

}  // namespace detail

/// \param reference the judge; its max_model_len holds the longest prompt with its answer
/// \throws std::runtime_error if the judge's own logits are not finite
inline Verdict judge(nvl::AnyEngine& reference, std::span<const Answer> answers, const RegretLimit& limit) {
  detail::RegretStatistics statistics;
  for (std::size_t r = 0; r < answers.size(); ++r) {
    const Answer& answer = answers[r];
    if (answer.output.empty()) { continue; }
    std::vector<nvl::TokenId> ids = answer.prompt;
    ids.insert(ids.end(), answer.output.begin(), answer.output.end() - 1);
    const auto first = static_cast<std::int32_t>(answer.prompt.size()) - 1;
    const auto visit = [&](std::int32_t position, std::span<const float> logits) {
      const auto at = static_cast<std::size_t>(position - first);
      statistics.add(logits, answer.output[at], [&] {
        return "token " + std::to_string(at + 1) + " of request " + std::to_string(r + 1) + ", id " +
               std::to_string(answer.output[at]);
      });
    };
    reference.prompt_logits(ids, visit, first);
  }
  Verdict verdict = statistics.verdict(limit);
  verdict.num_requests = answers.size();
  return verdict;
}

}  // namespace nvl_bench
