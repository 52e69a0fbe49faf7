#pragma once
/// The engines of nvl's own programs, compiled once: those of the CPU in engines.cpp, those of CUDA in cuda_engines.cu. A program
/// that includes this header compiles in a few seconds.

#include "support/model_options.hpp"

#include <nvl/llm.hpp>

#include <memory>
#include <optional>
#include <string>

#define NVL_EXAMPLE_ENGINE(prefix, Element)                                              \
  prefix template std::unique_ptr<AnyEngine> make_any_engine<DefaultCpuEngine<Element>>( \
      const ModelConfig&, AnyWeightSource, const EngineOptions&, const LoadProgress&, SingleDevice)

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(extern, float);
NVL_EXAMPLE_ENGINE(extern, bf16);

}  // namespace nvl::inline NVL_ABI

namespace nvl_examples {

/// What is known of a device besides its name on the command line; empty where it cannot be told.
struct DeviceDescription {
  std::string name, driver, toolkit;
};

/// An engine on the device and with the policies of `model`, or as many replicas as it asks for behind its router. `dtype` none:
/// what suits the device.
/// \throws what the engine throws; UsageError for policies that are not compiled in; nvl::Unsupported for cuda in a program that
/// was built without it
std::unique_ptr<nvl::AnyEngine> make_engine(const ModelOptions& model, const nvl::ModelConfig& config,
                                            nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                            std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress);

/// What make_engine needs for a model that is split over ranks of the CPU; of the default policies.
std::unique_ptr<nvl::AnyEngine> make_split_engine(const ParallelOptions& parallel, const nvl::ModelConfig& config,
                                                  nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                                  std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress);

/// What it needs for "cuda".
std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const PolicyOptions& policies, const nvl::ModelConfig& config,
                                                 nvl::AnyWeightSource source, const nvl::EngineOptions& options,
                                                 std::optional<nvl::DType> dtype, const nvl::LoadProgress& progress);
DeviceDescription describe_cuda_device(const nvl::DeviceOptions& options);

}  // namespace nvl_examples
