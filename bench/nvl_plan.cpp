/// nvl-plan: what a model needs on a GPU and how fast it can be, without the GPU.

#include "bench/support/capacity.hpp"
#include "bench/support/gpus.hpp"
#include "bench/support/presets.hpp"
#include "bench/support/report.hpp"
#include "support/model_options.hpp"
#include "support/options.hpp"

#include <nvl/core/weight_names.hpp>
#include <nvl/io/checkpoint.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/gguf_config.hpp>
#include <nvl/io/hf_config.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl_bench {
namespace {

using nvl_examples::ByteCount;
using nvl_examples::UsageError;
using TableRows = std::vector<std::vector<std::string>>;

/// The configuration alone, of a preset or of a file whose weights need not be there.
nvl::ModelConfig read_model(const std::filesystem::path& model) {
  if (const auto known = preset(model.string())) { return *known; }
  std::error_code ignored;
  const std::string extension = model.extension().string();
  if (std::filesystem::is_directory(model, ignored)) { return nvl::read_hf_config(model / "config.json"); }
  if (extension == ".json") { return nvl::read_hf_config(model); }
  if (extension == ".safetensors") { return nvl::read_hf_config(model.parent_path() / "config.json"); }
  if (extension == ".gguf") { return nvl::gguf_model_config(nvl::GgufFile(model)); }
  throw UsageError("--model is \"" + model.string() +
                   "\": must be a .gguf file, a Hugging Face directory, its config.json, or one of " + preset_list());
}

double num_parameters(const nvl::ModelConfig& config) {
  double count = 0;
  for (const nvl::WeightSpec& spec : nvl::expected_weights(config)) {
    double one = 1;
    for (const std::int64_t extent : spec.shape) { one *= static_cast<double>(extent); }
    count += one;
  }
  return count;
}

std::string gib(std::int64_t bytes) { return fixed(static_cast<double>(bytes) / (1 << 30), 2); }
std::string ms(double seconds) { return fixed(seconds * 1e3, seconds < 0.01 ? 3 : 1); }

/// As `to_table`, and the same for JSON.
void add_memory(Json& json, TableRows& rows, const nvl::MemoryPlan& plan) {
  const auto add = [&](const char* what, const char* key, std::int64_t bytes, const std::string& note = {}) {
    json[key] = bytes;
    rows.push_back({what, std::to_string(bytes), gib(bytes), note});
  };
  add("weights", "weight_bytes", plan.fixed.weight_bytes);
  add("KV cache", "kv_bytes", plan.kv_bytes,
      std::to_string(plan.num_blocks) + " blocks of " + std::to_string(plan.block_size) + " tokens; " +
          std::to_string(kv_bytes_per_token(plan)) + " bytes a token");
  add("activations", "activation_bytes", plan.activation_bytes);
  add("logits", "logits_bytes", plan.logits_bytes);
  add("workspace", "workspace_bytes", plan.fixed.workspace_bytes);
  add("graphs", "graph_bytes", plan.fixed.graph_bytes, "estimated");
  add("total", "total_bytes", plan.total_bytes());
  json["num_blocks"] = plan.num_blocks;
  json["block_size"] = plan.block_size;
  json["kv_bytes_per_token"] = kv_bytes_per_token(plan);
  json["kv_tokens"] = plan.num_blocks * plan.block_size;
  json["max_model_len"] = plan.max_model_len;
}

class PlanProgram {
 public:
  int run(int argc, char** argv) {
    nvl_examples::OptionParser parser("nvl-plan", "What a model needs on a GPU, and how fast it can be there. Needs no GPU.");
    add_to(parser);
    if (!parser.parse(argc, argv)) { return 0; }
    validate();
    Json json;
    std::string text = describe(json);
    question_.used_bytes = used_bytes_.value;
    std::optional<nvl::MemoryPlan> plan;
    try {
      plan = rank_plan(question_);
    } catch (const nvl::OutOfMemory&) {
      std::fputs((text + variants_text(json["variants"])).c_str(), stdout);  // one of these may fit
      throw;
    }
    text += memory_text(json["memory"], *plan) + context_text(json["contexts"], *plan) + load_text(json["load"], *plan) +
            variants_text(json["variants"]);
    std::fputs(text.c_str(), stdout);
    if (output_json_) { write_json(*output_json_, json); }
    return 0;
  }

