/// Engines over each prefix cache and its tiers: what is found costs nothing and changes no token.
#include "support/ahead_ops.hpp"
#include "support/tiny_model.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <vector>

namespace prefix_cache_engine_test {

using namespace nvl;
using namespace nvl_test;

namespace {

constexpr std::int64_t block_bytes = 3 * 2 * 16 * 2 * 16 * sizeof(float);  // layers, K and V, tokens, heads, head_dim

template <class Allocator>
using CacheEngine = TinyEngine<TokenBudgetScheduler<>, Allocator>;
/// One step ahead of the host: blocks are published, merged and given up while a launched step reads them.
template <class Allocator>
using AheadCacheEngine = Engine<TokenBudgetScheduler<>, Allocator, AheadAttention, SingleDevice>;

EngineOptions options_of(std::int64_t num_blocks, std::int64_t num_host_blocks) {
  EngineOptions options = roomy_options();
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 64;
  options.num_blocks = num_blocks;
  options.swap_space_bytes = num_host_blocks * block_bytes;
  return options;
}

/// Conversations of some turns, round after round: each turn's prompt is all that was said in it before, and more.
template <class Engine>
std::vector<std::vector<TokenId>> talk(Engine& engine, int num_conversations, int num_rounds) {
  std::vector<std::vector<TokenId>> said;
  for (int i = 0; i < num_conversations; ++i) {
    said.push_back(tiny_prompt(100, 21));  // one system prompt
    const std::vector<TokenId> own = tiny_prompt(i, 30);
    said.back().insert(said.back().end(), own.begin(), own.end());
  }
  for (int round = 0; round < num_rounds; ++round) {
    std::vector<Request> requests;
    for (const auto& prompt : said) { requests.push_back(greedy_request(prompt, 9)); }
    std::vector<Completion> done = engine.generate(std::move(requests));
    for (std::size_t i = 0; i < said.size(); ++i) {
      said[i].insert(said[i].end(), done[i].output_ids.begin(), done[i].output_ids.end());
      const std::vector<TokenId> next = tiny_prompt(1000 + 10 * round + static_cast<int>(i), 13);
      said[i].insert(said[i].end(), next.begin(), next.end());
    }
  }
  return said;
}

}  // namespace

TEMPLATE_TEST_CASE("conversations say the same whatever a prefix cache holds and where", "[engine][host]",
                   CacheEngine<PrefixCacheAllocator>, CacheEngine<RadixCacheAllocator>, AheadCacheEngine<PrefixCacheAllocator>,
                   AheadCacheEngine<RadixCacheAllocator>) {
  const RandomWeights weights(tiny_config(), 3);
  CacheEngine<FreeListAllocator> plain(tiny_config(), weights, options_of(40, 0));
  const auto expected = talk(plain, 6, 4);
  CHECK(plain.stats().cached_prompt_tokens == 0);
  CHECK(plain.stats().kv_waste() > 0);
  CHECK(plain.stats().kv_waste() < 0.5);

  TestType roomy(tiny_config(), weights, options_of(200, 0));
  CHECK(talk(roomy, 6, 4) == expected);
  CHECK(roomy.stats().prefix_hit_rate() > 0.5);
  CHECK(roomy.stats().prefix_cache.hit_tokens > 0);
  CHECK(roomy.stats().computed_tokens < plain.stats().computed_tokens);

  // Too small for all conversations: what one says evicts another, and comes back from the host.
  TestType small(tiny_config(), weights, options_of(24, 0));
  CHECK(talk(small, 6, 4) == expected);
  TestType tiered(tiny_config(), weights, options_of(24, 100));
  CHECK(talk(tiered, 6, 4) == expected);
  CHECK(tiered.stats().prefix_cache.host_hit_tokens > 0);
  CHECK(tiered.stats().computed_tokens < small.stats().computed_tokens);
  CHECK(tiered.stats().num_free_blocks == 24);
  CHECK(tiered.stats().num_free_host_blocks == 100);
}

TEST_CASE("a radix cache copies the head of a block that differs later, and no token changes", "[engine][host]") {
  const RandomWeights weights(tiny_config(), 3);
  CacheEngine<FreeListAllocator> plain(tiny_config(), weights, options_of(40, 0));
  CacheEngine<RadixCacheAllocator> radix(tiny_config(), weights, options_of(40, 0));
  std::vector<TokenId> first = tiny_prompt(1, 40), second = first;
  second[27] ^= 1;  // in the second block of 16
  for (const auto& prompt : {first, second}) {
    const auto expected = plain.generate({greedy_request(prompt, 12)}), found = radix.generate({greedy_request(prompt, 12)});
    CHECK(found[0].output_ids == expected[0].output_ids);
    CHECK(found[0].num_cached_tokens == (prompt == first ? 0 : 27));
  }
  CHECK(radix.stats().prefix_cache.partial_hit_tokens == 11);
}

TEMPLATE_TEST_CASE("an engine's cache can be pinned, watched and reset", "[engine][host]", PrefixCacheAllocator,
                   RadixCacheAllocator) {
  const RandomWeights weights(tiny_config(), 3);
  CacheEngine<TestType> engine(tiny_config(), weights, options_of(16, 0));
  const std::vector<TokenId> prompt = tiny_prompt(1, 33);
  engine.allocator().events().set_capacity(64);
  engine.generate({greedy_request(prompt, 1)});
  CHECK(engine.allocator().pin(engine.allocator().root(""), prompt) == 32);
  for (int i = 2; i < 6; ++i) { engine.generate({greedy_request(tiny_prompt(i, 200), 1)}); }
  CHECK(engine.generate({greedy_request(prompt, 1)})[0].num_cached_tokens == 32);
  std::vector<PrefixCacheEvent> events;
  engine.allocator().events().drain(events);
  CHECK(events.size() > 20);
  engine.allocator().reset();
  CHECK(engine.generate({greedy_request(prompt, 1)})[0].num_cached_tokens == 0);
}

}  // namespace prefix_cache_engine_test
