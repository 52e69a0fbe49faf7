// The whole engine over a fake model, thousands of requests in every combination of policies: the tokens are those of a model
// without cache, batch or neighbours, whatever is scarce and whoever is aborted.

#include "support/sim_device.hpp"
#include "support/sim_engines.hpp"
#include "support/sim_requests.hpp"

#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace simulation_test {

using namespace nvl;
using namespace nvl_test;

namespace {

void submit_one(AnyEngine& engine, Ledger& ledger, std::mt19937& random, bool beams) {
  Request request = random_request(random, beams);
  const RequestId id = engine.submit(request, ledger.callbacks());
  ledger.open.emplace(id, std::move(request));
}

/// `num_requests` that arrive a few a step, of which some are aborted at some step.
void run_some(AnyEngine& engine, int num_requests, unsigned seed, bool beams) {
  std::mt19937 random(seed);
  Ledger ledger;
  int num_submitted = 0;
  while (num_submitted < num_requests || engine.has_work()) {
    for (auto n = random() % 3; n > 0 && num_submitted < num_requests && ledger.open.size() < 40; --n, ++num_submitted) {
      submit_one(engine, ledger, random, beams);
    }
    engine.step();
    if (!ledger.open.empty() && random() % 8 == 0) {
      auto victim = ledger.open.begin();
      std::advance(victim, static_cast<std::ptrdiff_t>(random() % ledger.open.size()));
      engine.abort(victim->first);
    }
    INFO("seed " << seed << (ledger.wrong.empty() ? "" : ": " + ledger.wrong.front()));
    REQUIRE(ledger.wrong.empty());
  }
  INFO("seed " << seed);
  CHECK(ledger.open.empty());
  CHECK(ledger.num_ended == num_requests);
  CHECK(ledger.num_aborted > 0);
  const EngineStats stats = engine.stats();
  CHECK(stats.num_free_blocks == stats.num_blocks);
  CHECK(stats.num_free_host_blocks == stats.num_host_blocks);
  CHECK(stats.num_waiting + stats.num_running == 0);
  CHECK(stats.num_queued == 0);
  CHECK(stats.queued_tokens == 0);
  CHECK(engine.failure().empty());
}

/// Runs `test` for every kind of engine, each in a section of its own.
template <class Test>
void for_each_kind(Test&& test) {
  for (const SimEngineKind& kind : sim_engine_kinds()) {
    DYNAMIC_SECTION(kind.name) { test(kind); }
  }
}

}  // namespace

TEST_CASE("every request gets the tokens of the model alone, with room and without", "[engine][host]") {
  for_each_kind([](const SimEngineKind& kind) {
    for (const int num_blocks : {400, 13}) {
      for (const int num_host_blocks : {0, 40}) {
        const auto made = kind.make(sim_options(num_blocks, num_host_blocks));
        AnyEngine& engine = *made;
        run_some(engine, 300, static_cast<unsigned>(num_blocks + num_host_blocks), kind.shares_blocks);
        if (num_blocks == 13) { CHECK(engine.stats().num_preemptions > 0); }
        if (num_blocks == 13 && num_host_blocks > 0 && kind.uses_host_tier) { CHECK(engine.stats().swapped_in_blocks > 0); }
        CHECK(engine.stats().num_free_host_blocks == engine.stats().num_host_blocks);
      }
    }
  });
}

