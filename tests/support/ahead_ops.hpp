#pragma once
/// CPU ops that behave like those of an asynchronous device: a thread of their own computes the steps, a step's tokens are out of
/// reach until it is awaited, and a step may name tokens of the step before it by sampled_in_row. They test the engine's running
/// ahead where there is no device, and under ThreadSanitizer what the engine touches while a step runs.

#include <nvl/nvl.hpp>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

namespace nvl_test {

/// Does jobs in order, on a thread.
class StepThread {
 public:
  StepThread() : thread_([this] { work(); }) {}
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;
  ~StepThread() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }

  void start(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_[num_started_++ % jobs_.size()] = std::move(job);
    changed_.notify_all();
  }

  /// Waits for the first `count` jobs; throws what the last of them threw.
  void wait_for(std::uint64_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_done_ >= count; });
    if (error_) { std::rethrow_exception(std::exchange(error_, nullptr)); }
  }
  bool has_done(std::uint64_t count) {
    const std::lock_guard lock(mutex_);
    return num_done_ >= count;
  }
  void wait_for_all() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_done_ == num_started_; });
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return num_done_ < num_started_ || stopping_; });
      if (num_done_ == num_started_) { return; }
      const std::function<void()>& job = jobs_[num_done_ % jobs_.size()];
      lock.unlock();
      std::exception_ptr error;
      try {
        job();
      } catch (...) { error = std::current_exception(); }
      lock.lock();
      if (error) { error_ = error; }
      ++num_done_;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<std::function<void()>, 2> jobs_;
  std::uint64_t num_started_ = 0, num_done_ = 0;
  std::exception_ptr error_;
  bool stopping_ = false;
  std::thread thread_;  // begins when the rest is there
};

class AheadOps : public nvl::CpuOps<float> {
 public:
  using Base = nvl::CpuOps<float>;
  using Base::Base;
  static constexpr bool runs_ahead = true;

  /// Placeholders are filled in by the thread that computes, when the step before has sampled.
  const nvl::StepInput& stage(const nvl::StepInput& in) {
    Staged& staged = staged_[num_staged_++ % staged_.size()];
    staged.ids.assign(in.token_ids.begin(), in.token_ids.end());
    staged.input = in;
    staged.input.token_ids = staged.ids;
    return staged.input;
  }

  template <class Body>
  void execute(const nvl::StepInput& in, nvl::StepOutput& out, Body&& body) {
    nvl::SampledToken nothing;
    nothing.token = -999;
    out.sampled.assign(in.sampling.size(), nothing);
    thread_.start([this, &in, body = std::forward<Body>(body), transfers = std::exchange(transfers_, {})] {
      if (transfers) { transfers(); }
      for (nvl::TokenId& id : in.token_ids) {
        if (id < 0) { id = chosen_.at(static_cast<std::size_t>(-1 - id)); }
      }
      body();
      ++num_run_;
    });
  }

  void await(nvl::StepOutput& out) {
    const std::uint64_t step = num_awaited_++;
    thread_.wait_for(step + 1);
    out.sampled = hidden_[step % hidden_.size()].sampled;
  }

  bool is_done() { return thread_.has_done(num_awaited_ + 1); }

  /// As a device's stream: what is asked for outside of a step waits for the steps.
  void wait_for_steps() {
    if (!thread_.is_current()) { thread_.wait_for_all(); }
  }

  /// By the thread, before the tokens of the step that is executed next.
  void transfer_blocks(const nvl::BlockTransfers<float>& call) {
    transfers_ = [this, call, out = std::vector(call.out.begin(), call.out.end()),
                  in = std::vector(call.in.begin(), call.in.end())] {
      nvl::BlockTransfers<float> mine = call;
      mine.out = out;
      mine.in = in;
      Base::transfer_blocks(mine);
    };
  }

  void sample(const nvl::StepInput& in, const float* logits, std::int32_t vocab_size, nvl::StepOutput&) {
    nvl::StepOutput& hidden = hidden_[num_run_ % hidden_.size()];
    Base::sample(in, logits, vocab_size, hidden);
    chosen_.clear();
    for (const nvl::SampledToken& row : hidden.sampled) { chosen_.push_back(row.token); }
  }

  void qk_norm_rope_store(const nvl::QkNormRopeStore<AheadOps>& call) {
    Base::qk_norm_rope_store({.qkv = call.qkv,
                              .positions = call.positions,
                              .slot_mapping = call.slot_mapping,
                              .num_q_heads = call.num_q_heads,
                              .q_norm = call.q_norm,
                              .k_norm = call.k_norm,
                              .eps = call.eps,
                              .rope = call.rope,
                              .layout = call.layout,
                              .kv = call.kv});
  }

 private:
  struct Staged {
    std::vector<nvl::TokenId> ids;
    nvl::StepInput input;
  };

  std::array<Staged, 3> staged_;  // of two steps in flight and of one outside of a step
  std::array<nvl::StepOutput, 2> hidden_;
  std::vector<nvl::TokenId> chosen_;  // the thread's
  std::uint64_t num_run_ = 0;         // the thread's
  std::function<void()> transfers_;
  std::uint64_t num_staged_ = 0, num_awaited_ = 0;
  StepThread thread_;
};
static_assert(nvl::DeviceOps<AheadOps>);

/// CpuPagedAttention over AheadOps or what is made of them.
template <class Ops_>
class AheadAttentionOf : public nvl::CpuPagedAttention<float> {
 public:
  using Ops = Ops_;
  AheadAttentionOf(const nvl::AttentionShape& shape, Ops& ops) : nvl::CpuPagedAttention<float>(shape, ops), ops_(ops) {}
  AheadAttentionOf(const AheadAttentionOf&) = delete;
  AheadAttentionOf& operator=(const AheadAttentionOf&) = delete;
  ~AheadAttentionOf() { ops_.wait_for_steps(); }  // before the memory goes that they write

  /// The first call of a pass.
  void plan(const nvl::AttentionMetadata& metadata) {
    ops_.wait_for_steps();
    nvl::CpuPagedAttention<float>::plan(metadata);
  }

 private:
  Ops& ops_;
};
using AheadAttention = AheadAttentionOf<AheadOps>;
static_assert(nvl::require_attention_backend<AheadAttention>());

}  // namespace nvl_test
