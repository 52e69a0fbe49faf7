// In the place of invariant_engines.cu where there is no CUDA.

#include "bench/engine/invariant_engines.hpp"

#include <nvl/core/error.hpp>

namespace nvl_bench {

std::unique_ptr<nvl::AnyEngine> make_invariant_engine(const nvl::ModelConfig&, nvl::AnyWeightSource, const nvl::EngineOptions&,
                                                      nvl::DType, const nvl::LoadProgress&) {
  nvl::raise(nvl::Unsupported("this program was built without CUDA"));
}

}  // namespace nvl_bench
