/// Policies as a user writes them, from what docs/policies.md says alone: they pass the suites, and an engine with them
/// generates what the default one does.
#include <nvl/nvl.hpp>
#include <nvl/testing/check_block_allocator.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

namespace user_policies_test {

namespace {

/// A bit for each free block, 64 to a word, and a count of owners for each block.
class BitmapAllocator {
 public:
  explicit BitmapAllocator(const nvl::BlockPoolShape& shape)
      : free_((shape.num_blocks + 63) / 64),
        owners_(shape.num_blocks),
        num_free_(shape.num_blocks) {
    for (std::uint32_t block = 0; block < shape.num_blocks; ++block) { free_[block / 64] |= bit(block); }
  }

  bool try_allocate(std::span<nvl::BlockId> out) noexcept {
    if (out.size() > num_free_) { return false; }
    std::size_t word = 0;
    for (nvl::BlockId& block : out) {
      while (free_[word] == 0) { ++word; }
      const auto id = static_cast<std::uint32_t>(64 * word + static_cast<std::size_t>(std::countr_zero(free_[word])));
      free_[word] &= free_[word] - 1;
      owners_[id] = 1;
      block = nvl::BlockId{id};
    }
    num_free_ -= static_cast<std::uint32_t>(out.size());
    return true;
  }

  void release(std::span<const nvl::BlockId> ids) noexcept {
    for (const nvl::BlockId id : ids) {
      const std::uint32_t block = nvl::index_of(id);
      if (--owners_[block] > 0) { continue; }
      free_[block / 64] |= bit(block);
      ++num_free_;
    }
  }

  void share(std::span<const nvl::BlockId> ids) noexcept {
    for (const nvl::BlockId id : ids) { ++owners_[nvl::index_of(id)]; }
  }

  std::uint32_t num_owners(nvl::BlockId block) const noexcept { return owners_[nvl::index_of(block)]; }
  std::uint32_t num_free() const noexcept { return num_free_; }
  std::uint32_t num_blocks() const noexcept { return static_cast<std::uint32_t>(owners_.size()); }

 private:
  static constexpr std::uint64_t bit(std::uint32_t block) noexcept { return std::uint64_t{1} << (block % 64); }

  std::vector<std::uint64_t> free_;
  std::vector<std::uint32_t> owners_;
  std::uint32_t num_free_;
};
static_assert(nvl::require_block_allocator<BitmapAllocator>());
static_assert(nvl::SharingAllocator<BitmapAllocator>);

/// Shortest prompt first, and among equals who came first. By the same rank blocks go to those that run: the last of them gives
/// up its own, so the first is nobody's victim and comes nearer its end with every step.
class ShortestPromptFirst {
 public:
  explicit ShortestPromptFirst(const nvl::SchedulerOptions& options) : options_(options) {}

  void add(nvl::Sequence& seq) { insert(waiting_, seq); }
  bool try_add_running(nvl::Sequence& seq) {
    if (!may_run_one_more()) { return false; }
    insert(running_, seq);
    return true;
  }
  void remove(nvl::Sequence& seq) {
    std::erase(waiting_, &seq);
    std::erase(running_, &seq);
  }
  std::uint32_t num_waiting() const noexcept { return static_cast<std::uint32_t>(waiting_.size()); }
  std::uint32_t num_running() const noexcept { return static_cast<std::uint32_t>(running_.size()); }

  template <nvl::BlockAllocator Allocator>
  void schedule(Allocator& allocator, nvl::ScheduledBatch& batch) {
    const auto budget = [&] { return options_.max_num_batched_tokens - batch.num_tokens; };
    const auto plan = [&](nvl::Sequence& seq) { nvl::append_to_batch(batch, seq, std::min(seq.num_uncomputed(), budget())); };

    for (std::size_t i = 0; i < running_.size() && budget() > 0;) {
      nvl::Sequence& seq = *running_[i];
      if (nvl::try_grow(seq, allocator, seq.num_tokens(), options_.block_size, batch)) {
        plan(seq);
        ++i;
      } else {
        nvl::Sequence& victim = *running_.back();  // perhaps `seq` itself
        nvl::preempt_by_recompute(victim, allocator, batch);
        running_.pop_back();
        insert(waiting_, victim);
      }
    }
    if (!batch.preempted.empty()) { return; }
    while (!waiting_.empty() && may_run_one_more() && budget() > 0) {
      nvl::Sequence& next = *waiting_.front();
      if (!nvl::try_admit(next, allocator, options_.block_size)) { break; }
      waiting_.erase(waiting_.begin());
      insert(running_, next);
      plan(next);
    }
  }

 private:
  bool may_run_one_more() const noexcept { return num_running() < static_cast<std::uint32_t>(options_.max_num_seqs); }

  static void insert(std::vector<nvl::Sequence*>& line, nvl::Sequence& seq) {
    const auto rank = [](const nvl::Sequence* s) { return std::tuple(s->num_prompt, s->id); };
    line.insert(std::ranges::upper_bound(line, rank(&seq), {}, rank), &seq);
  }

