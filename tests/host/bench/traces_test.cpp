#include "bench/support/traces.hpp"

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace traces_test {

using namespace nvl_bench;
using Catch::Approx;

namespace {

std::vector<TraceRequest> all_of(Trace& trace) {
  std::vector<TraceRequest> all;
  for (TraceRequest request; trace.next(request);) { all.push_back(request); }
  return all;
}

std::vector<TraceRequest> all_of(std::string_view name, const TraceOptions& options) {
  return all_of(*make_trace(name, options));
}

}  // namespace

TEST_CASE("TraceRandom gives the same numbers for the same place, and other ones elsewhere", "[bench][host]") {
  TraceRandom a(1, 2, 3), b(1, 2, 3), other_seed(2, 2, 3), other_stream(1, 3, 3), other_index(1, 2, 4);
  const std::uint64_t first = a.bits();
  CHECK(first == b.bits());
  CHECK(a.bits() != first);
  for (TraceRandom* other : {&other_seed, &other_stream, &other_index}) { CHECK(other->bits() != first); }
}

TEST_CASE("the distributions of TraceRandom have their mean and spread", "[bench][host]") {
  constexpr int count = 200'000;
  TraceRandom random(7);
  double uniform = 0, exponential = 0, normal = 0, normal_squares = 0, between = 0;
  std::int32_t low = 100, high = 0;
  for (int i = 0; i < count; ++i) {
    uniform += random.uniform() / count;
    exponential += random.exponential(3) / count;
    const double n = random.normal();
    normal += n / count;
    normal_squares += n * n / count;
    const std::int32_t k = random.between(3, 7);
    between += k / static_cast<double>(count);
    low = std::min(low, k);
    high = std::max(high, k);
  }
  CHECK(uniform == Approx(0.5).epsilon(0.01));
  CHECK(exponential == Approx(3).epsilon(0.02));
  CHECK(std::abs(normal) < 0.01);
  CHECK(normal_squares == Approx(1).epsilon(0.02));
  CHECK(between == Approx(5).epsilon(0.01));
  CHECK(low == 3);
  CHECK(high == 7);
}

TEST_CASE("a trace is the same for the same seed, whenever it is asked", "[bench][host]") {
  for (const std::string_view name : trace_names) {
    INFO(name);
    const TraceOptions options{.num_prompts = 30, .request_rate = 10, .think_time = 2, .seed = 5};
    const auto first = all_of(name, options), again = all_of(name, options);
    TraceOptions other_options = options;
    other_options.seed = 6;
    const auto other = all_of(name, other_options);
    REQUIRE(first.size() == (name == "nano-vllm" ? 256u : 30u));
    REQUIRE(again.size() == first.size());
    bool differs = false;
    double last = 0;
    for (std::size_t i = 0; i < first.size(); ++i) {
      CHECK(first[i].prompt == again[i].prompt);
      CHECK(first[i].output_len == again[i].output_len);
      CHECK(first[i].arrival == again[i].arrival);
      CHECK(first[i].session == i);
      CHECK(first[i].arrival >= last);
      CHECK(first[i].output_len >= 1);
      CHECK(std::ssize(first[i].prompt) + first[i].output_len <= make_trace(name, options)->max_total_len());
      last = first[i].arrival;
      differs = differs || first[i].arrival != other[i].arrival;
    }
    CHECK(differs);
  }
  CHECK(make_trace("none", {}) == nullptr);
}

TEST_CASE("without a rate everything comes at the start", "[bench][host]") {
  for (const std::string_view name : trace_names) {
    for (const TraceRequest& request : all_of(name, {.num_prompts = 5})) { CHECK(request.arrival == 0); }
  }
}

TEST_CASE("arrivals have the rate that was asked for", "[bench][host]") {
  for (const std::string_view name : {"sharegpt", "overload"}) {
    const auto all = all_of(name, {.num_prompts = 40'000, .request_rate = 100, .num_ids = 2, .seed = 1});
    CHECK(all.back().arrival == Approx(400).epsilon(0.03));
  }
  // Overload: nine of ten in the first half of each period of twenty seconds.
  std::size_t early = 0;
  const auto all = all_of("overload", {.num_prompts = 40'000, .request_rate = 100, .num_ids = 2, .seed = 1});
  for (const TraceRequest& request : all) { early += std::fmod(request.arrival, 20) < 10 ? 1 : 0; }
  CHECK(static_cast<double>(early) / static_cast<double>(all.size()) == Approx(0.9).epsilon(0.02));

  const std::vector<double> arrivals = poisson_arrivals({.num_prompts = 40'000, .request_rate = 100, .seed = 3});
  CHECK(arrivals.back() == Approx(400).epsilon(0.03));
  CHECK(std::is_sorted(arrivals.begin(), arrivals.end()));
}

TEST_CASE("ShareGPT-like lengths have the published means", "[bench][host]") {
  double input = 0, output = 0;
  const auto all = all_of("sharegpt", {.num_prompts = 50'000, .num_ids = 2, .seed = 2});
  for (const TraceRequest& request : all) {
    input += static_cast<double>(request.prompt.size());
    output += request.output_len;
  }
  CHECK(input / static_cast<double>(all.size()) == Approx(229.7).epsilon(0.02));
  CHECK(output / static_cast<double>(all.size()) == Approx(203.1).epsilon(0.02));
}

TEST_CASE("of sixteen users the first sends most, and one request in ten is urgent", "[bench][host]") {
  std::vector<int> sent(16);
  int urgent = 0;
  for (const TraceRequest& request : all_of("sharegpt", {.num_prompts = 20'000, .num_ids = 2})) {
    REQUIRE(request.user < 16);
    ++sent[request.user];
    urgent += request.priority == 0 ? 1 : 0;
  }
  CHECK(sent[0] > 1.4 * sent[1]);
  CHECK(sent[1] > 1.2 * sent[2]);
  CHECK(sent[15] > 200);
  CHECK(urgent == Approx(2000).epsilon(0.1));
}

TEST_CASE("requests of the shared-prefix trace share 80 % of their prompts", "[bench][host]") {
  const auto all = all_of("shared-prefix", {.num_prompts = 3, .num_ids = 1000});
  for (const TraceRequest& request : all) {
    REQUIRE(request.prompt.size() == 2048);
    CHECK(request.output_len == 64);
    const auto [mine, first] = std::mismatch(request.prompt.begin(), request.prompt.end(), all[0].prompt.begin());
    CHECK((&request == &all[0] || (mine - request.prompt.begin() >= 1638 && mine - request.prompt.begin() < 1650)));
  }
}

TEST_CASE("the giant trace has one giant in two hundred", "[bench][host]") {
  const auto all = all_of("giant", {.num_prompts = 600, .num_ids = 2});
  CHECK(std::count_if(all.begin(), all.end(), [](const TraceRequest& r) { return r.prompt.size() == 32768; }) == 3);
}

TEST_CASE("a further turn has the turns before it in front, and conversations end", "[bench][host]") {
  for (const auto& [name, prefix, most_turns] : {std::tuple("chat", 512u, 12), std::tuple("agents", 6000u, 10)}) {
    INFO(name);
    const TraceOptions options{.num_prompts = 300, .think_time = 4, .num_ids = 1000, .seed = 9};
    const std::unique_ptr<Trace> trace = make_trace(name, options);
    std::set<std::vector<nvl::TokenId>> prefixes;
    double turns = 0, thought = 0;
    for (TraceRequest request; trace->next(request);) {
      prefixes.emplace(request.prompt.begin(), request.prompt.begin() + prefix);
      TraceRequest said;
      for (std::int32_t turn = 0;; ++turn) {
        turns += 1;
        REQUIRE(turn < most_turns);
        std::vector<nvl::TokenId> history = request.prompt;
        history.resize(history.size() + static_cast<std::size_t>(request.output_len), 7);
        if (!trace->next_turn(request.session, turn, history, said)) { break; }
        REQUIRE(said.prompt.size() > history.size());
        CHECK(std::equal(history.begin(), history.end(), said.prompt.begin()));
        CHECK(said.turn == turn + 1);
        CHECK(said.session == request.session);
        CHECK(std::ssize(said.prompt) + said.output_len <= trace->max_total_len());
        thought += said.arrival;
        request = said;
      }
    }
    CHECK(prefixes.size() == (prefix == 512 ? 1u : 8u));
    // Geometric: each turn is the last with probability 1 / mean, and no conversation has more than most_turns.
    const double p = prefix == 512 ? 1.0 / 5 : 1.0 / 10;
    CHECK(turns / 300 == Approx((1 - std::pow(1 - p, most_turns)) / p).epsilon(0.1));
    CHECK(thought / (turns - 300) == Approx(4).epsilon(0.1));
  }
}

TEST_CASE("a workload of a trace is its requests", "[bench][host]") {
  const TraceOptions options{.num_prompts = 20, .request_rate = 4, .num_ids = 100, .seed = 3};
  const Workload load = workload_of("chat", options);
  const auto all = all_of("chat", options);
  REQUIRE(load.size() == 20);
  CHECK(load.num_ids == 100);
  REQUIRE(load.turns != nullptr);
  CHECK(load.max_total_len() == load.turns->max_total_len());
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(load.prompts[i] == all[i].prompt);
    CHECK(load.output_lens[i] == all[i].output_len);
    CHECK(load.arrivals[i] == all[i].arrival);
  }
  TraceRequest said;
  load.turns->next_turn(0, 0, load.prompts[0], said);  // answers after the trace has been read
}

}  // namespace traces_test
