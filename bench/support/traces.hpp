#pragma once
/// The traces that nvl-bench replays and nvl-sim simulates: one list.

#include "bench/support/trace.hpp"
#include "bench/support/workload.hpp"

#include <nvl/core/ids.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl_bench {

struct TraceOptions {
  std::int64_t num_prompts = 1000;  // requests that come by themselves; further turns are not counted
  double request_rate = std::numeric_limits<double>::infinity();  // [1/s] of them: Poisson arrivals; infinite: all at the start
  RequestLengths lengths{512, 128};                               // of the trace "random"
  double range_ratio = 0;                                         // its lengths vary evenly from (1 - r) to (1 + r) times those
  double think_time = 0;                                          // [s] mean, exponential, between an answer and the next turn
  std::int32_t num_ids = 1000;                                    // token ids are below it
  std::uint64_t seed = 0;
};

/// Arrivals and users, the same for every trace.
class RandomTrace : public Trace {
 public:
  bool next(TraceRequest& out) final {
    if (index_ == options_.num_prompts) { return false; }
    TraceRandom random = stream(request_stream, static_cast<std::uint64_t>(index_));
    now_ = arrival_after(now_, random);
    out.arrival = now_;
    out.session = static_cast<std::uint64_t>(index_);
    out.turn = 0;
    // Sixteen users, of whom the k-th sends a share of about 1 / k; one request in ten is urgent.
    out.user = static_cast<std::uint64_t>(std::min(16.0, std::pow(17.0, random.uniform()))) - 1;
    out.priority = random.uniform() <= 0.1 ? 0 : 1;
    out.prompt.clear();
    out.output_len = 0;
    fill(random, out);
    ++index_;
    return true;
  }

 protected:
  static constexpr std::uint64_t request_stream = 0, prefix_stream = 1, turn_stream = 2;

  explicit RandomTrace(const TraceOptions& options) : options_(options) {}

  /// Prompt and output of a request.
  virtual void fill(TraceRandom& random, TraceRequest& out) = 0;
  virtual double arrival_after(double last, TraceRandom& random) {
    return std::isinf(options_.request_rate) ? 0 : last + random.exponential(1 / options_.request_rate);
  }

  TraceRandom stream(std::uint64_t stream, std::uint64_t index) const { return TraceRandom(options_.seed, stream, index); }
  void append_ids(TraceRandom& random, TraceRequest& out, std::int32_t count) const {
    random.append_ids(out.prompt, count, options_.num_ids);
  }
  /// The same `count` ids for the same `which`.
  void append_prefix(TraceRequest& out, std::uint64_t which, std::int32_t count) const {
    TraceRandom random = stream(prefix_stream, which);
    random.append_ids(out.prompt, count, options_.num_ids);
  }

  const TraceOptions options_;

 private:
  std::int64_t index_ = 0;
  double now_ = 0;
};

/// Lengths as in ShareGPT conversations. Their means are those of the 1,000 requests that vLLM's benchmark takes from that data
/// set for Llama 3.1: 229.7 prompt and 203.1 output tokens (vLLM pull request 18566). The spread (sigma) is our assumption.
inline constexpr LogNormalLength sharegpt_input{5.132, 1.3, 4, 1024}, sharegpt_output{4.976, 1.0, 4, 1024};

class ShareGptTrace : public RandomTrace {
 public:
  explicit ShareGptTrace(const TraceOptions& options) : RandomTrace(options) {}
  std::int32_t max_total_len() const override { return sharegpt_input.max + sharegpt_output.max; }

 protected:
  void fill(TraceRandom& random, TraceRequest& out) override {
    const std::int32_t input = sharegpt_input.draw(random);
    out.output_len = sharegpt_output.draw(random);
    append_ids(random, out, input);
  }
};

/// Lengths that vary evenly about given ones.
class EvenTrace final : public RandomTrace {
 public:
  explicit EvenTrace(const TraceOptions& options) : RandomTrace(options) {}
  std::int32_t max_total_len() const override { return highest(options_.lengths.input) + highest(options_.lengths.output); }

