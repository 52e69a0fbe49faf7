#include "support/model_options.hpp"

#include <nvl/core/device_options.hpp>
#include <nvl/ops/cpu_device.hpp>

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

namespace nvl_examples {

void PolicyOptions::add_to(OptionParser& parser) {
  parser.option("--scheduler", scheduler, "NAME",
                "prefill-first: a step computes prompts or single tokens; token-budget: both, prompts in chunks. "
                "Default: token-budget.");
  parser.option(
      "--preemption", preemption, "NAME",
      "How a sequence makes room, with token-budget: recompute, swap to host memory (--swap-space), or cost: the cheaper one. "
      "Default: recompute.");
  parser.option("--prefix-cache", prefix_cache, "NAME",
                "What finds blocks that were computed before: hash, radix, or none. Default: hash.");
}

std::string to_string(const PolicyOptions& policies) {
  return "--scheduler " + policies.scheduler + " --preemption " + policies.preemption + " --prefix-cache " +
         policies.prefix_cache;
}

void ParallelOptions::add_to(OptionParser& parser) {
  parser.group("Several devices");
  parser.option(
      "-tp,--tensor-parallel-size", tensor_parallel_size, "N",
      "Ranks that share each layer, with a part of its heads and features. On the CPU, with shares of its threads. Default: 1.");
  parser.option("-pp,--pipeline-parallel-size", pipeline_parallel_size, "N",
                "Stages that share the layers. On the CPU they take turns. Default: 1.");
  parser.option(
      "-dp,--data-parallel-size", data_parallel_size, "N",
      "Replicas of the engine that share the requests: on N GPUs from the first one on, or on shares of the CPU's threads. "
      "Sizes of memory and batch are those of each. Default: 1.");
  parser.option(
      "--router", router, "NAME",
      "Which replica gets a request: round-robin, least-tokens (outstanding), or prefix-affinity: those that begin alike "
      "go to the same one. Default: " +
          std::string(default_router) + ".");
}

void ParallelOptions::validate() const {
  constexpr std::int32_t most = 64;
  for (const auto& [flag, size] :
       {std::pair("--tensor-parallel-size", tensor_parallel_size), std::pair("--pipeline-parallel-size", pipeline_parallel_size),
        std::pair("--data-parallel-size", data_parallel_size)}) {
    if (size < 1 || size > most) {
      throw UsageError(std::string(flag) + " is " + std::to_string(size) + ": must be 1 to " + std::to_string(most));
    }
  }
  if (!router) { return; }
  if (*router != "round-robin" && *router != "least-tokens" && *router != "prefix-affinity") {
    throw UsageError("--router is \"" + *router + "\": must be round-robin, least-tokens or prefix-affinity");
  }
  if (data_parallel_size == 1) { throw UsageError("--router is \"" + *router + "\": needs --data-parallel-size above 1"); }
}

nvl::EngineOptions ParallelOptions::of_replica(std::int32_t i, bool is_on_cpu, nvl::EngineOptions options) const {
  if (options.seed) { *options.seed += static_cast<std::uint64_t>(i); }  // two replicas do not draw the same seeds
  options.device = nvl::for_rank(options.device, static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(data_parallel_size));
  if (is_on_cpu && options.kv_cache_memory_bytes == 0 && options.num_blocks == 0) {
    options.kv_cache_memory_bytes = nvl::CpuDevice::memory(options.device).budget_bytes / data_parallel_size;
  }
  return options;
}

void ModelOptions::add_model_to(OptionParser& parser) {
  parser.group("Model");
  parser.option("-m,--model", model, "PATH",
                "A .gguf file, a Hugging Face directory, or a .safetensors file beside its config.json.");
}

void ModelOptions::add_device_to(OptionParser& parser) {
  parser.option("--device", device, "NAME", "Where it runs: cpu or cuda. Default: cpu.");
  parser.option(
      "--dtype", dtype, "TYPE",
      "Type of activations and KV cache: float32, bfloat16, on cuda also float16, or auto: bfloat16 for a model stored in "
      "it, else float32 on the cpu and float16 on cuda. Default: auto.");
  parser.option("-t,--threads", threads, "N", "CPU threads that compute. Default: OMP_NUM_THREADS, else one per core.");
  parser.option("--gpu-memory-utilization", gpu_memory_utilization, "SHARE",
                "Share of the GPU's memory that may be in use, by whomever, with this program. Default: 0.92.");
  parser.flag("--enforce-eager", enforce_eager,
              "Launch every kernel of a decode step by itself instead of replaying CUDA graphs.");
  parser.flag("--memory-plan", memory_plan, "Print what the engine holds in memory, item by item.");
  parser.option("--gemm-cache", gemm_cache, "FILE", "Where the matrix product algorithms that were found for this GPU are kept.");
  parser.option("--gemm-search-seconds", gemm_search_seconds, "S",
                "Time to look for faster matrix product algorithms at start-up. Default: 0.");
  parser.flag("--check-tensors", check_tensors, "Refuse a model whose weights hold a NaN or an infinity.");
  policies.add_to(parser);
  parallel.add_to(parser);
}

void ModelOptions::validate() const {
  if (model.empty()) {
    throw UsageError("no model was given: --model PATH names a .gguf file or a model directory (see --help)");
  }
  if (device == "cuda" && !NVL_EXAMPLES_WITH_CUDA) {
    throw UsageError("--device cuda: this program was built without CUDA and runs on the CPU: leave --device out");
  }
  if (device != "cpu" && device != "cuda") { throw UsageError("--device is \"" + device + "\": must be cpu or cuda"); }
  static_cast<void>(element_type());
  parallel.validate();
  if (parallel.num_ranks() > 1) {
    const std::string split = "--tensor-parallel-size " + std::to_string(parallel.tensor_parallel_size) +
                              " --pipeline-parallel-size " + std::to_string(parallel.pipeline_parallel_size);
    if (device == "cuda") { throw UsageError(split + " needs --device cpu: GPUs share requests (-dp), not yet a model"); }
    if (policies != PolicyOptions()) { throw UsageError(split + " is compiled with " + to_string(PolicyOptions()) + " only"); }
  }
}

std::optional<nvl::DType> ModelOptions::element_type() const {
  if (dtype == "auto") { return std::nullopt; }
  if (dtype == "float32" || dtype == "float" || dtype == "f32") { return nvl::DType::float32; }
  if (dtype == "bfloat16" || dtype == "bf16") { return nvl::DType::bfloat16; }
  if (dtype == "float16" || dtype == "half" || dtype == "fp16") { return nvl::DType::float16; }
  throw UsageError("--dtype is \"" + dtype + "\": must be auto, float32, bfloat16 or float16");
}

nvl::DeviceOptions ModelOptions::device_options() const {
  nvl::DeviceOptions options;
  options.num_threads = threads;
  if (gpu_memory_utilization) { options.memory_utilization = *gpu_memory_utilization; }
  options.use_graphs = !enforce_eager;
  options.gemm_cache_file = gemm_cache;
  if (gemm_search_seconds) { options.gemm_search_seconds = *gemm_search_seconds; }
  const char* const omp = std::getenv("OMP_NUM_THREADS");
  if (threads == 0 && omp != nullptr && *omp != '\0') {
    const std::string first(omp,
                            std::string_view(omp).substr(0, std::string_view(omp).find(',')).size());  // "4,2": nested levels
    detail::convert("OMP_NUM_THREADS", first, options.num_threads);
  }
  return options;
}

void CapacityOptions::add_to(OptionParser& parser) {
  parser.group("Memory");
  parser.option("-c,--max-model-len,--ctx-size", max_model_len, "N",
                "Tokens of prompt and output together. Default: as many as the model was made for.");
  parser.option(
      "--kv-cache-memory-bytes", kv_cache_memory, "BYTES",
      "Memory for the KV cache, such as 512M or 4G. Default: what can be used, up to a quarter of the machine's memory.");
  parser.option("--num-blocks,--num-gpu-blocks-override", num_blocks, "N",
                "Blocks of the KV cache, instead of its size in bytes.");
  parser.option(
      "--swap-space", swap_space, "GIB",
      "Host memory, in GiB, for the KV cache of sequences that make room for others, where the scheduler swaps. Default: 0.");
  parser.option("--max-num-seqs", max_num_seqs, "N", "Sequences that run at once.");
  parser.option("--max-num-batched-tokens", max_num_batched_tokens, "N", "Tokens that are computed in one step. Default: 2048.");
  parser.group("How prompts share a step with decodes (--scheduler token-budget)");
  parser.option("--max-prefill-tokens-beside-decodes", scheduling.max_prefill_tokens_beside_decodes, "N",
                "Prompt tokens of a step that decodes too; 0: what the step has left. Default: 0.");
  parser.option("--long-prefill-token-threshold", scheduling.long_prefill_token_threshold, "N",
                "Tokens of one prompt in a step; 0: what the step has left. Default: 0.");
  parser.option("--max-num-partial-prefills", scheduling.max_num_partial_prefills, "N",
                "Prompts that are computed in parts at once; 0: any number. Default: 0.");
  parser.option("--max-long-partial-prefills", scheduling.max_long_partial_prefills, "N",
                "Of them with more tokens left than --long-prefill-token-threshold; 0: any number. Default: 0.");
}

std::int64_t swap_space_bytes(double swap_space) {
  constexpr double gib = 1 << 30, most = 1 << 20;
  if (!(swap_space >= 0 && swap_space <= most)) {
    throw UsageError("--swap-space is " + std::to_string(swap_space) + ": must be 0 to 1048576 GiB");
  }
  return static_cast<std::int64_t>(swap_space * gib);
}

nvl::EngineOptions CapacityOptions::over(nvl::EngineOptions options) const {
  options.max_model_len = max_model_len.value_or(options.max_model_len);
  options.max_num_seqs = max_num_seqs.value_or(options.max_num_seqs);
  options.max_num_batched_tokens = max_num_batched_tokens.value_or(options.max_num_batched_tokens);
  options.num_blocks = num_blocks.value_or(options.num_blocks);
  options.scheduling = scheduling;
  if (kv_cache_memory) { options.kv_cache_memory_bytes = kv_cache_memory->value; }
  if (swap_space) { options.swap_space_bytes = swap_space_bytes(*swap_space); }
  return options;
}

void SamplingOptions::add_to(OptionParser& parser, bool with_logprobs) {
  parser.group("Sampling (what is not given is taken from the model's generation_config.json)");
  parser.option("-n,--max-tokens,--n-predict", max_tokens, "N",
                "Tokens of output at most. Default: " + std::to_string(default_max_tokens) + ".");
  parser.option("--temperature,--temp", temperature, "T", "0 always takes the most likely token. Default: 1.");
  parser.option("--top-k", top_k, "K", "Choose among the K most likely tokens; 0 = all.");
  parser.option("--top-p", top_p, "P", "Choose among the fewest tokens whose probability together reaches P.");
  parser.option("--min-p", min_p, "P", "Leave out tokens less likely than P times the most likely one.");
  parser.option("--repetition-penalty", repetition_penalty, "X",
                "Above 1: tokens that stand in prompt or output become less likely.");
  parser.option("--presence-penalty", presence_penalty, "X", "Subtracted once from the logits of tokens in the output.");
  parser.option("--frequency-penalty", frequency_penalty, "X", "Subtracted for each occurrence in the output.");
  parser.option("-s,--seed", seed, "N",
                "Makes the choice of tokens repeatable, whatever else runs. Default: a new one each time.");
  parser.option("--stop", stop, "TEXT", "Ends the output before this text. May be given several times.");
  parser.option("--stop-token-id", stop_token_ids, "ID", "Ends the output at this token. May be given several times.");
  parser.flag("--include-stop-str-in-output", include_stop, "Keep the stop text in the output.");
  parser.flag("--ignore-eos", ignore_eos, "Go on after the model's end-of-sequence token.");
  parser.option("--min-tokens", min_tokens, "N", "Do not stop before N tokens.");
  if (with_logprobs) {
    parser.option("--logprobs", logprobs, "N",
                  "With each token its log-probability and those of the N most likely ones (--json).");
  }
  parser.flag("--show-special", show_special, "Show special tokens, such as end-of-sequence, in the text.");
}

void SamplingOptions::add_choices_to(OptionParser& parser) {
  parser.group("Choices");
  parser.option("--n", n, "N", "Answers to each prompt, which is computed once. Default: 1.");
  parser.option("--best-of", best_of, "N", "Answers to draw, of which the --n most likely ones are shown. Default: --n.");
  parser.option("--beam-width", beam_width, "N",
                "Beam search with so many beams instead of drawing tokens; --n of them are shown.");
  parser.option("--length-penalty", length_penalty, "X",
                "Beams rank by log-probability / length ^ X: above 0 favours long ones. Default: 1.");
  parser.option("--early-stopping", early_stopping, "WHEN",
                "yes: when all beams have ended; no: when better ones are unlikely; never: when there can be none. Default: no.");
}

nvl::SamplingParams SamplingOptions::over(nvl::SamplingParams params) const {
  params.max_tokens = max_tokens.value_or(default_max_tokens);
  params.min_tokens = min_tokens.value_or(params.min_tokens);
  params.temperature = temperature.value_or(params.temperature);
  params.top_k = top_k.value_or(params.top_k);
  params.top_p = top_p.value_or(params.top_p);
  params.min_p = min_p.value_or(params.min_p);
  params.repetition_penalty = repetition_penalty.value_or(params.repetition_penalty);
  params.presence_penalty = presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty = frequency_penalty.value_or(params.frequency_penalty);
  params.n = n.value_or(params.n);
  params.best_of = best_of.value_or(params.best_of);
  params.beam_width = beam_width.value_or(params.beam_width);
  params.length_penalty = length_penalty.value_or(params.length_penalty);
  if (early_stopping == "yes" || early_stopping == "never") {
    params.early_stopping = early_stopping == "yes" ? nvl::EarlyStopping::yes : nvl::EarlyStopping::never;
  } else if (early_stopping != "no") {
    throw UsageError("--early-stopping is \"" + early_stopping + "\": must be no, yes or never");
  }
  if (seed) { params.seed = seed; }
  if (logprobs) { params.logprobs = logprobs; }
  if (!stop.empty()) { params.stop = stop; }
  if (!stop_token_ids.empty()) { params.stop_token_ids = stop_token_ids; }
  params.ignore_eos = params.ignore_eos || ignore_eos;
  params.include_stop_str_in_output = params.include_stop_str_in_output || include_stop;
  if (show_special) { params.skip_special_tokens = false; }
  return params;
}

}  // namespace nvl_examples
