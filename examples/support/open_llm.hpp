#pragma once
/// An nvl::LLM from a program's options, with a progress bar while it loads.

#include "support/engines.hpp"
#include "support/model_options.hpp"
#include "support/progress.hpp"

#include <nvl/llm.hpp>

#include <cstdio>
#include <string>

namespace nvl_examples {

inline nvl::LLM open_llm(const std::string& program, const ModelOptions& model, const nvl::EngineOptions& engine) {
  nvl::LlmOptions options;
  options.engine = engine;
  options.engine.device = model.device_options();
  options.dtype = model.element_type();
  options.check_tensors = model.check_tensors;
  options.make_engine = [model](const nvl::Checkpoint& checkpoint, const nvl::LlmOptions& o) {
    return make_engine(model, checkpoint.config(), checkpoint, o.engine, o.dtype, o.progress);
  };
  Progress bar("loading " + model.model.filename().string());
  options.progress = [&bar](double fraction) { bar.update(fraction); };
  nvl::LLM llm(model.model, std::move(options));
  bar.clear();
  if (model.memory_plan) { std::fputs(to_table(llm.engine().memory_plan()).c_str(), stderr); }
  for (const std::string& warning : llm.warnings()) {
    std::fprintf(stderr, "%s: warning: %s\n", program.c_str(), one_line(warning).c_str());
  }
  return llm;
}

}  // namespace nvl_examples
