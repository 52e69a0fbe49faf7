#pragma once
/// What a checkpoint recommends for generation: generation_config.json, or the sampling keys of a GGUF file.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/gguf_config.hpp>
#include <nvl/io/hf_config.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/mapped_file.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Defaults that a request may override; what the file does not say stays empty.
struct GenerationDefaults {
  std::optional<float> temperature;         // [0, 100]
  std::optional<std::int32_t> top_k;        // 0 = all
  std::optional<float> top_p;               // (0, 1]
  std::optional<float> min_p;               // [0, 1]
  std::optional<float> repetition_penalty;  // [0.001, 100]
  std::optional<bool> do_sample;            // false = greedy, whatever the temperature
  std::vector<TokenId> eos_token_ids;       // any of them ends a sequence
  std::optional<TokenId> bos_token_id;

  /// Sets in `params` what the file recommends and leaves the rest.
  void apply_to(SamplingParams& params) const {
    params.temperature = temperature.value_or(params.temperature);
    params.top_k = top_k.value_or(params.top_k);
    params.top_p = top_p.value_or(params.top_p);
    params.min_p = min_p.value_or(params.min_p);
    params.repetition_penalty = repetition_penalty.value_or(params.repetition_penalty);
    if (do_sample == false) { params.temperature = 0; }
  }
};

namespace detail {

inline constexpr double max_temperature = 100;  // the ranges are those of validate(SamplingParams)
inline constexpr double min_top_p = 1e-9;
inline constexpr double min_penalty = 1e-3;
inline constexpr double max_penalty = 100;

inline std::optional<float> to_float(std::optional<double> value) {
  return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
}

}  // namespace detail

/// Maps a parsed generation_config.json; `vocab_size` bounds its token ids, `path` is used in messages.
/// \throws FileError that names key, value and rule
inline GenerationDefaults parse_generation_config(const nlohmann::json& root, std::int32_t vocab_size, const std::string& path) {
  if (!root.is_object()) { detail::fail_json(path, "the file", detail::describe(root), "an object"); }
  GenerationDefaults defaults;
  defaults.temperature = detail::to_float(json_optional_float(root, "temperature", 0, detail::max_temperature, path));
  defaults.top_p = detail::to_float(json_optional_float(root, "top_p", detail::min_top_p, 1, path));
  defaults.min_p = detail::to_float(json_optional_float(root, "min_p", 0, 1, path));
  defaults.repetition_penalty =
      detail::to_float(json_optional_float(root, "repetition_penalty", detail::min_penalty, detail::max_penalty, path));
  if (json_find(root, "top_k") != nullptr) { defaults.top_k = detail::json_int32(root, "top_k", -1, path); }
  defaults.do_sample = json_optional_bool(root, "do_sample", path);
  defaults.eos_token_ids = detail::json_token_ids(root, "eos_token_id", vocab_size, path);
  const std::vector<TokenId> bos = detail::json_token_ids(root, "bos_token_id", vocab_size, path);
  if (!bos.empty()) { defaults.bos_token_id = bos.front(); }
  return defaults;
}

/// Reads and maps the file `path`.
inline GenerationDefaults read_generation_config(const std::filesystem::path& path, std::int32_t vocab_size) {
  const MappedFile file(path, MapMode::read, max_config_bytes);
  return parse_generation_config(parse_json(file.text(), file.path()), vocab_size, file.path());
}

/// The `general.sampling.*` keys of a GGUF file.
inline GenerationDefaults gguf_generation_defaults(const GgufFile& file) {
  const detail::GgufArchitectureKeys keys(file, "general.sampling");
  GenerationDefaults defaults;
  defaults.temperature = detail::to_float(keys.optional_float("temp", 0, detail::max_temperature));
  defaults.top_p = detail::to_float(keys.optional_float("top_p", detail::min_top_p, 1));
  defaults.min_p = detail::to_float(keys.optional_float("min_p", 0, 1));
  defaults.repetition_penalty = detail::to_float(keys.optional_float("penalty_repeat", detail::min_penalty, detail::max_penalty));
  defaults.top_k = keys.optional_int("top_k", -1);
  return defaults;
}

}  // namespace nvl::inline NVL_ABI
