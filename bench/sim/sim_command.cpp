#include "bench/sim/sim_command.hpp"

#include "bench/sim/fit.hpp"
#include "bench/support/presets.hpp"
#include "support/model_options.hpp"
#include "support/progress.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace nvl_bench {

using nvl_examples::UsageError;

namespace {

/// Under which name each number of a DeviceCost is written.
constexpr std::array<std::pair<const char*, double DeviceCost::*>, 16> cost_fields{
    {{"weight_bytes_per_s", &DeviceCost::weight_bytes},
     {"kv_bytes_per_s", &DeviceCost::kv_bytes},
     {"shared_kv_bytes_per_s", &DeviceCost::shared_kv_bytes},
     {"matmul_flops_per_s", &DeviceCost::matmul_flops},
     {"attention_flops_per_s", &DeviceCost::attention_flops},
     {"row_bytes_per_s", &DeviceCost::row_bytes},
     {"layer_us_2", &DeviceCost::layer_us_2},
     {"layer_us_16", &DeviceCost::layer_us_16},
     {"layer_us_128", &DeviceCost::layer_us_128},
     {"layer_us_more", &DeviceCost::layer_us_more},
     {"prompt_layer_us", &DeviceCost::prompt_layer_us},
     {"mixed_layer_us", &DeviceCost::mixed_layer_us},
     {"host_us", &DeviceCost::host_us},
     {"host_seq_us", &DeviceCost::host_seq_us},
     {"launch_layer_us", &DeviceCost::launch_layer_us},
     {"link_bytes_per_s", &DeviceCost::link_bytes}}};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');) { parts.push_back(part); }
  return parts;
}

template <class T>
T number(const char* name, const std::string& text) {
  T value{};
  nvl_examples::detail::convert(name, text, value);
  return value;
}

nvl::ModelConfig model_named(const std::string& name) {
  const auto config = preset(name);
  if (!config) { throw UsageError("model \"" + name + "\": must be one of " + preset_list()); }
  return *config;
}

std::string percent(double share) { return fixed(100 * share, 2); }
std::string ms(double seconds) { return fixed(1e3 * seconds, seconds < 0.1 ? 2 : seconds < 10 ? 1 : 0); }

void add_times(Json& json, const std::string& name, const LogHistogram& times) {
  if (times.count() == 0) { return; }
  json["mean_" + name] = 1e3 * times.mean();
  for (const int p : percentiles) { json["p" + std::to_string(p) + "_" + name] = 1e3 * times.percentile(p); }
  json["max_" + name] = 1e3 * times.max();
}

Json to_json(const SimCase& one, const SimResult& r, const nvl::BlockPoolShape& pool) {
  Json json;
  json["trace"] = one.trace;
  json["request_rate"] = std::isinf(one.load.request_rate) ? Json("inf") : Json(one.load.request_rate);
  json["num_prompts"] = one.load.num_prompts;
  json["scheduler"] = one.policies.scheduler;
  json["order"] = one.policies.order;
  json["preemption"] = one.policies.preemption;
  json["prefix_cache"] = one.policies.cache;
  json["block_size"] = one.block_size;
  json["num_blocks"] = pool.num_blocks;
  json["max_num_seqs"] = one.max_num_seqs;
  json["max_num_batched_tokens"] = one.max_num_batched_tokens;
  json["max_prefill_tokens_beside_decodes"] = one.scheduling.max_prefill_tokens_beside_decodes;
  json["long_prefill_token_threshold"] = one.scheduling.long_prefill_token_threshold;
  json["duration"] = r.duration;
  json["completed"] = r.requests;
  json["failed"] = r.refused;
  json["total_input"] = r.prompt_tokens;
  json["total_output"] = r.output_tokens;
  json["request_throughput"] = static_cast<double>(r.requests) / r.duration;
  json["output_throughput"] = r.output_throughput();
  json["steps"] = r.steps;
  json["mean_batch"] = r.mean_batch();
  json["busy"] = r.busy / r.duration;
  json["preemptions"] = r.preemptions;
  json["swaps"] = r.swaps;
  json["transferred_blocks"] = r.transferred_blocks;
  json["cached_tokens"] = r.cached_tokens;
  json["prefix_hit_rate"] = r.hit_rate();
  json["kv_wasted"] = r.kv_wasted;
  json["kv_used"] = r.kv_used;
  json["peak_blocks"] = r.peak_blocks;
  json["live_blocks"] = r.live_blocks;
  json["peak_waiting"] = r.peak_waiting;
  add_times(json, "ttft_ms", r.ttft);
  add_times(json, "tpot_ms", r.tpot);
  add_times(json, "itl_ms", r.itl);
  add_times(json, "e2el_ms", r.e2el);
  add_times(json, "ttft_urgent_ms", r.ttft_urgent);
  add_times(json, "ttft_light_ms", r.ttft_light);
  return json;
}

