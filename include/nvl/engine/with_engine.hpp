#pragma once
/// From what a model file says at run time to an engine type that was compiled.

#include <nvl/attention/cpu_paged_attention.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/default_policies.hpp>
#include <nvl/engine/engine.hpp>
#include <nvl/parallel/single_device.hpp>

#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

template <class... Engines>
struct EngineList {};

/// The engines that a run-time choice can end in, of one scheduler and allocator: the one list. Head dims are chosen inside the
/// CPU attention.
template <class Scheduler, class Allocator>
using CpuEngines = EngineList<Engine<Scheduler, Allocator, CpuPagedAttention<float>, SingleDevice>,
                              Engine<Scheduler, Allocator, CpuPagedAttention<bf16>, SingleDevice>>;

template <class T>
using DefaultCpuEngine = Engine<DefaultScheduler, DefaultAllocator, CpuPagedAttention<T>, SingleDevice>;
using DefaultEngines = CpuEngines<DefaultScheduler, DefaultAllocator>;

/// The element type of activations and KV for "auto": bfloat16 for checkpoints in it, else float32.
inline DType auto_dtype(const ModelConfig& config) noexcept {
  return config.dtype == DType::bfloat16 ? DType::bfloat16 : DType::float32;
}

/// Calls `use(std::type_identity<E>())` with the engine of the list whose Element is `dtype` (none: auto_dtype) and returns
/// what it returns. \throws Unsupported, with the list, if there is none.
template <class Use, class First, class... Rest>
auto with_engine_type(EngineList<First, Rest...>, const ModelConfig& config, std::optional<DType> dtype, Use&& use) {
  using Result = std::invoke_result_t<Use&, std::type_identity<First>>;
  const DType wanted = dtype.value_or(auto_dtype(config));
  std::optional<Result> result;
  std::string known;
  const auto offer = [&]<class E>(std::type_identity<E> type) {
    constexpr DType offered = dtype_of<typename E::Element>;
    known += (known.empty() ? "" : ", ") + std::string(info(offered).name);
    if (!result && offered == wanted) { result.emplace(use(type)); }
  };
  offer(std::type_identity<First>());
  (offer(std::type_identity<Rest>()), ...);
  if (!result) { raise(Unsupported("dtype " + std::string(info(wanted).name) + " is not compiled in; these are: " + known)); }
  return std::move(*result);
}

/// Makes the fitting engine, calls `use(engine)` and returns what it returns.
///
///     nvl::with_engine(checkpoint.config(), checkpoint, options, [](auto& engine) { return engine.generate(requests); });
template <WeightSource Source, class Use>
auto with_engine(const ModelConfig& config, const Source& source, const EngineOptions& options, Use&& use,
                 std::optional<DType> dtype = std::nullopt) {
  return with_engine_type(DefaultEngines{}, config, dtype, [&]<class E>(std::type_identity<E>) {
    E engine(config, source, options);
    return use(engine);
  });
}

}  // namespace nvl::inline NVL_ABI
