#include "bench/sim/simulator.hpp"
#include "bench/support/presets.hpp"
#include "bench/support/traces.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace simulator_test {

using namespace nvl_bench;
using Catch::Approx;

namespace {

/// Requests that a test writes down.
class ListTrace final : public Trace {
 public:
  explicit ListTrace(std::vector<TraceRequest> requests) : requests_(std::move(requests)) {}
  bool next(TraceRequest& out) override {
    if (next_ == requests_.size()) { return false; }
    out = requests_[next_];
    out.session = next_++;
    return true;
  }
  std::int32_t max_total_len() const override { return 1 << 20; }

 private:
  std::vector<TraceRequest> requests_;
  std::size_t next_ = 0;
};

TraceRequest request(double arrival, std::int32_t input, std::int32_t output, nvl::TokenId token = 1) {
  TraceRequest r;
  r.arrival = arrival;
  r.prompt.assign(static_cast<std::size_t>(input), token);
  r.output_len = output;
  return r;
}

/// A step takes a second, whatever it computes.
DeviceCost simple_cost(bool runs_ahead) {
  DeviceCost cost;
  cost.weight_bytes = cost.kv_bytes = cost.matmul_flops = cost.attention_flops = cost.row_bytes = cost.link_bytes = 1e30;
  cost.layer_us_2 = cost.layer_us_16 = cost.layer_us_128 = cost.layer_us_more = 1e6 / preset("tiny")->num_layers;
  cost.prompt_layer_us = cost.mixed_layer_us = cost.launch_layer_us = cost.host_us = cost.host_seq_us = 0;
  cost.shared_kv_bytes = 1e30;
  cost.runs_ahead = runs_ahead;
  return cost;
}

SimOptions options_of(std::uint32_t num_blocks, std::int32_t max_num_seqs = 8, std::int32_t max_num_batched_tokens = 64) {
  SimOptions options;
  options.scheduler = {
      .max_num_seqs = max_num_seqs, .max_num_batched_tokens = max_num_batched_tokens, .block_size = 16, .scheduling = {}};
  options.pool = {.num_blocks = num_blocks, .block_size = 16};
  return options;
}

template <class S, class A>
SimResult run(const SimOptions& options, Trace& trace, const DeviceCost& cost) {
  return Simulator<S, A>(options, StepCost(*preset("tiny"), cost, options.scheduler.block_size), trace).run();
}

using PrefillFirst = nvl::PrefillFirstScheduler;
using TokenBudget = nvl::TokenBudgetScheduler<>;
using FreeList = nvl::FreeListAllocator;
using PrefixCache = nvl::PrefixCacheAllocator;

void check_same(const LogHistogram& a, const LogHistogram& b) {
  CHECK(a.count() == b.count());
  CHECK(a.mean() == b.mean());
  for (const double p : {0.0, 50.0, 99.0, 100.0}) { CHECK(a.percentile(p) == b.percentile(p)); }
}

}  // namespace

TEST_CASE("a single request takes a step for its prompt and one for each further token", "[bench][host]") {
  for (const bool runs_ahead : {false, true}) {
    ListTrace trace({request(5, 30, 4)});
    const SimResult r = run<PrefillFirst, FreeList>(options_of(8), trace, simple_cost(runs_ahead));
    CHECK(r.requests == 1);
    CHECK(r.steps == 4);
    CHECK(r.duration == Approx(9));
    CHECK(r.busy == Approx(4));
    CHECK(r.ttft.max() == Approx(1));
    CHECK(r.tpot.max() == Approx(1));
    CHECK(r.itl.count() == 3);
    CHECK(r.itl.max() == Approx(1));
    CHECK(r.e2el.max() == Approx(4));
    CHECK(r.prompt_tokens == 30);
    CHECK(r.output_tokens == 4);
    CHECK(r.computed_tokens == 33);  // the last token is never an input
    CHECK(r.peak_blocks == 3);       // 33 tokens
    CHECK(r.live_blocks == 0);
    // Two blocks for 30, 31 and 32 tokens, three for 33.
    CHECK(r.kv_wasted == Approx((2.0 + 1 + 0 + 15) / (32 + 32 + 32 + 48)));
  }
}

TEST_CASE("who comes during a step is served after it, or after the one that was launched ahead", "[bench][host]") {
  // Prompts of 64 tokens fill a step. The second request comes half a second into the first one's prompt.
  for (const bool runs_ahead : {false, true}) {
    ListTrace trace({request(0, 64, 3), request(0.5, 64, 1)});
    const SimResult r = run<PrefillFirst, FreeList>(options_of(20), trace, simple_cost(runs_ahead));
    // In line: prompt, prompt, decode, decode. Ahead: the decode of the first was launched before the second came.
    CHECK(r.steps == 4);
    CHECK(r.ttft.max() == Approx(runs_ahead ? 2.5 : 1.5));
    CHECK(r.itl.max() == Approx(runs_ahead ? 2 : 2).epsilon(0.001));
    CHECK(r.duration == Approx(4));
  }
}

TEST_CASE("separate steps hold up decodes, mixed ones do not", "[bench][host]") {
  const auto requests = [] { return std::vector{request(0, 8, 20), request(5.5, 64, 2), request(6.5, 64, 2)}; };
  ListTrace first(requests()), second(requests());
  const SimResult separate = run<PrefillFirst, FreeList>(options_of(40), first, simple_cost(false));
  const SimResult mixed = run<TokenBudget, FreeList>(options_of(40), second, simple_cost(false));
  CHECK(separate.itl.max() == Approx(3));
  CHECK(mixed.itl.max() == Approx(1));
  CHECK(separate.output_tokens == mixed.output_tokens);
  CHECK(mixed.steps < separate.steps);
}

