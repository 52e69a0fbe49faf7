// In the place of cuda_engines.cu where there is no CUDA.

#include "support/engines.hpp"

namespace nvl_examples {

template <class Source>
std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig&, const Source&, const nvl::EngineOptions&,
                                                 std::optional<nvl::DType>, const nvl::LoadProgress&) {
  nvl::raise(nvl::Unsupported("this program was built without CUDA"));
}

template std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig&, const nvl::Checkpoint&,
                                                          const nvl::EngineOptions&, std::optional<nvl::DType>,
                                                          const nvl::LoadProgress&);
template std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig&, const nvl::RandomWeights&,
                                                          const nvl::EngineOptions&, std::optional<nvl::DType>,
                                                          const nvl::LoadProgress&);

DeviceDescription describe_cuda_device(const nvl::DeviceOptions&) { return {}; }

}  // namespace nvl_examples
