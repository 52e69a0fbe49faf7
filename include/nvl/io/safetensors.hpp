#pragma once
/// Reader of safetensors files: one file, or the shards that an index names. Everything is checked against the file before use.
/// Format: an 8-byte little-endian length, a JSON header of that length, then the tensors' bytes without holes or overlap
/// (the specification in the README of huggingface/safetensors).

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/io/byte_cursor.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/printable.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;  // [elements], outermost first; empty for a scalar
  std::span<const std::byte> data;  // points into the file
  std::uint64_t offset = 0;         // [bytes] from the start of the file
};

/// Limits beyond which a file is refused.
struct SafetensorsLimits {
  static constexpr std::uint64_t max_header_bytes = 100'000'000;  // the format's own
  static constexpr std::uint64_t max_index_bytes = 64u << 20;
  static constexpr std::size_t max_dims = 8;
};

namespace detail {

/// Element types of the format: those that nvl reads, and those that it knows by name only.
struct SafetensorsType {
  std::string_view name;
  std::optional<DType> dtype;
};

inline constexpr std::array<SafetensorsType, 20> safetensors_types{{
    {"F32", DType::float32},
    {"F16", DType::float16},
    {"BF16", DType::bfloat16},
    {"I8", DType::int8},
    {"I32", DType::int32},
    {"I64", DType::int64},
    {"F64", {}},
    {"I16", {}},
    {"U8", {}},
    {"U16", {}},
    {"U32", {}},
    {"U64", {}},
    {"BOOL", {}},
    {"C64", {}},
    {"F8_E4M3", {}},
    {"F8_E5M2", {}},
    {"F8_E8M0", {}},
    {"F4", {}},
    {"F6_E2M3", {}},
    {"F6_E3M2", {}},
}};

}  // namespace detail

