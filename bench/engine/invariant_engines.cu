// The engines of --batch-invariant.

#include "bench/engine/invariant_engines.hpp"

#include <nvl/nvl.cuh>

namespace nvl_bench {

std::unique_ptr<nvl::AnyEngine> make_invariant_engine(const nvl::ModelConfig& config, nvl::AnyWeightSource source,
                                                      const nvl::EngineOptions& options, nvl::DType dtype,
                                                      const nvl::LoadProgress& progress) {
  using Engines = nvl::EngineList<nvl::BatchInvariantCudaEngine<nvl::bf16>, nvl::BatchInvariantCudaEngine<nvl::fp16>>;
  return nvl::make_cuda_engine<Engines>(config, source, options, dtype, progress);
}

}  // namespace nvl_bench