const std::vector<std::string> result_head{"tok/s",   "TTFT p50", "p99",       "TPOT p50", "p99",
                                           "ITL p50", "p99",      "preempted", "hits %",   "waste %"};

std::vector<std::string> result_row(const SimResult& r) {
  return {fixed(r.output_throughput(), 0), ms(r.ttft.percentile(50)),
          ms(r.ttft.percentile(99)),       ms(r.tpot.percentile(50)),
          ms(r.tpot.percentile(99)),       ms(r.itl.percentile(50)),
          ms(r.itl.percentile(99)),        std::to_string(r.preemptions + r.swaps),
          percent(r.hit_rate()),           percent(r.kv_wasted)};
}

}  // namespace

DeviceCost read_cost(const std::filesystem::path& path) {
  std::ifstream file(path);
  const Json json = Json::parse(file, nullptr, false);
  DeviceCost cost;
  for (const auto& [name, field] : cost_fields) {
    if (!json.is_object() || !json.contains(name) || !json[name].is_number() || !(json[name].get<double>() >= 0)) {
      throw std::runtime_error(path.string() + ": no cost model: " + name + " must be a number and not negative");
    }
    cost.*field = json[name].get<double>();
  }
  return cost;
}

Json to_json(const DeviceCost& cost) {
  Json json;
  for (const auto& [name, field] : cost_fields) { json[name] = cost.*field; }
  return json;
}

void SimCommand::add_to(nvl_examples::OptionParser& parser) {
  const auto list = [](const char* kind) {
    std::string names;
    for (const std::string& name : policy_names(kind)) { names += (names.empty() ? "" : ", ") + name; }
    return names;
  };
  parser.group("Load (a list, \"a,b,c\", simulates each)");
  parser.option("--trace,--dataset", traces, "LIST", "Of " + trace_list() + ". Default: sharegpt.");
  parser.option("--num-prompts", num_prompts, "N", "Requests. Default: 1000; nano-vllm has 256.");
  parser.option("--request-rate", request_rates, "LIST",
                "Requests a second, at random (Poisson) times; inf: all at the start. Default: inf.");
  parser.option("--input-len", input_len, "N", "random: prompt tokens of a request. Default: 512.");
  parser.option("--output-len", output_len, "N", "random: output tokens of a request. Default: 128.");
  parser.option("--random-range-ratio", range_ratio, "R", "random: lengths vary evenly by this share. Default: 0.");
  parser.option("--think-time", think_time, "S", "chat, agents: mean seconds from an answer to the next turn. Default: 0.");
  parser.option("-s,--seed", seed, "N", "Of all that is random. Default: 0.");
  parser.group("Policies (lists, too)");
  parser.option("--scheduler", schedulers, "LIST", "Of " + list("scheduler") + ". Default: token-budget.");
  parser.option("--order", orders, "LIST", "token-budget: of " + list("order") + ". Default: fcfs.");
  parser.option("--preemption", preemptions, "LIST", "token-budget: of " + list("preemption") + ". Default: recompute.");
  parser.option("--prefix-cache", caches, "LIST", "Of " + list("cache") + ". Default: hash.");
  parser.option("--block-size", block_sizes, "LIST", "Tokens of a block. Default: 16.");
  parser.option("--max-num-seqs", max_num_seqs, "LIST", "Sequences that run at once. Default: 256.");
  parser.option("--max-num-batched-tokens", max_num_batched_tokens, "LIST", "Tokens of a step. Default: 16384.");
  parser.option("--max-prefill-tokens-beside-decodes", max_prefill_tokens_beside_decodes, "LIST",
                "token-budget: prompt tokens of a step that decodes too; 0: what it has left. Default: 0.");
  parser.option("--long-prefill-token-threshold", long_prefill_token_threshold, "LIST",
                "token-budget: tokens of one prompt in a step; 0: what it has left. Default: 0.");
  parser.group("Device");
  parser.option("--model", model, "SHAPE", "Of " + preset_list() + ". Default: qwen3-0.6b.");
  parser.option("--kv-tokens", kv_tokens, "N",
                "Slots of the KV cache. Default: what 92 % of an H200's 141 GB hold beside the weights.");
  parser.option("--swap-space", swap_space, "GIB", "Host memory for swapped blocks. Default: 0.");
  parser.option("--cost", cost_file, "FILE", "The cost model, as --fit writes it. Default: that of an H200.");
  parser.flag("--no-run-ahead", no_run_ahead, "The host plans a step when the one before has ended.");
  parser.group("Output");
  parser.option("--output-json", output_json, "FILE", "Writes all numbers to a file; bench/plot.py draws it.");
  parser.group("Instead of simulating");
  parser.option("--fit", fit_logs, "LOG",
                "Fits the cost model to a log of nvl-bench throughput --step-log. May be given several times.");
  parser.option("--fit-output", output_cost, "FILE", "Where --fit writes it.");
}

