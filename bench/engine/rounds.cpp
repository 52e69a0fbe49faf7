#include "bench/engine/rounds.hpp"

#include "support/abort_guard.hpp"

#include <nvl/core/thread_pool.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <thread>
#include <utility>

namespace nvl_bench {

namespace {

/// A request that has not arrived yet.
struct Pending {
  double due = 0;  // [s] after the start
  std::uint64_t session = 0;
  std::int32_t turn = 0;
  nvl::Request request;

  /// For a heap whose first is due first.
  friend bool operator<(const Pending& a, const Pending& b) { return a.due != b.due ? a.due > b.due : a.session > b.session; }
};

/// One run of a load on an engine.
class Replay {
 public:
  Replay(nvl::AnyEngine& engine, const Workload& load, const RoundOptions& options)
      : engine_(engine),
        load_(load),
        options_(options),
        guard_(engine) {
    std::vector<nvl::Request> requests = load.requests();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      pending_.push_back({load.arrivals.empty() ? 0.0 : load.arrivals[i], i, 0, std::move(requests[i])});
    }
    std::make_heap(pending_.begin(), pending_.end());
    round_.itl.reserve(static_cast<std::size_t>(load.output_tokens()));
  }

  Round run() {
    const nvl::EngineStats before = engine_.stats();
    start_ = Clock::now();
    double last_end = 0;
    while (!pending_.empty() || num_live_ > 0) {
      submit_arrived();
      if (num_live_ == 0) {
        wait_until(pending_.front().due);
        continue;
      }
      const double begin = now();
      engine_.step();
      if (options_.log_steps) {
        // A step that was launched before the last one ended began when that one ended.
        const nvl::EngineStats stats = engine_.stats();
        const double start = was_pause_ ? begin : last_end;
        last_end = now();
        round_.steps.push_back({start, last_end - start, stats.last_step, stats.num_waiting, stats.num_running});
      }
      was_pause_ = num_live_ == 0;
      if (options_.bar != nullptr) {
        const auto done = static_cast<double>(round_.timings.size());
        options_.bar->update(done / (done + static_cast<double>(num_live_ + pending_.size())));
      }
    }
    round_.elapsed = now();
    check();
    count(before, engine_.stats());
    return std::move(round_);
  }

 private:
  double now() const { return seconds(start_, Clock::now()); }

  /// Sleeps most of the time and looks at the clock for the rest.
  void wait_until(double due) const {
    constexpr double slack = 500e-6;
    if (due - now() > 2 * slack) { std::this_thread::sleep_for(std::chrono::duration<double>(due - now() - slack)); }
    while (now() < due) {}
  }

  void submit_arrived() {
    while (!pending_.empty() && pending_.front().due <= now()) {
      std::pop_heap(pending_.begin(), pending_.end());
      Pending next = std::move(pending_.back());
      pending_.pop_back();
      submit(std::move(next));
    }
  }

  void submit(Pending next) {
    round_.input_tokens += std::ssize(next.request.prompt_ids);
    expected_output_ += next.request.sampling.max_tokens;
    ++num_live_;
    const double late = load_.arrivals.empty() ? 0 : now() - next.due;
    nvl::RequestCallbacks callbacks;
    callbacks.on_token = [this, last = -1.0](const nvl::TokenEvent&) mutable {
      ++round_.output_tokens;
      const double at = now();
      if (last < 0) {
        round_.first_tokens = at;
      } else {
        round_.itl.push_back(at - last);
      }
      last = at;
    };
    callbacks.on_finish = [this, late, session = next.session, turn = next.turn](const nvl::Completion& done) {
      nvl::RequestTimings times = done.timings;
      times.queue += late;
      times.ttft += late;
      times.e2e += late;
      round_.timings.push_back(times);
      round_.cached_tokens += done.num_cached_tokens;
      --num_live_;
      if (!done.error.empty()) { error_ = done.error; }
      if (load_.turns != nullptr && done.error.empty()) { take_turn(session, turn, done); }
    };
    guard_.add(engine_.submit(std::move(next.request), std::move(callbacks)));
  }

  void take_turn(std::uint64_t session, std::int32_t turn, const nvl::Completion& done) {
    std::vector<nvl::TokenId> history = done.prompt_ids;
    history.insert(history.end(), done.output_ids.begin(), done.output_ids.end());
    TraceRequest said;
    if (!load_.turns->next_turn(session, turn, history, said)) { return; }
    pending_.push_back({now() + said.arrival, session, said.turn, load_.request(std::move(said.prompt), said.output_len)});
    std::push_heap(pending_.begin(), pending_.end());
  }

