/// nvl-bench: how fast a model runs. Every benchmark first checks that the engine's answers are right in the sense that it can
/// check alone: requests that run together give the tokens that each gives alone.

#include "bench/support/presets.hpp"
#include "bench/support/report.hpp"
#include "support/abort_guard.hpp"
#include "support/engines.hpp"
#include "support/model_options.hpp"
#include "support/progress.hpp"

#include <nvl/io/check_tensors.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace nvl_bench;
using nvl_examples::OptionParser;
using nvl_examples::Progress;
using nvl_examples::UsageError;
using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

/// Options of all commands.
struct CommonOptions {
  nvl_examples::ModelOptions model;
  nvl_examples::CapacityOptions capacity;
  std::optional<std::string> random_weights;
  std::int32_t input_len = 512;
  std::int32_t output_len = 128;
  std::uint64_t seed = 0;
  std::optional<std::filesystem::path> output_json;

  void add_to(OptionParser& parser) {
    model.add_model_to(parser);
    std::string names;
    for (const std::string_view name : preset_names) { names += (names.empty() ? "" : ", ") + std::string(name); }
    parser.option("--random-weights", random_weights, "SHAPE",
                  "Instead of --model: random float32 weights in the shape of " + names + ".");
    parser.group("Load");
    parser.option("--input-len", input_len, "N", "Prompt tokens of a request. Default: " + std::to_string(input_len) + ".");
    parser.option("--output-len", output_len, "N", "Output tokens of a request. Default: " + std::to_string(output_len) + ".");
  }
  void add_rest_to(OptionParser& parser) {
    parser.option("-s,--seed", seed, "N",
                  "Of the random prompts. No two prompts share a beginning, so the prefix cache never helps. Default: 0.");
    parser.group("Output");
    parser.option("--output-json", output_json, "FILE", "Writes all numbers to a file.");
    parser.group("Machine");
    model.add_device_to(parser);
    capacity.add_to(parser);
  }
  void validate() {
    if (random_weights && !model.model.empty()) { throw UsageError("--random-weights and --model: give one of them"); }
    if (random_weights) {
      if (!preset(*random_weights)) {
        std::string names;
        for (const std::string_view name : preset_names) { names += (names.empty() ? "" : ", ") + std::string(name); }
        throw UsageError("--random-weights is \"" + *random_weights + "\": must be one of " + names);
      }
      model.model = *random_weights;
    }
    model.validate();
    at_least_one("--input-len", input_len);
    at_least_one("--output-len", output_len);
    if (output_json) { require_writable(*output_json); }
  }
  static void at_least_one(const std::string& name, std::int64_t value) {
    constexpr std::int64_t most = std::int64_t{1} << 24;
    if (value < 1 || value > most) {
      throw UsageError(name + " is " + std::to_string(value) + ": must be 1 to " + std::to_string(most));
    }
  }
};

struct OpenedEngine {
  std::unique_ptr<nvl::AnyEngine> engine;
  nvl::DType dtype;
  std::int32_t num_threads;
  double load_seconds;
};

/// An engine without a tokenizer: prompts are random ids and nobody reads the text.
OpenedEngine open_engine(const CommonOptions& common, nvl::EngineOptions options) {
  options = common.capacity.over(options);
  options.device = common.model.device_options();
  Progress bar("loading " + common.model.model.filename().string());
  const nvl::LoadProgress progress = [&bar](double fraction) { bar.update(fraction); };
  const auto start = Clock::now();
  OpenedEngine opened;
  opened.num_threads = options.device.num_threads > 0 ? options.device.num_threads : nvl::ThreadPool::default_num_threads();
  const auto make = [&](const nvl::ModelConfig& config, const auto& source) {
    if (!common.capacity.max_model_len && options.max_model_len > config.max_position_embeddings) {
      throw UsageError("input and output of a request are " + std::to_string(options.max_model_len) +
                       " tokens: must be at most the model's " + std::to_string(config.max_position_embeddings));
    }
    using Source = std::remove_cvref_t<decltype(source)>;
    opened.dtype = common.model.element_type().value_or(nvl::auto_dtype(config));
    opened.engine = nvl::with_engine_type(nvl::DefaultEngines{}, config, opened.dtype, [&]<class E>(std::type_identity<E>) {
      return nvl::make_any_engine<E, Source>(config, source, options, progress);
    });
  };
  if (common.random_weights) {
    const nvl::ModelConfig config = *preset(*common.random_weights);
    make(config, nvl::RandomWeights(config, 1));
  } else {
    const nvl::Checkpoint checkpoint = nvl::Checkpoint::open(common.model.model);
    if (common.model.check_tensors) {
      for (const nvl::NonFiniteTensor& tensor : nvl::find_non_finite(checkpoint)) {
        throw UsageError(common.model.model.string() + ": tensor " + tensor.name + " holds a NaN or an infinity");
      }
    }
    make(checkpoint.config(), checkpoint);
  }
  opened.load_seconds = seconds(start, Clock::now());
  return opened;
}