 private:
  void add_to(nvl_examples::OptionParser& parser) {
    parser.group("Model");
    parser.option("-m,--model", model_, "PATH",
                  "A .gguf file, a Hugging Face directory, a config.json (its weights need not be there), or one of " +
                      preset_list() + ".");
    parser.option("--dtype", dtype_, "TYPE",
                  "Of weights and activations: bfloat16, float16, or auto, as on cuda. Default: auto.");
    parser.option("--kv-cache-dtype", kv_dtype_, "TYPE", "Of K and V: auto, the type of activations, or fp8. Default: auto.");
    parser.option("--block-size", question_.block_size, "N", "Tokens of a KV block. Default: 16.");
    parser.group("GPU");
    parser.option("--gpu", gpu_, "NAME", "One of " + gpu_list() + ". Default: h200.");
    parser.option("-tp,--tensor-parallel-size,--tp-size", question_.num_ranks, "N", "GPUs that share the model. Default: 1.");
    parser.option("--gpu-memory", memory_, "BYTES", "Memory of a GPU as its driver reports it, such as 80G. Default: the GPU's.");
    parser.option("--num-sms", num_sms_, "N", "Its multiprocessors. Default: the GPU's.");
    parser.option("--peak-bandwidth", bandwidth_, "TB/S",
                  "What it reads from its memory. Default: measured for an H200; for others 97 % of the data sheet.");
    parser.option("--peak-tflops", tflops_, "N",
                  "Its bf16 matrix products, in 10^12 operations a second. Default: likewise, 80 % of the data sheet.");
    parser.option("--link-bandwidth", link_bandwidth_, "GB/S", "To the other GPUs, in one direction. Default: the GPU's.");
    parser.option("--all-reduce-us", all_reduce_us_, "US",
                  "Time of a small sum over the GPUs. Default: 15, as of NCCL on H200s.");
    parser.option("--gpu-memory-utilization", utilization_, "SHARE", "Share of the memory that may be in use. Default: 0.92.");
    parser.option("--used-gpu-memory", used_bytes_, "BYTES",
                  "In use when the engine plans: by CUDA itself, and by others. Default: 512M.");
    parser.flag("--enforce-eager", eager_, "No CUDA graphs.");
    capacity_.add_to(parser);
    parser.group("Load");
    parser.option("--context", contexts_, "N",
                  "Tokens of a sequence to make a row for. May be given several times. Default: powers of 2 from 1024.");
    parser.option("--input-len", input_len_, "N", "Prompt tokens of a request of the load. Default: 1024, or less.");
    parser.option("--output-len", output_len_, "N", "Its output tokens. Default: 1024, or less.");
    parser.group("Output");
    parser.option("--output-json", output_json_, "FILE", "Writes everything as JSON, too.");
  }

