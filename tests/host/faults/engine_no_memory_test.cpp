// Every allocation of host memory in turn fails, while an engine is made, takes requests and steps: each request still ends once,
// no block is lost, and what comes afterwards is right.

#include "support/failing_new.hpp"
#include "support/sim_device.hpp"
#include "support/sim_requests.hpp"

#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

namespace engine_no_memory_test {

using namespace nvl;
using namespace nvl_test;

namespace {

using Engines =
    std::tuple<SimEngine<PrefillFirstScheduler, FreeListAllocator>, SimEngine<PrefillFirstScheduler, PrefixCacheAllocator, true>,
               SimEngine<TokenBudgetScheduler<>, PrefixCacheAllocator>>;

/// The same few requests each time; more than fit side by side.
std::vector<Request> some_requests() {
  std::mt19937 random(5);
  std::vector<Request> requests;
  for (int i = 0; i < 5; ++i) {
    requests.push_back(random_request(random));
    requests.back().sampling.max_tokens = 12;
  }
  return requests;
}

template <class Engine>
void check_that_it_serves(Engine& engine) {
  const std::vector<Request> requests = some_requests();
  const std::vector<Completion> done = engine.generate(requests);
  for (std::size_t i = 0; i < done.size(); ++i) { REQUIRE(is_right(requests[i], done[i])); }
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("an engine whose making runs out of memory is not there, and the next one is", "[faults][host]",
                        Engines) {
  sim_weights();
  bool failed = true;
  for (std::int64_t n = 0; failed; ++n) {
    REQUIRE(n < 1000);
    failed = fails_at(n, [] {
      try {
        TestType engine(sim_config(), sim_weights(), sim_options(13));
      } catch (const OutOfMemory&) { throw std::bad_alloc(); }
    });
    CHECK((failed || n > 10));
  }
  TestType engine(sim_config(), sim_weights(), sim_options(13));
  check_that_it_serves(engine);
}

TEMPLATE_LIST_TEST_CASE("requests and steps that run out of memory end once and leave nothing behind", "[faults][host]",
                        Engines) {
  const std::vector<Request> requests = some_requests();
  for (const auto& [once, in_device_too] : {std::pair(true, false), std::pair(false, false), std::pair(true, true)}) {
    std::optional<NoFailures> in_device;
    sim_faults.in_device = [&](bool begins) {
      if (in_device_too) { return; }
      in_device.reset();
      if (begins) { in_device.emplace(); }
    };
    int num_refused = 0, num_errors = 0, num_dead = 0;
    bool any_failed = true;
    for (std::int64_t n = 0; any_failed; ++n) {
      REQUIRE(n < 5000);
      std::optional<TestType> engine;
      engine.emplace(sim_config(), sim_weights(), sim_options(13));
      std::map<RequestId, int> ends;
      std::size_t num_accepted = 0;
      std::int64_t left = n;
      // `act` with the allocations that are left; those that fail all lie in one call.
      const auto attempt = [&](auto&& act) {
        fails_once = once;
        allocations_left = left;
        bool threw = false;
        try {
          act();
        } catch (const std::exception&) { threw = true; }
        left = allocations_left > 0 ? allocations_left : -1;
        allocations_left = -1;
        fails_once = false;
        return !threw;
      };
      for (const Request& request : requests) {
        Request copy = request;
        RequestCallbacks callbacks{.on_token = {}, .on_finish = [&](const Completion& done) {
                                     const NoFailures mine;
                                     ++ends[done.request];
                                     num_errors += done.finish_reason == FinishReason::error ? 1 : 0;
                                   }};
        const EngineStats before = engine->stats();
        if (attempt([&] { engine->submit(std::move(copy), std::move(callbacks)); })) {
          ++num_accepted;
        } else {
          ++num_refused;
          REQUIRE(engine->stats().num_waiting == before.num_waiting);
          REQUIRE(engine->stats().num_queued == before.num_queued);
          REQUIRE(engine->stats().num_submitted == before.num_submitted);
        }
      }
      while (engine->has_work()) {
        REQUIRE(attempt([&] { engine->step(); }));
      }
      any_failed = left < 0;
      INFO("allocation " << n << (once ? ", once" : ", and those after it"));
      REQUIRE(ends.size() == num_accepted);
      for (const auto& [id, count] : ends) { REQUIRE(count == 1); }
      REQUIRE(engine->stats().num_free_blocks == 13);
      REQUIRE(engine->stats().num_queued == 0);
      if (engine->failure().empty()) {
        check_that_it_serves(*engine);
      } else {
        ++num_dead;
      }
    }
    CHECK(num_refused > 0);
    CHECK(num_errors > 0);
    // Without memory for the engine itself only requests end. A device that has none is a device that fails.
    CHECK((num_dead > 0) == in_device_too);
  }
  sim_faults = {};
}

TEMPLATE_LIST_TEST_CASE("an abort without memory frees the blocks and ends the request", "[faults][host]", Engines) {
  for (std::size_t victim = 0; victim < 5; ++victim) {
    TestType engine(sim_config(), sim_weights(), sim_options(13));
    std::map<RequestId, int> ends;
    std::vector<RequestId> ids;
    for (const Request& request : some_requests()) {
      ids.push_back(engine.submit(request, {.on_token = {}, .on_finish = [&](const Completion& done) {
                                              const NoFailures mine;
                                              ++ends[done.request];
                                            }}));
    }
    for (int i = 0; i < 3; ++i) { engine.step(); }
    CHECK_FALSE(fails_at(0, [&] { CHECK(engine.abort(ids[victim])); }));
    CHECK(ends[ids[victim]] == 1);
    // Nor does the destructor need any.
    CHECK_FALSE(fails_at(0, [&] {
      for (const RequestId id : ids) { engine.abort(id); }
    }));
    CHECK(ends.size() == 5);
    CHECK(engine.stats().num_free_blocks == 13);
    check_that_it_serves(engine);
  }
}

}  // namespace engine_no_memory_test