/// One open safetensors file. Move-only; spans that it hands out die with it.
class SafetensorsFile {
 public:
  /// \throws FileError (path, what is wrong), Unsupported for element types that nvl does not read
  explicit SafetensorsFile(const std::filesystem::path& path, MapMode mode = MapMode::map)
      : SafetensorsFile(MappedFile(path, mode)) {}

  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) { parse(); }

  const MappedFile& file() const noexcept { return file_; }
  const std::string& path() const noexcept { return file_.path(); }
  std::span<const SafetensorsTensor> tensors() const noexcept { return tensors_; }  ///< in the order of their bytes

 private:
  void parse() {
    ByteCursor in(file_.bytes(), path());
    const auto header_bytes = in.read<std::uint64_t>("header length");
    const std::uint64_t limit = std::min(in.remaining(), SafetensorsLimits::max_header_bytes);
    if (header_bytes < 2 || header_bytes > limit) {
      in.fail_at(0, "header length is " + std::to_string(header_bytes) + ": must be 2 to " + std::to_string(limit));
    }
    const std::string_view header = file_.text().substr(in.offset(), header_bytes);
    if (header.front() != '{') { in.fail("the header does not begin with '{': not a safetensors file"); }
    const nlohmann::json root = parse_json(header, path(), 4);  // checks depth and duplicate keys
    in.take(header_bytes, "header");
    const auto data = file_.bytes().subspan(in.offset());

    tensors_.reserve(root.size());
    for (const auto& [name, entry] : root.items()) {
      if (name == "__metadata__") {
        require_metadata(entry);
      } else {
        tensors_.push_back(parse_tensor(name, entry, data, in.offset()));
      }
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
      return std::pair(a.offset, a.data.size()) < std::pair(b.offset, b.data.size());
    });
    require_dense(in.offset());
  }

  void require_metadata(const nlohmann::json& metadata) const {
    if (!metadata.is_object()) { detail::fail_json(path(), "__metadata__", detail::describe(metadata), "an object of strings"); }
    for (const auto& [key, value] : metadata.items()) {
      if (!value.is_string()) {
        detail::fail_json(path(), "__metadata__." + detail::printable(key), detail::describe(value), "a string");
      }
    }
  }

  SafetensorsTensor parse_tensor(const std::string& name, const nlohmann::json& entry, std::span<const std::byte> data,
                                 std::uint64_t data_offset) const {
    const std::string label = "tensor " + detail::in_quotes(name);
    if (!entry.is_object()) { detail::fail_json(path(), label, detail::describe(entry), "an object"); }
    SafetensorsTensor tensor;
    tensor.name = name;
    tensor.dtype = parse_dtype(label, member(entry, "dtype", label));

    const nlohmann::json& shape = array_member(entry, "shape", label);
    if (shape.size() > SafetensorsLimits::max_dims) {
      detail::fail_json(path(), "number of dimensions of " + label, std::to_string(shape.size()),
                        "at most " + std::to_string(SafetensorsLimits::max_dims));
    }
    constexpr std::int64_t max_int = std::numeric_limits<std::int64_t>::max();
    std::optional<std::int64_t> bytes = info(tensor.dtype).block_bytes;
    bool has_zero = false;
    for (const nlohmann::json& extent : shape) {
      tensor.shape.push_back(json_to_int(extent, "shape of " + label, 0, max_int, path()));
      has_zero = has_zero || tensor.shape.back() == 0;
      if (bytes) { bytes = checked_mul(*bytes, std::max<std::int64_t>(tensor.shape.back(), 1)); }
    }
    if (!bytes) { detail::fail_json(path(), "shape of " + label, shape.dump(), "a product below 2^63 bytes"); }
    if (has_zero) { bytes = 0; }

    const nlohmann::json& offsets = array_member(entry, "data_offsets", label);
    if (offsets.size() != 2) {
      detail::fail_json(path(), "data_offsets of " + label, std::to_string(offsets.size()) + " values", "2 values");
    }
    const auto room = static_cast<std::int64_t>(data.size());
    const std::int64_t begin = json_to_int(offsets[0], "data_offsets of " + label, 0, room, path());
    const std::int64_t end = json_to_int(offsets[1], "data_offsets of " + label, 0, room, path());
    if (end < begin) { detail::fail_json(path(), "data_offsets of " + label, offsets.dump(), "begin <= end"); }
    if (end - begin != *bytes) {
      detail::fail_json(
          path(), "data_offsets of " + label, offsets.dump(),
          std::to_string(*bytes) + " bytes apart, the size of " + std::string(info(tensor.dtype).name) + " " + shape.dump());
    }
    tensor.offset = data_offset + static_cast<std::uint64_t>(begin);
    tensor.data = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    return tensor;
  }

  const nlohmann::json& member(const nlohmann::json& entry, const char* key, const std::string& label) const {
    const nlohmann::json* const value = json_find(entry, key);
    if (value == nullptr) { detail::fail_json(path(), key + (" of " + label), "missing", "given"); }
    return *value;
  }

  const nlohmann::json& array_member(const nlohmann::json& entry, const char* key, const std::string& label) const {
    const nlohmann::json& value = member(entry, key, label);
    if (!value.is_array()) { detail::fail_json(path(), key + (" of " + label), detail::describe(value), "an array"); }
    return value;
  }

  DType parse_dtype(const std::string& label, const nlohmann::json& value) const {
    const std::string& name = json_to_string(value, "dtype of " + label, path());
    std::string readable;
    for (const detail::SafetensorsType& row : detail::safetensors_types) {
      if (row.dtype) { readable += (readable.empty() ? "" : ", ") + std::string(row.name); }
    }
    for (const detail::SafetensorsType& row : detail::safetensors_types) {
      if (row.name != name) { continue; }
      if (row.dtype) { return *row.dtype; }
      raise(Unsupported(path() + ": " + label + " has dtype " + name + "; nvl reads " + readable));
    }
    detail::fail_json(path(), "dtype of " + label, detail::in_quotes(name),
                      "one of the format's types (nvl reads " + readable + ")");
  }

  void require_dense(std::uint64_t data_offset) const {
    std::uint64_t expected = data_offset;
    for (const SafetensorsTensor& tensor : tensors_) {
      if (tensor.offset != expected) {
        raise(FileError(path(), tensor.offset,
                        "tensor " + detail::in_quotes(tensor.name) +
                            (tensor.offset < expected ? " overlaps the tensor before it" : " leaves a hole before it") +
                            ": must begin at " + std::to_string(expected)));
      }
      expected += tensor.data.size();
    }
    const std::uint64_t file_bytes = file_.bytes().size();
    if (expected != file_bytes) {
      raise(FileError(path(), expected, std::to_string(file_bytes - expected) + " bytes follow the last tensor: must be none"));
    }
  }

  MappedFile file_;
  std::vector<SafetensorsTensor> tensors_;
};