  void validate() {
    if (model_.empty()) {
      throw UsageError("no model was given: --model names a file, a model directory or one of " + preset_list() +
                       " (see --help)");
    }
    if (dtype_ != "auto" && dtype_ != "bfloat16" && dtype_ != "float16") {
      throw UsageError("--dtype is \"" + dtype_ + "\": must be auto, bfloat16 or float16");
    }
    if (kv_dtype_ != "auto" && kv_dtype_ != "fp8") {
      throw UsageError("--kv-cache-dtype is \"" + kv_dtype_ + "\": must be auto or fp8");
    }
    const auto gpu = find_gpu(gpu_);
    if (!gpu) { throw UsageError("--gpu is \"" + gpu_ + "\": must be one of " + gpu_list()); }
    if (output_json_) { require_writable(*output_json_); }
    question_.gpu = *gpu;
    question_.model = read_model(model_);
    question_.dtype = dtype_ == "auto"      ? nvl::auto_cuda_dtype(question_.model)
                      : dtype_ == "float16" ? nvl::DType::float16
                                            : nvl::DType::bfloat16;
    question_.kv_element_bytes = kv_dtype_ == "fp8" ? 1 : 2;
    question_.options = capacity_.over({});
    question_.options.device.use_graphs = !eager_;
    if (utilization_) { question_.options.device.memory_utilization = *utilization_; }
    const auto set = [](auto& field, const std::optional<double>& given, double unit, const char* name) {
      if (!given) { return; }
      if (!(*given > 0)) { throw UsageError(std::string(name) + " is " + fixed(*given, 3) + ": must be positive"); }
      field = *given * unit;
    };
    question_.rates = reachable_rates(question_.gpu);
    set(question_.rates.read_bytes, bandwidth_, 1e12, "--peak-bandwidth");
    set(question_.rates.matmul_flops, tflops_, 1e12, "--peak-tflops");
    if (tflops_) { question_.rates.attention_flops = 0.7 * question_.rates.matmul_flops; }  // as on an H200
    set(question_.gpu.link_bandwidth, link_bandwidth_, 1e9, "--link-bandwidth");
    if (all_reduce_us_ < 0) { throw UsageError("--all-reduce-us is " + fixed(all_reduce_us_, 3) + ": must not be negative"); }
    question_.all_reduce_seconds = all_reduce_us_ * 1e-6;
    if (memory_) { question_.gpu.memory_bytes = memory_->value; }
    if (num_sms_) {
      if (*num_sms_ < 1 || *num_sms_ > 1024) {
        throw UsageError("--num-sms is " + std::to_string(*num_sms_) + ": must be 1 to 1024");
      }
      question_.gpu.num_sms = *num_sms_;
    }
    const std::int32_t longest = max_model_len();
    const std::int32_t half = std::max(longest / 2, 1);
    if (!input_len_) { input_len_ = std::min(1024, half); }
    if (!output_len_) { output_len_ = std::min(1024, half); }
    for (const auto& [name, length] : {std::pair("--input-len", *input_len_), std::pair("--output-len", *output_len_)}) {
      if (length < 1) { throw UsageError(std::string(name) + " is " + std::to_string(length) + ": must be positive"); }
    }
    if (std::int64_t{*input_len_} + *output_len_ > longest) {
      throw UsageError("--input-len and --output-len are " + std::to_string(std::int64_t{*input_len_} + *output_len_) +
                       " tokens together: must be at most " + std::to_string(longest) + ", the longest sequence");
    }
    for (const std::int32_t length : contexts_) {
      if (length < 1 || length > longest) {
        throw UsageError("--context is " + std::to_string(length) + ": must be 1 to " + std::to_string(longest) +
                         ", the longest sequence");
      }
    }
    if (contexts_.empty()) {
      for (std::int32_t length = 1024; length < longest; length *= 2) { contexts_.push_back(length); }
      contexts_.push_back(longest);
    }
  }

  std::int32_t max_model_len() const {
    const std::int32_t given = question_.options.max_model_len;
    return given > 0 ? std::min(given, question_.model.max_position_embeddings) : question_.model.max_position_embeddings;
  }

  std::string describe(Json& json) const {
    const CapacityQuestion& q = question_;
    const bool is_measured = known_peak_rates(q.gpu.title).known() && !bandwidth_ && !tflops_;
    json["model"] = model_.filename().empty() ? model_.string() : model_.filename().string();
    json["parameters"] = num_parameters(q.model);
    json["dtype"] = std::string(nvl::info(q.dtype).name);
    json["kv_cache_dtype"] = q.kv_element_bytes == 1 ? "fp8" : std::string(nvl::info(q.dtype).name);
    json["gpu"] = std::string(q.gpu.name);
    json["gpu_memory_bytes"] = q.gpu.memory_bytes;
    json["used_gpu_memory_bytes"] = used_bytes_.value;
    json["gpu_memory_utilization"] = q.options.device.memory_utilization;
    json["num_sms"] = q.gpu.num_sms;
    json["peak_read_bandwidth"] = q.rates.read_bytes;
    json["peak_matmul_flops"] = q.rates.matmul_flops;
    json["peak_attention_flops"] = q.rates.attention_flops;
    json["tensor_parallel_size"] = q.num_ranks;
    json["link_bandwidth"] = q.gpu.link_bandwidth;
    json["all_reduce_us"] = all_reduce_us_;
    json["max_num_seqs"] = q.options.max_num_seqs;
    json["max_num_batched_tokens"] = q.options.max_num_batched_tokens;
    std::string text = "## nvl-plan\n\n";
    const auto line = [&](const std::string& what, const std::string& value) { text += "- " + what + ": " + value + "\n"; };
    line("model", json["model"].get<std::string>() + ", " + fixed(json["parameters"].get<double>() / 1e9, 3) +
                      " billion parameters in " + json["dtype"].get<std::string>() + ", K and V in " +
                      json["kv_cache_dtype"].get<std::string>());
    line("GPU", std::to_string(q.num_ranks) + " x " + std::string(q.gpu.title) + ", " + gib(q.gpu.memory_bytes) +
                    " GiB, of which " + fixed(q.options.device.memory_utilization, 2) + " may be in use and " +
                    gib(used_bytes_.value) + " GiB are before the engine starts");
    line("rates", fixed(q.rates.read_bytes / 1e12, 2) + " TB/s read, " + fixed(q.rates.matmul_flops / 1e12, 0) +
                      " TFLOP/s, in attention " + fixed(q.rates.attention_flops / 1e12, 0) + "; " +
                      (is_measured             ? "measured"
                       : bandwidth_ || tflops_ ? "as given"
                                               : "an H200's shares of the data sheet"));
    line("options", std::to_string(q.options.max_num_seqs) + " sequences and " +
                        std::to_string(q.options.max_num_batched_tokens) + " tokens a step at most, up to " +
                        std::to_string(max_model_len()) + " tokens a sequence");
    if (q.num_ranks > 1 || q.kv_element_bytes == 1) {
      text += "\nA calculation: this version of nvl runs on one GPU and keeps K and V in the type of the activations.\n";
    }
    return text;
  }

