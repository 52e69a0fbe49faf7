// Which replica the routers choose: their rules, and how unevenly they may load the replicas.

#include "support/expect_error.hpp"
#include "support/property.hpp"

#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/prefix_affinity_router.hpp>
#include <nvl/engine/round_robin_router.hpp>

#include <catch2/catch_test_macros.hpp>
#include <rapidcheck.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace routers_test {

using namespace nvl;

namespace {

/// A prompt of `length` tokens that depend on `family`.
Request prompt_of(int family, std::size_t length, const std::string& salt = "") {
  Request request;
  for (std::size_t i = 0; i < length; ++i) { request.prompt_ids.push_back(static_cast<TokenId>(1000 * family) + 7); }
  request.cache_salt = salt;
  return request;
}

std::vector<EngineLoad> loads_of(const std::vector<std::int64_t>& tokens) {
  std::vector<EngineLoad> loads;
  for (const std::int64_t count : tokens) { loads.push_back({.num_reqs = 1, .num_tokens = count}); }
  return loads;
}

double mean_of(const std::vector<EngineLoad>& loads) {
  double total = 0, num_open = 0;
  for (const EngineLoad& load : loads) {
    total += load.is_open ? static_cast<double>(load.num_tokens) : 0;
    num_open += load.is_open ? 1 : 0;
  }
  return total / num_open;
}

/// A request that was placed.
struct Placed {
  std::size_t replica;
  std::int64_t num_tokens;
};

}  // namespace

TEST_CASE("the tokens of a request are its prompt and the most output of each choice", "[engine][host]") {
  Request request = prompt_of(1, 10);
  request.sampling.max_tokens = 20;
  CHECK(most_tokens(request) == 30);
  CHECK(most_tokens(request, 16) == 16);
  CHECK(most_tokens(request, 5) == 10);  // it will be refused
  request.sampling.n = 3;
  CHECK(most_tokens(request) == 70);
  request.sampling.best_of = 4;
  CHECK(most_tokens(request, 16) == 34);
  request.sampling.max_tokens = 2147483647;
  CHECK(most_tokens(request) == 10 + 4 * std::int64_t{2147483647});
}

TEST_CASE("round robin gives each replica its turn and passes over those that are closed", "[engine][host]") {
  RoundRobinRouter router;
  std::vector<EngineLoad> loads = loads_of({9000, 0, 5});
  const auto next = [&] { return router.route(prompt_of(1, 4), loads); };
  CHECK(std::vector{next(), next(), next(), next()} == std::vector<std::size_t>{0, 1, 2, 0});
  loads[1].is_open = false;
  CHECK(std::vector{next(), next(), next()} == std::vector<std::size_t>{2, 0, 2});
}

TEST_CASE("least tokens chooses by tokens, then by requests, then the first", "[engine][host]") {
  LeastTokensRouter router;
  std::vector<EngineLoad> loads = loads_of({30, 20, 20, 40});
  CHECK(router.route(prompt_of(1, 4), loads) == 1);
  loads[1].num_reqs = 2;
  CHECK(router.route(prompt_of(1, 4), loads) == 2);
  loads[2].is_open = false;
  CHECK(router.route(prompt_of(1, 4), loads) == 1);
}

TEST_CASE("least tokens leaves no replica further above another than the largest request, while nothing ends", "[engine][host]") {
  check_property("least tokens", 300, [] {
    LeastTokensRouter router;
    std::vector<EngineLoad> loads(*rc::gen::inRange<std::size_t>(1, 9));
    std::int64_t largest = 0;
    for (const std::int64_t size : *rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(1, 5000))) {
      loads[router.route(Request(), loads)].num_tokens += size;
      largest = std::max(largest, size);
      const auto [low, high] = std::ranges::minmax_element(loads, {}, &EngineLoad::num_tokens);
      RC_ASSERT(high->num_tokens - low->num_tokens <= largest);
    }
  });
}

TEST_CASE("prompts that begin with the same blocks and salt go to the same replica", "[engine][host]") {
  PrefixAffinityRouter router({.block_size = 16, .num_blocks = 4});
  const std::vector<EngineLoad> loads(8);
  std::set<std::size_t> by_family, by_salt;
  for (int family = 0; family < 50; ++family) {
    Request first = prompt_of(family, 64);
    const std::size_t home = router.route(first, loads);
    by_family.insert(home);
    first.prompt_ids.push_back(3);
    CHECK(router.route(first, loads) == home);
    Request longer = prompt_of(family, 300);
    longer.prompt_ids[64] = 1;  // behind the blocks that are looked at
    CHECK(router.route(longer, loads) == home);
    by_salt.insert(router.route(prompt_of(1, 64, std::to_string(family)), loads));
  }
  CHECK(by_family.size() == 8);
  CHECK(by_salt.size() == 8);
  // Two blocks and a part of one: the part is not shared.
  Request part = prompt_of(1, 40);
  const std::size_t home = router.route(part, loads);
  for (TokenId id = 0; id < 20; ++id) {
    part.prompt_ids.back() = id;
    CHECK(router.route(part, loads) == home);
  }
}

