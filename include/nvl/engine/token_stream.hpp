#pragma once
/// The tokens of one request, pulled by a reader that may live on any thread.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/request.hpp>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace nvl::inline NVL_ABI {

/// What a TokenEvent says, owned.
struct StreamedToken {
  SampledToken sampled;  // the token, with its log-probabilities if asked for
  std::string text;      // that may be shown now
  std::uint32_t choice = 0;
};

namespace detail {

/// Between the engine's thread, which writes, and one reader.
class StreamBuffer {
 public:
  explicit StreamBuffer(std::size_t capacity) : capacity_(capacity) {}

  /// False if the reader is `capacity` tokens behind: then the token is lost and nothing more is taken.
  bool push(const TokenEvent& event) {
    const std::lock_guard lock(mutex_);
    if (overflowed_ || tokens_.size() == capacity_) {
      overflowed_ = true;
      return false;
    }
    tokens_.push_back({*event.sampled, std::string(event.text), event.choice});
    changed_.notify_one();
    return true;
  }

  void end(Completion done) {
    const std::lock_guard lock(mutex_);
    completion_ = std::move(done);
    changed_.notify_one();
  }

  std::optional<StreamedToken> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !tokens_.empty() || completion_; });
    if (tokens_.empty()) { return std::nullopt; }
    std::optional<StreamedToken> token(std::move(tokens_.front()));
    tokens_.pop_front();
    return token;
  }

  const Completion& wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return completion_.has_value(); });
    return *completion_;  // written once
  }

  bool has_ended() {
    const std::lock_guard lock(mutex_);
    return completion_.has_value();
  }

  bool overflowed() {
    const std::lock_guard lock(mutex_);
    return overflowed_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<StreamedToken> tokens_;
  std::optional<Completion> completion_;
  bool overflowed_ = false;
  const std::size_t capacity_;  // [tokens]
};

}  // namespace detail

/// One reader's end of a request. It holds a bounded number of tokens: a request whose reader falls further behind is aborted, so
/// that a slow reader costs neither memory nor the others' time. Given up before the end, it aborts its request. May outlive the
/// engine; the functions are for one thread at a time.
class TokenStream {
 public:
  TokenStream() = default;
  TokenStream(std::shared_ptr<detail::StreamBuffer> buffer, std::function<void()> abort)
      : buffer_(std::move(buffer)),
        abort_(std::move(abort)) {}
  TokenStream(TokenStream&&) = default;
  TokenStream& operator=(TokenStream&& other) {  // NOLINT(performance-noexcept-move-constructor): an abort may throw
    if (this != &other) {
      cancel();
      buffer_ = std::move(other.buffer_);
      abort_ = std::move(other.abort_);
    }
    return *this;
  }
  ~TokenStream() { cancel(); }

  /// Whether there is a request behind it. The functions below need one.
  explicit operator bool() const noexcept { return buffer_ != nullptr; }

  /// Waits for the next token; nothing after the last.
  std::optional<StreamedToken> next() { return buffer_->next(); }

  /// Waits for the end of the request. Its result holds the tokens that were not read, too.
  const Completion& result() { return buffer_->wait(); }

  /// Whether the request was aborted because tokens were not read in time.
  bool overflowed() const { return buffer_->overflowed(); }

  /// Aborts the request unless it has ended. Tokens that are there can still be read.
  void cancel() {
    if (buffer_ && !buffer_->has_ended()) { abort_(); }
  }

 private:
  std::shared_ptr<detail::StreamBuffer> buffer_;
  std::function<void()> abort_;
};

}  // namespace nvl::inline NVL_ABI
