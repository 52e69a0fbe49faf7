#include "support/engines.hpp"

#include "support/policies.hpp"

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

}  // namespace

std::unique_ptr<nvl::AnyEngine> make_engine(const ModelOptions& model, const nvl::ModelConfig& config,
                                            nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                            std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress) {
  require_reader(model.policies, options.scheduling);
  if (model.device == "cuda") { return make_cuda_engine(model.policies, config, source, options, dtype, progress); }
  return with_policies(model.policies, [&]<class S, class A>(Policies<S, A>) {
    return nvl::with_engine_type(nvl::CpuEngines<S, A>{}, config, dtype, [&]<class E>(std::type_identity<E>) {
      return nvl::make_any_engine<E>(config, source, options, progress);
    });
  });
}

}  // namespace nvl_examples
