#pragma once
/// The batch-invariant engines of nvl-bench. They are compiled for it alone: in invariant_engines.cu, or not at all.

#include <nvl/core/dtype.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/model/any_weight_source.hpp>

#include <memory>

namespace nvl_bench {

/// A batch-invariant engine on a GPU, of the default policies.
/// \throws what the engine throws; nvl::Unsupported for a type other than bf16 and fp16, and in a program built without CUDA
std::unique_ptr<nvl::AnyEngine> make_invariant_engine(const nvl::ModelConfig& config, nvl::AnyWeightSource source,
                                                      const nvl::EngineOptions& options, nvl::DType dtype,
                                                      const nvl::LoadProgress& progress);

}  // namespace nvl_bench
