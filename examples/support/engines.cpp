#include "support/engines.hpp"

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(, float, Checkpoint);
NVL_EXAMPLE_ENGINE(, bf16, Checkpoint);
NVL_EXAMPLE_ENGINE(, float, RandomWeights);
NVL_EXAMPLE_ENGINE(, bf16, RandomWeights);

}  // namespace nvl::inline NVL_ABI

namespace nvl_examples {

template <class Source>
std::unique_ptr<nvl::AnyEngine> make_engine(const std::string& device, const nvl::ModelConfig& config, const Source& source,
                                            const nvl::EngineOptions& options, std::optional<nvl::DType> dtype,
                                            const nvl::LoadProgress& progress) {
  if (device == "cuda") { return make_cuda_engine(config, source, options, dtype, progress); }
  return nvl::with_engine_type(nvl::DefaultEngines{}, config, dtype, [&]<class E>(std::type_identity<E>) {
    return nvl::make_any_engine<E, Source>(config, source, options, progress);
  });
}

#define NVL_EXAMPLE_MAKE(Source)                                                                                   \
  template std::unique_ptr<nvl::AnyEngine> make_engine(const std::string&, const nvl::ModelConfig&, const Source&, \
                                                       const nvl::EngineOptions&, std::optional<nvl::DType>,       \
                                                       const nvl::LoadProgress&)
NVL_EXAMPLE_MAKE(nvl::Checkpoint);
NVL_EXAMPLE_MAKE(nvl::RandomWeights);

}  // namespace nvl_examples
