// An engine whose ranks are in several processes: the same bits as in one, and an end with a reason when one of them fails.

#include <nvl/core/error.hpp>
#include <nvl/engine/rank_follower.hpp>
#include <nvl/model/random_weights.hpp>
#include <nvl/nvl.hpp>
#include <nvl/parallel/across_processes.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/tcp_group.hpp>
#include <nvl/parallel/tensor_parallel.hpp>
#include <nvl/parallel/tensor_pipeline_parallel.hpp>
#include <nvl/parallel/thread_group.hpp>
#include <nvl/sched/swap_preemption.hpp>

#include "support/expect_error.hpp"
#include "support/processes.hpp"
#include "support/tiny_model.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <sys/mman.h>

namespace rank_follower_test {

using namespace nvl;
using namespace nvl_test;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;

namespace {

/// TCP between processes, where somebody may meddle with what is sent.
class MeddledGroup {
 public:
  /// Gets the bytes of each message or part of one, and says whether they are sent.
  using Meddle = std::function<bool(std::span<std::byte>)>;

  MeddledGroup(TcpGroup group, Meddle meddle) : group_(std::move(group)), meddle_(std::move(meddle)) {}

  static constexpr bool is_eager = true;
  Rank rank() const noexcept { return group_.rank(); }
  std::uint32_t size() const noexcept { return group_.size(); }
  template <class T>
  void all_reduce_sum(T* data, std::int64_t n) {
    group_.all_reduce_sum(data, n);
  }
  template <class T>
  void all_gather(const T* mine, T* all, std::int64_t n) {
    group_.all_gather(mine, all, n);
  }
  template <class T>
  void broadcast(T* data, std::int64_t n, Rank root) {
    group_.broadcast(data, n, root);
  }
  template <class T>
  void send(const T* data, std::int64_t n, Rank to) {
    if (!meddle_) { return group_.send(data, n, to); }
    std::vector<T> copy(data, data + n);
    if (meddle_(std::as_writable_bytes(std::span(copy)))) { group_.send(copy.data(), n, to); }
  }
  template <class T>
  void recv(T* data, std::int64_t n, Rank from) {
    group_.recv(data, n, from);
  }
  void barrier() { group_.barrier(); }
  void abort(std::string_view why) noexcept { group_.abort(why); }

 private:
  TcpGroup group_;
  Meddle meddle_;
};

template <class Parallel>
using EngineOn =
    Engine<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, PrefixCacheAllocator, CpuPagedAttention<float>, Parallel>;
using Strategy = AcrossProcesses<TensorPipelineParallel<TcpGroup>, MeddledGroup>;
using Leader = EngineOn<Strategy>;
using Follower =
    RankFollower<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, PrefixCacheAllocator, CpuPagedAttention<float>, Strategy>;
using Together = EngineOn<TensorPipelineParallel<>>;

/// What a rank is started with.
struct Start {
  std::uint32_t num_stages = 1, num_slices = 2;
  ModelConfig config = tiny_config();
  EngineOptions options = options_of_tests();
  std::chrono::milliseconds timeout = 20s, pulse = 5s;
  MeddledGroup::Meddle meddle{};
  LoadProgress progress{};

  std::uint32_t size() const { return num_stages * num_slices; }

