/// The orders: who is admitted first, who loses blocks first, and the bounds that their headers state.
#include "support/scheduler_plan.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/ticket_heap.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/scheduler_harness.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace order_test {

using namespace nvl;

namespace {

template <class Order, class A = FreeListAllocator>
using Harness = testing::SchedulerHarness<TokenBudgetScheduler<Order>, A>;

/// One runs at a time, so the steps show the order of admission.
constexpr SchedulerOptions one{.max_num_seqs = 1, .max_num_batched_tokens = 64, .block_size = 4};

/// Steps to the end; the ids in the order in which they first ran.
template <class H>
std::vector<std::uint64_t> order_of_admission(H& harness) {
  std::vector<std::uint64_t> ids;
  while (harness.num_live() > 0 && harness.violations().empty()) {
    for (const auto& [id, num_tokens] : next(harness)) {
      if (std::ranges::find(ids, id) == ids.end()) { ids.push_back(id); }
    }
  }
  CHECK(harness.violations().text() == "");
  return ids;
}

using Ids = std::vector<std::uint64_t>;

}  // namespace

TEST_CASE("a heap of tickets gives the smallest, wherever others leave and change", "[sched][host]") {
  struct Item {
    int key;
    std::uint32_t heap_place = ~0u;
  };
  struct Before {
    bool operator()(const Item& a, const Item& b) const noexcept { return a.key < b.key; }
  };
  std::mt19937 random(1);
  std::vector<Item> items(200);
  TicketHeap<Item, Before> heap;
  heap.reserve(items.size());
  std::set<Item*> inside;
  for (int i = 0; i < 20'000; ++i) {
    Item& item = items[random() % items.size()];
    if (!inside.contains(&item)) {
      item.key = static_cast<int>(random() % 50);
      heap.insert(item);
      inside.insert(&item);
    } else if (random() % 2 == 0) {
      heap.erase(item);
      inside.erase(&item);
      REQUIRE(item.heap_place == heap.nowhere);
    } else {
      item.key = static_cast<int>(random() % 50);
      heap.update(item);
    }
    REQUIRE(heap.size() == inside.size());
    if (inside.empty()) { continue; }
    REQUIRE(heap.top().key == (*std::ranges::min_element(inside, {}, [](const Item* inner) { return inner->key; }))->key);
  }
}

TEST_CASE("first come, first served", "[sched][host]") {
  Harness<FcfsOrder> harness(one, 64);
  for (const std::size_t length : {9u, 1u, 5u}) { harness.submit(prompt(length), 3, "", static_cast<std::int32_t>(length % 3)); }
  CHECK(order_of_admission(harness) == Ids{0, 1, 2});
}

TEST_CASE("lower priority numbers first, then who came first", "[sched][host]") {
  Harness<PriorityOrder> harness(one, 64);
  for (const std::int32_t priority : {2, 0, 1, 0, -1}) { harness.submit(prompt(3), 3, "", priority); }
  CHECK(order_of_admission(harness) == Ids{4, 1, 3, 2, 0});
}

TEST_CASE("a waiting sequence takes the blocks of running ones of lower priority", "[sched][host]") {
  Harness<PriorityOrder> harness({.max_num_seqs = 4, .max_num_batched_tokens = 32, .block_size = 4}, 10);
  harness.submit(prompt(8, 1), 9, "", 1);
  harness.submit(prompt(8, 2), 9, "", 2);
  harness.submit(prompt(8, 3), 9, "", 3);
  CHECK(next(harness) == Plan{{0, 8}, {1, 8}, {2, 8}});
  harness.submit(prompt(10, 4), 2, "", 2);
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {3, 10}});  // 2 goes, 1 is its equal
  CHECK(preempted(harness) == Ids{2});
  harness.submit(prompt(27, 5), 2, "", 2);  // would need the blocks of its equals
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {3, 1}});
  CHECK(harness.batch().preempted.empty());
  harness.drain();
  CHECK(harness.violations().text() == "");
}

TEST_CASE("a waiting sequence takes the place of a running one of lower priority", "[sched][host]") {
  Harness<PriorityOrder> harness(one, 64);
  harness.submit(prompt(3), 9, "", 1);
  CHECK(next(harness) == Plan{{0, 3}});
  harness.submit(prompt(4), 2, "", 1);
  CHECK(next(harness) == Plan{{0, 1}});
  harness.submit(prompt(5), 2, "", 0);
  CHECK(next(harness) == Plan{{2, 5}});
  CHECK(preempted(harness) == Ids{0});
  CHECK(next(harness) == Plan{{2, 1}});
  CHECK(next(harness) == Plan{{0, 5}});  // put back before 1
}