TEST_CASE("prefixes are spread evenly, and a replica that dies moves its own alone", "[engine][host]") {
  PrefixAffinityRouter router;
  std::vector<EngineLoad> all(4), three(4);
  three[2].is_open = false;
  std::vector<int> counts(4), moved(4);
  for (int family = 0; family < 4000; ++family) {
    const Request request = prompt_of(family, 16);
    const std::size_t home = router.route(request, all), without = router.route(request, three);
    ++counts[home];
    if (home == 2) { ++moved[without]; }
    CHECK((home == 2 || without == home));
  }
  for (const int count : counts) { CHECK((count > 850 && count < 1150)); }  // 1000 +- 5.5 standard deviations
  CHECK(moved[2] == 0);
  for (const std::size_t i : {0u, 1u, 3u}) { CHECK(moved[i] > counts[2] / 5); }
}

TEST_CASE("a prompt without a whole block goes where the least is to do", "[engine][host]") {
  PrefixAffinityRouter router;
  CHECK(router.route(prompt_of(1, 15), loads_of({30, 20, 10, 40})) == 2);
  CHECK(router.route(Request(), loads_of({30, 5, 10, 40})) == 1);
}

TEST_CASE("a replica above the bound on load is passed over, one at it is not", "[engine][host]") {
  PrefixAffinityRouter router({.epsilon = 0.5, .slack_tokens = 10});
  const Request request = prompt_of(1, 64);
  const std::size_t home = router.route(request, loads_of({0, 0, 0, 0}));
  // Three have 100, the fourth x: the bound is 1.5 * (300 + x) / 4 + 10, which is x at 196.
  std::vector<EngineLoad> loads = loads_of({100, 100, 100, 100});
  loads[home].num_tokens = 196;
  CHECK(router.route(request, loads) == home);
  loads[home].num_tokens = 197;
  const std::size_t second = router.route(request, loads);
  CHECK(second != home);
  loads[home].is_open = false;     // nor does what it has to do count
  loads[second].num_tokens = 220;  // 1.5 * (200 + x) / 3 + 10
  CHECK(router.route(request, loads) == second);
  loads[second].num_tokens = 221;
  CHECK(router.route(request, loads) != second);
}

TEST_CASE("the bound on load holds for all requests and all ends", "[engine][host]") {
  check_property("bounded load", 300, [] {
    const double epsilon = *rc::gen::element(0.0, 0.1, 0.25, 2.0);
    const std::int64_t slack = *rc::gen::element(0, 1, 500, 8192);
    PrefixAffinityRouter router({.block_size = 4, .num_blocks = 2, .epsilon = epsilon, .slack_tokens = slack});
    std::vector<EngineLoad> loads(*rc::gen::inRange<std::size_t>(1, 9));
    const bool some_end = *rc::gen::arbitrary<bool>();
    const int num_families = *rc::gen::element(1, 2, 10);
    std::vector<Placed> placed;
    std::int64_t largest = 0;
    const auto operations =
        *rc::gen::resize(200, rc::gen::container<std::vector<std::uint32_t>>(rc::gen::arbitrary<std::uint32_t>()));
    for (const std::uint32_t bits : operations) {
      if (some_end && bits % 3 == 0 && !placed.empty()) {
        const auto at = placed.begin() + static_cast<std::ptrdiff_t>(bits / 3 % placed.size());
        loads[at->replica].num_tokens -= at->num_tokens;
        placed.erase(at);
        continue;
      }
      const double bound = (1 + epsilon) * mean_of(loads) + static_cast<double>(slack);
      const std::size_t chosen = router.route(prompt_of(static_cast<int>(bits) % num_families, 8), loads);
      RC_ASSERT(static_cast<double>(loads[chosen].num_tokens) <= bound);
      const std::int64_t size = 1 + bits / 7 % 3000;
      largest = std::max(largest, size);
      loads[chosen].num_tokens += size;
      placed.push_back({chosen, size});
      if (some_end) { continue; }
      const double most = (1 + epsilon) * mean_of(loads) + static_cast<double>(slack + largest);
      for (const EngineLoad& load : loads) { RC_ASSERT(static_cast<double>(load.num_tokens) <= most); }
    }
  });
}

TEST_CASE("options of the prefix affinity that are out of range are refused by name", "[engine][host]") {
  using nvl_test::expect_error;
  const auto make = [](const PrefixAffinityOptions& options) { return [options] { PrefixAffinityRouter{options}; }; };
  expect_error<InvalidArgument>(make({.block_size = 0}), {"block_size is 0", "at least 1"});
  expect_error<InvalidArgument>(make({.num_blocks = -1}), {"num_blocks is -1", "at least 1"});
  expect_error<InvalidArgument>(make({.epsilon = -0.5}), {"epsilon is -0.5"});
  expect_error<InvalidArgument>(make({.slack_tokens = -1}), {"slack_tokens is -1", "not negative"});
}

}  // namespace routers_test
