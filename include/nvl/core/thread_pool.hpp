#pragma once
/// A fixed set of threads that split loops. One step of a small model splits hundreds of loops of a few microseconds, so the
/// threads spin for a while between loops, and sleep when nothing comes.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Tells the processor that this is a spin loop.
NVL_ALWAYS_INLINE void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace detail

/// `num_threads` threads compute, the one that calls `parallel_for` included. A loop never waits for a thread that has not
/// begun to help with it, so a pool with more threads than free cores is slower but not stuck. Calls from several threads at
/// once, or from inside a loop, are allowed: whoever finds the pool busy does its loop alone.
class ThreadPool {
 public:
  static constexpr std::int32_t max_threads = 1024;

  /// Threads worth starting on this machine.
  static std::int32_t default_num_threads() noexcept {
    return std::clamp(static_cast<std::int32_t>(std::thread::hardware_concurrency()), 1, max_threads);
  }

  /// \param num_threads 1 to max_threads, or 0 for default_num_threads().
  /// \throws InvalidArgument; OutOfMemory if the system cannot start a thread.
  explicit ThreadPool(std::int32_t num_threads) : num_threads_(num_threads == 0 ? default_num_threads() : num_threads) {
    NVL_EXPECTS(num_threads >= 0 && num_threads <= max_threads, "num_threads", num_threads,
                "0 (one per core) to " + std::to_string(max_threads));
    // Threads that share cores must not spin in each other's time.
    spins_before_sleep_ = num_threads_ > default_num_threads() ? 32 : 20000;
    start_workers();
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop_workers(); }

  std::int32_t num_threads() const noexcept { return num_threads_; }