TEST_CASE("a prompt of better priority goes before the rest of one that runs", "[sched][host]") {
  Harness<PriorityOrder> harness({.max_num_seqs = 4, .max_num_batched_tokens = 4, .block_size = 4}, 64);
  harness.submit(prompt(20), 2, "", 1);
  CHECK(next(harness) == Plan{{0, 4}});
  harness.submit(prompt(6), 2, "", 0);
  CHECK(next(harness) == Plan{{1, 4}});
  CHECK(next(harness) == Plan{{1, 2}, {0, 2}});
  CHECK(next(harness) == Plan{{1, 1}, {0, 3}});
}

TEST_CASE("nobody is preempted in vain for a better priority", "[sched][host]") {
  Harness<PriorityOrder> harness({.max_num_seqs = 4, .max_num_batched_tokens = 64, .block_size = 4}, 8);
  harness.submit(prompt(16, 1), 6, "", 0);
  harness.submit(prompt(4, 2), 6, "", 2);
  CHECK(next(harness) == Plan{{0, 16}, {1, 4}});
  harness.submit(prompt(28, 3), 2, "", 1);  // all that 1 has would not be enough
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});
  CHECK(harness.counts().preemptions == 0);
}

TEST_CASE("a sequence is overtaken by better priorities only for as long as its age allows", "[sched][host]") {
  // Sequences of priority 0 come all the time and would starve the one of priority 3 without aging.
  for (const std::int32_t aging : {1, 7, 20}) {
    SchedulerOptions options = one;
    options.scheduling.priority_aging_steps = aging;
    Harness<PriorityOrder> harness(options, 64);
    harness.submit(prompt(2), 4, "", 0);
    harness.step();                       // step 1
    harness.submit(prompt(2), 4, "", 3);  // sequence 1, came in step 1
    std::uint64_t last_overtaking = 0;
    std::map<std::uint64_t, std::int64_t> came;
    for (std::int64_t step = 2;; ++step) {
      REQUIRE(step < 1000);
      came[harness.num_live() == 0 ? 0 : index_of(harness.live(harness.num_live() - 1).id) + 1] = step - 1;
      harness.submit(prompt(2), 4, "", 0);
      const Plan plan = next(harness);
      REQUIRE(plan.size() == 1);
      if (plan[0].first == 1) { break; }
      last_overtaking = std::max(last_overtaking, plan[0].first);
    }
    CHECK(came.at(last_overtaking) < 1 + 3 * aging);
    // The bound is tight: the last that came before it did overtake.
    const auto later = came.find(last_overtaking + 1);
    REQUIRE(later != came.end());
    CHECK(later->second >= 1 + 3 * aging - 1);
  }
}

TEST_CASE("what is shortest to do is done first", "[sched][host]") {
  Harness<ShortestWorkOrder> harness(one, 64);
  harness.submit(prompt(9), 2);   // 13
  harness.submit(prompt(1), 9);   // 19
  harness.submit(prompt(10), 1);  // 12
  harness.submit(prompt(2), 2);   // 6
  CHECK(order_of_admission(harness) == Ids{3, 2, 0, 1});
}

TEST_CASE("long work is overtaken by shorter only for as long as its age allows", "[sched][host]") {
  SchedulerOptions options = one;
  options.scheduling.work_aging_cost = 3;
  Harness<ShortestWorkOrder> harness(options, 64);
  harness.submit(prompt(2), 2);
  harness.step();
  harness.submit(prompt(40), 10);  // work 60, came in step 1
  std::int64_t last_came = 0;
  std::map<std::uint64_t, std::int64_t> came;
  for (std::int64_t step = 2;; ++step) {
    REQUIRE(step < 1000);
    came[static_cast<std::uint64_t>(step)] = step - 1;
    harness.submit(prompt(2), 2);  // work 6; its number is that of the step
    const Plan plan = next(harness);
    if (plan[0].first == 1) { break; }
    if (plan[0].first > 1) { last_came = came.at(plan[0].first); }
  }
  CHECK(last_came <= 1 + (60 - 6) / 3);
  CHECK(last_came >= 1 + (60 - 6) / 3 - 4);  // two steps each: the next that came was too late
}

TEST_CASE("a key of one's own is an order", "[sched][host]") {
  struct LongPromptsFirst {
    std::int64_t operator()(const Sequence& seq, std::int64_t) const noexcept { return -seq.num_prompt; }
  };
  Harness<KeyedOrder<LongPromptsFirst>> harness(one, 64);
  for (const std::size_t length : {2u, 9u, 4u, 9u}) { harness.submit(prompt(length), 2); }
  CHECK(order_of_admission(harness) == Ids{1, 3, 2, 0});
}

// Fair share

