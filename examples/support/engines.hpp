#pragma once
/// The engines of nvl's own programs, compiled once in engines.cpp. A program that includes this header before it uses
/// nvl::LLM compiles in a few seconds.

#include <nvl/llm.hpp>

#define NVL_EXAMPLE_ENGINE(prefix, Element, Source)                                              \
  prefix template std::unique_ptr<AnyEngine> make_any_engine<DefaultCpuEngine<Element>, Source>( \
      const ModelConfig&, const Source&, const EngineOptions&, const LoadProgress&)

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(extern, float, Checkpoint);
NVL_EXAMPLE_ENGINE(extern, bf16, Checkpoint);
NVL_EXAMPLE_ENGINE(extern, float, RandomWeights);
NVL_EXAMPLE_ENGINE(extern, bf16, RandomWeights);

}  // namespace nvl::inline NVL_ABI
