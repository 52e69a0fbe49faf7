#include "bench/engine/commands.hpp"
#include "bench/engine/rounds.hpp"

#include <algorithm>
#include <cstddef>

namespace nvl_bench {

using nvl_examples::Progress;
using nvl_examples::UsageError;

void LatencyCommand::add_to(nvl_examples::OptionParser& parser) {
  common.add_model_to(parser);
  parser.group("Load");
  parser.option("--input-len", input_len, "N", "Prompt tokens of a request. Default: 512.");
  parser.option("--output-len", output_len, "N", "Output tokens of a request. Default: 128.");
  parser.option("--batch-size", batch_size, "N", "Requests at once. Default: 1.");
  parser.option("--num-iters-warmup", num_warmup, "N", "Iterations that are not counted. Default: 2.");
  parser.option("--num-iters", num_iters, "N", "Iterations that are. Default: 9.");
  common.add_rest_to(parser);
}

int LatencyCommand::run(const std::vector<std::string>& command) {
  common.validate();
  require_at_least_one("--input-len", input_len);
  require_at_least_one("--output-len", output_len);
  require_at_least_one("--batch-size", batch_size);
  require_at_least_one("--num-iters", num_iters);
  if (num_warmup < 0) { throw UsageError("--num-iters-warmup is " + std::to_string(num_warmup) + ": must not be negative"); }

  nvl::EngineOptions options;
  options.max_num_seqs = std::max(batch_size, 2);  // two for the check
  options.max_num_batched_tokens = std::max(2048, batch_size);
  options.max_model_len = input_len + output_len;
  BenchModel model(common);
  const OpenedEngine opened = open_engine(model, common, options);
  nvl::AnyEngine& engine = *opened.engine;
  RandomIds random(model.config().vocab_size, common.seed);
  const RequestLengths lengths{input_len, output_len};
  if (common.model.device == "cpu") { check_together_and_alone(engine, lengths, random); }
  const auto load = [&](std::int32_t count) {  // greedy, and never the same prompts
    return random_workload(count, lengths, 0, model.config().vocab_size, random);
  };
  const std::int32_t num_checked = std::max(common.verify.num_requests, batch_size);
  const std::optional<Verdict> verdict =
      verify_engine(engine, model, common, load(num_checked), static_cast<std::size_t>(batch_size));

  std::vector<Round> rounds;
  {
    Progress bar("latency");
    for (std::int32_t i = -num_warmup; i < num_iters; ++i) {
      bar.update(static_cast<double>(i + num_warmup) / (num_warmup + num_iters), i < 0 ? "warm-up" : "");
      Round round = run_round(engine, load(batch_size));
      if (i >= 0) { rounds.push_back(std::move(round)); }
    }
  }
  const DeviceReport device = describe_device(common);

  std::vector<double> latencies, prefill, decode;
  double exposed_host_us = 0;
  for (const Round& round : rounds) {
    latencies.push_back(round.elapsed);
    exposed_host_us += round.exposed_host_us / static_cast<double>(rounds.size());
    prefill.push_back(static_cast<double>(round.input_tokens) / round.first_tokens);
    const double decode_tokens = static_cast<double>(batch_size) * (output_len - 1);
    if (decode_tokens > 0) { decode.push_back(decode_tokens / (round.elapsed - round.first_tokens)); }
  }
  const Samples elapsed(latencies), prefill_rate(prefill), decode_rate(decode);

  Json json = report_head(command, model, common, device);
  json["batch_size"] = batch_size;
  json["input_len"] = input_len;
  json["output_len"] = output_len;
  json["num_iters_warmup"] = num_warmup;
  json["num_iters"] = num_iters;
  json["load_s"] = opened.load_seconds;
  add_verdict(json, verdict);
  json["avg_latency"] = elapsed.mean();
  json["std_latency"] = elapsed.std();
  json["latencies"] = latencies;
  for (const int p : percentiles) { json["percentiles"][std::to_string(p)] = elapsed.percentile(p); }
  json["prefill_tokens_per_s"] = prefill_rate.median();
  json["decode_tokens_per_s"] = decode_rate.median();
  json["all_prefill_tokens_per_s"] = prefill;
  json["all_decode_tokens_per_s"] = decode;
  json["exposed_host_us"] = exposed_host_us;

  TableRows rows{distribution_head};
  rows.push_back(distribution_row("batch from end to end [ms]", elapsed, 1e3, 3));
  add_request_times(json, rows, rounds);
  if (!prefill_rate.empty()) { rows.push_back(distribution_row("prefill [tokens/s]", prefill_rate, 1, 1)); }
  if (!decode_rate.empty()) { rows.push_back(distribution_row("decode, whole batch [tokens/s]", decode_rate, 1, 1)); }

  std::string tables = "Requests at once: " + std::to_string(batch_size) + "; each " + std::to_string(input_len) +
                       " tokens in, " + std::to_string(output_len) + " out; " + std::to_string(num_iters) + " iterations after " +
                       std::to_string(num_warmup) + " to warm up. Prompts are new each time: no prefix cache hits.\n\n" +
                       verdict_text(verdict) + markdown_table(rows);
  if (device.kind != "cpu") { tables += "\nThe device waited " + fixed(exposed_host_us, 2) + " us a step for the host.\n"; }
  if (const PeakRates peak = peak_rates(common, device); peak.known()) {
    const ModelBytes bytes = model.bytes();
    const std::vector<RequestLengths> requests(static_cast<std::size_t>(batch_size), lengths);
    const LoadWork work = LoadWork::of(bytes, requests);
    const double ttft = work.prefill_seconds(bytes, peak);
    const double tpot = work.decode_seconds(bytes, peak) / std::max(output_len - 1, 1);
    json["limit_ttft_ms"] = 1e3 * ttft;
    json["limit_tpot_ms"] = 1e3 * tpot;
    tables += "\nWhat memory and arithmetic need at least: time to first token " + fixed(1e3 * ttft, 3) +
              " ms, time per output token " + fixed(1e3 * tpot, 3) + " ms (" + fixed(peak.read_bytes / 1e12, 2) + " TB/s, " +
              fixed(peak.matmul_flops / 1e12, 1) + " TFLOP/s).\n";
  }
  finish_report(common, "latency", json, tables);
  return 0;
}

}  // namespace nvl_bench
