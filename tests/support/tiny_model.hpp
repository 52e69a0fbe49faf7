#pragma once
/// A model of a few thousand random weights, and engines for it: fast enough to run hundreds of requests in a test.

#include <nvl/nvl.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace nvl_test {

/// Qwen3-like: QK-norm, head_dim unlike hidden / heads, three query heads to a KV head.
inline nvl::ModelConfig tiny_config() {
  nvl::ModelConfig config;
  config.architecture = "qwen3";
  config.vocab_size = 199;
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.num_layers = 3;
  config.num_q_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 512;
  config.qk_norm = true;
  config.tie_word_embeddings = true;
  config.eos_token_ids = {7};
  return config;
}

/// Options under which nothing is scarce.
inline nvl::EngineOptions roomy_options() {
  nvl::EngineOptions options;
  options.max_num_seqs = 32;
  options.max_num_batched_tokens = 512;
  options.num_blocks = 256;
  options.device.num_threads = 2;
  options.seed = 1;
  return options;
}

template <class Scheduler = nvl::PrefillFirstScheduler, class Allocator = nvl::PrefixCacheAllocator, class T = float>
using TinyEngine = nvl::Engine<Scheduler, Allocator, nvl::CpuPagedAttention<T>, nvl::SingleDevice>;

/// Prompt `index` of a fixed family: `length` ids that depend on both.
inline std::vector<nvl::TokenId> tiny_prompt(int index, int length) {
  std::vector<nvl::TokenId> ids;
  std::uint32_t state = 12345u + 977u * static_cast<std::uint32_t>(index);
  for (int i = 0; i < length; ++i) {
    state = state * 1664525u + 1013904223u;
    ids.push_back(static_cast<nvl::TokenId>(8 + (state >> 16) % 190u));
  }
  return ids;
}

inline nvl::Request greedy_request(std::vector<nvl::TokenId> prompt, std::int32_t max_tokens) {
  nvl::Request request;
  request.prompt_ids = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

/// A vocabulary whose token i is the letters of i in base 26, so that stop strings can be made to fall anywhere.
class LetterText final : public nvl::TokenText {
 public:
  explicit LetterText(std::int32_t vocab_size) {
    for (std::int32_t i = 0; i < vocab_size; ++i) {
      pieces_.push_back({static_cast<char>('a' + i / 26 % 26), static_cast<char>('a' + i % 26)});
    }
  }
  std::string_view bytes(nvl::TokenId id) const noexcept override {
    return id >= 0 && static_cast<std::size_t>(id) < pieces_.size() ? std::string_view(pieces_[static_cast<std::size_t>(id)])
                                                                    : "";
  }
  bool is_special(nvl::TokenId id) const noexcept override { return id == 7; }

 private:
  std::vector<std::string> pieces_;
};

}  // namespace nvl_test