 private:
  std::int32_t lowest(std::int32_t length) const {
    return std::max(1, static_cast<std::int32_t>(length * (1 - options_.range_ratio)));
  }
  std::int32_t highest(std::int32_t length) const { return static_cast<std::int32_t>(length * (1 + options_.range_ratio)); }
  std::int32_t draw(TraceRandom& random, std::int32_t length) const { return random.between(lowest(length), highest(length)); }

  void fill(TraceRandom& random, TraceRequest& out) override {
    const std::int32_t input = draw(random, options_.lengths.input);
    out.output_len = draw(random, options_.lengths.output);
    append_ids(random, out, input);
  }
};

/// More than can be served, then less: arrivals at 1.8 and 0.2 times the rate, ten seconds of each in turn.
class OverloadTrace final : public ShareGptTrace {
 public:
  explicit OverloadTrace(const TraceOptions& options) : ShareGptTrace(options) {}

 private:
  double arrival_after(double last, TraceRandom& random) override {
    if (std::isinf(options_.request_rate)) { return 0; }
    constexpr double phase = 10;          // [s]
    double need = random.exponential(1);  // expected arrivals until the next one
    for (double at = last;;) {
      const auto k = static_cast<std::int64_t>(at / phase);
      const double rate = options_.request_rate * (k % 2 == 0 ? 1.8 : 0.2);
      const double end = static_cast<double>(k + 1) * phase;
      if (need <= (end - at) * rate) { return at + need / rate; }
      need -= (end - at) * rate;
      at = end;
    }
  }
};

/// Short requests, and every two hundredth has a prompt of 32,768 tokens.
class GiantTrace final : public RandomTrace {
 public:
  explicit GiantTrace(const TraceOptions& options) : RandomTrace(options) {}
  std::int32_t max_total_len() const override { return giant_len + sharegpt_output.max; }

 private:
  static constexpr std::int32_t giant_len = 32768;
  void fill(TraceRandom& random, TraceRequest& out) override {
    const std::int32_t input = out.session % 200 == 100 ? giant_len : sharegpt_input.draw(random);
    out.output_len = sharegpt_output.draw(random);
    append_ids(random, out, input);
  }
};

/// 2,048 prompt tokens, 80 % of which all requests share; 64 out.
class SharedPrefixTrace final : public RandomTrace {
 public:
  explicit SharedPrefixTrace(const TraceOptions& options) : RandomTrace(options) {}
  std::int32_t max_total_len() const override { return prefix_len + own_len + output_len; }

 private:
  static constexpr std::int32_t prefix_len = 1638, own_len = 410, output_len = 64;
  void fill(TraceRandom& random, TraceRequest& out) override {
    append_prefix(out, 0, prefix_len);
    append_ids(random, out, own_len);
    out.output_len = output_len;
  }
};

/// Conversations whose every turn has all turns before it in front.
struct ConversationShape {
  std::int32_t num_prefixes = 1;  // kinds of first instructions, of which each conversation has one
  std::int32_t prefix_len = 0;    // [tokens] of them
  LogNormalLength input, output;  // of one turn
  double mean_turns = 1;          // geometric ...
  std::int32_t max_turns = 1;     // ... with this limit
};

class ConversationTrace final : public RandomTrace {
 public:
  ConversationTrace(const TraceOptions& options, const ConversationShape& shape) : RandomTrace(options), shape_(shape) {}

  std::int32_t max_total_len() const override {
    return shape_.prefix_len + shape_.max_turns * (shape_.input.max + shape_.output.max);
  }

  bool next_turn(std::uint64_t session, std::int32_t turn, std::span<const nvl::TokenId> history,
                 TraceRequest& out) const override {
    TraceRandom random = stream(turn_stream + static_cast<std::uint64_t>(turn), session);
    if (turn + 1 >= shape_.max_turns || random.uniform() * shape_.mean_turns <= 1) { return false; }
    out.arrival = options_.think_time > 0 ? random.exponential(options_.think_time) : 0;
    out.session = session;
    out.turn = turn + 1;
    out.prompt.assign(history.begin(), history.end());
    say(random, out);
    return true;
  }

