#pragma once
/// The engines of nvl's own programs, compiled once: those of the CPU in engines.cpp, those of CUDA in cuda_engines.cu. A program
/// that includes this header compiles in a few seconds.

#include <nvl/llm.hpp>

#include <memory>
#include <optional>
#include <string>

#define NVL_EXAMPLE_ENGINE(prefix, Element, Source)                                              \
  prefix template std::unique_ptr<AnyEngine> make_any_engine<DefaultCpuEngine<Element>, Source>( \
      const ModelConfig&, const Source&, const EngineOptions&, const LoadProgress&)

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(extern, float, Checkpoint);
NVL_EXAMPLE_ENGINE(extern, bf16, Checkpoint);
NVL_EXAMPLE_ENGINE(extern, float, RandomWeights);
NVL_EXAMPLE_ENGINE(extern, bf16, RandomWeights);

}  // namespace nvl::inline NVL_ABI

namespace nvl_examples {

/// What is known of a device besides its name on the command line; empty where it cannot be told.
struct DeviceDescription {
  std::string name, driver, toolkit;
};

/// An engine on `device`, "cpu" or "cuda", with weights from a Checkpoint or RandomWeights. `dtype` none: what suits the device.
/// \throws what the engine throws; nvl::Unsupported for cuda in a program that was built without it
template <class Source>
std::unique_ptr<nvl::AnyEngine> make_engine(const std::string& device, const nvl::ModelConfig& config, const Source& source,
                                            const nvl::EngineOptions& options, std::optional<nvl::DType> dtype,
                                            const nvl::LoadProgress& progress);

/// What make_engine needs for "cuda".
template <class Source>
std::unique_ptr<nvl::AnyEngine> make_cuda_engine(const nvl::ModelConfig& config, const Source& source,
                                                 const nvl::EngineOptions& options, std::optional<nvl::DType> dtype,
                                                 const nvl::LoadProgress& progress);
DeviceDescription describe_cuda_device(const nvl::DeviceOptions& options);

extern template std::unique_ptr<nvl::AnyEngine> make_engine(const std::string&, const nvl::ModelConfig&, const nvl::Checkpoint&,
                                                            const nvl::EngineOptions&, std::optional<nvl::DType>,
                                                            const nvl::LoadProgress&);
extern template std::unique_ptr<nvl::AnyEngine> make_engine(const std::string&, const nvl::ModelConfig&,
                                                            const nvl::RandomWeights&, const nvl::EngineOptions&,
                                                            std::optional<nvl::DType>, const nvl::LoadProgress&);

}  // namespace nvl_examples