int SimCommand::fit(const DeviceCost& start) const {
  std::vector<FitData> data;
  std::vector<std::string> models;
  for (const auto& path : fit_logs) {
    StepLog log = read_step_log(path);
    const auto same = std::ranges::find(models, log.model);
    if (same == models.end()) {
      models.push_back(log.model);
      data.push_back({model_named(log.model), std::move(log.steps)});
    } else {
      std::vector<LoggedStep>& steps = data[static_cast<std::size_t>(same - models.begin())].steps;
      steps.insert(steps.end(), log.steps.begin(), log.steps.end());
    }
  }
  const FitReport report = fit_cost(data, start);
  std::vector<std::vector<std::string>> rows{{"steps", "number", "measured [s]", "predicted [s]", "mean error of a step [%]"}};
  for (const auto& [name, error] : {std::pair("decodes only", report.decode), std::pair("with prompts", report.prompt)}) {
    rows.push_back({name, std::to_string(error.num_steps), fixed(error.measured, 4), fixed(error.predicted, 4),
                    percent(error.mean_relative)});
  }
  std::printf("%s\n", markdown_table(rows).c_str());
  const Json json = to_json(report.cost);
  std::printf("%s\n", json.dump(2).c_str());
  if (output_cost) { write_json(*output_cost, json); }
  return 0;
}

std::vector<SimCase> SimCommand::cases(std::vector<std::string>& varied_names) const {
  using Set = std::function<void(SimCase&, const std::string&)>;
  struct Option {
    const char* name;
    const std::string& values;
    Set set;
  };
  const auto count = [](const char* name, auto SimCase::*field) {
    return Set([name, field](SimCase& c, const std::string& v) { c.*field = number<std::int32_t>(name, v); });
  };
  const auto limit = [](const char* name, std::int32_t nvl::SchedulingOptions::*field) {
    return Set([name, field](SimCase& c, const std::string& v) { c.scheduling.*field = number<std::int32_t>(name, v); });
  };
  const std::array<Option, 11> options{{
      {"trace", traces, [](SimCase& c, const std::string& v) { c.trace = v; }},
      {"rate", request_rates,
       [](SimCase& c, const std::string& v) {
         c.load.request_rate = v == "inf" ? std::numeric_limits<double>::infinity() : number<double>("--request-rate", v);
       }},
      {"scheduler", schedulers, [](SimCase& c, const std::string& v) { c.policies.scheduler = v; }},
      {"order", orders, [](SimCase& c, const std::string& v) { c.policies.order = v; }},
      {"preemption", preemptions, [](SimCase& c, const std::string& v) { c.policies.preemption = v; }},
      {"cache", caches, [](SimCase& c, const std::string& v) { c.policies.cache = v; }},
      {"block size", block_sizes, count("--block-size", &SimCase::block_size)},
      {"max seqs", max_num_seqs, count("--max-num-seqs", &SimCase::max_num_seqs)},
      {"step tokens", max_num_batched_tokens, count("--max-num-batched-tokens", &SimCase::max_num_batched_tokens)},
      {"beside decodes", max_prefill_tokens_beside_decodes,
       limit("--max-prefill-tokens-beside-decodes", &nvl::SchedulingOptions::max_prefill_tokens_beside_decodes)},
      {"chunk", long_prefill_token_threshold,
       limit("--long-prefill-token-threshold", &nvl::SchedulingOptions::long_prefill_token_threshold)},
  }};
  std::vector<SimCase> all(1);
  for (const Option& option : options) {
    const std::vector<std::string> values = split(option.values);
    if (values.empty()) { throw UsageError(std::string("the list of --") + option.name + " is empty"); }
    if (values.size() > 1) { varied_names.push_back(option.name); }
    std::vector<SimCase> next;
    for (const SimCase& one : all) {
      for (const std::string& value : values) {
        SimCase& c = next.emplace_back(one);
        option.set(c, value);
        if (values.size() > 1) { c.varied.push_back(value); }
      }
    }
    all = std::move(next);
  }
  // What a scheduler has no use for is simulated once.
  std::erase_if(all, [&](const SimCase& c) {
    if (c.policies.scheduler != "prefill-first") { return false; }
    const auto is_first = [](const std::string& list, const std::string& value) { return split(list).front() == value; };
    const auto first = [](const std::string& list) { return number<std::int32_t>("list", split(list).front()); };
    return !is_first(orders, c.policies.order) || !is_first(preemptions, c.policies.preemption) ||
           c.scheduling.max_prefill_tokens_beside_decodes != first(max_prefill_tokens_beside_decodes) ||
           c.scheduling.long_prefill_token_threshold != first(long_prefill_token_threshold);
  });
  return all;
}

