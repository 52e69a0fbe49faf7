// The engines of --device cuda.

#include "support/engines.hpp"

#include <nvl/nvl.cuh>

namespace nvl_examples {

template <class Source>
std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig& config, const Source& source,
                                                 const nvl::EngineOptions& options, std::optional<nvl::DType> dtype,
                                                 const nvl::LoadProgress& progress) {
  return nvl::make_cuda_engine(config, source, options, dtype, progress);
}

template std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig&, const nvl::Checkpoint&,
                                                          const nvl::EngineOptions&, std::optional<nvl::DType>,
                                                          const nvl::LoadProgress&);
template std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig&, const nvl::RandomWeights&,
                                                          const nvl::EngineOptions&, std::optional<nvl::DType>,
                                                          const nvl::LoadProgress&);

DeviceDescription describe_cuda_device(const nvl::DeviceOptions& options) {
  cudaDeviceProp properties{};
  int driver = 0, runtime = 0;
  NVL_CUDA_CHECK(cudaGetDeviceProperties(&properties, options.ordinal));
  NVL_CUDA_CHECK(cudaDriverGetVersion(&driver));
  NVL_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  return {properties.name, "CUDA " + version(driver), "CUDA " + version(runtime)};
}

}  // namespace nvl_examples
