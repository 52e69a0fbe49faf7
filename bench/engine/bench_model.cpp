#include "bench/engine/bench_model.hpp"

#include "bench/engine/invariant_engines.hpp"
#include "bench/support/presets.hpp"
#include "support/progress.hpp"

#include <nvl/core/checked.hpp>
#include <nvl/engine/with_engine.hpp>
#include <nvl/io/check_tensors.hpp>
#include <nvl/io/checkpoint_writer.hpp>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace nvl_bench {

using nvl_examples::OptionParser;
using nvl_examples::Progress;
using nvl_examples::UsageError;

namespace {

using Clock = std::chrono::steady_clock;

/// Of activations and KV, as make_engine chooses it.
nvl::DType dtype_of(const nvl_examples::ModelOptions& model, const nvl::ModelConfig& config) {
  if (const auto given = model.element_type()) { return *given; }
  if (model.device == "cpu") { return nvl::auto_dtype(config); }
  return nvl::auto_cuda_dtype(config);
}

}  // namespace

void require_at_least_one(const std::string& name, std::int64_t value) {
  constexpr std::int64_t most = std::int64_t{1} << 24;
  if (value < 1 || value > most) {
    throw UsageError(name + " is " + std::to_string(value) + ": must be 1 to " + std::to_string(most));
  }
}

void CommonOptions::add_model_to(OptionParser& parser) {
  model.add_model_to(parser);
  parser.option("--random-weights", random_weights, "SHAPE",
                "Instead of --model: random weights in the shape of " + preset_list() + ".");
}

void CommonOptions::add_rest_to(OptionParser& parser) {
  parser.option("-s,--seed", seed, "N", "Of random prompts and of sampling. Default: 0.");
  parser.group("Check before anything is measured");
  parser.option("--verify", num_verified, "N",
                "Requests of the load whose greedy answers the float32 CPU engine judges; no speed is printed if one is wrong. "
                "Default: 16, on the CPU 0.");
  parser.option("--verify-input-len", verify.input_len, "N", "Their prompts are cut to N tokens. Default: 256.");
  parser.option("--verify-output-len", verify.output_len, "N", "Their answers have N tokens at most. Default: 32.");
  parser.flag("--verify-control", verify_control,
              "Gives the judge two matrices of a layer exchanged: the check must fail (with --random-weights).");
  parser.group("Output");
  parser.option("--output-json", output_json, "FILE", "Writes all numbers to a file.");
  parser.option("--peak-bandwidth", peak.read_bytes, "TB/S",
                "What the device reads from its memory, for the share of the limit. Default: known for an H200.");
  parser.option("--peak-tflops", peak.matmul_flops, "N", "Its matrix products, in 10^12 operations a second. Default: the same.");
  parser.group("Machine");
  parser.flag("--batch-invariant", batch_invariant,
              "On a GPU: the engine whose answers are the same bits whatever else runs (bfloat16 or float16).");
  model.add_device_to(parser);
  capacity.add_to(parser);
}

void CommonOptions::validate() {
  if (random_weights && !model.model.empty()) { throw UsageError("--random-weights and --model: give one of them"); }
  if (random_weights) {
    if (!preset(*random_weights)) {
      throw UsageError("--random-weights is \"" + *random_weights + "\": must be one of " + preset_list());
    }
    model.model = *random_weights;
  }
  model.validate();
  if (batch_invariant && model.device == "cpu") {
    throw UsageError("--batch-invariant needs --device cuda: on the CPU every engine is batch-invariant");
  }
  if (batch_invariant && (model.policies.scheduler != nvl_examples::PolicyOptions{}.scheduler ||
                          model.policies.prefix_cache != nvl_examples::PolicyOptions{}.prefix_cache)) {
    throw UsageError("--batch-invariant is compiled with the default --scheduler and --prefix-cache only");
  }
  if (batch_invariant && model.parallel.data_parallel_size > 1) {
    throw UsageError("--batch-invariant needs --data-parallel-size 1");
  }
  require_at_least_one("--verify-input-len", verify.input_len);
  require_at_least_one("--verify-output-len", verify.output_len);
  verify.num_requests = num_verified.value_or(model.device == "cpu" ? 0 : 16);
  if (verify.num_requests < 0) {
    throw UsageError("--verify is " + std::to_string(verify.num_requests) + ": must not be negative");
  }
  if (verify_control && (!random_weights || verify.num_requests == 0)) {
    throw UsageError("--verify-control needs --random-weights and --verify");
  }
  for (const auto& [name, value] :
       {std::pair("--peak-bandwidth", peak.read_bytes), std::pair("--peak-tflops", peak.matmul_flops)}) {
    if (value < 0) { throw UsageError(std::string(name) + " is " + fixed(value, 3) + ": must not be negative"); }
  }
  peak.read_bytes *= 1e12;
  peak.matmul_flops *= 1e12;
  peak.attention_flops = peak.matmul_flops * 0.7;  // as of the best public kernels on an H200
  if (output_json) { require_writable(*output_json); }
}