/// Random prompts of a model, the same for the same seed.
class Prompts {
 public:
  Prompts(std::int32_t vocab_size, std::uint64_t seed) : vocab_size_(vocab_size), random_(seed) {}

  std::vector<nvl::TokenId> ids(std::int32_t length) {
    std::vector<nvl::TokenId> ids(static_cast<std::size_t>(length));
    for (nvl::TokenId& id : ids) { id = uniform(0, vocab_size_ - 1); }
    return ids;
  }
  /// std::uniform_int_distribution is another function in each standard library; this one is not.
  std::int32_t uniform(std::int32_t low, std::int32_t high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<std::int32_t>(random_() % range);
  }

 private:
  std::int32_t vocab_size_;
  std::mt19937_64 random_;
};

nvl::Request greedy(std::vector<nvl::TokenId> ids, std::int32_t output_len) {
  nvl::Request request;
  request.prompt_ids = std::move(ids);
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = output_len;
  return request;
}

/// \throws std::runtime_error unless two requests give the same tokens together and alone
void check_results(nvl::AnyEngine& engine, const CommonOptions& common, Prompts& prompts) {
  const std::int32_t output_len = std::min(common.output_len, 8);
  std::vector<nvl::Request> together;
  for (const std::int32_t length : {std::min(common.input_len, 40), std::min(common.input_len, 23)}) {
    together.push_back(greedy(prompts.ids(length), output_len));
  }
  const std::vector<nvl::Request> requests = together;
  const std::vector<nvl::Completion> expected = engine.generate(std::move(together));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    nvl::Request request = requests[i];
    request.cache_salt = "alone";
    std::vector<nvl::Request> alone;
    alone.push_back(std::move(request));
    const nvl::Completion done = engine.generate(std::move(alone)).front();
    if (done.output_ids != expected[i].output_ids || done.finish_reason != nvl::FinishReason::length) {
      throw std::runtime_error("the engine's results are wrong: request " + std::to_string(i + 1) +
                               " gives other tokens alone than beside another one" +
                               (done.error.empty() ? "" : ": " + done.error));
    }
  }
}

/// One round of requests: all are submitted at once, and it ends when all are done.
struct Round {
  double elapsed = 0;       // [seconds] until the last token
  double first_tokens = 0;  // [seconds] until every request has its first token
  std::int64_t input_tokens = 0, output_tokens = 0;
  std::vector<nvl::RequestTimings> timings;
};

Round run_round(nvl::AnyEngine& engine, std::vector<nvl::Request> requests, Progress* bar = nullptr) {
  Round round;
  const std::size_t total = requests.size();
  std::size_t waiting_for_first = total;
  std::string error;
  nvl_examples::AbortGuard guard(engine);
  const auto start = Clock::now();
  for (nvl::Request& request : requests) {
    round.input_tokens += static_cast<std::int64_t>(request.prompt_ids.size());
    nvl::RequestCallbacks callbacks;
    callbacks.on_token = [&, is_first = true](const nvl::TokenEvent&) mutable {
      ++round.output_tokens;
      if (std::exchange(is_first, false) && --waiting_for_first == 0) { round.first_tokens = seconds(start, Clock::now()); }
    };
    callbacks.on_finish = [&](const nvl::Completion& done) {
      round.timings.push_back(done.timings);
      if (!done.error.empty()) { error = done.error; }
      if (done.num_cached_tokens > 0) { error = "the prefix cache had part of a prompt"; }
    };
    guard.add(engine.submit(std::move(request), std::move(callbacks)));
  }
  while (round.timings.size() < total) {
    engine.step();
    if (bar != nullptr) { bar->update(static_cast<double>(round.timings.size()) / static_cast<double>(total)); }
  }
  round.elapsed = seconds(start, Clock::now());
  if (!error.empty()) { throw std::runtime_error(error); }
  return round;
}

