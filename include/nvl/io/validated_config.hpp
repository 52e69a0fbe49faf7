#pragma once
/// The last check of a configuration that came from a file: the model's own rules, with the file's name in the message.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>

#include <string>
#include <utility>

namespace nvl::inline NVL_ABI::detail {

/// \throws FileError that names `path`, the field, its value and the rule
inline ModelConfig validated_config(ModelConfig config, const std::string& path) {
#if defined(__cpp_exceptions)
  try {
    validate(config);
  } catch (const InvalidArgument& error) { raise(FileError(path, error.what())); }
#else
  static_cast<void>(path);
  validate(config);  // reports to NVL_ERROR_HANDLER without the file's name
#endif
  return config;
}

}  // namespace nvl::inline NVL_ABI::detail
