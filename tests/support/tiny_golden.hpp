#pragma once
/// The tiny models of tests/data: which there are, their weights in float, and how far an engine is from their golden logits.

#include "support/golden.hpp"

#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/io/checkpoint.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nvl_test {

/// A model and what Hugging Face transformers computes from it in float64.
struct TinyModel {
  std::string model;   // under tests/data/tiny_models
  std::string golden;  // likewise
};

/// All of them.
inline std::vector<TinyModel> tiny_models() {
  std::vector<TinyModel> all;
  for (const char* name : {"llama3_scaled", "llama_linear", "llama_yarn", "llama_mha", "llama_mqa", "llama_bias", "qwen2",
                           "qwen2_window", "qwen3", "qwen3_yarn", "mistral"}) {
    all.push_back({name, std::string(name) + "/golden.json"});
  }
  for (const char* name : {"llama3_scaled", "llama_linear", "qwen2", "qwen3"}) {
    all.push_back({"gguf/" + std::string(name) + ".gguf", std::string(name) + "/golden.json"});
  }
  all.push_back({"gguf/llama_mixed.gguf", "gguf/llama_mixed.golden.json"});
  return all;
}

inline std::filesystem::path tiny_model_path(const std::string& name) {
  return std::filesystem::path(NVL_TEST_DATA_DIR) / "tiny_models" / name;
}

inline nvl::EngineOptions tiny_model_options() {
  nvl::EngineOptions options;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 128;
  options.num_blocks = 128;
  options.device.num_threads = 2;
  return options;
}

/// The weights of a checkpoint as float32 tensors, as `dequantize_row` makes them.
class Float32Weights {
 public:
  explicit Float32Weights(const nvl::Checkpoint& checkpoint) {
    for (const nvl::HostTensor& tensor : checkpoint.tensors()) {
      const std::int64_t row = tensor.shape.back();
      const std::size_t row_bytes = tensor.data.size() / static_cast<std::size_t>(tensor.num_rows());
      std::vector<float>& values = values_.emplace_back(static_cast<std::size_t>(tensor.num_rows() * row));
      for (std::int64_t i = 0; i < tensor.num_rows(); ++i) {
        nvl::dequantize_row(tensor.dtype, tensor.data.data() + static_cast<std::size_t>(i) * row_bytes, values.data() + i * row,
                            row);
      }
      tensors_.push_back({tensor.name, nvl::DType::float32, tensor.shape, std::as_bytes(std::span<const float>(values))});
    }
  }

  const nvl::HostTensor* find(std::string_view name) const {
    const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const nvl::HostTensor& t) { return t.name == name; });
    return found == tensors_.end() ? nullptr : &*found;
  }

 private:
  std::vector<std::vector<float>> values_;
  std::vector<nvl::HostTensor> tensors_;
};

/// Over all logits that the golden file holds.
template <class E>
double largest_error(E& engine, const Golden& golden) {
  double worst = 0;
  for (const GoldenPrompt& prompt : golden.prompts) {
    engine.prompt_logits(prompt.ids, [&](std::int32_t position, std::span<const float> logits) {
      const auto at = static_cast<std::size_t>(position);
      const auto compare = [&](std::size_t id, double expected) {
        worst = std::max(worst, std::abs(double{logits[id]} - expected));
      };
      for (std::size_t i = 0; i < prompt.top_ids[at].size(); ++i) {
        compare(static_cast<std::size_t>(prompt.top_ids[at][i]), prompt.top_logits[at][i]);
      }
      for (std::size_t i = 0; i < golden.columns.size(); ++i) { compare(golden.columns[i], prompt.column_logits[at][i]); }
      if (!prompt.logits.empty()) {
        for (std::size_t id = 0; id < logits.size(); ++id) { compare(id, prompt.logits[at][id]); }
      }
      double sum = 0;
      for (const float logit : logits) { sum += std::exp(double{logit}); }
      worst = std::max(worst, std::abs(std::log(sum) - prompt.logsumexp[at]));
    });
  }
  return worst;
}

inline nvl::Request greedy_request(const GoldenPrompt& prompt) {
  nvl::Request request;
  request.prompt_ids = prompt.ids;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = static_cast<std::int32_t>(prompt.greedy_ids.size());
  return request;
}

}  // namespace nvl_test