/// Adds ttft, tpot and e2el of all requests in milliseconds, and their rows of the table.
void add_request_times(Json& json, std::vector<std::vector<std::string>>& rows, const std::vector<Round>& rounds) {
  std::vector<double> ttft, tpot, e2e;
  for (const Round& round : rounds) {
    for (const nvl::RequestTimings& t : round.timings) {
      ttft.push_back(t.ttft);
      if (t.tpot > 0) { tpot.push_back(t.tpot); }
      e2e.push_back(t.e2e);
    }
  }
  const auto add = [&](const std::string& name, const std::string& title, std::vector<double> values) {
    const Samples samples(std::move(values));
    if (samples.empty()) { return; }
    add_distribution(json, name + "_ms", samples, 1e3);
    rows.push_back({title, fixed(1e3 * samples.mean(), 2), fixed(1e3 * samples.std(), 2), fixed(1e3 * samples.median(), 2),
                    fixed(1e3 * samples.percentile(99), 2)});
  };
  add("ttft", "time to first token [ms]", std::move(ttft));
  add("tpot", "time per output token [ms]", std::move(tpot));
  add("e2el", "request from end to end [ms]", std::move(e2e));
}

const std::vector<std::string> distribution_head{"quantity", "mean", "std", "median", "p99"};

void finish_report(const CommonOptions& common, const Json& environment, std::string_view title, const Json& json,
                   const std::string& tables) {
  std::printf("%s%s", markdown_header(environment, title).c_str(), tables.c_str());
  if (common.output_json) { write_json(*common.output_json, json); }
}

