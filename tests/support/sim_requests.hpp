#pragma once
/// Random requests for the fake model, and a ledger that checks what becomes of each.

#include "support/sim_device.hpp"

#include <nvl/nvl.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace nvl_test {

inline const SimWeights& sim_weights() {
  static const SimWeights weights;
  return weights;
}

/// A request of any kind that the fake model serves, with a seed. `beams`: perhaps a beam search.
inline nvl::Request random_request(std::mt19937& random, bool beams = false) {
  nvl::Request request;
  const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
  // Few different heads, so that prefixes are shared, and few different tokens, so that weak hashes collide.
  const unsigned head = random() % 4;
  const int length = 1 + below(30);
  for (int i = 0; i < length; ++i) {
    request.prompt_ids.push_back(i < 12 ? static_cast<nvl::TokenId>(sim_mix(head * 100 + static_cast<unsigned>(i)) % 3)
                                        : static_cast<nvl::TokenId>(below(sim::vocab_size)));
  }
  request.sampling.temperature = below(3) == 0 ? 1.0f : 0.0f;
  request.sampling.seed = random();
  request.sampling.max_tokens = 1 + below(20);
  request.sampling.ignore_eos = below(2) == 0;
  if (below(4) == 0) { request.sampling.stop_token_ids = {1, 20, 33, 77, 101, 150}; }
  if (below(4) == 0) {
    request.sampling.min_tokens = 1 + below(std::min(4u, static_cast<unsigned>(request.sampling.max_tokens)));
  }
  if (below(4) == 0) { request.cache_salt = "tenant"; }
  request.priority = below(3);
  if (below(6) == 0) {
    request.sampling.n = 2 + below(2);
    if (below(2) == 0) { request.sampling.best_of = request.sampling.n + 1; }
  } else if (beams && below(8) == 0) {
    request.prompt_ids.resize(std::min<std::size_t>(request.prompt_ids.size(), 8));
    request.sampling = {};
    request.sampling.seed = 0;
    request.sampling.beam_width = 2 + below(2);
    request.sampling.n = 1 + below(2);
    request.sampling.max_tokens = 1 + below(6);
    request.sampling.early_stopping = static_cast<nvl::EarlyStopping>(below(3));
  }
  return request;
}

inline bool is_right(const nvl::Request& request, const nvl::Choice& choice) {
  const std::vector<nvl::TokenId> expected = sim_tokens(request, *request.sampling.seed, choice.index);
  const bool is_whole = choice.finish_reason == nvl::FinishReason::stop || choice.finish_reason == nvl::FinishReason::length;
  return choice.output_ids.size() <= expected.size() &&
         std::equal(choice.output_ids.begin(), choice.output_ids.end(), expected.begin()) &&
         (!is_whole || choice.output_ids.size() == expected.size());
}

/// Whether a choice of the request was.
inline bool was_aborted(const nvl::Completion& done) {
  bool any = done.finish_reason == nvl::FinishReason::abort;
  for (const nvl::Choice& choice : done.others) { any = any || choice.finish_reason == nvl::FinishReason::abort; }
  return any;
}

/// Whether these are the tokens of the model alone; if the request was aborted, the first of them. A beam search is compared
/// with one that has an engine to itself.
inline bool is_right(const nvl::Request& request, const nvl::Completion& done) {
  if (!request.sampling.is_beam_search()) {
    bool right = is_right(request, static_cast<const nvl::Choice&>(done));
    for (const nvl::Choice& choice : done.others) { right = right && is_right(request, choice); }
    return right && (was_aborted(done) || std::ssize(done.others) == request.sampling.n - 1);
  }
  if (was_aborted(done)) { return true; }
  SimEngine<> alone(sim_config(), sim_weights(), sim_options(400));
  const nvl::Completion expected = alone.generate({request}).front();
  bool right = done.output_ids == expected.output_ids && done.others.size() == expected.others.size();
  for (std::size_t i = 0; right && i < done.others.size(); ++i) {
    right = done.others[i].output_ids == expected.others[i].output_ids;
  }
  return right;
}

/// What became of the requests of a run, checked as it happens.
struct Ledger {
  std::map<nvl::RequestId, nvl::Request> open;
  std::vector<std::string> wrong;
  int num_ended = 0, num_aborted = 0;

  nvl::RequestCallbacks callbacks() {
    return {.on_token = {}, .on_finish = [this](const nvl::Completion& done) { end(done); }};
  }

  void end(const nvl::Completion& done) {
    const auto entry = open.find(done.request);
    if (entry == open.end()) {
      wrong.push_back("request " + std::to_string(index_of(done.request)) + " ended twice");
      return;
    }
    const bool is_aborted = was_aborted(done);
    if (!is_aborted && !done.error.empty()) {
      wrong.push_back("request ended with " + std::string(to_string(done.finish_reason)) + ": " + done.error);
    } else if (!is_right(entry->second, done)) {
      wrong.push_back("request " + std::to_string(index_of(done.request)) + " has other tokens than the model alone gives");
    }
    num_aborted += is_aborted ? 1 : 0;
    ++num_ended;
    open.erase(entry);
  }
};

}  // namespace nvl_test
