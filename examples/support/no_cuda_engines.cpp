// In the place of cuda_engines.cu where there is no CUDA.

#include "support/engines.hpp"

namespace nvl_examples {

std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const PolicyOptions&, const nvl::ModelConfig&, nvl::AnyWeightSource,
                                                 const nvl::EngineOptions&, std::optional<nvl::DType>, const nvl::LoadProgress&) {
  nvl::raise(nvl::Unsupported("this program was built without CUDA"));
}

DeviceDescription describe_cuda_device(const nvl::DeviceOptions&) { return {}; }

}  // namespace nvl_examples