namespace detail {

/// Shards lie beside their index: a plain file name, nothing that could lead elsewhere.
inline bool is_plain_shard_name(std::string_view name) {
  constexpr std::string_view suffix = ".safetensors";
  if (name.size() <= suffix.size() || name.size() > 255 || !name.ends_with(suffix) || name.starts_with('.')) { return false; }
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return c >= 0x20 && c <= 0x7e && c != '/' && c != '\\' && c != ':'; }) &&
         name.find("..") == std::string_view::npos;
}

}  // namespace detail

/// All tensors of a model, whether in one file or in several.
class SafetensorsModel {
 public:
  /// The one file `path`.
  static SafetensorsModel from_file(const std::filesystem::path& path, MapMode mode = MapMode::map) {
    SafetensorsModel model;
    model.files_.emplace_back(path, mode);
    model.index_tensors();
    return model;
  }

  /// The shards that the index file `path` (model.safetensors.index.json) names, all in its directory.
  /// \throws FileError for names that lead out of the directory, missing shards, and indices that do not match their shards
  static SafetensorsModel from_index(const std::filesystem::path& path, MapMode mode = MapMode::map) {
    const MappedFile index(path, MapMode::read, SafetensorsLimits::max_index_bytes);
    const nlohmann::json root = parse_json(index.text(), index.path(), 8);
    const nlohmann::json& weight_map = json_object(root, "weight_map", index.path());
    if (weight_map.empty()) { detail::fail_json(index.path(), "weight_map", "empty", "a map from tensors to files"); }

    SafetensorsModel model;
    std::unordered_map<std::string, std::size_t> shard_numbers;
    for (const auto& [name, value] : weight_map.items()) {
      const std::string& shard = json_to_string(value, "weight_map of " + detail::in_quotes(name), index.path());
      if (!detail::is_plain_shard_name(shard)) {
        detail::fail_json(index.path(), "weight_map of " + detail::in_quotes(name), detail::in_quotes(shard),
                          "the name of a .safetensors file in the same directory");
      }
      if (shard_numbers.try_emplace(shard, model.files_.size()).second) {
        model.files_.emplace_back(path.parent_path() / shard, mode);
      }
    }
    model.index_tensors();
    for (const auto& [name, value] : weight_map.items()) {
      const auto found = model.places_.find(name);
      if (found == model.places_.end() || found->second.first != shard_numbers.at(value.get_ref<const std::string&>())) {
        raise(FileError(index.path(), "weight_map says that tensor " + detail::in_quotes(name) + " is in " +
                                          value.get<std::string>() + ", but that file does not hold it"));
      }
    }
    return model;
  }

  std::span<const SafetensorsFile> files() const noexcept { return files_; }

  /// nullptr if no file holds it
  const SafetensorsTensor* find(std::string_view name) const {
    const auto found = places_.find(std::string(name));
    return found == places_.end() ? nullptr : &files_[found->second.first].tensors()[found->second.second];
  }

 private:
  void index_tensors() {
    for (std::size_t f = 0; f < files_.size(); ++f) {
      const auto tensors = files_[f].tensors();
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        const auto [slot, inserted] = places_.try_emplace(tensors[t].name, f, t);
        if (!inserted) {
          raise(FileError(files_[f].path(), "tensor " + detail::in_quotes(tensors[t].name) + " is also in " +
                                                files_[slot->second.first].path() + ": must be in one shard"));
        }
      }
    }
  }

  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, std::pair<std::size_t, std::size_t>> places_;  // tensor -> (file, tensor in it)
};

}  // namespace nvl::inline NVL_ABI
