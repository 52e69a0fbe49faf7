#pragma once
/// Random requests for the fake model, and a ledger that checks what becomes of each.

#include "support/sim_device.hpp"

#include <nvl/nvl.hpp>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace nvl_test {

inline const SimWeights& sim_weights() {
  static const SimWeights weights;
  return weights;
}

/// A request of any kind that the fake model serves, with a seed.
inline nvl::Request random_request(std::mt19937& random) {
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
  return request;
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
    const std::vector<nvl::TokenId> expected = sim_tokens(entry->second, *entry->second.sampling.seed);
    const bool is_whole = done.finish_reason == nvl::FinishReason::stop || done.finish_reason == nvl::FinishReason::length;
    const bool is_prefix =
        done.output_ids.size() <= expected.size() && std::equal(done.output_ids.begin(), done.output_ids.end(), expected.begin());
    if (!is_prefix || (is_whole && done.output_ids.size() != expected.size())) {
      wrong.push_back("request " + std::to_string(index_of(done.request)) + " has other tokens than the model alone gives");
    }
    if (!is_whole && done.finish_reason != nvl::FinishReason::abort) {
      wrong.push_back(std::string("request ended with ") + std::string(to_string(done.finish_reason)) + ": " + done.error);
    }
    num_aborted += done.finish_reason == nvl::FinishReason::abort ? 1 : 0;
    ++num_ended;
    open.erase(entry);
  }
};

}  // namespace nvl_test
