#pragma once
/// The engines that a program with a GPU chooses from at run time.

#include <nvl/attention/paged_attention.cuh>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/engine.hpp>
#include <nvl/engine/with_engine.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/parallel/single_device.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

template <class T>
using DefaultCudaEngine = Engine<PrefillFirstScheduler, PrefixCacheAllocator, PagedAttention<T>, SingleDevice>;

/// The one list. Head dims are chosen inside the attention backend.
using DefaultCudaEngines = EngineList<DefaultCudaEngine<bf16>, DefaultCudaEngine<fp16>, DefaultCudaEngine<float>>;

/// The engine of DefaultCudaEngines for `dtype` (none: auto_cuda_dtype), behind the run-time interface.
/// \throws what Engine throws; Unsupported, with the list, for another dtype
template <WeightSource Source>
std::unique_ptr<AnyEngine> make_cuda_engine(const ModelConfig& config, const Source& source, const EngineOptions& options,
                                            std::optional<DType> dtype = std::nullopt, const LoadProgress& progress = {}) {
  return with_engine_type(
      DefaultCudaEngines{}, config, dtype.value_or(auto_cuda_dtype(config)),
      [&]<class E>(std::type_identity<E>) { return make_any_engine<E, Source>(config, source, options, progress); });
}

}  // namespace nvl::inline NVL_ABI