  /// Calls `fn(begin, end)` for ranges that cover [0, count) once, begin always a multiple of `grain` (>= 1), side by side on
  /// the threads of the pool; returns when all of them did. The first exception of any call is thrown again here; ranges not
  /// begun by then are skipped.
  template <class F>
  void parallel_for(std::int64_t count, std::int64_t grain, F&& fn) {
    if (count <= 0) { return; }
    if (num_threads_ == 1 || count <= grain || busy_.exchange(true, std::memory_order_acquire)) {
      fn(std::int64_t{0}, count);
      return;
    }
    using Fn = std::remove_reference_t<F>;
    context_ = const_cast<void*>(static_cast<const void*>(std::addressof(fn)));
    invoke_ = [](void* context, std::int64_t begin, std::int64_t end) { (*static_cast<Fn*>(context))(begin, end); };
    count_ = count;
    grain_ = grain;
    next_.store(0, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    open_loop();
    take_ranges();
    close_loop();
    std::exception_ptr error = std::exchange(error_, nullptr);
    busy_.store(false, std::memory_order_release);
    rethrow(error);
  }

 private:
  // gate_: number of the loop (bits 32..63) | open (bit 31) | workers that entered (bits 0..30).
  static constexpr std::uint64_t open_bit = std::uint64_t{1} << 31;
  static constexpr std::uint64_t entered_mask = open_bit - 1;
  static constexpr std::uint64_t one_loop = std::uint64_t{1} << 32;

  void start_workers() {
    const auto start_all = [this] {
      workers_.reserve(static_cast<std::size_t>(num_threads_) - 1);
      for (std::int32_t i = 1; i < num_threads_; ++i) {
        workers_.emplace_back([this] { work(); });
      }
    };
#if defined(__cpp_exceptions)
    try {
      start_all();
    } catch (const std::system_error& error) {
      const std::size_t started = workers_.size() + 1;
      stop_workers();
      raise(OutOfMemory("thread " + std::to_string(started + 1) + " of " + std::to_string(num_threads_) +
                        " cannot be started: " + error.what()));
    }
#else
    start_all();
#endif
  }

  void stop_workers() noexcept {
    {
      const std::lock_guard lock(sleep_mutex_);
      stopping_.store(true, std::memory_order_seq_cst);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) { worker.join(); }
    workers_.clear();
  }

  void open_loop() {
    const std::uint64_t loop = (gate_.load(std::memory_order_relaxed) & ~(one_loop - 1)) + one_loop;
    // seq_cst with `sleepers_`: either this thread sees the sleeper, or the sleeper sees this loop.
    gate_.store(loop | open_bit, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) {
      { const std::lock_guard lock(sleep_mutex_); }
      wake_.notify_all();
    }
  }

  /// No worker enters any more; waits for those that did.
  void close_loop() noexcept {
    const std::uint64_t entered = gate_.fetch_and(~open_bit, std::memory_order_acq_rel) & entered_mask;
    for (std::uint32_t spins = 0; finished_.load(std::memory_order_acquire) != entered; ++spins) {
      if (spins < 4096) {
        detail::cpu_relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

  void work() {
    std::uint64_t seen = 0;  // number of the last loop this thread looked at
    while (true) {
      const std::uint64_t gate = wait_for_loop(seen);
      if (stopping_.load(std::memory_order_acquire)) { return; }
      seen = gate & ~(one_loop - 1);
      if (!enter(gate)) { continue; }
      take_ranges();
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  /// Returns the gate of a loop other than `seen`, or anything when the pool stops.
  std::uint64_t wait_for_loop(std::uint64_t seen) {
    const auto is_new = [&](std::uint64_t gate) { return (gate & ~(one_loop - 1)) != seen; };
    for (std::uint32_t spins = 0; spins < spins_before_sleep_; ++spins) {
      const std::uint64_t gate = gate_.load(std::memory_order_acquire);
      if (is_new(gate) || stopping_.load(std::memory_order_relaxed)) { return gate; }
      detail::cpu_relax();
    }
    std::unique_lock lock(sleep_mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return is_new(gate_.load(std::memory_order_seq_cst)) || stopping_.load(std::memory_order_relaxed); });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    return gate_.load(std::memory_order_acquire);
  }

  /// Counts this thread into the loop of `gate`, unless that loop is closed.
  bool enter(std::uint64_t gate) noexcept {
    const std::uint64_t loop = gate & ~(one_loop - 1);
    while ((gate & open_bit) != 0 && (gate & ~(one_loop - 1)) == loop) {
      if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel, std::memory_order_acquire)) { return true; }
    }
    return false;
  }

  /// Takes ranges until none is left: large ones first, small ones at the end, so that the threads finish together.
  void take_ranges() noexcept(!has_exceptions) {
    std::int64_t begin = next_.load(std::memory_order_relaxed);
    while (begin < count_) {
      const std::int64_t share = (count_ - begin) / (2 * std::int64_t{num_threads_});
      const std::int64_t end = std::min(count_, begin + std::max(grain_, share / grain_ * grain_));
      if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) { continue; }
      run(begin, end);
      begin = next_.load(std::memory_order_relaxed);
    }
  }

#if defined(__cpp_exceptions)
  static constexpr bool has_exceptions = true;
  void run(std::int64_t begin, std::int64_t end) {
    try {
      invoke_(context_, begin, end);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) { error_ = std::current_exception(); }
      next_.store(count_, std::memory_order_relaxed);
    }
  }
  static void rethrow(const std::exception_ptr& error) {
    if (error) { std::rethrow_exception(error); }
  }
#else
  static constexpr bool has_exceptions = false;
  void run(std::int64_t begin, std::int64_t end) noexcept { invoke_(context_, begin, end); }
  static void rethrow(const std::exception_ptr&) noexcept {}
#endif

  std::int32_t num_threads_;
  std::uint32_t spins_before_sleep_ = 0;
  std::vector<std::thread> workers_;

  // The loop at hand: written by the caller before it opens the gate, read by workers that entered.
  void* context_ = nullptr;
  void (*invoke_)(void*, std::int64_t, std::int64_t) = nullptr;
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;

  // Each on a cache line of its own: the spinning threads read gate_ only.
  alignas(64) std::atomic<std::uint64_t> gate_{0};
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::uint64_t> finished_{0};
  alignas(64) std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> busy_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace nvl::inline NVL_ABI