  static std::string memory_text(Json& json, const nvl::MemoryPlan& plan) {
    TableRows rows{{"memory of each GPU", "bytes", "GiB", ""}};
    json = Json::object();
    add_memory(json, rows, plan);
    return "\n" + markdown_table(rows);
  }

  std::string context_text(Json& json, const nvl::MemoryPlan& plan) const {
    const CapacityLimits limits(question_);
    TableRows rows{{"tokens of a sequence", "fit at once", "run at once", "ms a token, alone", "ms a token, all", "tokens/s, all",
                    "first token [ms]"}};
    json = Json::array();
    for (const std::int32_t length : contexts_) {
      const std::int64_t fit = sequences_that_fit(plan, length);
      const std::int64_t running = std::min<std::int64_t>(fit, question_.options.max_num_seqs);
      const double alone = limits.decode_step(1, length), all = limits.decode_step(running, length);
      const double first = limits.first_token(length);
      const double rate = running > 0 ? static_cast<double>(running) / all : 0;
      json.push_back({{"length", length},
                      {"blocks", blocks_of_sequence(plan, length)},
                      {"sequences_that_fit", fit},
                      {"sequences_that_run", running},
                      {"limit_tpot_alone_ms", alone * 1e3},
                      {"limit_tpot_ms", running > 0 ? Json(all * 1e3) : Json()},
                      {"limit_output_throughput", rate},
                      {"limit_ttft_alone_ms", first * 1e3}});
      rows.push_back({std::to_string(length), std::to_string(fit), std::to_string(running), ms(alone),
                      running > 0 ? ms(all) : "-", fixed(rate, 0), ms(first)});
    }
    return "\nLimits of a decode step in which every sequence has so many tokens, and of the first token of such a prompt:\n\n" +
           markdown_table(rows);
  }

  /// Limits of the load: requests that start together, as many as run at once.
  struct Load {
    std::int64_t num_requests = 0;
    double seconds = 0, expected_seconds = 0;
    double output_tokens = 0;
  };
  Load load_of(const CapacityQuestion& q, const nvl::MemoryPlan& plan) const {
    Load load;
    load.num_requests =
        std::min<std::int64_t>(sequences_that_fit(plan, std::int64_t{*input_len_} + *output_len_), q.options.max_num_seqs);
    if (load.num_requests == 0) { return load; }
    const std::vector<RequestLengths> requests(static_cast<std::size_t>(load.num_requests), {*input_len_, *output_len_});
    const double prompt_tokens = static_cast<double>(load.num_requests) * *input_len_;
    const double steps = *output_len_ - 1 + std::ceil(prompt_tokens / q.options.max_num_batched_tokens);
    load.seconds = CapacityLimits(q).load(requests);
    load.expected_seconds = Efficiency().expected(load.seconds, steps, q.model.num_layers);
    load.output_tokens = static_cast<double>(load.num_requests) * *output_len_;
    return load;
  }

  std::string load_name() const {
    return "Requests of " + std::to_string(*input_len_) + " tokens in and " + std::to_string(*output_len_) + " out";
  }