int latency(const std::vector<std::string>& command, CommonOptions& common, std::int32_t batch_size, std::int32_t num_warmup,
            std::int32_t num_iters) {
  nvl::EngineOptions options;
  options.max_num_seqs = std::max(batch_size, 2);  // two for the check
  options.max_num_batched_tokens = std::max(2048, batch_size);
  options.max_model_len = common.input_len + common.output_len;
  OpenedEngine opened = open_engine(common, options);
  nvl::AnyEngine& engine = *opened.engine;
  Prompts prompts(engine.config().vocab_size, common.seed);
  check_results(engine, common, prompts);

  std::vector<Round> rounds;
  {
    Progress bar("latency");
    for (std::int32_t i = -num_warmup; i < num_iters; ++i) {
      bar.update(static_cast<double>(i + num_warmup) / (num_warmup + num_iters), i < 0 ? "warm-up" : "");
      std::vector<nvl::Request> requests;
      for (std::int32_t r = 0; r < batch_size; ++r) {
        requests.push_back(greedy(prompts.ids(common.input_len), common.output_len));
      }
      Round round = run_round(engine, std::move(requests));
      if (i >= 0) { rounds.push_back(std::move(round)); }
    }
  }

  std::vector<double> latencies, prefill, decode;
  for (const Round& round : rounds) {
    latencies.push_back(round.elapsed);
    prefill.push_back(static_cast<double>(round.input_tokens) / round.first_tokens);
    const double decode_tokens = static_cast<double>(batch_size) * (common.output_len - 1);
    if (decode_tokens > 0) { decode.push_back(decode_tokens / (round.elapsed - round.first_tokens)); }
  }
  const Samples elapsed(latencies), prefill_rate(prefill), decode_rate(decode);

  const Json env = environment(command, common.model.model.filename().string(), opened.dtype, opened.num_threads);
  Json json = env;
  json["batch_size"] = batch_size;
  json["input_len"] = common.input_len;
  json["output_len"] = common.output_len;
  json["num_iters_warmup"] = num_warmup;
  json["num_iters"] = num_iters;
  json["load_s"] = opened.load_seconds;
  json["avg_latency"] = elapsed.mean();
  json["std_latency"] = elapsed.std();
  json["latencies"] = latencies;
  for (const int p : percentiles) { json["percentiles"][std::to_string(p)] = elapsed.percentile(p); }
  json["prefill_tokens_per_s"] = prefill_rate.median();
  json["decode_tokens_per_s"] = decode_rate.median();
  json["all_prefill_tokens_per_s"] = prefill;
  json["all_decode_tokens_per_s"] = decode;

  std::vector<std::vector<std::string>> rows{distribution_head};
  rows.push_back({"batch from end to end [ms]", fixed(1e3 * elapsed.mean(), 2), fixed(1e3 * elapsed.std(), 2),
                  fixed(1e3 * elapsed.median(), 2), fixed(1e3 * elapsed.percentile(99), 2)});
  add_request_times(json, rows, rounds);
  const auto add_rate = [&](const std::string& title, const Samples& rate) {
    if (!rate.empty()) {
      rows.push_back(
          {title, fixed(rate.mean(), 1), fixed(rate.std(), 1), fixed(rate.median(), 1), fixed(rate.percentile(99), 1)});
    }
  };
  add_rate("prefill [tokens/s]", prefill_rate);
  add_rate("decode, whole batch [tokens/s]", decode_rate);

  std::vector<std::vector<std::string>> spread{{"percentile"}, {"latency [ms]"}};
  for (const int p : percentiles) {
    spread[0].push_back("p" + std::to_string(p));
    spread[1].push_back(fixed(1e3 * elapsed.percentile(p), 2));
  }
  std::string tables = "Requests at once: " + std::to_string(batch_size) + "; each " + std::to_string(common.input_len) +
                       " tokens in, " + std::to_string(common.output_len) + " out; " + std::to_string(num_iters) +
                       " iterations after " + std::to_string(num_warmup) +
                       " to warm up. Prompts are new each time: no prefix cache hits.\n\n";
  tables += markdown_table(rows) + "\n" + markdown_table(spread);
  finish_report(common, env, "latency", json, tables);
  return 0;
}

int throughput(const std::vector<std::string>& command, CommonOptions& common, std::int32_t num_prompts, double range_ratio) {
  const auto longest = [&](std::int32_t length) { return static_cast<std::int32_t>(length * (1 + range_ratio)); };
  const auto shortest = [&](std::int32_t length) { return std::max(1, static_cast<std::int32_t>(length * (1 - range_ratio))); };
  nvl::EngineOptions options;
  options.max_num_seqs = std::min(std::max(num_prompts, 2), options.max_num_seqs);
  options.max_model_len = longest(common.input_len) + longest(common.output_len);
  OpenedEngine opened = open_engine(common, options);
  nvl::AnyEngine& engine = *opened.engine;
  Prompts prompts(engine.config().vocab_size, common.seed);
  check_results(engine, common, prompts);

  std::vector<nvl::Request> requests;
  for (std::int32_t i = 0; i < num_prompts; ++i) {
    const std::int32_t input_len = prompts.uniform(shortest(common.input_len), longest(common.input_len));
    const std::int32_t output_len = prompts.uniform(shortest(common.output_len), longest(common.output_len));
    requests.push_back(greedy(prompts.ids(input_len), output_len));
  }
  const nvl::EngineStats before = engine.stats();
  std::vector<Round> rounds(1);
  {
    Progress bar("throughput");
    rounds[0] = run_round(engine, std::move(requests), &bar);
  }
  const nvl::EngineStats after = engine.stats();
  const Round& round = rounds[0];
  const auto total_tokens = static_cast<double>(round.input_tokens + round.output_tokens);
  const double mean_batch = static_cast<double>(after.scheduled_seqs - before.scheduled_seqs) /
                            static_cast<double>(std::max<std::uint64_t>(1, after.num_steps - before.num_steps));

  const Json env = environment(command, common.model.model.filename().string(), opened.dtype, opened.num_threads);
  Json json = env;
  json["num_prompts"] = num_prompts;
  json["input_len"] = common.input_len;
  json["output_len"] = common.output_len;
  json["random_range_ratio"] = range_ratio;
  json["load_s"] = opened.load_seconds;
  json["duration"] = round.elapsed;
  json["completed"] = num_prompts;
  json["failed"] = 0;
  json["total_input"] = round.input_tokens;
  json["total_output"] = round.output_tokens;
  json["request_throughput"] = num_prompts / round.elapsed;
  json["output_throughput"] = static_cast<double>(round.output_tokens) / round.elapsed;
  json["total_token_throughput"] = total_tokens / round.elapsed;
  json["mean_batch"] = mean_batch;
  json["preemptions"] = after.num_preemptions - before.num_preemptions;
  std::vector<std::vector<std::string>> times{distribution_head};
  add_request_times(json, times, rounds);

  std::string tables = std::to_string(num_prompts) + " requests submitted at once. Prompts differ: no prefix cache hits.\n\n";
  tables += markdown_table({{"quantity", "value"},
                            {"duration [s]", fixed(round.elapsed, 2)},
                            {"requests/s", fixed(num_prompts / round.elapsed, 2)},
                            {"total tokens/s", fixed(total_tokens / round.elapsed, 1)},
                            {"output tokens/s", fixed(static_cast<double>(round.output_tokens) / round.elapsed, 1)},
                            {"input tokens", std::to_string(round.input_tokens)},
                            {"output tokens", std::to_string(round.output_tokens)},
                            {"sequences in a step, mean", fixed(mean_batch, 1)},
                            {"preemptions", std::to_string(after.num_preemptions - before.num_preemptions)}});
  tables += "\n" + markdown_table(times);
  finish_report(common, env, "throughput", json, tables);
  return 0;
}

