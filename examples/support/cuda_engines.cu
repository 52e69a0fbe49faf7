// The engines of --device cuda.

#include "support/engines.hpp"
#include "support/policies.hpp"

#include <nvl/nvl.cuh>

namespace nvl_examples {

std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const PolicyOptions& policies, const nvl::ModelConfig& config,
                                                 nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                                 std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress) {
  return with_policies(policies, [&]<class S, class A>(Policies<S, A>) {
    return nvl::make_cuda_engine<nvl::CudaEngines<S, A>>(config, source, options, dtype, progress);
  });
}

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
