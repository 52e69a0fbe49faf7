// The engines of --tensor-parallel-size and --pipeline-parallel-size.

#include "support/engines.hpp"

#include <nvl/parallel/tensor_pipeline_parallel.hpp>

namespace nvl_examples {

namespace {

template <class T>
using Split = nvl::DefaultCpuEngine<T>::template with_parallel<nvl::TensorPipelineParallel<>>;

}  // namespace

std::unique_ptr<nvl::AnyEngine> make_split_engine(const ParallelOptions& parallel, const nvl::ModelConfig& config,
                                                  nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                                  std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress) {
  using Engines = nvl::EngineList<Split<float>, Split<nvl::bf16>>;
  return nvl::with_engine_type(Engines{}, config, dtype, [&]<class E>(std::type_identity<E>) {
    return nvl::make_any_engine<E>(config, source, options, progress,
                                   nvl::TensorPipelineParallel<>(static_cast<std::uint32_t>(parallel.pipeline_parallel_size),
                                                                 static_cast<std::uint32_t>(parallel.tensor_parallel_size)));
  });
}

}  // namespace nvl_examples
