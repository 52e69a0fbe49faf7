#pragma once
/// An engine without a model whose steps a test directs: what AsyncEngine makes of every answer and of every delay.

#include <nvl/core/error.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace nvl_test {

/// Every step gives each request that was there when it began its next token, 0, 1, 2 ... up to max_tokens.
class ScriptedEngine {
 public:
  std::function<void()> on_step;    // runs first in each step; what it throws comes out of the step
  std::function<void()> on_submit;  // likewise
  std::atomic<int> num_steps{0}, num_looks{0};
  std::string dead;  // why, for `failure`

  void validate(const nvl::Request& request) const {
    NVL_EXPECTS(!request.prompt_ids.empty(), "prompt_ids", "empty", "at least one token");
  }

  nvl::RequestId submit(nvl::Request request, nvl::RequestCallbacks callbacks) {
    if (on_submit) { on_submit(); }
    const nvl::RequestId id{1000 + num_submitted_++};
    live_.push_back({id, request.sampling.max_tokens, 0, std::move(callbacks), std::move(request.prompt_ids)});
    return id;
  }

  bool abort(nvl::RequestId id, nvl::FinishReason reason = nvl::FinishReason::abort) { return end(id, reason); }

  bool step() {
    ++num_steps;
    if (on_step) { on_step(); }
    std::vector<nvl::RequestId> ids;
    for (const Live& request : live_) { ids.push_back(request.id); }
    for (const nvl::RequestId id : ids) {
      const std::size_t at = find(id);
      if (at == live_.size()) { continue; }
      nvl::SampledToken token;
      token.token = live_[at].num_output++;
      const auto on_token = live_[at].callbacks.on_token;
      const bool is_last = live_[at].num_output == live_[at].max_tokens;
      if (on_token) { on_token({.request = id, .token = token.token, .text = "x", .sampled = &token}); }
      if (is_last) { end(id, nvl::FinishReason::length); }
    }
    return !ids.empty();
  }

  bool has_work() const {
    ++const_cast<std::atomic<int>&>(num_looks);
    return !live_.empty();
  }

  nvl::EngineStats stats() const {
    nvl::EngineStats stats;
    for (const Live& request : live_) {
      if (request.num_output > 0) { continue; }
      ++stats.num_queued;
      stats.queued_tokens += request.prompt.size();
    }
    return stats;
  }

  const std::string& failure() const { return dead; }

 private:
  struct Live {
    nvl::RequestId id;
    int max_tokens, num_output;
    nvl::RequestCallbacks callbacks;
    std::vector<nvl::TokenId> prompt;
  };

  std::size_t find(nvl::RequestId id) const {
    std::size_t at = 0;
    while (at < live_.size() && live_[at].id != id) { ++at; }
    return at;
  }

  bool end(nvl::RequestId id, nvl::FinishReason reason) {
    const std::size_t at = find(id);
    if (at == live_.size()) { return false; }
    const Live request = std::move(live_[at]);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(at));
    nvl::Completion done;
    done.request = id;
    done.prompt_ids = request.prompt;
    done.output_ids.resize(static_cast<std::size_t>(request.num_output));
    for (int i = 0; i < request.num_output; ++i) { done.output_ids[static_cast<std::size_t>(i)] = i; }
    done.finish_reason = reason;
    request.callbacks.on_finish(done);
    return true;
  }

  std::vector<Live> live_;
  std::uint64_t num_submitted_ = 0;
};

}  // namespace nvl_test
