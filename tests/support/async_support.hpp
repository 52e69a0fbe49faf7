#pragma once
/// What tests of engines on threads of their own watch them with.

#include <nvl/engine/request.hpp>

#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace nvl_test {

inline nvl::Request request_of(int num_prompt, int max_tokens) {
  nvl::Request request;
  request.prompt_ids.assign(static_cast<std::size_t>(num_prompt), 5);
  request.sampling.max_tokens = max_tokens;
  return request;
}

/// Lets the engine's thread in only as often as the test says.
class Turnstile {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++num_waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return num_let_in_ > 0 || is_open_; });
    --num_waiting_;
    if (!is_open_) { --num_let_in_; }
  }
  void let_in(int count) {
    const std::lock_guard lock(mutex_);
    num_let_in_ += count;
    changed_.notify_all();
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void wait_for_somebody() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_waiting_ > num_let_in_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int num_waiting_ = 0, num_let_in_ = 0;
  bool is_open_ = false;
};

/// Counts the ends of each request.
class Ends {
 public:
  nvl::RequestCallbacks callbacks() {
    return {.on_token = {}, .on_finish = [this](const nvl::Completion& done) {
              const std::lock_guard lock(mutex_);
              ++counts_[done.request];
              ++reasons_[done.finish_reason];
              if (!done.error.empty()) { errors_.push_back(done.error); }
            }};
  }
  bool are_one_each(std::size_t num_requests) const {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, count] : counts_) {
      if (count != 1) { return false; }
    }
    return counts_.size() == num_requests;
  }
  int with(nvl::FinishReason reason) const {
    const std::lock_guard lock(mutex_);
    const auto found = reasons_.find(reason);
    return found == reasons_.end() ? 0 : found->second;
  }
  std::vector<std::string> errors() const {
    const std::lock_guard lock(mutex_);
    return errors_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<nvl::RequestId, int> counts_;
  std::map<nvl::FinishReason, int> reasons_;
  std::vector<std::string> errors_;
};

}  // namespace nvl_test
