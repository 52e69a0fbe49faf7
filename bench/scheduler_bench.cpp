/// nvl-scheduler-bench: what one call of `schedule` costs the host, for each order, with few and with very many waiting.

#include "bench/support/report.hpp"
#include "support/options.hpp"

#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace nvl;
using nvl_bench::Json;

/// [us] of processor time of this thread: what others do on the machine meanwhile is no cost of the scheduler's.
double cpu_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

constexpr std::int32_t num_running = 256;
constexpr std::int32_t block_size = 16;

struct Case {
  const char* name;
  std::size_t num_waiting;
  bool has_room;  // else the pool is full and the next in order waits for blocks, with preemptions now and then
};
constexpr Case cases[] = {
    {"decodes only", 0, true}, {"10,000 waiting", 10'000, true}, {"10,000 waiting, pool full", 10'000, false}};

struct Result {
  nvl_bench::Samples us;
  std::uint64_t admitted = 0, preempted = 0;
};

/// Requests as in the nano-vllm benchmark, 100 to 1,024 tokens in and out; one in four begins with one of 16 prefixes of 256
/// tokens; 8 users, 3 priorities. The engine's part between two calls is done, and not timed.
template <class S>
class Load {
 public:
  Load(const Case& c, std::uint64_t seed, std::int32_t num_steps)
      : random_(seed),
        allocator_({.num_blocks = c.has_room ? 64'000u : 12'000u, .block_size = block_size, .num_host_blocks = 12'000}),
        scheduler_({.max_num_seqs = num_running, .max_num_batched_tokens = 4096, .block_size = block_size}),
        num_live_(num_running + c.num_waiting),
        refill_(c.num_waiting > 0),
        num_steps_(num_steps) {}

  Result run(std::int32_t num_steps) {
    while (live_.size() < num_live_) { add(); }
    std::vector<double> us;
    Result result{nvl_bench::Samples({})};
    for (int i = 0; i < num_steps;) {
      batch_.clear();
      const std::uint32_t running_before = scheduler_.num_running();
      const double start = cpu_us();
      scheduler_.schedule(allocator_, batch_);
      const double end = cpu_us();
      const bool is_steady = warm_ || scheduler_.num_running() == num_running || !batch_.preempted.empty();
      warm_ = is_steady;
      if (is_steady) {
        us.push_back(end - start);
        result.preempted += batch_.preempted.size() + batch_.swapped.size();
        result.admitted += scheduler_.num_running() + batch_.preempted.size() + batch_.swapped.size() - running_before;
        ++i;
      }
      commit();
    }
    result.us = nvl_bench::Samples(std::move(us));
    return result;
  }

 private:
  std::int32_t between(std::int32_t low, std::int32_t high) { return std::uniform_int_distribution(low, high)(random_); }

  void add() {
    auto seq = std::make_unique<Sequence>();
    seq->id = SeqId{next_id_++};
    seq->num_prompt = between(100, 1024);
    // Without refill nobody ends while it is timed.
    seq->max_total_tokens = seq->num_prompt + (refill_ ? between(100, 1024) : num_steps_ + 1024);
    seq->tokens.reserve(static_cast<std::size_t>(seq->num_prompt) + 1024);
    const std::int32_t prefix = between(0, 63);
    for (std::int32_t i = 0; i < seq->num_prompt; ++i) {
      seq->tokens.push_back(i < 256 && prefix < 16 ? prefix : between(0, 32'000));
    }
    seq->priority = between(0, 2);
    seq->user = static_cast<std::uint64_t>(between(0, 7));
    seq->prefix_root = allocator_.root("");
    scheduler_.add(*seq);
    live_.push_back(std::move(seq));
  }

  void commit() {
    for (const ScheduledSeq& entry : batch_.seqs) {
      Sequence& seq = *entry.seq;
      publish_full_blocks(seq, allocator_, block_size);
      if (!entry.needs_sample) { continue; }
      seq.tokens.push_back(between(0, 32'000));
      if (seq.num_tokens() < seq.max_total_tokens) { continue; }
      scheduler_.remove(seq);
      release_blocks(seq, allocator_);
      std::erase_if(live_, [&](const auto& s) { return s.get() == &seq; });
      add();
    }
  }

  std::mt19937_64 random_;
  PrefixCacheAllocator allocator_;
  S scheduler_;
  ScheduledBatch batch_;
  std::vector<std::unique_ptr<Sequence>> live_;
  std::size_t num_live_;
  bool refill_;
  std::int32_t num_steps_;
  bool warm_ = false;
  std::uint64_t next_id_ = 0;
};

template <class S>
void measure(const std::string& name, std::int32_t num_steps, std::vector<std::vector<std::string>>& table, Json& json) {
  for (const Case& c : cases) {
    const Result result = Load<S>(c, 1, num_steps).run(num_steps);
    const auto us = [&](double value) { return nvl_bench::fixed(value, 1); };
    table.push_back({name, c.name, us(result.us.median()), us(result.us.mean()), us(result.us.percentile(99)),
                     std::to_string(result.admitted), std::to_string(result.preempted)});
    Json entry{{"scheduler", name}, {"case", c.name}, {"admitted", result.admitted}, {"preempted", result.preempted}};
    nvl_bench::add_distribution(entry, "schedule_us", result.us, 1);
    json.push_back(entry);
    std::fprintf(stderr, "%s, %s: %s us\n", name.c_str(), c.name, table.back()[2].c_str());
  }
}

int bench(int argc, char** argv) {
  std::int32_t num_steps = 1000;
  std::optional<std::filesystem::path> output_json;
  nvl_examples::OptionParser parser("nvl-scheduler-bench", "Times what one call of schedule costs the host.");
  parser.option("--num-steps", num_steps, "N", "Steps of each case. Default: 1000.");
  parser.option("--output-json", output_json, "FILE", "Writes all numbers to a file.");
  if (!parser.parse(argc, argv)) { return 0; }
  if (num_steps < 1) { throw nvl_examples::UsageError("--num-steps is " + std::to_string(num_steps) + ": must be at least 1"); }

  std::vector<std::vector<std::string>> table{{"scheduler", "case", "median us", "mean us", "p99 us", "admitted", "preempted"}};
  Json list = Json::array();
  measure<PrefillFirstScheduler>("PrefillFirstScheduler", num_steps, table, list);
  measure<TokenBudgetScheduler<>>("FcfsOrder", num_steps, table, list);
  measure<TokenBudgetScheduler<FcfsOrder, SwapPreemption>>("FcfsOrder, SwapPreemption", num_steps, table, list);
  measure<TokenBudgetScheduler<PriorityOrder>>("PriorityOrder", num_steps, table, list);
  measure<TokenBudgetScheduler<ShortestWorkOrder>>("ShortestWorkOrder", num_steps, table, list);
  measure<TokenBudgetScheduler<FairShareOrder>>("FairShareOrder", num_steps, table, list);
  measure<TokenBudgetScheduler<LongestPrefixOrder>>("LongestPrefixOrder", num_steps, table, list);

  Json report =
      nvl_bench::environment(std::vector<std::string>(argv, argv + argc), "none: the scheduler alone", DType::float32, 1);
  std::printf("%s%s", nvl_bench::markdown_header(report, "scheduler").c_str(), nvl_bench::markdown_table(table).c_str());
  if (output_json) {
    report["cases"] = list;
    nvl_bench::write_json(*output_json, report);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_examples::run_program("nvl-scheduler-bench", [&] { return bench(argc, argv); });
}
