#include "bench/engine/commands.hpp"
#include "bench/engine/rounds.hpp"
#include "bench/support/traces.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

namespace nvl_bench {

using nvl_examples::Progress;
using nvl_examples::UsageError;

void ThroughputCommand::add_to(nvl_examples::OptionParser& parser) {
  common.add_model_to(parser);
  parser.group("Load");
  parser.option("--dataset", dataset, "NAME",
                "nano-vllm: what its bench.py asks, 256 requests of 100 to 1024 tokens in and out, so many for each replica; or "
                "another of " +
                    trace_list() + ". Default: nano-vllm, unless a length or number is given.");
  parser.option("--num-prompts", num_prompts, "N", "All but nano-vllm: requests. Default: 64, of random; 1000 of the others.");
  parser.option("--input-len", input_len, "N", "random: prompt tokens of a request. Default: 512.");
  parser.option("--output-len", output_len, "N", "random: output tokens of a request. Default: 128.");
  parser.option("--random-range-ratio", range_ratio, "R",
                "random: lengths vary evenly from (1 - R) to (1 + R) times the given ones. Default: 0.");
  parser.option("--temperature", temperature, "T", "Default: 0.6 for nano-vllm, else 0.");
  parser.option("--request-rate", request_rate, "R",
                "Requests a second, arriving at random (Poisson) times. Default: all are submitted at the start.");
  parser.option("--think-time", think_time, "S", "chat, agents: mean seconds from an answer to the next turn. Default: 0.");
  parser.option("--num-runs", num_runs, "N",
                "Runs of the load that are counted; the one of median time is reported. Default: 1.");
  parser.option("--num-warmups", num_warmups, "N", "Runs before them. Default: 1 with --fresh-ids, else 0.");
  parser.flag(
      "--fresh-ids", fresh_ids,
      "Each counted run has the same lengths and new ids, so that the prefix cache is cold; all but nano-vllm always do.");
  common.add_rest_to(parser);
  parser.group("Output");
  parser.option("--step-log", step_log, "FILE", "Writes a line a step of the counted runs: its work and its time, as CSV.");
}

void ThroughputCommand::validate() {
  common.validate();
  const bool is_described = num_prompts || input_len || output_len || range_ratio;
  const std::string name = dataset.value_or(is_described ? "random" : "nano-vllm");
  if (std::ranges::find(trace_names, name) == trace_names.end()) {
    throw UsageError("--dataset is \"" + name + "\": must be one of " + trace_list());
  }
  if (name == "nano-vllm" && num_prompts) {
    throw UsageError("--dataset nano-vllm fixes its number of requests: no --num-prompts");
  }
  if (name != "random" && (input_len || output_len || range_ratio)) {
    throw UsageError("--dataset " + name +
                     " fixes its lengths: --input-len, --output-len and --random-range-ratio belong to --dataset random");
  }
  dataset = name;
  require_at_least_one("--num-prompts", num_prompts.value_or(1));
  require_at_least_one("--input-len", input_len.value_or(1));
  require_at_least_one("--output-len", output_len.value_or(1));
  require_at_least_one("--num-runs", num_runs);
  const double ratio = range_ratio.value_or(0);
  if (!(ratio >= 0 && ratio < 1)) { throw UsageError("--random-range-ratio is " + fixed(ratio, 3) + ": must be in [0, 1)"); }
  if (request_rate && !(*request_rate > 0)) {
    throw UsageError("--request-rate is " + fixed(*request_rate, 3) + ": must be above 0");
  }
  if (think_time < 0) { throw UsageError("--think-time is " + fixed(think_time, 3) + ": must not be negative"); }
  if (step_log && common.model.parallel.data_parallel_size > 1) {
    throw UsageError("--step-log needs --data-parallel-size 1: replicas step side by side");
  }
  if (step_log) { require_writable(*step_log); }
  if (num_warmups.value_or(0) < 0) {
    throw UsageError("--num-warmups is " + std::to_string(*num_warmups) + ": must not be negative");
  }
}

Workload ThroughputCommand::make_load(const nvl::ModelConfig& config, std::uint64_t run) const {
  const TraceOptions options{.num_prompts = num_prompts.value_or(dataset == "random" ? 64 : 1000),
                             .request_rate = request_rate.value_or(std::numeric_limits<double>::infinity()),
                             .lengths = {input_len.value_or(512), output_len.value_or(128)},
                             .range_ratio = range_ratio.value_or(0),
                             .think_time = think_time,
                             .num_ids = config.vocab_size,
                             .seed = common.seed + run};
  Workload load;
  if (dataset == "nano-vllm") {
    load = nano_vllm_workload();
    if (config.vocab_size < load.num_ids) {
      throw UsageError("--dataset nano-vllm has ids up to " + std::to_string(load.num_ids - 1) + ", the model's vocabulary is " +
                       std::to_string(config.vocab_size) + ": --dataset random takes any");
    }
    RandomIds fresh(load.num_ids, common.seed + 2);
    const Workload one = load;
    for (std::int32_t i = 1; i < common.model.parallel.data_parallel_size; ++i) { load.append(one.with_fresh_ids(fresh)); }
    if (request_rate) {
      TraceOptions arrivals = options;
      arrivals.num_prompts = std::ssize(load.prompts);
      load.arrivals = poisson_arrivals(arrivals);
    }
  } else {
    load = workload_of(*dataset, options);
  }
  load.temperature = static_cast<float>(temperature.value_or(load.temperature));
  return load;
}

namespace {

Json to_json(const Round& round) {
  return {{"duration", round.elapsed},
          {"output_throughput", static_cast<double>(round.output_tokens) / round.elapsed},
          {"steps", round.num_steps},
          {"mean_batch", round.mean_batch},
          {"kv_waste", round.kv_waste},
          {"exposed_host_us", round.exposed_host_us},
          {"cached_tokens", round.cached_tokens},
          {"preemptions", round.num_preemptions}};
}

/// The counted run of median duration; of two in the middle the slower.
const Round& median_round(const std::vector<Round>& rounds) {
  std::vector<std::size_t> order(rounds.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rounds[a].elapsed < rounds[b].elapsed; });
  return rounds[order[order.size() / 2]];
}

}  // namespace