nvl::BlockPoolShape SimCommand::pool(const nvl::ModelConfig& config, const StepCost& cost, std::int32_t block_size) const {
  constexpr double budget = 0.92 * 141e9, others = 3e9;  // [bytes] of an H200; buffers and graphs
  double weights = 0;
  for (const nvl::WeightSpec& spec : nvl::expected_weights(config)) {
    double bytes = 2;
    for (const std::int64_t extent : spec.shape) { bytes *= static_cast<double>(extent); }
    weights += bytes;
  }
  const double slots = kv_tokens ? static_cast<double>(*kv_tokens) : (budget - others - weights) / cost.kv_token_bytes();
  const double host = static_cast<double>(nvl_examples::swap_space_bytes(swap_space)) / cost.kv_token_bytes();
  return {.num_blocks = static_cast<std::uint32_t>(slots / block_size),
          .block_size = static_cast<std::uint32_t>(block_size),
          .num_host_blocks = static_cast<std::uint32_t>(host / block_size)};
}

int SimCommand::run(const std::vector<std::string>& command) {
  DeviceCost device = cost_file ? read_cost(*cost_file) : DeviceCost{};
  if (!fit_logs.empty()) { return fit(device); }
  if (output_json) { require_writable(*output_json); }
  device.runs_ahead = !no_run_ahead;
  const nvl::ModelConfig config = model_named(model);
  std::vector<std::string> head;
  const std::vector<SimCase> all = cases(head);
  head.insert(head.end(), result_head.begin(), result_head.end());
  std::vector<std::vector<std::string>> rows{head};
  Json json;
  std::string words;
  for (const std::string& word : command) { words += (words.empty() ? "" : " ") + word; }
  json["command"] = words;
  json["model"] = model;
  json["git_commit"] = NVL_GIT_COMMIT;
  json["cost"] = to_json(device);
  json["varied"] = std::vector<std::string>(head.begin(), head.end() - static_cast<std::ptrdiff_t>(result_head.size()));
  json["simulations"] = Json::array();
  const auto start = std::chrono::steady_clock::now();
  nvl_examples::Progress bar("simulating");
  for (std::size_t i = 0; i < all.size(); ++i) {
    bar.update(static_cast<double>(i) / static_cast<double>(all.size()));
    SimCase c = all[i];
    c.load.num_prompts = c.trace == "nano-vllm" ? 256 : num_prompts.value_or(1000);
    c.load.lengths = {input_len, output_len};
    c.load.range_ratio = range_ratio;
    c.load.think_time = think_time;
    c.load.num_ids = std::min(config.vocab_size, 1 << 16);
    c.load.seed = seed;
    const std::unique_ptr<Trace> trace = make_trace(c.trace, c.load);
    if (trace == nullptr) { throw UsageError("--trace is \"" + c.trace + "\": must be one of " + trace_list()); }
    const StepCost cost(config, device, c.block_size);
    c.scheduling.preemption_costs = cost.preemption_costs();
    SimOptions options;
    options.scheduler = {.max_num_seqs = c.max_num_seqs,
                         .max_num_batched_tokens = c.max_num_batched_tokens,
                         .block_size = c.block_size,
                         .scheduling = c.scheduling};
    options.pool = pool(config, cost, c.block_size);
    const SimResult result = simulate(c.policies, options, cost, *trace);
    Json& entry = json["simulations"].emplace_back(to_json(c, result, options.pool));
    entry["varied"] = c.varied;
    std::vector<std::string>& row = rows.emplace_back(c.varied);
    const auto numbers = result_row(result);
    row.insert(row.end(), numbers.begin(), numbers.end());
  }
  bar.clear();
  std::printf("%s\n\n%s\nTimes in ms. %zu simulations in %s s.\n", words.c_str(), markdown_table(rows).c_str(), all.size(),
              fixed(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 1).c_str());
  if (output_json) { write_json(*output_json, json); }
  return 0;
}

}  // namespace nvl_bench
