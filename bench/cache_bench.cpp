/// nvl-cache-bench: what a prefix cache costs the host and saves, for each cache and block size; and what was tried and dropped.

#include "bench/support/report.hpp"
#include "support/options.hpp"

#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/publish.hpp>

#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace nvl;
using nvl_bench::Json;
using Clock = std::chrono::steady_clock;
using Tokens = std::vector<TokenId>;

constexpr std::uint32_t block_sizes[] = {8, 16, 32, 64, 128, 256};
constexpr std::uint32_t pool_tokens = 1 << 20;

Tokens random_tokens(std::mt19937_64& random, std::size_t count) {
  Tokens tokens(count);
  for (TokenId& token : tokens) { token = static_cast<TokenId>(random() % 150'000); }
  return tokens;
}

/// [us] of one call, the median of `repeats`; `reset` is not timed.
template <class Work, class Reset>
double microseconds(int repeats, Work&& work, Reset&& reset) {
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    work();
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    reset();
  }
  return nvl_bench::Samples(std::move(times)).median();
}

/// A set that says "perhaps" or "no": 16 bits an element, 4 of them set, all in one word of 64.
class BloomFilter {
 public:
  explicit BloomFilter(std::size_t num_elements) : words_(std::bit_ceil(num_elements / 4 + 1)) {}
  void add(std::uint64_t hash) { words_[word_of(hash)] |= bits_of(hash); }
  bool may_contain(std::uint64_t hash) const { return (words_[word_of(hash)] & bits_of(hash)) == bits_of(hash); }

 private:
  std::size_t word_of(std::uint64_t hash) const { return (hash >> 24) & (words_.size() - 1); }
  static std::uint64_t bits_of(std::uint64_t h) {
    return std::uint64_t{1} << (h & 63) | std::uint64_t{1} << (h >> 6 & 63) | std::uint64_t{1} << (h >> 12 & 63) |
           std::uint64_t{1} << (h >> 18 & 63);
  }
  std::vector<std::uint64_t> words_;
};

template <class A>
Sequence sequence_of(A& allocator, Tokens tokens) {
  Sequence seq;
  seq.tokens = std::move(tokens);
  seq.num_prompt = seq.num_tokens();
  seq.max_total_tokens = seq.num_prompt + 64;
  seq.prefix_root = seq.published_prefix = allocator.root("");
  return seq;
}

/// The prompt is computed, published and given up.
template <class A>
void store(A& allocator, std::uint32_t block_size, const Tokens& tokens) {
  Sequence seq = sequence_of(allocator, tokens);
  if (!try_admit(seq, allocator, static_cast<std::int32_t>(block_size))) { return; }
  seq.num_computed = seq.num_tokens();
  publish_full_blocks(seq, allocator, static_cast<std::int32_t>(block_size));
  release_blocks(seq, allocator);
}

template <class A>
Json host_times(const std::string& name, std::uint32_t block_size, int repeats) {
  std::mt19937_64 random(1);
  A allocator({.num_blocks = pool_tokens / block_size, .block_size = block_size});
  while (allocator.num_idle() < allocator.num_blocks() / 2) { store(allocator, block_size, random_tokens(random, 1000)); }
  const Tokens longest = random_tokens(random, 100'000), prompt = random_tokens(random, 1025);
  store(allocator, block_size, longest);
  store(allocator, block_size, prompt);

  const auto none = [] {};
  std::uint64_t sink = 0;
  const double lookup = microseconds(
      repeats, [&] { sink += allocator.lookup(allocator.root(""), longest); }, none);
  std::vector<BlockId> table;
  const double match = microseconds(
      repeats, [&] { allocator.match(allocator.root(""), longest, table); },
      [&] {
        allocator.release(table);
        table.clear();
      });

  // All that an engine does with blocks for a prompt of which everything but the last token is cached.
  ScheduledBatch batch;
  const auto size = static_cast<std::int32_t>(block_size);
  Sequence seq = sequence_of(allocator, prompt);
  const double full_hit = microseconds(
      repeats,
      [&] {
        sink += static_cast<std::uint64_t>(uncached_tokens(seq, allocator));
        sink += try_admit(seq, allocator, size) ? 1 : 0;
        extend_hit(seq, allocator, size, batch);
        append_to_batch(batch, seq, seq.num_uncomputed());
        finish_plan(allocator, batch, 32);
        publish_full_blocks(seq, allocator, size);
        release_blocks(seq, allocator);
      },
      [&] { batch.clear(); });

  // Prompts of which nothing is cached; with a filter of all that is cached in front, and without.
  std::vector<Tokens> others;
  for (int i = 0; i < 1000; ++i) { others.push_back(random_tokens(random, 1024)); }
  const double miss = microseconds(
      repeats,
      [&] {
        for (const Tokens& other : others) { sink += allocator.lookup(allocator.root(""), other); }
      },
      none);
  const Xxh3BlockHash hash;
  const PrefixId root = allocator.root("");
  BloomFilter filter(allocator.num_blocks());
  for (std::uint32_t i = 0; i < allocator.num_idle(); ++i) { filter.add(random()); }
  const double filtered = microseconds(
      repeats,
      [&] {
        for (const Tokens& other : others) {
          const auto head = std::span(other).first(block_size);
          if (filter.may_contain(hash(root, head))) { sink += allocator.lookup(root, other); }
        }
      },
      none);

  const double stored = microseconds(
      repeats, [&] { store(allocator, block_size, others[random() % others.size()]); }, none);
  if (sink == 0) { std::fprintf(stderr, "nothing was found\n"); }
  return {{"cache", name},
          {"block_size", block_size},
          {"lookup_100k_us", lookup},
          {"match_100k_us", match},
          {"full_hit_1024_us", full_hit},
          {"miss_ns", miss},
          {"miss_filtered_ns", filtered},
          {"store_1024_us", stored}};
}

/// What block sizes cost and find: conversations under one system prompt, whose turns come in turn; and the nano-vllm lengths.
template <class A>
Json savings(const std::string& name, std::uint32_t block_size) {
  std::mt19937_64 random(2);
  const auto between = [&](std::size_t low, std::size_t high) { return low + random() % (high - low + 1); };
  A allocator({.num_blocks = pool_tokens / block_size, .block_size = block_size});
  const auto size = static_cast<std::int32_t>(block_size);
  std::uint64_t asked = 0, whole = 0, heads = 0, copies = 0;
  ScheduledBatch batch;
  const auto turn = [&](const Tokens& tokens) {
    Sequence seq = sequence_of(allocator, tokens);
    if (!try_admit(seq, allocator, size)) { return; }
    asked += tokens.size();
    whole += static_cast<std::uint64_t>(seq.num_cached);
    const std::int32_t before = seq.num_cached;
    extend_hit(seq, allocator, size, batch);
    heads += static_cast<std::uint64_t>(seq.num_cached - before);
    copies += batch.copies.size();
    finish_plan(allocator, batch, 0);
    batch.clear();
    seq.num_computed = seq.num_tokens();
    publish_full_blocks(seq, allocator, size);
    release_blocks(seq, allocator);
  };
  const Tokens system = random_tokens(random, 217);
  std::vector<Tokens> conversations(200, system);
  for (int round = 0; round < 5; ++round) {
    for (Tokens& said : conversations) {
      const Tokens question = random_tokens(random, between(10, 120));
      said.insert(said.end(), question.begin(), question.end());
      turn(said);
      const Tokens answer = random_tokens(random, between(20, 300));
      said.insert(said.end(), answer.begin(), answer.end());
      turn(said);  // as the engine leaves it: the answer's blocks are published
    }
  }
  // Each sequence of 100 to 1,024 tokens in and out holds, at each of its steps, whole blocks.
  double allocated = 0, used = 0;
  for (int i = 0; i < 256; ++i) {
    const std::size_t in = between(100, 1024), out = between(100, 1024);
    for (std::size_t length = in; length < in + out; ++length) {
      allocated += static_cast<double>((length + block_size - 1) / block_size * block_size);
      used += static_cast<double>(length);
    }
  }
  const auto share = [&](std::uint64_t tokens) { return static_cast<double>(tokens) / static_cast<double>(asked); };
  return {{"cache", name},
          {"block_size", block_size},
          {"chat_hit_rate", share(whole)},
          {"chat_head_rate", share(heads)},
          {"tokens_per_copy", copies == 0 ? 0.0 : static_cast<double>(heads) / static_cast<double>(copies)},
          {"kv_waste", 1 - used / allocated}};
}

int bench(int argc, char** argv) {
  std::int32_t repeats = 200;
  std::optional<std::filesystem::path> output_json;
  nvl_examples::OptionParser parser("nvl-cache-bench",
                                    "Times prefix caches on the host, and counts what block sizes save and waste.");
  parser.option("--repeats", repeats, "N", "Calls of each kind; the median counts. Default: 200.");
  parser.option("--output-json", output_json, "FILE", "Writes all numbers to a file.");
  if (!parser.parse(argc, argv)) { return 0; }
  if (repeats < 1) { throw nvl_examples::UsageError("--repeats is " + std::to_string(repeats) + ": must be at least 1"); }

  std::vector<std::vector<std::string>> times{{"cache", "block", "lookup 100k us", "match 100k us", "full hit 1024 us",
                                               "store 1024 us", "miss ns", "miss, Bloom filter ns"}};
  std::vector<std::vector<std::string>> saved{
      {"cache", "block", "chat: whole blocks", "and heads", "tokens a copy", "KV waste, nano-vllm lengths"}};
  Json list = Json::array();
  const auto measure = [&]<class A>(const std::string& name, std::type_identity<A>) {
    for (const std::uint32_t size : block_sizes) {
      Json t = host_times<A>(name, size, repeats), s = savings<A>(name, size);
      const auto number = [](const Json& j, const char* key, int digits) {
        return nvl_bench::fixed(j[key].get<double>(), digits);
      };
      const auto percent = [](const Json& j, const char* key) { return nvl_bench::fixed(100 * j[key].get<double>(), 2) + " %"; };
      times.push_back({name, std::to_string(size), number(t, "lookup_100k_us", 0), number(t, "match_100k_us", 0),
                       number(t, "full_hit_1024_us", 1), number(t, "store_1024_us", 1), number(t, "miss_ns", 0),
                       number(t, "miss_filtered_ns", 0)});
      saved.push_back({name, std::to_string(size), percent(s, "chat_hit_rate"), percent(s, "chat_head_rate"),
                       number(s, "tokens_per_copy", 1), percent(s, "kv_waste")});
      t.update(s);
      list.push_back(std::move(t));
    }
  };
  measure("hash", std::type_identity<PrefixCacheAllocator>());
  measure("radix", std::type_identity<RadixCacheAllocator>());

  Json report = nvl_bench::environment(std::vector<std::string>(argv, argv + argc), "none: the caches alone", DType::float32, 1);
  std::printf("%s%s\n%s", nvl_bench::markdown_header(report, "cache").c_str(), nvl_bench::markdown_table(times).c_str(),
              nvl_bench::markdown_table(saved).c_str());
  if (output_json) {
    report["cases"] = list;
    nvl_bench::write_json(*output_json, report);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_examples::run_program("nvl-cache-bench", [&] { return bench(argc, argv); });
}
