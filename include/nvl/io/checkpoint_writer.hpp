#pragma once
/// Writes a model as a Hugging Face directory: config.json and model.safetensors, without a tokenizer.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>
#include <nvl/io/hf_config_writer.hpp>
#include <nvl/io/safetensors_writer.hpp>
#include <nvl/io/weight_map.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

namespace nvl::inline NVL_ABI {

/// \param directory made if it is not there; Checkpoint::open reads it
/// \param source a WeightSource (model/weights.hpp) that has every weight of `config`, of plain element types
/// \throws InvalidArgument that names a missing or misshapen weight; Unsupported for what the format cannot hold; FileError
template <class Source>
void write_checkpoint(const std::filesystem::path& directory, const ModelConfig& config, const Source& source) {
  const std::string json = to_hf_config(config).dump(2) + "\n";
  std::vector<HostTensor> tensors;
  for (const WeightSpec& spec : expected_weights(config)) {
    const HostTensor* const found = source.find(spec.name);
    NVL_EXPECTS(found != nullptr, "weight " + spec.name, "missing", "there: the configuration has it");
    NVL_EXPECTS(found->shape == spec.shape, "shape of weight " + spec.name, "another one", "that of the configuration");
    HostTensor& tensor = tensors.emplace_back(*found);
    const std::string alias = detail::weight_alias(spec.name, &detail::WeightAlias::hf, "layers.");
    tensor.name = spec.name == weight_names::lm_head ? alias : "model." + alias;
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) { raise(FileError(directory.string(), "cannot be made: " + error.message())); }
  write_safetensors(directory / "model.safetensors", tensors);
  detail::write_file(directory / "config.json", [&](std::ofstream& file) { file << json; });
}

}  // namespace nvl::inline NVL_ABI