  nvl::SchedulerOptions options_;
  std::vector<nvl::Sequence*> waiting_, running_;  // by rank
};
static_assert(nvl::require_scheduler_policy<ShortestPromptFirst>());
static_assert(nvl::ForkingScheduler<ShortestPromptFirst>);

using DefaultEngine = nvl::DefaultCpuEngine<float>;
using UserEngine = DefaultEngine::with_scheduler<ShortestPromptFirst>::with_allocator<BitmapAllocator>;

nvl::ModelConfig tiny_config() {
  nvl::ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.num_layers = 2;
  config.num_q_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.max_position_embeddings = 256;
  return config;
}

/// Prompts of 1 to 120 tokens, longest first.
std::vector<nvl::Request> requests_of_many_lengths() {
  std::vector<nvl::Request> requests;
  for (const std::int32_t length : {120, 77, 64, 33, 32, 31, 17, 16, 15, 5, 2, 1}) {
    nvl::Request request;
    for (std::int32_t i = 0; i < length; ++i) { request.prompt_ids.push_back((7 * i + length) % 256); }
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 40;
    request.sampling.ignore_eos = true;
    requests.push_back(request);
  }
  return requests;
}

template <class Engine>
Engine make_engine(std::int32_t num_blocks) {
  const nvl::ModelConfig config = tiny_config();
  nvl::EngineOptions options;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 48;  // the longest prompts take several steps
  options.num_blocks = num_blocks;
  options.device.num_threads = 1;
  return Engine(config, nvl::RandomWeights(config, 1), options);
}

}  // namespace

TEST_CASE("a user's bitmap allocator keeps the promises of BlockAllocator", "[conformance][host]") {
  for (const std::uint32_t num_blocks : {4u, 63u, 64u, 65u, 130u}) {  // about the ends of its words
    INFO(num_blocks << " blocks");
    CHECK(nvl::testing::check_block_allocator<BitmapAllocator>({.num_blocks = num_blocks, .block_size = 2}).text() == "");
  }
}

TEMPLATE_TEST_CASE("a user's scheduler keeps the promises of SchedulerPolicy over the user's allocator and nvl's",
                   "[conformance][host]", BitmapAllocator, nvl::FreeListAllocator, nvl::PrefixCacheAllocator,
                   nvl::RadixCacheAllocator) {
  CHECK(nvl::testing::check_scheduler_policy<ShortestPromptFirst, TestType>().text() == "");
}

TEST_CASE("an engine with a user's scheduler and allocator generates what the default one does", "[conformance][host]") {
  auto expected = make_engine<DefaultEngine>(256);  // nothing is preempted
  auto engine = make_engine<UserEngine>(16);
  const auto wanted = expected.generate(requests_of_many_lengths());
  const auto given = engine.generate(requests_of_many_lengths());
  REQUIRE(given.size() == wanted.size());
  for (std::size_t i = 0; i < given.size(); ++i) {
    INFO("request " << i);
    CHECK(given[i].finish_reason == nvl::FinishReason::length);
    CHECK(given[i].output_ids.size() == 40);
    CHECK(given[i].output_ids == wanted[i].output_ids);
  }
  CHECK(expected.stats().num_preemptions == 0);
  CHECK(engine.stats().num_preemptions > 0);
  CHECK(engine.stats().num_free_blocks == 16);
}

TEST_CASE("the choices of one request share blocks in an engine with a user's policies", "[conformance][host]") {
  nvl::Request request;
  request.prompt_ids.assign(40, 7);
  request.sampling.seed = 5;
  request.sampling.n = 3;
  request.sampling.max_tokens = 20;
  request.sampling.ignore_eos = true;
  auto expected = make_engine<DefaultEngine>(256);
  auto engine = make_engine<UserEngine>(16);
  const nvl::Completion wanted = expected.generate({request}).front();
  const nvl::Completion given = engine.generate({request}).front();
  CHECK(given.output_ids == wanted.output_ids);
  REQUIRE(given.others.size() == 2);
  for (std::size_t i = 0; i < given.others.size(); ++i) { CHECK(given.others[i].output_ids == wanted.others[i].output_ids); }
  CHECK(engine.stats().computed_tokens < 40 + 3 * 20);  // the prompt once
  CHECK(engine.stats().num_free_blocks == 16);
}

TEST_CASE("a beam search in an engine with a user's policies finds what it does in the default one", "[conformance][host]") {
  nvl::Request request;
  request.prompt_ids.assign(40, 7);
  request.sampling.temperature = 0;
  request.sampling.beam_width = 4;
  request.sampling.n = 4;
  request.sampling.max_tokens = 30;
  auto expected = make_engine<DefaultEngine>(256);
  auto engine = make_engine<UserEngine>(18);
  const auto wanted = expected.generate({request, request, request});
  const auto given = engine.generate({request, request, request});
  REQUIRE(given.size() == wanted.size());
  for (std::size_t i = 0; i < given.size(); ++i) {
    CHECK(given[i].error == "");
    CHECK(given[i].output_ids == wanted[i].output_ids);
    REQUIRE(given[i].others.size() == wanted[i].others.size());
    for (std::size_t k = 0; k < given[i].others.size(); ++k) {
      CHECK(given[i].others[k].output_ids == wanted[i].others[k].output_ids);
    }
  }
  CHECK(engine.stats().num_free_blocks == 18);
  CHECK(engine.stats().num_preemptions > 0);
}

}  // namespace user_policies_test