int bench(int argc, char** argv) {
  OptionParser parser("nvl-bench", "Measures how fast a model runs.");
  CommonOptions latency_options, throughput_options;
  std::int32_t batch_size = 1, num_warmup = 1, num_iters = 5, num_prompts = 64;
  double range_ratio = 0;

  OptionParser& latency_parser = parser.command("latency", "A batch of equal requests, again and again: how long it takes.");
  latency_options.add_to(latency_parser);
  latency_parser.option("--batch-size", batch_size, "N", "Requests at once. Default: 1.");
  latency_parser.option("--num-iters-warmup", num_warmup, "N", "Iterations that are not counted. Default: 1.");
  latency_parser.option("--num-iters", num_iters, "N", "Iterations that are. Default: 5.");
  latency_options.add_rest_to(latency_parser);

  OptionParser& throughput_parser =
      parser.command("throughput", "Many requests, all submitted at the start: how much work is done in a second.");
  throughput_options.add_to(throughput_parser);
  throughput_parser.option("--num-prompts", num_prompts, "N", "Requests. Default: 64.");
  throughput_parser.option("--random-range-ratio", range_ratio, "R",
                           "Lengths vary evenly from (1 - R) to (1 + R) times the given ones. Default: 0.");
  throughput_options.add_rest_to(throughput_parser);

  if (!parser.parse(argc, argv)) { return 0; }
  const std::vector<std::string> command = [&] {
    std::vector<std::string> words{"nvl-bench"};
    for (int i = 1; i < argc; ++i) { words.emplace_back(argv[i]); }
    return words;
  }();
  if (parser.chosen_command() == "latency") {
    latency_options.validate();
    CommonOptions::at_least_one("--batch-size", batch_size);
    CommonOptions::at_least_one("--num-iters", num_iters);
    if (num_warmup < 0) { throw UsageError("--num-iters-warmup is " + std::to_string(num_warmup) + ": must not be negative"); }
    return latency(command, latency_options, batch_size, num_warmup, num_iters);
  }
  throughput_options.validate();
  CommonOptions::at_least_one("--num-prompts", num_prompts);
  if (!(range_ratio >= 0 && range_ratio < 1)) {
    throw UsageError("--random-range-ratio is " + fixed(range_ratio, 3) + ": must be in [0, 1)");
  }
  return throughput(command, throughput_options, num_prompts, range_ratio);
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_examples::run_program("nvl-bench", [&] { return bench(argc, argv); });
}