int ThroughputCommand::run(const std::vector<std::string>& command) {
  validate();
  BenchModel model(common);
  RandomIds random(model.config().vocab_size, common.seed);
  const Workload load = make_load(model.config(), 0);
  RandomIds fresh(load.num_ids, common.seed + 1);
  const bool is_replayed = load.name == "nano-vllm" && !fresh_ids;  // each run is the same load
  const auto fresh_load = [&](std::int32_t run) {
    return load.turns != nullptr ? make_load(model.config(), static_cast<std::uint64_t>(run)) : load.with_fresh_ids(fresh);
  };

  nvl::EngineOptions options;
  const auto num_replicas = static_cast<std::size_t>(common.model.parallel.data_parallel_size);
  options.max_num_seqs = static_cast<std::int32_t>(std::clamp<std::size_t>(load.size() / num_replicas, 2, 256));
  if (common.model.device != "cpu") { options.max_num_batched_tokens = 16384; }  // as the peers
  options.max_model_len = load.max_total_len();
  const OpenedEngine opened = open_engine(model, common, options);
  nvl::AnyEngine& engine = *opened.engine;
  if (common.model.device == "cpu") { check_together_and_alone(engine, load.lengths().front(), random); }
  const std::optional<Verdict> verdict = verify_engine(engine, model, common, load, load.size());

  std::vector<Round> warmups, rounds;
  {
    Progress bar("throughput");
    const std::int32_t before = num_warmups.value_or(fresh_ids ? 1 : 0);
    for (std::int32_t i = 0; i < before + num_runs; ++i) {
      const bool counts = i >= before;
      // The first run that counts has the ids of --seed, as a simulation of it.
      const std::int32_t run = counts ? i - before : num_runs + i;
      const bool is_first_warmup = !counts && i == 0;
      std::vector<Round>& list = counts ? rounds : warmups;
      list.push_back(run_round(
          engine, is_replayed || (is_first_warmup && load.turns == nullptr) ? load : fresh_load(run),
          {.may_hit_cache = shares_prefixes() || (is_replayed && i > 0), .log_steps = step_log && counts, .bar = &bar}));
    }
  }
  const DeviceReport device = describe_device(common);
  if (step_log) { write_step_log(*step_log, common.model_name(), rounds); }

  const Round& round = median_round(rounds);
  const auto output_tokens = static_cast<double>(round.output_tokens);
  const auto total_tokens = static_cast<double>(round.input_tokens + round.output_tokens);
  const auto num_requests = static_cast<double>(round.timings.size());
  const ModelBytes bytes = model.bytes();
  const bool is_known = !shares_prefixes();  // what the load needs at least
  const LoadWork work = LoadWork::of(bytes, load.lengths());
  Json json = report_head(command, model, common, device);
  json["dataset"] = load.name;
  json["num_prompts"] = load.size();
  if (load.name == "random") {
    json["input_len"] = input_len.value_or(512);
    json["output_len"] = output_len.value_or(128);
    json["random_range_ratio"] = range_ratio.value_or(0);
  }
  json["temperature"] = temperature.value_or(load.name == "nano-vllm" ? 0.6 : 0.0);
  json["request_rate"] = request_rate ? Json(*request_rate) : Json("inf");
  json["fresh_ids"] = !is_replayed;
  json["num_runs"] = num_runs;
  json["load_s"] = opened.load_seconds;
  add_verdict(json, verdict);
  json["duration"] = round.elapsed;
  json["completed"] = round.timings.size();
  json["failed"] = 0;
  json["total_input"] = round.input_tokens;
  json["total_output"] = round.output_tokens;
  json["request_throughput"] = num_requests / round.elapsed;
  json["output_throughput"] = output_tokens / round.elapsed;
  json["total_token_throughput"] = total_tokens / round.elapsed;
  json["steps"] = round.num_steps;
  json["mean_batch"] = round.mean_batch;
  json["kv_waste"] = round.kv_waste;
  json["exposed_host_us"] = round.exposed_host_us;
  json["preemptions"] = round.num_preemptions;
  json["cached_tokens"] = round.cached_tokens;
  if (is_known) {
    json["kv_read_bytes"] = work.kv_read_bytes;
    json["kv_read_bandwidth"] = work.kv_read_bytes / round.elapsed;
  }

  TableRows rows{{"quantity", "value"},
                 {"output tokens/s", fixed(output_tokens / round.elapsed, 1)},
                 {"total tokens/s", fixed(total_tokens / round.elapsed, 1)},
                 {"requests/s", fixed(num_requests / round.elapsed, 2)},
                 {"duration [s]", fixed(round.elapsed, 3)},
                 {"input tokens", std::to_string(round.input_tokens)},
                 {"output tokens", std::to_string(round.output_tokens)},
                 {"prompt tokens in the prefix cache", std::to_string(round.cached_tokens)},
                 {"steps", std::to_string(round.num_steps)},
                 {"sequences in a step, mean", fixed(round.mean_batch, 1)},
                 {"KV slots without a token [%]", fixed(100 * round.kv_waste, 2)},
                 {"preemptions", std::to_string(round.num_preemptions)},
                 {"exposed host time a step [us]", fixed(round.exposed_host_us, 2)}};
  if (is_known) {
    rows.push_back({"K and V read by decode [TB]", fixed(work.kv_read_bytes / 1e12, 3)});
    rows.push_back({"the same over the whole time [TB/s]", fixed(work.kv_read_bytes / round.elapsed / 1e12, 3)});
  }
  if (const PeakRates peak = peak_rates(common, device); peak.known() && is_known && !request_rate) {
    const double limit = work.seconds(bytes, peak);
    json["peak_read_bandwidth"] = peak.read_bytes;
    json["peak_matmul_flops"] = peak.matmul_flops;
    json["limit_output_throughput"] = output_tokens / limit;
    json["share_of_limit"] = limit / round.elapsed;
    rows.push_back(
        {"K and V read, share of the read bandwidth [%]", fixed(100 * work.kv_read_bytes / round.elapsed / peak.read_bytes, 1)});
    rows.push_back({"output tokens/s that the device could reach", fixed(output_tokens / limit, 0)});
    rows.push_back({"share of it [%]", fixed(100 * limit / round.elapsed, 1)});
  }
  TableRows runs{{"run", "duration [s]", "output tokens/s", "cached tokens", "steps", "mean batch"}};
  const auto add_runs = [&](const std::string& name, const std::vector<Round>& list, const char* key) {
    json[key] = Json::array();
    for (std::size_t i = 0; i < list.size(); ++i) {
      json[key].push_back(to_json(list[i]));
      runs.push_back({name + std::to_string(i + 1), fixed(list[i].elapsed, 3),
                      fixed(static_cast<double>(list[i].output_tokens) / list[i].elapsed, 1),
                      std::to_string(list[i].cached_tokens), std::to_string(list[i].num_steps), fixed(list[i].mean_batch, 1)});
    }
  };
  add_runs("warm-up ", warmups, "warmups");
  add_runs("", rounds, "runs");
  TableRows times{distribution_head};
  add_request_times(json, times, std::span(&round, 1));

  const std::string how = request_rate ? " requests, " + fixed(*request_rate, 2) + " a second at random times ("
                                       : std::string(" requests submitted at once (");
  std::string tables = std::to_string(round.timings.size()) + how + load.name + ", " + std::to_string(round.input_tokens) +
                       " tokens in, " + std::to_string(round.output_tokens) + " out, temperature " + fixed(load.temperature, 1) +
                       ").\n\n" + verdict_text(verdict) + markdown_table(rows);
  if (runs.size() > 2) { tables += "\n" + markdown_table(runs); }
  tables += "\n" + markdown_table(times);
  finish_report(common, "throughput", json, tables);
  return 0;
}

}  // namespace nvl_bench
