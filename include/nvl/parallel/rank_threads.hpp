#pragma once
/// A thread for each rank that a process drives: devices are bound to threads, and collectives wait for each other.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// `run(f)` calls f(i), 0 <= i < count, side by side, f(i) always on the same thread: f(0) on the caller's, which is one thread.
class RankThreads {
 public:
  /// \throws OutOfMemory if the system cannot start a thread
  explicit RankThreads(std::uint32_t count) {
    threads_.reserve(count);
    for (std::uint32_t i = 1; i < count; ++i) { start(i); }
  }

  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;
  ~RankThreads() { stop(); }

  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(threads_.size()) + 1; }

  /// Returns when all calls have; the exception that came first is thrown again here. `on_error(i, what)` is called for each, on
  /// its thread, so that it can keep others from waiting for that rank; it does not throw.
  template <class F, class OnError>
  void run(F&& f, OnError&& on_error) {
    const auto work = [&](std::uint32_t i) {
#if defined(__cpp_exceptions)
      try {
        f(i);
      } catch (const std::exception& error) {
        keep_first_error();
        on_error(i, error.what());
      } catch (...) {
        keep_first_error();
        on_error(i, "an exception that is not a std::exception");
      }
#else
      f(i);
#endif
    };
    using Work = decltype(work);
    {
      const std::lock_guard lock(mutex_);
      context_ = &work;
      invoke_ = [](const void* context, std::uint32_t i) { (*static_cast<Work*>(context))(i); };
      num_running_ = threads_.size();
      ++round_;
    }
    changed_.notify_all();
    work(0);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_running_ == 0; });
#if defined(__cpp_exceptions)
    if (std::exception_ptr error = std::exchange(error_, nullptr)) { std::rethrow_exception(std::move(error)); }
#endif
  }

 private:
  void start(std::uint32_t i) {
#if defined(__cpp_exceptions)
    try {
      threads_.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error& error) {
      stop();
      raise(OutOfMemory("the system could not start the thread of rank " + std::to_string(i) + ": " + error.what()));
    }
#else
    threads_.emplace_back([this, i] { serve(i); });
#endif
  }

  void serve(std::uint32_t i) {
    std::uint64_t served = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return is_stopping_ || round_ != served; });
        if (is_stopping_) { return; }
        served = round_;
      }
      invoke_(context_, i);
      const std::lock_guard lock(mutex_);
      if (--num_running_ == 0) { changed_.notify_all(); }
    }
  }

#if defined(__cpp_exceptions)
  void keep_first_error() noexcept {
    const std::lock_guard lock(mutex_);
    if (!error_) { error_ = std::current_exception(); }
  }
#endif

  void stop() noexcept {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_all();
    threads_.clear();  // joins
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const void* context_ = nullptr;
  void (*invoke_)(const void*, std::uint32_t) = nullptr;
  std::uint64_t round_ = 0;
  std::size_t num_running_ = 0;
  bool is_stopping_ = false;
#if defined(__cpp_exceptions)
  std::exception_ptr error_;
#endif
  std::vector<std::jthread> threads_;
};

}  // namespace nvl::inline NVL_ABI