namespace {

struct FairRun {
  std::int64_t largest_gap = 0;  // of what two users were served while both had sequences waiting
  std::int64_t bound = 0;        // 2 U
};

/// User 0 floods, user 1 sends as much as is needed to have one waiting, user 2 comes and goes.
template <class Order, class A>
FairRun serve_users(std::uint64_t seed, std::uint32_t num_blocks) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  constexpr std::int32_t longest_prompt = 24, longest_output = 10;
  const SchedulerOptions options{.max_num_seqs = 4, .max_num_batched_tokens = 32, .block_size = 4};
  Harness<Order, A> harness(options, num_blocks);
  std::map<std::uint64_t, std::map<std::uint64_t, std::int64_t>> since;  // [f][g] what f had more than g when both began to wait
  std::map<std::uint64_t, std::int64_t> cost;
  std::map<std::uint64_t, std::int32_t> charged;  // [sequence]
  FairRun run;
  run.bound = 2 * options.max_num_seqs * (longest_prompt + 2 * longest_output);
  for (int step = 0; step < 3000; ++step) {
    std::map<std::uint64_t, int> waiting;
    for (std::size_t i = 0; i < harness.num_live(); ++i) {
      const SeqStatus status = harness.live(i).status;
      waiting[harness.live(i).user] += status == SeqStatus::waiting || status == SeqStatus::preempted ? 1 : 0;
    }
    const auto send = [&](std::uint64_t user) {
      harness.submit(prompt(1 + below(user == 0 ? 4 : longest_prompt), static_cast<TokenId>(below(3))),
                     static_cast<std::int32_t>(1 + below(longest_output)), "", 0, 1, user);
      ++waiting[user];
    };
    while (waiting[0] < 30) { send(0); }
    while (waiting[1] < 2) { send(1); }
    if (step / 100 % 2 == 1 && waiting[2] < 3) { send(2); }
    harness.step();
    if (!harness.violations().empty()) { break; }
    for (const ScheduledSeq& entry : harness.batch().seqs) {
      std::int32_t& done = charged[index_of(entry.seq->id)];
      for (std::int32_t p = std::max(done, entry.first_position); p < entry.first_position + entry.num_tokens; ++p) {
        cost[entry.seq->user] += p < entry.seq->num_prompt ? 1 : 2;
        done = p + 1;
      }
    }
    std::map<std::uint64_t, bool> waits;
    for (std::size_t i = 0; i < harness.num_live(); ++i) {
      const SeqStatus status = harness.live(i).status;
      if (status == SeqStatus::waiting || status == SeqStatus::preempted) { waits[harness.live(i).user] = true; }
    }
    for (const std::uint64_t f : {0, 1, 2}) {
      for (const std::uint64_t g : {0, 1, 2}) {
        if (f == g) { continue; }
        if (!waits[f] || !waits[g]) {
          since[f].erase(g);
          continue;
        }
        const std::int64_t ahead = cost[f] - cost[g];
        // The smallest lead seen while both wait: an interval may start anywhere.
        std::int64_t& least = since[f].try_emplace(g, ahead).first->second;
        least = std::min(least, ahead);
        run.largest_gap = std::max(run.largest_gap, ahead - least);
      }
    }
  }
  CHECK(harness.violations().text() == "");
  CHECK(harness.counts().finished > 300);
  return run;
}

}  // namespace

TEMPLATE_TEST_CASE("users with sequences waiting are served alike, within the bound", "[sched][host][slow]", FreeListAllocator,
                   PrefixCacheAllocator) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    INFO("seed " << seed);
    for (const std::uint32_t num_blocks : {10u, 64u}) {  // with preemptions and without
      const FairRun fair = serve_users<FairShareOrder, TestType>(seed, num_blocks);
      CHECK(fair.largest_gap <= fair.bound);
    }
    // The measure can fail: without fairness the flood gets nearly all.
    const FairRun unfair = serve_users<FcfsOrder, TestType>(seed, 64);
    CHECK(unfair.largest_gap > unfair.bound);
  }
}

TEST_CASE("idleness earns no credit", "[sched][host]") {
  FairShareOrder order(one);
  FreeListAllocator allocator({.num_blocks = 4, .block_size = 4});
  std::vector<Sequence> seqs(4);
  for (Sequence& seq : seqs) { seq.tokens = prompt(10), seq.num_prompt = 10; }
  seqs[0].user = seqs[1].user = seqs[3].user = 1;
  seqs[2].user = 2;
  std::vector<FairShareOrder::Ticket> tickets;
  for (Sequence& seq : seqs) { tickets.emplace_back(seq); }
  order.add(tickets[0]);
  order.take(tickets[0]);
  order.served(tickets[0], 0, 10);
  order.add(tickets[1]);
  CHECK(order.counter(1) == 10);
  order.begin_step();
  order.add(tickets[2]);  // comes to where user 1 is, not to 0
  CHECK(order.counter(2) == 10);
  CHECK(order.next(allocator) == &tickets[1]);
  order.take(tickets[1]);
  order.served(tickets[1], 0, 10);
  order.served(tickets[1], 4, 6);  // again, after a preemption: free
  CHECK(order.counter(1) == 20);
  order.add(tickets[3]);
  CHECK(order.counter(1) == 20);
  CHECK(order.next(allocator) == &tickets[2]);
  order.take(tickets[2]);
  CHECK(order.next(allocator) == &tickets[3]);
}

