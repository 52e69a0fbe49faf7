#pragma once
/// What an engine has taken on and not done yet, in requests and in tokens.

#include <nvl/core/config.hpp>
#include <nvl/engine/request.hpp>

#include <algorithm>
#include <cstdint>

namespace nvl::inline NVL_ABI {

struct EngineLoad {
  std::int64_t num_reqs = 0;    // accepted and not ended
  std::int64_t num_tokens = 0;  // of their prompts that are not computed, and of the output that may still come
  bool is_open = true;          // it takes requests
};

/// [tokens] that `request` is at most: its prompt, and the output of each of its choices.
/// \param max_model_len [tokens] of prompt and output that an engine has room for; 0: not known
inline std::int64_t most_tokens(const Request& request, std::int64_t max_model_len = 0) noexcept {
  const auto prompt = static_cast<std::int64_t>(request.prompt_ids.size());
  std::int64_t output = request.sampling.max_tokens;
  if (max_model_len > 0) { output = std::min(output, max_model_len - prompt); }
  return prompt + std::max<std::int64_t>(output, 0) * std::max(request.sampling.num_choices(), 1);
}

}  // namespace nvl::inline NVL_ABI