  std::string load_text(Json& json, const nvl::MemoryPlan& plan) const {
    const Load load = load_of(question_, plan);
    json = {{"input_len", *input_len_}, {"output_len", *output_len_}, {"concurrent_requests", load.num_requests}};
    if (load.num_requests == 0) { return "\n" + load_name() + " do not fit.\n"; }
    const double requests = static_cast<double>(load.num_requests);
    TableRows rows{{load_name() + ", " + std::to_string(load.num_requests) + " at once", "limit", "expected"}};
    const auto add = [&](const char* what, const char* key, double limit, double expected, int digits) {
      json[std::string("limit_") + key] = limit;
      json[std::string("expected_") + key] = expected;
      rows.push_back({what, fixed(limit, digits), fixed(expected, digits)});
    };
    add("output tokens/s", "output_throughput", load.output_tokens / load.seconds, load.output_tokens / load.expected_seconds, 0);
    add("requests/s", "request_throughput", requests / load.seconds, requests / load.expected_seconds, 2);
    add("duration of a request [s]", "duration_s", load.seconds, load.expected_seconds, 2);
    return "\n" + markdown_table(rows);
  }

  /// The same model with other types of K and V and other numbers of GPUs.
  std::string variants_text(Json& json) const {
    const std::int64_t length = std::int64_t{*input_len_} + *output_len_;
    TableRows rows{{"K and V", "GPUs", "weights [GiB]", "KV bytes a token", "blocks", "KV tokens",
                    "sequences of " + std::to_string(length), "ms a token, alone", "tokens/s, limit", "expected"}};
    json = Json::array();
    for (const std::int64_t kv_bytes : {2, 1}) {
      for (const std::int32_t num_ranks : {1, 2, 4, 8}) {
        CapacityQuestion q = question_;
        q.kv_element_bytes = kv_bytes;
        q.num_ranks = num_ranks;
        const std::string type = kv_bytes == 1 ? "fp8" : std::string(nvl::info(q.dtype).name);
        json.push_back({{"kv_cache_dtype", type}, {"tensor_parallel_size", num_ranks}});
        Json& one = json.back();
        std::vector<std::string> row{type, std::to_string(num_ranks)};
        try {
          const nvl::MemoryPlan plan = rank_plan(q);
          TableRows unused;
          add_memory(one["memory"], unused, plan);
          const Load load = load_of(q, plan);
          const double alone = CapacityLimits(q).decode_step(1, length);
          const double limit = load.num_requests > 0 ? load.output_tokens / load.seconds : 0;
          const double expected = load.num_requests > 0 ? load.output_tokens / load.expected_seconds : 0;
          one["sequences_that_fit"] = sequences_that_fit(plan, length);
          one["limit_tpot_alone_ms"] = alone * 1e3;
          one["limit_output_throughput"] = limit;
          one["expected_output_throughput"] = expected;
          for (const std::string& cell :
               {gib(plan.fixed.weight_bytes), std::to_string(kv_bytes_per_token(plan)), std::to_string(plan.num_blocks),
                std::to_string(plan.num_blocks * plan.block_size), std::to_string(sequences_that_fit(plan, length)), ms(alone),
                fixed(limit, 0), fixed(expected, 0)}) {
            row.push_back(cell);
          }
        } catch (const nvl::OutOfMemory&) {
          one["error"] = "does not fit";
          row.resize(rows.front().size(), "-");
          row[2] = "does not fit";
        } catch (const nvl::InvalidArgument& error) {
          one["error"] = error.what();
          row.resize(rows.front().size(), "-");
          row[2] = "cannot be divided so";
        }
        rows.push_back(std::move(row));
      }
    }
    return "\nThe same with other types of K and V and on several GPUs that share each layer; bytes are those of one GPU (a "
           "calculation:\nthis version of nvl runs on one GPU and keeps K and V in the type of the activations):\n\n" +
           markdown_table(rows);
  }

  std::filesystem::path model_;
  std::string dtype_ = "auto", kv_dtype_ = "auto", gpu_ = "h200";
  std::optional<ByteCount> memory_;
  ByteCount used_bytes_{CapacityQuestion().used_bytes};
  std::optional<std::int32_t> num_sms_, input_len_, output_len_;
  std::optional<double> bandwidth_, tflops_, link_bandwidth_, utilization_;
  double all_reduce_us_ = 15;
  bool eager_ = false;
  std::vector<std::int32_t> contexts_;
  std::optional<std::filesystem::path> output_json_;
  nvl_examples::CapacityOptions capacity_;
  CapacityQuestion question_;
};

}  // namespace
}  // namespace nvl_bench

int main(int argc, char** argv) {
  return nvl_examples::run_program("nvl-plan", [&] { return nvl_bench::PlanProgram().run(argc, argv); });
}