  void check() const {
    if (!error_.empty()) { throw std::runtime_error(error_); }
    if (round_.output_tokens != expected_output_) {
      throw std::runtime_error("the engine gave " + std::to_string(round_.output_tokens) + " tokens instead of " +
                               std::to_string(expected_output_));
    }
    if (round_.cached_tokens > 0 && !options_.may_hit_cache) {
      throw std::runtime_error("the prefix cache had part of a prompt");
    }
  }

  void count(const nvl::EngineStats& before, const nvl::EngineStats& after) {
    round_.num_steps = after.num_steps - before.num_steps;
    round_.num_preemptions = after.num_preemptions - before.num_preemptions;
    const auto steps = static_cast<double>(std::max<std::uint64_t>(round_.num_steps, 1));
    round_.mean_batch = static_cast<double>(after.scheduled_seqs - before.scheduled_seqs) / steps;
    const auto allocated = static_cast<double>(after.kv_slots_allocated - before.kv_slots_allocated);
    round_.kv_waste = allocated > 0 ? 1 - static_cast<double>(after.kv_slots_used - before.kv_slots_used) / allocated : 0;
    round_.exposed_host_us = 1e6 * (after.exposed_host_seconds - before.exposed_host_seconds) / steps;
  }

  nvl::AnyEngine& engine_;
  const Workload& load_;
  const RoundOptions options_;
  std::vector<Pending> pending_;  // heap
  Clock::time_point start_{};
  std::size_t num_live_ = 0;
  std::int64_t expected_output_ = 0;
  bool was_pause_ = true;
  std::string error_;
  Round round_;
  nvl_examples::AbortGuard guard_;
};

}  // namespace

Round run_round(nvl::AnyEngine& engine, const Workload& load, const RoundOptions& options) {
  return Replay(engine, load, options).run();
}

void write_step_log(const std::filesystem::path& path, const std::string& model, std::span<const Round> rounds) {
  std::ofstream file(path);
  file << "# model " << model << '\n';
  file << "run,start_s,us,seqs,tokens,samples,decodes,decode_kv_tokens,prefill_kv_tokens,prefill_pairs,copies,transfers,waiting,"
          "running\n";
  for (std::size_t run = 0; run < rounds.size(); ++run) {
    for (const StepRecord& step : rounds[run].steps) {
      const nvl::StepWork& w = step.work;
      file << run + 1 << ',' << fixed(step.start, 6) << ',' << fixed(1e6 * step.seconds, 2) << ',' << w.num_seqs << ','
           << w.num_tokens << ',' << w.num_samples << ',' << w.num_decodes << ',' << w.decode_kv_tokens << ','
           << w.prefill_kv_tokens << ',' << w.prefill_pairs << ',' << w.num_copies << ',' << w.num_transfers << ','
           << step.num_waiting << ',' << step.num_running << '\n';
    }
  }
  file.close();
  if (!file) { throw std::runtime_error(path.string() + ": cannot be written"); }
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
  std::vector<double> ttft, tpot, itl, e2e;
  for (const Round& round : rounds) {
    for (const nvl::RequestTimings& t : round.timings) {
      ttft.push_back(t.ttft);
      if (t.tpot > 0) { tpot.push_back(t.tpot); }
      e2e.push_back(t.e2e);
    }
    itl.insert(itl.end(), round.itl.begin(), round.itl.end());
  }
  const auto add = [&](const std::string& name, const std::string& title, std::vector<double> values) {
    const Samples samples(std::move(values));
    if (samples.empty()) { return; }
    add_distribution(json, name + "_ms", samples, 1e3);
    rows.push_back(distribution_row(title, samples, 1e3, 3));
  };
  add("ttft", "time to first token [ms]", std::move(ttft));
  add("tpot", "time per output token [ms]", std::move(tpot));
  add("itl", "time between two tokens [ms]", std::move(itl));
  add("e2el", "request from end to end [ms]", std::move(e2e));
}

Json report_head(const std::vector<std::string>& command, const BenchModel& model, const CommonOptions& common,
                 const DeviceReport& device) {
  const std::int32_t given = common.model.device_options().num_threads;
  Json json = environment(command, common.model_name(), model.dtype(), given > 0 ? given : nvl::ThreadPool::default_num_threads(),
                          device);
  json["batch_invariant"] = common.batch_invariant || common.model.device == "cpu";
  json["scheduler"] = common.model.policies.scheduler;
  json["prefix_cache"] = common.model.policies.prefix_cache;
  const auto& parallel = common.model.parallel;
  json["tensor_parallel_size"] = parallel.tensor_parallel_size;
  json["pipeline_parallel_size"] = parallel.pipeline_parallel_size;
  if (parallel.data_parallel_size > 1) {
    json["data_parallel_size"] = parallel.data_parallel_size;
    json["router"] = parallel.router_name();
  }
  return json;
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