  static EngineOptions options_of_tests() {
    EngineOptions options = roomy_options();
    options.device.num_threads = 1;
    return options;
  }
};

TcpGroup world_of(std::uint32_t rank, std::uint32_t size, const net::Endpoint& at, std::chrono::milliseconds timeout) {
  RendezvousOptions options;
  options.rank = Rank{rank};
  options.world_size = size;
  options.address = at.address;
  options.port = at.port;
  options.secret = "a secret of the tests";
  return TcpGroup(rendezvous(options), {.timeout = timeout});
}

Strategy strategy_of(std::uint32_t rank, const Start& start, const net::Endpoint& at) {
  TcpGroup world = world_of(rank, start.size(), at, start.timeout);
  auto local = TensorPipelineParallel<TcpGroup>::split(world, start.num_stages);
  return {std::move(local), MeddledGroup(std::move(world), start.meddle), {.pulse = start.pulse}};
}

/// Set by one process and seen by another.
class SharedFlag {
 public:
  SharedFlag()
      : word_(static_cast<std::atomic<int>*>(
            ::mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    if (static_cast<void*>(word_) == MAP_FAILED) { std::abort(); }
  }
  SharedFlag(const SharedFlag&) = delete;
  SharedFlag& operator=(const SharedFlag&) = delete;
  ~SharedFlag() { ::munmap(static_cast<void*>(word_), sizeof(std::atomic<int>)); }

  void set() { word_->store(1); }
  void wait() const {
    while (word_->load() == 0) { std::this_thread::sleep_for(5ms); }
  }

 private:
  std::atomic<int>* word_;  // of zeros that the system gave
};

using Lead = std::function<void(Leader&)>;

/// The whole life of one rank; `lead` is rank 0's.
void live(std::uint32_t rank, const Start& start, const net::Endpoint& at, const Lead& lead) {
  Strategy strategy = strategy_of(rank, start, at);
  const RandomWeights weights(start.config, 5);
  if (rank == 0) {
    Leader engine(start.config, weights, start.options, {}, std::move(strategy));
    lead(engine);
  } else {
    Follower(start.config, weights, start.options, std::move(strategy), start.progress).run();
  }
}

/// Ranks on threads; what each threw, empty: nothing.
std::vector<std::string> on_threads(const std::vector<Start>& starts, const Lead& lead) {
  std::vector<std::string> errors(starts.size());
  const net::Endpoint at = own_endpoint();
  std::vector<std::jthread> threads;
  for (std::uint32_t r = 0; r < starts.size(); ++r) {
    threads.emplace_back([&, r] { contain([&] { live(r, starts[r], at, lead); }, [&](const char* what) { errors[r] = what; }); });
  }
  threads.clear();
  return errors;
}
std::vector<std::string> on_threads(const Start& start, const Lead& lead) {
  return on_threads(std::vector<Start>(start.size(), start), lead);
}

/// Ranks in processes, which live as long as the result.
std::vector<std::unique_ptr<ChildProcess>> on_processes(const Start& start, const Lead& lead) {
  const net::Endpoint at = own_endpoint();
  std::vector<std::unique_ptr<ChildProcess>> ranks;
  for (std::uint32_t r = 0; r < start.size(); ++r) {
    ranks.push_back(std::make_unique<ChildProcess>([&, r] { live(r, start, at, lead); }));
  }
  return ranks;
}

void check_quiet(const std::vector<std::string>& errors) { CHECK(errors == std::vector<std::string>(errors.size())); }
void check_all_contain(const std::vector<std::string>& errors, const std::string& words) {
  for (std::size_t r = 0; r < errors.size(); ++r) {
    CAPTURE(r);
    CHECK_THAT(errors[r], ContainsSubstring(words));
  }
}
void fail_unless(bool condition, const std::string& what) {
  if (!condition) { raise(Error(what)); }
}

/// Greedy and drawn rows, penalties, biases, log-probabilities, several choices of one prompt.
std::vector<Request> requests() {
  std::vector<Request> all;
  for (int i = 0; i < 8; ++i) {
    all.push_back(greedy_request(tiny_prompt(i / 2, 5 + 9 * i), 14));
    SamplingParams& sampling = all.back().sampling;
    if (i % 2 == 1) {
      sampling.temperature = 0.9f;
      sampling.seed = 5;
    }
    if (i == 2) { sampling.repetition_penalty = 1.3f; }
    if (i == 3) { sampling.logit_bias = {{9, 2.0f}, {150, 1.5f}}; }
    if (i == 4) { sampling.logprobs = 4; }
    if (i == 5) { sampling.n = 3; }
  }
  return all;
}

/// Everything that requests and prompts give, as bits.
template <class E>
std::vector<std::uint32_t> results_of(E& engine) {
  std::vector<std::uint32_t> bits;
  const auto add = [&](auto value) {
    std::uint32_t word = 0;
    static_assert(sizeof(value) == sizeof(word));
    std::memcpy(&word, &value, sizeof(word));
    bits.push_back(word);
  };
  for (const Completion& completion : engine.generate(requests())) {
    fail_unless(completion.error.empty(), completion.error);
    for (const TokenId id : completion.output_ids) { add(id); }
    for (const auto& row : completion.logprobs) { add(row.logprob); }
  }
  engine.prompt_logits(tiny_prompt(0, 33), [&](std::int32_t, std::span<const float> row) {
    for (const float logit : row) { add(logit); }
  });
  return bits;
}

std::vector<std::uint32_t> results_together(const Start& start) {
  const RandomWeights weights(start.config, 5);
  Together engine(start.config, weights, start.options, {}, TensorPipelineParallel<>(start.num_stages, start.num_slices));
  return results_of(engine);
}

/// Steps until the engine fails; throws why. Calls `begun` after each step.
void work_until_failure(Leader& engine, const std::function<void()>& begun) {
  while (engine.failure().empty()) {
    if (!engine.has_work()) { engine.submit(greedy_request(tiny_prompt(1, 20), 200)); }
    engine.step();
    begun();
  }
  raise(Error(engine.failure()));
}
void work(Leader& engine) {
  work_until_failure(engine, [] {});
}

void submit_and_finish(Leader& engine) {
  for (const Completion& completion : engine.generate(requests())) { fail_unless(completion.error.empty(), completion.error); }
}

}  // namespace

TEST_CASE("ranks in other processes give the bits that ranks of one process give", "[parallel][host]") {
  for (const auto& [num_stages, num_slices] :
       std::vector<std::pair<std::uint32_t, std::uint32_t>>{{1, 2}, {2, 1}, {2, 2}, {3, 1}}) {
    CAPTURE(num_stages, num_slices);
    Start start{.num_stages = num_stages, .num_slices = num_slices};
    const auto expected = results_together(start);
    std::vector<std::uint32_t> found;
    check_quiet(on_threads(start, [&](Leader& engine) { found = results_of(engine); }));
    CHECK(found == expected);
    const auto ranks = on_processes(
        start, [&](Leader& engine) { fail_unless(results_of(engine) == expected, "the results differ in processes"); });
    for (const auto& rank : ranks) { CHECK(rank->report() == ""); }
  }
}

TEST_CASE("processes may have several ranks, and these other means to exchange data", "[parallel][host]") {
  using Mixed = AcrossProcesses<TensorParallel<>, TcpGroup>;
  Start start{.num_stages = 1, .num_slices = 4};
  start.config.num_q_heads = 8;
  const RandomWeights weights(start.config, 5);
  const auto expected = results_together(start);
  std::vector<ThreadGroup> ends = ThreadGroup::make(4);
  const net::Endpoint at = own_endpoint();
  const auto strategy = [&](std::uint32_t rank) {
    TensorParallel<> local(std::vector<ThreadGroup>{ends[2 * rank], ends[2 * rank + 1]});
    return Mixed(std::move(local), world_of(rank, 2, at, 20s));
  };
  std::string error;
  std::jthread other([&] {
    contain(
        [&] {
          RankFollower<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, PrefixCacheAllocator, CpuPagedAttention<float>, Mixed>
              follower(start.config, weights, start.options, strategy(1));
          follower.run();
        },
        [&](const char* what) { error = what; });
  });
  std::vector<std::uint32_t> found;
  {
    EngineOn<Mixed> engine(start.config, weights, start.options, {}, strategy(0));
    CHECK(engine.num_ranks() == 2);
    found = results_of(engine);
  }
  other.join();
  CHECK(error.empty());
  CHECK(found == expected);
}

TEST_CASE("blocks that are copied and moved are so on all ranks", "[parallel][host]") {
  for (const std::uint32_t num_stages : {1u, 2u}) {
    CAPTURE(num_stages);
    Start start{.num_stages = num_stages, .num_slices = 2 / num_stages};
    start.options.num_blocks = 14;
    start.options.swap_space_bytes = 1 << 20;
    start.options.scheduling.swap_in_steps = 4;
    const auto expected = results_together(start);
    std::vector<std::uint32_t> found;
    std::uint64_t num_swaps = 0;
    check_quiet(on_threads(start, [&](Leader& engine) {
      found = results_of(engine);
      num_swaps = engine.stats().num_swaps;
    }));
    CHECK(num_swaps > 0);
    CHECK(found == expected);
  }
}

TEST_CASE("all ranks plan with the blocks that the one with the least room has", "[parallel][host]") {
  std::vector<Start> starts(3, Start{.num_stages = 3, .num_slices = 1});
  starts[0].options.num_blocks = 90;
  starts[1].options.num_blocks = 40;
  starts[2].options.num_blocks = 70;
  check_quiet(on_threads(starts, [&](Leader& engine) {
    fail_unless(engine.memory_plan().num_blocks == 40, std::to_string(engine.memory_plan().num_blocks) + " blocks");
    fail_unless(engine.stats().num_blocks == 40, "another number of blocks in the allocator");
    submit_and_finish(engine);
  }));
}

TEST_CASE("a rank that was started with something else is named, with what it is", "[parallel][host]") {
  struct Case {
    std::function<void(Start&)> change;
    std::string words;
  };
  const std::vector<Case> cases{
      {[](Start& s) { s.config.intermediate_size = 96; }, "rank 2 has another intermediate_size than rank 0, which has 80"},
      {[](Start& s) { s.config.rope.theta = 5e5; }, "rank 2 has another rope_theta than rank 0, which has 10000"},
      {[](Start& s) {
         s.config.eos_token_ids = {7, 8};
       },
       "rank 2 has another eos_token_id than rank 0, which has [7]"},
      {[](Start& s) { s.options.max_num_seqs = 31; }, "rank 2 has another max_num_seqs than rank 0, which has 32"},
      {[](Start& s) { s.options.limits.max_logprobs = 99; }, "rank 2 has another limit of logprobs than rank 0, which has 32"},
  };
  for (const Case& test : cases) {
    std::vector<Start> starts(3, Start{.num_stages = 3, .num_slices = 1});
    test.change(starts[2]);
    check_all_contain(on_threads(starts, submit_and_finish), test.words);
  }
}

TEST_CASE("a rank that cannot plan or load ends all with its reason", "[parallel][host]") {
  std::vector<Start> starts(3, Start{.num_stages = 3, .num_slices = 1});
  starts[1].options.num_blocks = -1;
  check_all_contain(on_threads(starts, submit_and_finish), "num_blocks is -1");
  starts[1].options.num_blocks = 64;
  starts[1].options.device.num_threads = -3;
  check_all_contain(on_threads(starts, submit_and_finish), "num_threads");
}

TEST_CASE("however long nothing is to be done, the ranks wait for it", "[parallel][host]") {
  Start start{.num_stages = 2, .num_slices = 1};
  start.timeout = 700ms;
  start.pulse = 60ms;
  check_quiet(on_threads(start, [](Leader& engine) {
    submit_and_finish(engine);
    std::this_thread::sleep_for(1000ms);
    submit_and_finish(engine);
  }));
}

TEST_CASE("however long a rank loads its weights, the others wait for it", "[parallel][host]") {
  std::vector<Start> starts(3, Start{.num_stages = 3, .num_slices = 1});
  for (Start& start : starts) {
    start.timeout = 700ms;
    start.pulse = 60ms;
  }
  starts[1].progress = [is_late = false](auto&&...) mutable {
    if (!std::exchange(is_late, true)) { std::this_thread::sleep_for(1000ms); }
  };
  check_quiet(on_threads(starts, submit_and_finish));
}

TEST_CASE("a message that was changed on its way ends all ranks with the reason", "[parallel][host]") {
  for (const bool is_body : {false, true}) {
    CAPTURE(is_body);
    std::vector<Start> starts(3, Start{.num_stages = 3, .num_slices = 1});
    starts[0].meddle = [is_body, num = 0](std::span<std::byte> bytes) mutable {
      const bool is_header = bytes.size() == sizeof(MessageHeader);
      if (is_header != is_body && ++num == 12) { bytes[bytes.size() / 2] ^= std::byte{1}; }
      return true;
    };
    const auto errors = on_threads(starts, work);
    check_all_contain(errors, "message of rank 0");
    check_all_contain(errors, is_body ? "its data has another digest" : "its header has another digest");
  }
}

TEST_CASE("a message that is lost ends all ranks with the reason", "[parallel][host]") {
  std::vector<Start> starts(2, Start{.num_stages = 1, .num_slices = 2});
  starts[0].meddle = [is_lost = false, num = 0](std::span<std::byte> bytes) mutable {
    const bool is_header = bytes.size() == sizeof(MessageHeader);
    if (is_header) { is_lost = ++num == 5; }  // with its body
    return !is_lost;
  };
  check_all_contain(on_threads(starts, work), "message of rank 0 is number 5 where 4 comes next");
}

TEST_CASE("a result that was changed on its way ends all ranks with the reason", "[parallel][host]") {
  std::vector<Start> starts(2, Start{.num_stages = 2, .num_slices = 1});
  starts[1].meddle = [num = 0](std::span<std::byte> bytes) mutable {
    if (++num == 9) { bytes[bytes.size() - 1] ^= std::byte{1}; }
    return true;
  };
  check_all_contain(on_threads(starts, work), "message of rank 1");
}

TEST_CASE("the survivors of a killed process end with its rank", "[parallel][host]") {
  for (const std::size_t victim : {0u, 1u, 2u}) {
    CAPTURE(victim);
    SharedFlag is_working;
    const auto ranks = on_processes({.num_stages = victim == 1 ? 1u : 3u, .num_slices = victim == 1 ? 2u : 1u},
                                    [&](Leader& engine) { work_until_failure(engine, [&] { is_working.set(); }); });
    is_working.wait();
    ranks[victim]->signal(SIGKILL);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      if (r != victim) { CHECK_THAT(ranks[r]->report(), ContainsSubstring("rank " + std::to_string(victim) + " is gone")); }
    }
  }
}

TEST_CASE("the survivors of a stopped process end within the deadline with its rank", "[parallel][host]") {
  for (const std::size_t victim : {0u, 1u}) {
    CAPTURE(victim);
    Start start{.num_stages = 1, .num_slices = 2};
    start.timeout = 700ms;
    start.pulse = 60ms;
    SharedFlag is_working;
    const auto ranks = on_processes(start, [&](Leader& engine) { work_until_failure(engine, [&] { is_working.set(); }); });
    is_working.wait();
    ranks[victim]->signal(SIGSTOP);
    CHECK_THAT(ranks[1 - victim]->report(), ContainsSubstring("rank " + std::to_string(victim) + " "));
    ranks[victim]->signal(SIGCONT);
  }
}

TEST_CASE("an engine that does nothing and is killed or stopped lets the others go", "[parallel][host]") {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    CAPTURE(signal);
    Start start{.num_stages = 1, .num_slices = 2};
    start.timeout = 700ms;
    start.pulse = 60ms;
    SharedFlag is_there;
    const auto ranks = on_processes(start, [&](Leader&) {
      is_there.set();
      std::this_thread::sleep_for(19s);
    });
    is_there.wait();
    ranks[0]->signal(signal);
    CHECK_THAT(ranks[1]->report(), ContainsSubstring("rank 0 "));
  }
}

TEST_CASE("ranks that nobody tells anything are refused", "[parallel][host]") {
  auto ends = ThreadGroup::make(2);
  auto others = ThreadGroup::make(1);
  const RandomWeights weights(tiny_config(), 5);
  TensorPipelineParallel<> half(std::move(ends[0]), std::move(others[0]));
  expect_error<InvalidArgument>([&] { Together(tiny_config(), weights, roomy_options(), {}, std::move(half)); },
                                {"ranks of the strategy is 1", "all 2", "AcrossProcesses"});
}

}  // namespace rank_follower_test
