// Random lives of two engines with a fake model whose tokens show every block that was copied wrong, too early or too late.

#include "support/colliding_hash.hpp"
#include "support/late_transfer.hpp"
#include "support/property.hpp"
#include "support/sim_device.hpp"
#include "support/sim_requests.hpp"

#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace disaggregated_model_test {

using namespace nvl;
using namespace nvl_test;

namespace {

/// What is done to the engines, drawn and shrunk by RapidCheck.
struct Act {
  int kind = 0;       // 0 to 5: steps; 6, 7: a request; 8: an abort; 9: copies take another time
  unsigned what = 0;  // which
};

struct Scarcity {
  int prefill_blocks = 400, decode_blocks = 400, decode_seqs = 8, max_waiting = 4;
};

/// What went wrong; empty if nothing did.
template <class Pair>
std::string live(const Scarcity& scarcity, const std::vector<Act>& acts) {
  const WithTransferFaults faults({.delay = 1});
  DisaggregatedOptions options;
  options.prefill = sim_options(scarcity.prefill_blocks);
  options.decode = sim_options(scarcity.decode_blocks);
  options.decode.max_num_seqs = scarcity.decode_seqs;
  options.max_waiting_prompts = scarcity.max_waiting;
  Ledger ledger;  // outlives the engines, whose end calls back
  Pair pair(sim_config(), sim_weights(), options);
  int num_submitted = 0;
  for (const Act& act : acts) {
    if (act.kind < 6) {
      pair.step();
    } else if (act.kind < 8) {
      std::mt19937 random(act.what);
      Request request = random_request(random);
      request.sampling.n = 1;  // more are refused
      request.sampling.best_of = 0;
      const RequestId id = pair.submit(request, ledger.callbacks());
      ledger.open.emplace(id, std::move(request));
      ++num_submitted;
    } else if (act.kind == 8) {
      if (ledger.open.empty()) { continue; }
      auto victim = ledger.open.begin();
      std::advance(victim, static_cast<std::ptrdiff_t>(act.what % ledger.open.size()));
      const RequestId id = victim->first;
      if (!pair.abort(id)) { return "an open request is unknown to abort"; }
      if (pair.abort(id)) { return "a request can be aborted twice"; }
    } else {
      transfer_faults.delay = static_cast<int>(act.what % 5);
    }
    const HandoverStats moving = pair.handover_stats();
    if (moving.num_waiting > static_cast<std::uint32_t>(scarcity.max_waiting) + 8) { return "the prefill engine does not stop"; }
  }
  for (int i = 0; pair.has_work(); ++i) {
    pair.step();
    if (i > 10'000) { return "it does not end"; }
  }
  if (!ledger.wrong.empty()) { return ledger.wrong.front(); }
  if (!pair.failure().empty()) { return "failed: " + pair.failure(); }
  if (!ledger.open.empty() || ledger.num_ended != num_submitted) { return "not every request has ended"; }
  for (const EngineStats& stats : {pair.prefill().stats(), pair.decode().stats()}) {
    if (stats.num_free_blocks != stats.num_blocks) { return "blocks are left"; }
    if (stats.num_waiting + stats.num_running + stats.num_queued != 0) { return "sequences are left"; }
  }
  return "";
}

template <class Pair>
void check_lives(const std::string& name, int num_cases, const Scarcity& scarcity) {
  check_property(name, num_cases, [&] {
    const auto drawn = *rc::gen::resize(300, rc::gen::container<std::vector<std::pair<int, unsigned>>>(
                                                 rc::gen::pair(rc::gen::inRange(0, 10), rc::gen::inRange(0u, 1u << 30))));
    std::vector<Act> acts;
    for (const auto& [kind, what] : drawn) { acts.push_back({kind, what}); }
    const std::string wrong = live<Pair>(scarcity, acts);
    if (!wrong.empty()) { RC_FAIL(wrong); }
  });
}

}  // namespace

using Pairs = std::tuple<DisaggregatedEngine<SimEngine<>, SimEngine<>, LateTransfer<float>>,
                         DisaggregatedEngine<SimEngine<PrefillFirstScheduler, FourBitCache, true>,
                                             SimEngine<TokenBudgetScheduler<>, FourBitRadixCache>, LateTransfer<float>>,
                         DisaggregatedEngine<SimEngine<TokenBudgetScheduler<PriorityOrder>, PrefixCacheAllocator, true>,
                                             SimEngine<PrefillFirstScheduler, FreeListAllocator>, LateTransfer<float>>>;

TEMPLATE_LIST_TEST_CASE("random requests, aborts and delays give the tokens of the model alone and leave nothing",
                        "[engine][host]", Pairs) {
  SECTION("with room") { check_lives<TestType>("with room", 60, {}); }
  SECTION("with few blocks on both sides") {
    check_lives<TestType>("few blocks", 120, {.prefill_blocks = 9, .decode_blocks = 13, .max_waiting = 2});
  }
  SECTION("with two sequences at a time on the decode side") {
    check_lives<TestType>("two sequences", 60, {.prefill_blocks = 20, .decode_blocks = 20, .decode_seqs = 2, .max_waiting = 1});
  }
}

}  // namespace disaggregated_model_test