 private:
  void fill(TraceRandom& random, TraceRequest& out) override {
    append_prefix(out, random.bits() % static_cast<std::uint64_t>(shape_.num_prefixes), shape_.prefix_len);
    say(random, out);
  }
  void say(TraceRandom& random, TraceRequest& out) const {
    const std::int32_t input = shape_.input.draw(random);
    out.output_len = shape_.output.draw(random);
    append_ids(random, out, input);
  }

  ConversationShape shape_;
};

/// A chat with one system prompt; short questions, long answers.
inline constexpr ConversationShape chat_shape{.num_prefixes = 1,
                                              .prefix_len = 512,
                                              .input = {3.634, 1.0, 4, 512},
                                              .output = sharegpt_output,
                                              .mean_turns = 5,
                                              .max_turns = 12};
/// Agents of eight kinds, each with its instructions and tools in front; tools answer at length, agents briefly.
inline constexpr ConversationShape agents_shape{.num_prefixes = 8,
                                                .prefix_len = 6000,
                                                .input = {5.385, 0.8, 16, 2048},
                                                .output = {4.145, 0.7, 8, 512},
                                                .mean_turns = 10,
                                                .max_turns = 10};

/// A load that is known in full, at once or with Poisson arrivals.
class WorkloadTrace final : public RandomTrace {
 public:
  WorkloadTrace(TraceOptions options, Workload load)
      : RandomTrace((options.num_prompts = static_cast<std::int64_t>(load.size()), options)),
        load_(std::move(load)) {}
  std::int32_t max_total_len() const override { return load_.max_total_len(); }

 private:
  void fill(TraceRandom&, TraceRequest& out) override {
    const auto i = static_cast<std::size_t>(out.session);
    out.prompt = load_.prompts[i];
    out.output_len = load_.output_lens[i];
  }

  Workload load_;
};

inline constexpr std::array<std::string_view, 8> trace_names{"nano-vllm", "random", "sharegpt", "shared-prefix",
                                                             "chat",      "agents", "giant",    "overload"};

/// "nano-vllm, sharegpt, ..."
inline std::string trace_list() {
  std::string names;
  for (const std::string_view name : trace_names) { names += (names.empty() ? "" : ", ") + std::string(name); }
  return names;
}

/// Nothing for a name that is not in trace_names.
inline std::unique_ptr<Trace> make_trace(std::string_view name, const TraceOptions& options) {
  if (name == "nano-vllm") { return std::make_unique<WorkloadTrace>(options, nano_vllm_workload()); }
  if (name == "random") { return std::make_unique<EvenTrace>(options); }
  if (name == "sharegpt") { return std::make_unique<ShareGptTrace>(options); }
  if (name == "shared-prefix") { return std::make_unique<SharedPrefixTrace>(options); }
  if (name == "chat") { return std::make_unique<ConversationTrace>(options, chat_shape); }
  if (name == "agents") { return std::make_unique<ConversationTrace>(options, agents_shape); }
  if (name == "giant") { return std::make_unique<GiantTrace>(options); }
  if (name == "overload") { return std::make_unique<OverloadTrace>(options); }
  return nullptr;
}

/// All that comes by itself. Requests with equal prompts in front hit the prefix cache.
inline Workload workload_of(std::string_view name, const TraceOptions& options) {
  Workload load;
  load.name = name;
  load.num_ids = options.num_ids;
  const std::shared_ptr<Trace> trace = make_trace(name, options);
  for (TraceRequest request; trace->next(request);) {
    load.prompts.push_back(request.prompt);
    load.output_lens.push_back(request.output_len);
    load.arrivals.push_back(request.arrival);
  }
  load.turns = trace;
  return load;
}

/// [s] at which the requests of any trace without bursts come.
inline std::vector<double> poisson_arrivals(const TraceOptions& options) {
  std::vector<double> arrivals;
  ShareGptTrace trace(options);
  for (TraceRequest request; trace.next(request);) { arrivals.push_back(request.arrival); }
  return arrivals;
}

}  // namespace nvl_bench
