#pragma once
/// Writer of safetensors files: named tensors of plain element types, in the order given.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/io/printable.hpp>
#include <nvl/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

namespace nvl::inline NVL_ABI {

namespace detail {

/// The format's name of an element type. \throws Unsupported for types that it does not have, such as those of GGUF
inline std::string_view safetensors_type_name(const HostTensor& tensor) {
  for (const SafetensorsType& row : safetensors_types) {
    if (row.dtype == tensor.dtype) { return row.name; }
  }
  raise(Unsupported("tensor " + in_quotes(tensor.name) + " is " + std::string(info(tensor.dtype).name) +
                    ": safetensors files hold plain element types only"));
}

/// Length and header of a file of these tensors.
inline std::string safetensors_header(std::span<const HostTensor> tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t offset = 0;
  for (const HostTensor& tensor : tensors) {
    const std::string label = "tensor " + in_quotes(tensor.name);
    NVL_EXPECTS(!tensor.name.empty() && !header.contains(tensor.name), "name of a tensor", tensor.name,
                "not empty, not \"__metadata__\", and there once");
    NVL_EXPECTS(tensor.shape.size() <= SafetensorsLimits::max_dims, "number of dimensions of " + label, tensor.shape.size(),
                "at most " + std::to_string(SafetensorsLimits::max_dims));
    const std::string_view type = safetensors_type_name(tensor);
    std::optional<std::int64_t> bytes = info(tensor.dtype).block_bytes;
    for (const std::int64_t extent : tensor.shape) {
      NVL_EXPECTS(extent >= 0, "shape of " + label, extent, "not negative");
      if (bytes) { bytes = checked_mul(*bytes, extent); }
    }
    NVL_EXPECTS(bytes && static_cast<std::uint64_t>(*bytes) == tensor.data.size(), "bytes of " + label, tensor.data.size(),
                "those of its shape and type");
    header[tensor.name] = {{"dtype", type}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.data.size()}}};
    offset += tensor.data.size();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // tensors begin at a multiple of 8
  std::string out;
  for (int byte = 0; byte < 8; ++byte) { out.push_back(static_cast<char>(text.size() >> (8 * byte) & 0xff)); }
  return out + text;
}

/// Calls `write(stream)` on a draft beside `path`, which replaces `path` when it is complete. \throws FileError
template <class Write>
void write_file(const std::filesystem::path& path, Write&& write) {
  const std::filesystem::path draft = path.string() + ".tmp";
  std::error_code error;
  {
    std::ofstream file(draft, std::ios::binary | std::ios::trunc);
    write(file);
    file.close();
    if (!file) {
      std::filesystem::remove(draft, error);
      raise(FileError(path.string(), "cannot be written"));
    }
  }
  std::filesystem::rename(draft, path, error);
  if (error) { raise(FileError(path.string(), "cannot be written: " + error.message())); }
}

}  // namespace detail

/// Writes `path`. The file is complete or as it was.
/// \throws InvalidArgument that names a tensor whose bytes do not fit its shape; Unsupported; FileError
inline void write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> tensors) {
  static_assert(std::endian::native == std::endian::little, "nvl: safetensors files are little-endian");
  const std::string header = detail::safetensors_header(tensors);
  detail::write_file(path, [&](std::ofstream& file) {
    file << header;
    for (const HostTensor& tensor : tensors) {
      file.write(reinterpret_cast<const char*>(tensor.data.data()), static_cast<std::streamsize>(tensor.data.size()));
    }
  });
}

}  // namespace nvl::inline NVL_ABI