TEST_CASE("an abort at any step leaves nothing behind and the others as they were", "[engine][host]") {
  for_each_kind([](const SimEngineKind& kind) {
    // Six requests on thirteen blocks: chunks, decodes, preemptions. One of them is aborted before step n, for all n.
    int num_late = 0;
    for (int n = 0; num_late < 6; ++n) {
      REQUIRE(n < 500);
      for (int victim = 0; victim < 6; ++victim) {
        const auto made = kind.make(sim_options(13, 24));
        AnyEngine& engine = *made;
        std::mt19937 random(17);
        Ledger ledger;
        std::vector<RequestId> ids;
        for (int i = 0; i < 6; ++i) {
          Request request = random_request(random);
          request.sampling.max_tokens = 20;
          request.sampling.stop_token_ids.clear();
          request.sampling.min_tokens = 0;
          request.sampling.ignore_eos = true;
          ids.push_back(engine.submit(request, ledger.callbacks()));
          ledger.open.emplace(ids.back(), std::move(request));
        }
        for (int step = 0; step < n && engine.has_work(); ++step) { engine.step(); }
        const bool ended = !engine.abort(ids[static_cast<std::size_t>(victim)]);
        CHECK_FALSE(engine.abort(ids[static_cast<std::size_t>(victim)]));
        while (engine.has_work()) { engine.step(); }
        INFO("request " << victim << " before step " << n << (ledger.wrong.empty() ? "" : ": " + ledger.wrong.front()));
        REQUIRE(ledger.wrong.empty());
        REQUIRE(ledger.num_ended == 6);
        REQUIRE(ledger.num_aborted == (ended ? 0 : 1));
        REQUIRE(engine.stats().num_free_blocks == engine.stats().num_blocks);
        REQUIRE(engine.stats().num_free_host_blocks == engine.stats().num_host_blocks);
        num_late = ended ? num_late + 1 : 0;
      }
    }
  });
}

TEST_CASE("sixteen requests on eight blocks all end", "[engine][host]") {
  for_each_kind([](const SimEngineKind& kind) {
    EngineOptions options = sim_options(8);
    options.max_num_seqs = 16;
    const auto made = kind.make(options);
    AnyEngine& engine = *made;
    Ledger ledger;
    for (int i = 0; i < 16; ++i) {
      Request request;
      request.prompt_ids.assign(static_cast<std::size_t>(1 + i), static_cast<TokenId>(i));
      request.sampling.max_tokens = 33 - (1 + i);  // the longest form fills all eight blocks
      request.sampling.temperature = 0;
      request.sampling.seed = 0;
      request.sampling.ignore_eos = true;
      const RequestId id = engine.submit(request, ledger.callbacks());
      ledger.open.emplace(id, std::move(request));
    }
    for (int step = 0; engine.has_work(); ++step) {
      REQUIRE(step < 10'000);
      engine.step();
    }
    CHECK(ledger.wrong.empty());
    CHECK(ledger.num_ended == 16);
    CHECK(engine.stats().num_free_blocks == 8);
    CHECK(engine.stats().num_preemptions > 0);
  });
}

TEST_CASE("logits that are not finite end their request and are never found again", "[engine][host]") {
  for_each_kind([](const SimEngineKind& kind) {
    const auto made = kind.make(sim_options(60));
    AnyEngine& engine = *made;
    std::mt19937 random(3);
    std::vector<Request> requests;
    for (int i = 0; i < 12; ++i) { requests.push_back(random_request(random)); }
    sim_faults.has_nan = [](const StepInput& in, std::int32_t row) {
      return sim_mix(in.step * 100 + static_cast<unsigned>(row)) % 9 == 0;
    };
    int num_errors = 0;
    for (const Completion& done : engine.generate(requests)) { num_errors += done.finish_reason == FinishReason::error ? 1 : 0; }
    sim_faults = {};
    CHECK(num_errors > 0);
    CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
    const std::vector<Completion> after = engine.generate(requests);
    for (std::size_t i = 0; i < after.size(); ++i) { CHECK(is_right(requests[i], after[i])); }
  });
}

TEST_CASE("a device that fails at any step ends every request once", "[engine][host]") {
  for_each_kind([](const SimEngineKind& kind) {
    for (std::uint64_t fatal = 0; fatal < 30; ++fatal) {
      const auto made = kind.make(sim_options(13));
      AnyEngine& engine = *made;
      sim_faults.on_step = [&](const StepInput& in) {
        if (in.step == fatal) { throw std::runtime_error("illegal address"); }
      };
      std::mt19937 random(29);
      std::map<RequestId, int> ends;
      for (int i = 0; i < 10; ++i) {
        engine.submit(random_request(random),
                      {.on_token = {}, .on_finish = [&](const Completion& done) { ++ends[done.request]; }});
      }
      while (engine.has_work()) { engine.step(); }
      sim_faults = {};
      CHECK(engine.failure() == "illegal address");
      CHECK(ends.size() == 10);
      for (const auto& [id, count] : ends) { CHECK(count == 1); }
      CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
      CHECK_THROWS_AS(engine.submit(random_request(random)), Error);
    }
  });
}

}  // namespace simulation_test
