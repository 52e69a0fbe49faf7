#include "support/engines.hpp"

#include "support/policies.hpp"

#include <nvl/engine/any_data_parallel_engine.hpp>
#include <nvl/engine/data_parallel_engine.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/prefix_affinity_router.hpp>
#include <nvl/engine/round_robin_router.hpp>

#include <memory>
#include <string>
#include <utility>

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(, float);
NVL_EXAMPLE_ENGINE(, bf16);

}  // namespace nvl::inline NVL_ABI

namespace nvl_examples {

namespace {

/// Options that nobody would read are an error.
void require_reader(const PolicyOptions& policies, const nvl::SchedulingOptions& options) {
  for (const auto& [flag, value] : {std::pair("--max-prefill-tokens-beside-decodes", options.max_prefill_tokens_beside_decodes),
                                    std::pair("--long-prefill-token-threshold", options.long_prefill_token_threshold),
                                    std::pair("--max-num-partial-prefills", options.max_num_partial_prefills),
                                    std::pair("--max-long-partial-prefills", options.max_long_partial_prefills)}) {
    if (value != 0 && policies.scheduler != "token-budget") {
      throw UsageError(std::string(flag) + " is " + std::to_string(value) + ": needs --scheduler token-budget");
    }
  }
}

std::unique_ptr<nvl::AnyEngine> make_one_engine(const ModelOptions& model, const nvl::ModelConfig& config,
                                                nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                                std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress) {
  if (model.parallel.num_ranks() > 1) { return make_split_engine(model.parallel, config, source, options, dtype, progress); }
  if (model.device == "cuda") { return make_cuda_engine(model.policies, config, source, options, dtype, progress); }
  return with_policies(model.policies, [&]<class S, class A>(Policies<S, A>) {
    return nvl::with_engine_type(nvl::CpuEngines<S, A>{}, config, dtype, [&]<class E>(std::type_identity<E>) {
      return nvl::make_any_engine<E>(config, source, options, progress);
    });
  });
}

}  // namespace

std::unique_ptr<nvl::AnyEngine> make_engine(const ModelOptions& model, const nvl::ModelConfig& config,
                                            nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                            std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress) {
  require_reader(model.policies, options.scheduling);
  const ParallelOptions& parallel = model.parallel;
  if (parallel.data_parallel_size == 1) { return make_one_engine(model, config, source, options, dtype, progress); }
  auto replicas = nvl::make_replicas(parallel.data_parallel_size, [&](std::int32_t i) {
    return make_one_engine(model, config, source, parallel.of_replica(i, model.device == "cpu", options), dtype,
                           i == 0 ? progress : nvl::LoadProgress());
  });
  const std::string name = parallel.router_name();
  if (name == "round-robin") { return nvl::make_data_parallel_engine(std::move(replicas), nvl::RoundRobinRouter()); }
  if (name == "prefix-affinity") {
    const std::int32_t block_size = replicas.front()->memory_plan().block_size;
    return nvl::make_data_parallel_engine(std::move(replicas), nvl::PrefixAffinityRouter({.block_size = block_size}));
  }
  return nvl::make_data_parallel_engine(std::move(replicas), nvl::LeastTokensRouter());
}

}  // namespace nvl_examples
