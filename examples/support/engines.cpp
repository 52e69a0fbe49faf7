#include "support/engines.hpp"

#include "support/policies.hpp"

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(, float);
NVL_EXAMPLE_ENGINE(, bf16);

}  // namespace nvl::inline NVL_ABI

namespace nvl_examples {

std::unique_ptr<nvl::AnyEngine> make_engine(const ModelOptions& model, const nvl::ModelConfig& config,
                                            nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                            std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress) {
  if (model.device == "cuda") { return make_cuda_engine(model.policies, config, source, options, dtype, progress); }
  return with_policies(model.policies, [&]<class S, class A>(Policies<S, A>) {
    return nvl::with_engine_type(nvl::CpuEngines<S, A>{}, config, dtype, [&]<class E>(std::type_identity<E>) {
      return nvl::make_any_engine<E>(config, source, options, progress);
    });
  });
}

}  // namespace nvl_examples