BenchModel::BenchModel(const CommonOptions& common) {
  if (common.random_weights) {
    config_ = *preset(*common.random_weights);
    dtype_ = dtype_of(common.model, config_);
    // Of the default deviation: activations keep their scale, answers depend on every layer, and the check sees each.
    const std::int32_t num_threads = common.model.device_options().num_threads;
    weights_.emplace(config_, 1, nvl::RandomWeightsOptions{.dtype = dtype_, .num_threads = num_threads});
    return;
  }
  checkpoint_.emplace(nvl::Checkpoint::open(common.model.model));
  dtype_ = dtype_of(common.model, checkpoint_->config());
  if (common.model.check_tensors) {
    for (const nvl::NonFiniteTensor& tensor : nvl::find_non_finite(*checkpoint_)) {
      throw UsageError(common.model.model.string() + ": tensor " + tensor.name + " holds a NaN or an infinity");
    }
  }
}

ModelBytes BenchModel::bytes() const {
  const std::int64_t element_bytes = nvl::info(dtype_).block_bytes;
  return {config(), element_bytes, element_bytes};
}

std::unique_ptr<nvl::AnyEngine> BenchModel::make_engine(const CommonOptions& common, nvl::EngineOptions options,
                                                        const nvl::LoadProgress& progress) const {
  if (!common.capacity.max_model_len && options.max_model_len > config().max_position_embeddings) {
    throw UsageError("input and output of a request are " + std::to_string(options.max_model_len) +
                     " tokens: must be at most the model's " + std::to_string(config().max_position_embeddings));
  }
  options = common.capacity.over(options);
  options.device = common.model.device_options();
  options.seed = common.seed;
  if (common.batch_invariant) { return make_invariant_engine(config(), source(), options, dtype_, progress); }
  return nvl_examples::make_engine(common.model, config(), source(), options, dtype_, progress);
}

std::unique_ptr<nvl::AnyEngine> BenchModel::make_reference(const CommonOptions& common, nvl::EngineOptions options) const {
  options.device = common.model.device_options();
  return nvl_examples::make_engine({}, config(), source(), options, nvl::DType::float32, {});
}

nvl::AnyWeightSource BenchModel::source() const {
  if (weights_) { return *weights_; }
  return *checkpoint_;
}

void BenchModel::spoil() { weights_.value().exchange("layers.0.gate_proj", "layers.0.up_proj"); }

void BenchModel::write_checkpoint_to(const std::filesystem::path& directory) const {
  nvl::write_checkpoint(directory, config(), weights_.value());
}

DeviceReport describe_device(const CommonOptions& common) {
  if (common.model.device == "cpu") { return {}; }
  const nvl::DeviceOptions options = common.model.device_options();
  const nvl_examples::DeviceDescription known = nvl_examples::describe_cuda_device(options);
  DeviceReport report = query_nvidia_smi(options.ordinal);
  report.name = known.name;
  report.driver = report.driver.empty() ? known.driver : report.driver + " (" + known.driver + ")";
  report.toolkit = known.toolkit;
  return report;
}

void print_warnings(const nvl::AnyEngine& engine) {
  for (const std::string& warning : engine.warnings()) { std::fprintf(stderr, "nvl-bench: warning: %s\n", warning.c_str()); }
}

OpenedEngine open_engine(const BenchModel& model, const CommonOptions& common, const nvl::EngineOptions& options) {
  Progress bar("loading " + common.model_name());
  const nvl::LoadProgress progress = [&bar](double fraction) { bar.update(fraction); };
  const auto start = Clock::now();
  OpenedEngine opened;
  opened.engine = model.make_engine(common, options, progress);
  opened.load_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  bar.clear();
  if (common.model.memory_plan) { std::fputs(to_table(opened.engine->memory_plan()).c_str(), stderr); }
  print_warnings(*opened.engine);
  return opened;
}

std::optional<Verdict> verify_engine(nvl::AnyEngine& engine, BenchModel& model, const CommonOptions& common, const Workload& load,
                                     std::size_t batch, std::vector<Answer> answers) {
  if (common.verify.num_requests == 0) { return std::nullopt; }
  Progress bar("checking " + std::to_string(common.verify.num_requests) + " answers");
  bar.update(0);
  const Workload shorter = verification_load(load, common.verify);
  std::int32_t longest = shorter.max_total_len();
  for (const Answer& answer : answers) {
    longest = std::max(longest, static_cast<std::int32_t>(answer.prompt.size() + answer.output.size()));
  }
  for (Answer& answer : greedy_answers(engine, shorter, static_cast<std::size_t>(common.verify.num_requests), batch)) {
    answers.push_back(std::move(answer));
  }
  bar.update(0.2);
  if (common.verify_control) { model.spoil(); }
  nvl::EngineOptions options;
  options.max_model_len = longest;
  options.max_num_seqs = std::min(64, options.max_model_len);  // rows of logits at once
  options.max_num_batched_tokens = std::max(options.max_model_len, options.max_num_seqs);
  options.num_blocks = nvl::ceil_div(options.max_model_len, std::int32_t{16}) + 1;  // one sequence at a time
  const Verdict verdict = judge(*model.make_reference(common, options), answers, RegretLimit::of(model.dtype()));
  bar.clear();
  if (!verdict.passed()) {
    throw std::runtime_error("the results are wrong, so no speed is printed: " + std::to_string(verdict.num_wrong) + " of " +
                             std::to_string(verdict.num_tokens) + " greedy tokens have a logit more than " +
                             fixed(verdict.limit, 4) + " below the best one of the float32 CPU engine; the worst, " +
                             verdict.worst + ", " + fixed(verdict.worst_regret, 4));
  }
  return verdict;
}

}  // namespace nvl_bench