TEST_CASE("output tokens cost what they cost", "[sched][host]") {
  SchedulerOptions options = one;
  options.scheduling.prompt_token_cost = 3;
  options.scheduling.output_token_cost = 5;
  FairShareOrder order(options);
  Sequence seq;
  seq.tokens = prompt(6);
  seq.num_prompt = 4;
  FairShareOrder::Ticket ticket(seq);
  order.add(ticket);
  order.take(ticket);
  order.served(ticket, 0, 3);
  CHECK(order.counter(0) == 9);
  order.served(ticket, 3, 3);
  CHECK(order.counter(0) == 9 + 3 + 10);
}

TEST_CASE("users without sequences are forgotten", "[sched][host]") {
  Harness<FairShareOrder> harness({.max_num_seqs = 4, .max_num_batched_tokens = 32, .block_size = 4}, 64);
  std::mt19937 random(1);
  std::size_t most = 0;
  for (std::uint64_t user = 0; user < 2000; ++user) {
    harness.submit(prompt(1 + random() % 20), static_cast<std::int32_t>(1 + random() % 10), "", 0, 1, user);
    for (std::size_t i = random() % 8; i > 0; --i) { harness.step(); }
    while (harness.num_live() > 8) { harness.step(); }
    most = std::max(most, harness.scheduler().order().num_users());
  }
  harness.drain();
  CHECK(harness.violations().text() == "");
  CHECK(most < 100);
}

// Longest prefix

namespace {

/// Counts what it is asked.
struct CountingCache : PrefixCacheAllocator {
  using PrefixCacheAllocator::PrefixCacheAllocator;
  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    ++num_lookups;
    return PrefixCacheAllocator::lookup(prefix, tokens);
  }
  mutable int num_lookups = 0;
};

}  // namespace

TEST_CASE("what is cached most is admitted first", "[sched][host]") {
  Harness<LongestPrefixOrder, PrefixCacheAllocator> harness(one, 64);
  harness.submit(prompt(33, 1), 1);
  harness.drain();
  harness.submit(prompt(9, 0), 1);   // 1: nothing
  harness.submit(prompt(9, 1), 1);   // 2: 8 tokens
  harness.submit(prompt(29, 1), 1);  // 3: 28 tokens
  harness.submit(prompt(12, 0), 1);  // 4: nothing yet
  CHECK(order_of_admission(harness) == Ids{3, 2, 1, 4});
}

TEST_CASE("who came first is passed over longest_prefix_patience times at most", "[sched][host]") {
  for (const std::int32_t patience : {0, 1, 5}) {
    SchedulerOptions options = one;
    options.scheduling.longest_prefix_patience = patience;
    Harness<LongestPrefixOrder, PrefixCacheAllocator> harness(options, 256);
    harness.submit(prompt(33, 1), 1);
    harness.drain();
    for (TokenId i = 0; i < 3; ++i) { harness.submit(prompt(9, 0), 1, "salt " + std::to_string(i)); }  // 1 to 3
    std::vector<std::uint64_t> admitted;
    for (int i = 0; i < 40; ++i) {
      harness.submit(prompt(21, 1), 1);
      admitted.push_back(next(harness).at(0).first);
    }
    for (std::uint64_t k = 0; k < 3; ++k) {
      const auto place = std::ranges::find(admitted, k + 1) - admitted.begin();
      CHECK(place + 1 <= static_cast<std::int64_t>((k + 1) * static_cast<std::uint64_t>(patience + 1)));
      CHECK(place == static_cast<std::int64_t>((k + 1) * static_cast<std::uint64_t>(patience + 1)) - 1);
    }
  }
}

TEST_CASE("a step looks few sequences up, however many wait", "[sched][host]") {
  SchedulerOptions options{.max_num_seqs = 8, .max_num_batched_tokens = 64, .block_size = 4};
  Harness<LongestPrefixOrder, CountingCache> harness(options, 512);
  for (TokenId i = 0; i < 200; ++i) { harness.submit(prompt(static_cast<std::size_t>(1 + i % 20), i % 2), 4); }
  while (harness.num_live() > 0) {
    harness.allocator().num_lookups = 0;
    harness.step();
    REQUIRE(harness.allocator().num_lookups <= LongestPrefixOrder::max_lookups);
  }
  CHECK(harness.violations().text() == "");
  CHECK(harness.counts().cached_tokens > 0);
}

}  // namespace order_test
