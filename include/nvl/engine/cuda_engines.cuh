#pragma once
/// The engines that a program with a GPU chooses from at run time.

#include <nvl/attention/paged_attention.cuh>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/default_policies.hpp>
#include <nvl/engine/engine.hpp>
#include <nvl/engine/with_engine.hpp>
#include <nvl/parallel/single_device.hpp>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

/// The one list, of one scheduler and allocator. Head dims are chosen inside the attention backend.
template <class Scheduler, class Allocator>
using CudaEngines = EngineList<Engine<Scheduler, Allocator, PagedAttention<bf16>, SingleDevice>,
                               Engine<Scheduler, Allocator, PagedAttention<fp16>, SingleDevice>,
                               Engine<Scheduler, Allocator, PagedAttention<float>, SingleDevice>>;

template <class T>
using DefaultCudaEngine = Engine<DefaultScheduler, DefaultAllocator, PagedAttention<T>, SingleDevice>;
using DefaultCudaEngines = CudaEngines<DefaultScheduler, DefaultAllocator>;

/// Of each sequence the same bits whatever else runs.
template <class T>
using BatchInvariantCudaEngine = Engine<DefaultScheduler, DefaultAllocator,
                                        PagedAttention<T, 0, PagedAttentionOptions{.batch_invariant = true}>, SingleDevice>;

/// The engine of the list for `dtype` (none: auto_cuda_dtype), behind the run-time interface.
/// \throws what Engine throws; Unsupported, with the list, for another dtype
template <class Engines = DefaultCudaEngines>
std::unique_ptr<AnyEngine> make_cuda_engine(const ModelConfig& config, AnyWeightSource source, const EngineOptions& options,
                                            std::optional<DType> dtype = std::nullopt, const LoadProgress& progress = {}) {
  return with_engine_type(Engines{}, config, dtype.value_or(auto_cuda_dtype(config)),
                          [&]<class E>(std::type_identity<E>) { return make_any_engine<E>(config, source, options, progress); });
}

}  // namespace nvl::inline NVL_ABI