TEST_CASE("host time is hidden behind the step before, or added", "[bench][host]") {
  DeviceCost cost = simple_cost(true);
  cost.host_us = 0.25e6;
  ListTrace ahead({request(0, 16, 5)});
  CHECK(run<PrefillFirst, FreeList>(options_of(8), ahead, cost).duration == Approx(5.25));
  cost.runs_ahead = false;
  ListTrace in_line({request(0, 16, 5)});
  CHECK(run<PrefillFirst, FreeList>(options_of(8), in_line, cost).duration == Approx(6.25));
  cost.runs_ahead = true;
  cost.host_us = 1.5e6;  // slower than the device
  ListTrace slow({request(0, 16, 5)});
  CHECK(run<PrefillFirst, FreeList>(options_of(8), slow, cost).duration == Approx(5 * 1.5 + 1));
}

TEST_CASE("requests that can never fit are refused, the others run", "[bench][host]") {
  ListTrace trace({request(0, 200, 10), request(0, 20, 2)});
  const SimResult r = run<PrefillFirst, FreeList>(options_of(8), trace, simple_cost(true));
  CHECK(r.refused == 1);
  CHECK(r.requests == 1);
}

TEST_CASE("a limit on queued requests keeps them outside in their order, and all are served", "[bench][host]") {
  std::vector<TraceRequest> requests;
  for (int i = 0; i < 50; ++i) { requests.push_back(request(0, 20, 3)); }
  ListTrace trace(requests);
  SimOptions options = options_of(8, 2);
  options.max_queued = 4;
  const SimResult r = run<PrefillFirst, FreeList>(options, trace, simple_cost(true));
  CHECK(r.requests == 50);
  CHECK(r.peak_waiting == 4);
  ListTrace again(requests);
  CHECK(run<PrefillFirst, FreeList>(options_of(8, 2), again, simple_cost(true)).duration == r.duration);
}

TEST_CASE("a prompt that was computed before is found", "[bench][host]") {
  ListTrace trace({request(0, 64, 1), request(10, 64, 1), request(20, 64, 1, 2)});
  const SimResult r = run<PrefillFirst, PrefixCache>(options_of(40), trace, simple_cost(true));
  CHECK(r.cached_tokens == 48);  // the last block is computed for its logits
  CHECK(r.hit_rate() == Approx(48.0 / 192));
  CHECK(r.live_blocks == 0);
}

TEMPLATE_TEST_CASE("whatever the policies, every token in comes out, and simulations repeat themselves", "[bench][host]",
                   (std::pair<PrefillFirst, FreeList>), (std::pair<PrefillFirst, PrefixCache>),
                   (std::pair<TokenBudget, FreeList>), (std::pair<TokenBudget, PrefixCache>)) {
  using S = typename TestType::first_type;
  using A = typename TestType::second_type;
  for (const std::string_view name : {"sharegpt", "shared-prefix", "chat", "overload"}) {
    INFO(name);
    const TraceOptions load{.num_prompts = 60, .request_rate = 0.02, .think_time = 10, .num_ids = 100, .seed = 4};
    // What has to come out: each request and, of conversations, each turn.
    std::uint64_t num_requests = 0, output = 0;
    const std::unique_ptr<Trace> counted = make_trace(name, load);
    for (TraceRequest r; counted->next(r);) {
      for (;;) {
        ++num_requests;
        output += static_cast<std::uint64_t>(r.output_len);
        std::vector<nvl::TokenId> history = r.prompt;
        history.resize(history.size() + static_cast<std::size_t>(r.output_len));
        if (!counted->next_turn(r.session, r.turn, history, r)) { break; }
      }
    }
    // Few blocks, so that sequences are preempted.
    const SimOptions options = options_of(420, 16, 512);
    const std::unique_ptr<Trace> trace = make_trace(name, load), again = make_trace(name, load);
    const SimResult r = run<S, A>(options, *trace, simple_cost(true));
    CHECK(r.requests + r.refused == num_requests);
    CHECK(r.refused == 0);
    CHECK(r.output_tokens == output);
    CHECK(r.live_blocks == 0);
    CHECK(r.ttft.count() == num_requests);
    CHECK(r.itl.count() == output - num_requests);
    CHECK(r.e2el.count() == num_requests);
    CHECK(r.peak_blocks <= 420);
    CHECK((r.kv_wasted > 0 && r.kv_wasted < 1));
    if (r.preemptions == 0) {  // then nothing is computed twice
      CHECK(r.computed_tokens == r.prompt_tokens - r.cached_tokens + output - num_requests);
    }
    const SimResult same = run<S, A>(options, *again, simple_cost(true));
    CHECK(same.duration == r.duration);
    CHECK(same.steps == r.steps);
    CHECK(same.preemptions == r.preemptions);
    CHECK(same.cached_tokens == r.cached_tokens);
    check_same(same.ttft, r.ttft);
    check_same(same.itl, r.itl);
  }
}

TEST_CASE("saved prompt tokens of the shared-prefix trace are its shared full blocks", "[bench][host]") {
  const std::unique_ptr<Trace> trace = make_trace("shared-prefix", {.num_prompts = 1000, .num_ids = 1000});
  const SimResult r = run<PrefillFirst, PrefixCache>(options_of(40'000, 256, 16384), *trace, simple_cost(true));
  // Eight prompts fill the first step and one more is planned before it ends; all others find 102 blocks of 16.
  CHECK(r.hit_rate() > 0.78);
  CHECK(r.hit_rate() <= 1632.0 / 2048);
}

}  // namespace simulator_test
