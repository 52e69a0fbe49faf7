#include "bench/engine/rounds.hpp"

#include "support/abort_guard.hpp"

#include <nvl/core/thread_pool.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <utility>

namespace nvl_bench {

Round run_round(nvl::AnyEngine& engine, const Workload& load, bool may_hit_cache, nvl_examples::Progress* bar) {
  Round round;
  std::vector<nvl::Request> requests = load.requests();
  const std::size_t total = requests.size();
  std::size_t waiting_for_first = total;
  std::string error;
  const nvl::EngineStats before = engine.stats();
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
      round.cached_tokens += done.num_cached_tokens;
      if (!done.error.empty()) { error = done.error; }
    };
    guard.add(engine.submit(std::move(request), std::move(callbacks)));
  }
  while (round.timings.size() < total) {
    engine.step();
    if (bar != nullptr) { bar->update(static_cast<double>(round.timings.size()) / static_cast<double>(total)); }
  }
  round.elapsed = seconds(start, Clock::now());
  if (!error.empty()) { throw std::runtime_error(error); }
  if (round.output_tokens != load.output_tokens()) {
    throw std::runtime_error("the engine gave " + std::to_string(round.output_tokens) + " tokens instead of " +
                             std::to_string(load.output_tokens()));
  }
  if (round.cached_tokens > 0 && !may_hit_cache) { throw std::runtime_error("the prefix cache had part of a prompt"); }
  const nvl::EngineStats after = engine.stats();
  round.num_steps = after.num_steps - before.num_steps;
  round.num_preemptions = after.num_preemptions - before.num_preemptions;
  const auto steps = static_cast<double>(std::max<std::uint64_t>(round.num_steps, 1));
  round.mean_batch = static_cast<double>(after.scheduled_seqs - before.scheduled_seqs) / steps;
  round.exposed_host_us = 1e6 * (after.exposed_host_seconds - before.exposed_host_seconds) / steps;
  return round;
}

void check_together_and_alone(nvl::AnyEngine& engine, RequestLengths lengths, RandomIds& random) {
  Workload load;
  for (const std::int32_t length : {std::min(lengths.input, 40), std::min(lengths.input, 23)}) {
    load.prompts.push_back(random.ids(length));
    load.output_lens.push_back(std::min(lengths.output, 8));
  }
  const std::vector<nvl::Completion> expected = engine.generate(load.requests());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    std::vector<nvl::Request> alone;
    alone.push_back(std::move(load.requests()[i]));
    alone.front().cache_salt = "alone";
    const nvl::Completion done = engine.generate(std::move(alone)).front();
    if (done.output_ids != expected[i].output_ids || done.finish_reason != nvl::FinishReason::length) {
      throw std::runtime_error("the engine's results are wrong: request " + std::to_string(i + 1) +
                               " gives other tokens alone than beside another one" +
                               (done.error.empty() ? "" : ": " + done.error));
    }
  }
}

std::vector<std::string> distribution_row(const std::string& name, const Samples& samples, double scale, int digits) {
  std::vector<std::string> row{name};
  for (const double value : {samples.mean(), samples.std(), samples.median(), samples.percentile(10), samples.percentile(90),
                             samples.percentile(99)}) {
    row.push_back(fixed(scale * value, digits));
  }
  return row;
}

void add_request_times(Json& json, TableRows& rows, std::span<const Round> rounds) {
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
    rows.push_back(distribution_row(title, samples, 1e3, 3));
  };
  add("ttft", "time to first token [ms]", std::move(ttft));
  add("tpot", "time per output token [ms]", std::move(tpot));
  add("e2el", "request from end to end [ms]", std::move(e2e));
}

Json report_head(const std::vector<std::string>& command, const BenchModel& model, const CommonOptions& common,
                 const DeviceReport& device) {
  const std::int32_t given = common.model.device_options().num_threads;
  return environment(command, common.model_name(), model.dtype(), given > 0 ? given : nvl::ThreadPool::default_num_threads(),
                     device);
}

void add_verdict(Json& json, const std::optional<Verdict>& verdict) {
  if (!verdict) {
    json["verified"] = nullptr;
    return;
  }
  json["verified"] = {{"requests", verdict->num_requests},   {"tokens", verdict->num_tokens},
                      {"same_tokens", verdict->num_same},    {"decisive_tokens", verdict->num_decisive},
                      {"regret_limit", verdict->limit},      {"worst_regret", verdict->worst_regret},
                      {"mean_regret", verdict->mean_regret}, {"logit_deviation", verdict->logit_deviation}};
}

std::string verdict_text(const std::optional<Verdict>& verdict) {
  if (!verdict) { return "Answers were not checked against the float32 CPU engine (--verify N does).\n\n"; }
  return "Checked against the float32 CPU engine: " + std::to_string(verdict->num_requests) + " requests, " +
         std::to_string(verdict->num_same) + " of " + std::to_string(verdict->num_tokens) +
         " greedy tokens are its own choice; worst regret " + fixed(verdict->worst_regret, 4) + " (limit " +
         fixed(verdict->limit, 4) + "), mean " + fixed(verdict->mean_regret, 5) + ", logits spread by " +
         fixed(verdict->logit_deviation, 3) + "; " + std::to_string(verdict->num_decisive) +
         " choices were clearer than the limit.\n\n";
}

PeakRates peak_rates(const CommonOptions& common, const DeviceReport& device) {
  PeakRates rates = known_peak_rates(device.name);
  if (common.peak.read_bytes > 0) { rates.read_bytes = common.peak.read_bytes; }
  if (common.peak.matmul_flops > 0) {
    rates.matmul_flops = common.peak.matmul_flops;
    rates.attention_flops = common.peak.attention_flops;
  }
  return rates;
}

void finish_report(const CommonOptions& common, std::string_view title, const Json& json, const std::string& tables) {
  std::printf("%s%s", markdown_header(json, title).c_str(), tables.c_str());
  if (common.output_json) { write_json(*common.output_json, json); }
}

}  // namespace nvl_bench
