#pragma once
/// Reader of GGUF files, versions 2 and 3: typed metadata and tensor extents, all checked against the file before use.
/// Format: the specification in ggml's docs/gguf.md. Metadata stays in the file: a value costs one small record in memory,
/// strings are views into the file's bytes.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/io/byte_cursor.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/printable.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Types of metadata values, numbered as in the file.
enum class GgufType : std::uint32_t {
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  float32,
  boolean,
  string,
  array,
  uint64,
  int64,
  float64,
};

struct GgufTypeInfo {
  std::string_view name;
  std::uint32_t bytes;  // smallest size in the file
};

/// Indexed by GgufType.
inline constexpr std::array<GgufTypeInfo, 13> gguf_type_table{{
    {"uint8", 1},
    {"int8", 1},
    {"uint16", 2},
    {"int16", 2},
    {"uint32", 4},
    {"int32", 4},
    {"float32", 4},
    {"bool", 1},
    {"string", 8},
    {"array", 12},
    {"uint64", 8},
    {"int64", 8},
    {"float64", 8},
}};

constexpr const GgufTypeInfo& info(GgufType type) noexcept { return gguf_type_table[static_cast<std::size_t>(type)]; }

/// One metadata entry; `key` and `data` point into the file.
struct GgufValue {
  std::string_view key;
  const std::byte* data = nullptr;  // the first element; a string is its 8-byte length and its bytes
  std::uint64_t count = 1;          // elements of an array; 1 for scalars
  GgufType type{};                  // of the elements
  bool is_array = false;

  std::string type_name() const { return (is_array ? "an array of " : "a ") + std::string(info(type).name); }
};

/// One tensor; `name` and `data` point into the file.
struct GgufTensor {
  std::string_view name;
  std::array<std::int64_t, 4> dims{};  // [elements], outermost first, num_dims of them
  std::span<const std::byte> data;
  std::uint64_t offset = 0;  // [bytes] from the start of the file
  DType dtype = DType::float32;
  std::uint8_t num_dims = 0;

  std::span<const std::int64_t> shape() const noexcept { return {dims.data(), num_dims}; }
};

/// Limits beyond which a file is refused though the format would allow it; each is far above what real files hold.
struct GgufLimits {
  static constexpr std::uint64_t max_keys = 1u << 16;
  static constexpr std::uint64_t max_tensors = 1u << 18;
  static constexpr std::uint64_t max_key_bytes = 65'535;      // gguf.md
  static constexpr std::uint64_t max_tensor_name_bytes = 64;  // gguf.md
  static constexpr std::uint64_t max_alignment = 64u << 10;
};

namespace detail {

/// Tensor types of GGUF: those that nvl reads, and those that it knows by name only.
struct GgufTensorType {
  std::uint32_t code;
  std::string_view name;
  std::optional<DType> dtype;
};

inline constexpr std::array<GgufTensorType, 34> gguf_tensor_types{{
    {0, "F32", DType::float32},
    {1, "F16", DType::float16},
    {2, "Q4_0", DType::q4_0},
    {3, "Q4_1", DType::q4_1},
    {6, "Q5_0", DType::q5_0},
    {7, "Q5_1", DType::q5_1},
    {8, "Q8_0", DType::q8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", {}},
    {11, "Q3_K", {}},
    {12, "Q4_K", DType::q4_k},
    {13, "Q5_K", DType::q5_k},
    {14, "Q6_K", DType::q6_k},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", {}},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},
    {24, "I8", DType::int8},
    {25, "I16", {}},
    {26, "I32", DType::int32},
    {27, "I64", DType::int64},
    {28, "F64", {}},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::bfloat16},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {39, "MXFP4", {}},
    {40, "NVFP4", {}},
    {41, "Q1_0", {}},
}};

inline std::string supported_gguf_tensor_types() {
  std::string list;
  for (const GgufTensorType& row : gguf_tensor_types) {
    if (row.dtype) { list += (list.empty() ? "" : ", ") + std::string(row.name); }
  }
  return list;
}

/// Unaligned little-endian load.
template <class T>
T load_le(const std::byte* data) noexcept {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

/// The string at `data` and the position behind it. Its extent was checked when the file was opened.
inline std::pair<std::string_view, const std::byte*> load_gguf_string(const std::byte* data) noexcept {
  const auto size = load_le<std::uint64_t>(data);
  const std::byte* const first = data + sizeof(std::uint64_t);
  return {{reinterpret_cast<const char*>(first), size}, first + size};
}

}  // namespace detail

/// An open GGUF file. Move-only; views that it hands out die with it.
class GgufFile {
 public:
  /// \throws FileError (path, offset, what is wrong), Unsupported for tensor types that nvl does not read
  explicit GgufFile(const std::filesystem::path& path, MapMode mode = MapMode::map) : GgufFile(MappedFile(path, mode)) {}

  explicit GgufFile(MappedFile file) : file_(std::move(file)) { parse(); }

  const MappedFile& file() const noexcept { return file_; }
  const std::string& path() const noexcept { return file_.path(); }
  std::uint32_t version() const noexcept { return version_; }
  std::uint64_t alignment() const noexcept { return alignment_; }      ///< [bytes] of tensor data
  std::uint64_t data_offset() const noexcept { return data_offset_; }  ///< [bytes] where tensor data begins

  std::span<const GgufValue> values() const noexcept { return values_; }     ///< in the file's order
  std::span<const GgufTensor> tensors() const noexcept { return tensors_; }  ///< in the file's order

  const GgufValue* find(std::string_view key) const noexcept { return lookup(values_, value_order_, &GgufValue::key, key); }
  const GgufTensor* find_tensor(std::string_view name) const noexcept {
    return lookup(tensors_, tensor_order_, &GgufTensor::name, name);
  }

  // Typed access: nothing if the key is absent; FileError that names key, type found and type wanted if it has another type.

  std::optional<std::string_view> find_string(std::string_view key) const {
    const GgufValue* const value = find_scalar(key, "a string", [](GgufType t) { return t == GgufType::string; });
    return value != nullptr ? std::optional(detail::load_gguf_string(value->data).first) : std::nullopt;
  }

  std::optional<bool> find_bool(std::string_view key) const {
    const GgufValue* const value = find_scalar(key, "a bool", [](GgufType t) { return t == GgufType::boolean; });
    return value != nullptr ? std::optional(detail::load_le<std::uint8_t>(value->data) != 0) : std::nullopt;
  }

  std::optional<double> find_float(std::string_view key) const {
    const GgufValue* const value = find_scalar(key, "a float32 or float64", is_float);
    return value != nullptr ? std::optional(load_float(value->type, value->data)) : std::nullopt;
  }

  /// Any integer type whose value int64 holds.
  std::optional<std::int64_t> find_int(std::string_view key) const {
    const GgufValue* const value = find_scalar(key, "an integer", is_integer);
    return value != nullptr ? std::optional(load_int(*value, value->data)) : std::nullopt;
  }

  /// Any integer type, provided that the value is not negative.
  std::optional<std::uint64_t> find_uint(std::string_view key) const {
    const GgufValue* const value = find_scalar(key, "an integer", is_integer);
    if (value == nullptr) { return std::nullopt; }
    if (value->type == GgufType::uint64) { return detail::load_le<std::uint64_t>(value->data); }
    const std::int64_t number = load_int(*value, value->data);
    if (number < 0) { fail(*value, std::to_string(number), "not negative"); }
    return static_cast<std::uint64_t>(number);
  }

  std::optional<std::vector<std::string_view>> find_string_array(std::string_view key) const {
    const GgufValue* const value = find_array(key, "an array of string", [](GgufType t) { return t == GgufType::string; });
    if (value == nullptr) { return std::nullopt; }
    std::vector<std::string_view> result(value->count);
    const std::byte* position = value->data;
    for (std::string_view& text : result) { std::tie(text, position) = detail::load_gguf_string(position); }
    return result;
  }

  std::optional<std::vector<std::int32_t>> find_int_array(std::string_view key) const {
    const GgufValue* const value = find_array(key, "an array of integers", is_integer);
    if (value == nullptr) { return std::nullopt; }
    std::vector<std::int32_t> result(value->count);
    for (std::size_t i = 0; i < result.size(); ++i) {
      const std::int64_t number = load_int(*value, value->data + i * info(value->type).bytes);
      if (!std::in_range<std::int32_t>(number)) {
        fail(*value, "element " + std::to_string(i) + " = " + std::to_string(number), "in the range of int32");
      }
      result[i] = static_cast<std::int32_t>(number);
    }
    return result;
  }

  std::optional<std::vector<float>> find_float_array(std::string_view key) const {
    const GgufValue* const value = find_array(key, "an array of float32 or float64", is_float);
    if (value == nullptr) { return std::nullopt; }
    std::vector<float> result(value->count);
    for (std::size_t i = 0; i < result.size(); ++i) {
      result[i] = static_cast<float>(load_float(value->type, value->data + i * info(value->type).bytes));
    }
    return result;
  }

  /// Throws FileError "<key> is <value>: must be <rule>" that points at the entry.
  [[noreturn]] void fail(const GgufValue& value, const std::string& found, const std::string& rule) const {
    const auto offset = static_cast<std::uint64_t>(value.data - file_.bytes().data());
    raise(FileError(path(), offset, std::string(value.key) + " is " + found + ": must be " + rule));
  }

 private:
  static bool is_integer(GgufType t) noexcept {
    switch (t) {
      case GgufType::uint8:
      case GgufType::int8:
      case GgufType::uint16:
      case GgufType::int16:
      case GgufType::uint32:
      case GgufType::int32:
      case GgufType::uint64:
      case GgufType::int64: return true;
      default: return false;
    }
  }
  static bool is_float(GgufType t) noexcept { return t == GgufType::float32 || t == GgufType::float64; }

  static double load_float(GgufType type, const std::byte* data) noexcept {
    return type == GgufType::float32 ? static_cast<double>(detail::load_le<float>(data)) : detail::load_le<double>(data);
  }

  std::int64_t load_int(const GgufValue& value, const std::byte* data) const {
    switch (value.type) {
      case GgufType::uint8: return detail::load_le<std::uint8_t>(data);
      case GgufType::int8: return detail::load_le<std::int8_t>(data);
      case GgufType::uint16: return detail::load_le<std::uint16_t>(data);
      case GgufType::int16: return detail::load_le<std::int16_t>(data);
      case GgufType::uint32: return detail::load_le<std::uint32_t>(data);
      case GgufType::int32: return detail::load_le<std::int32_t>(data);
      case GgufType::int64: return detail::load_le<std::int64_t>(data);
      default: break;
    }
    const auto number = detail::load_le<std::uint64_t>(data);
    if (!std::in_range<std::int64_t>(number)) { fail(value, std::to_string(number), "at most 2^63 - 1"); }
    return static_cast<std::int64_t>(number);
  }

  template <class Accept>
  const GgufValue* find_scalar(std::string_view key, const char* wanted, Accept accept) const {
    const GgufValue* const value = find(key);
    if (value != nullptr && (value->is_array || !accept(value->type))) { fail(*value, value->type_name(), wanted); }
    return value;
  }

  template <class Accept>
  const GgufValue* find_array(std::string_view key, const char* wanted, Accept accept) const {
    const GgufValue* const value = find(key);
    if (value != nullptr && !(value->is_array && accept(value->type))) { fail(*value, value->type_name(), wanted); }
    return value;
  }

  template <class Entry>
  static const Entry* lookup(const std::vector<Entry>& entries, const std::vector<std::uint32_t>& order,
                             std::string_view Entry::*name, std::string_view wanted) noexcept {
    const auto found = std::lower_bound(order.begin(), order.end(), wanted,
                                        [&](std::uint32_t i, std::string_view text) { return entries[i].*name < text; });
    return found != order.end() && entries[*found].*name == wanted ? &entries[*found] : nullptr;
  }

  /// Indices sorted by name; throws if two names are the same.
  template <class Entry>
  std::vector<std::uint32_t> sorted_unique(const std::vector<Entry>& entries, std::string_view Entry::*name,
                                           const char* what) const {
    std::vector<std::uint32_t> order(entries.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return entries[a].*name < entries[b].*name; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const std::string_view text = entries[order[i]].*name;
      if (text == entries[order[i - 1]].*name) {
        const auto offset = reinterpret_cast<const std::byte*>(text.data()) - file_.bytes().data();
        raise(FileError(path(), static_cast<std::uint64_t>(offset),
                        "duplicate " + std::string(what) + " " + detail::in_quotes(text)));
      }
    }
    return order;
  }

  void parse() {
    ByteCursor in(file_.bytes(), path());
    const auto magic = in.take(4, "the magic number \"GGUF\"");
    if (std::memcmp(magic.data(), "GGUF", 4) != 0) { in.fail_at(0, "does not begin with \"GGUF\": not a GGUF file"); }
    version_ = in.read<std::uint32_t>("version");
    if (version_ != 2 && version_ != 3) {
      const std::string found = (version_ & 0xffffu) == 0 && version_ != 0
                                    ? "version is " + std::to_string(version_) + " (big-endian?)"
                                    : "version is " + std::to_string(version_);
      in.fail_at(4, found + ": must be 2 or 3, little-endian");
    }
    const auto num_tensors = in.read<std::uint64_t>("number of tensors");
    const auto num_keys = in.read<std::uint64_t>("number of metadata entries");
    require_count(in, 8, num_tensors, GgufLimits::max_tensors, 8 + 1 + 4 + 8 + 4 + 8, "number of tensors");
    require_count(in, 16, num_keys, GgufLimits::max_keys, 8 + 1 + 4 + 1, "number of metadata entries");

    values_.reserve(num_keys);
    for (std::uint64_t i = 0; i < num_keys; ++i) { values_.push_back(parse_value(in)); }
    value_order_ = sorted_unique(values_, &GgufValue::key, "key");
    read_alignment();

    tensors_.reserve(num_tensors);
    for (std::uint64_t i = 0; i < num_tensors; ++i) { tensors_.push_back(parse_tensor(in)); }
    tensor_order_ = sorted_unique(tensors_, &GgufTensor::name, "tensor name");
    place_tensors(in);
  }

  static void require_count(const ByteCursor& in, std::uint64_t offset, std::uint64_t count, std::uint64_t limit,
                            std::uint64_t item_bytes, const char* what) {
    const std::uint64_t room = in.remaining() / item_bytes;
    if (count > room || count > limit) {
      in.fail_at(offset, std::string(what) + " is " + std::to_string(count) + ": must be at most " +
                             std::to_string(std::min(room, limit)) +
                             (room < limit ? ", which is all that this file can hold" : ""));
    }
  }

  static std::string_view take_string(ByteCursor& in, std::string_view what) {
    const auto size = in.read<std::uint64_t>(what);
    const auto bytes = in.take(size, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  static GgufValue parse_value(ByteCursor& in) {
    const std::uint64_t start = in.offset();
    GgufValue value;
    const auto key_bytes = in.read<std::uint64_t>("length of a key");
    if (key_bytes == 0 || key_bytes > GgufLimits::max_key_bytes) {
      in.fail_at(start, "length of a key is " + std::to_string(key_bytes) + ": must be 1 to " +
                            std::to_string(GgufLimits::max_key_bytes));
    }
    const auto key = in.take(key_bytes, "a key");
    value.key = {reinterpret_cast<const char*>(key.data()), key.size()};
    for (const char c : value.key) {
      if (c < 0x20 || c > 0x7e) { in.fail_at(start, "a key has a character that is not printable ASCII"); }
    }
    value.type = parse_type(in, value.key);
    if (value.type == GgufType::array) {
      value.is_array = true;
      const std::uint64_t at = in.offset();
      value.type = parse_type(in, value.key);
      if (value.type == GgufType::array) {
        in.fail_at(at, std::string(value.key) + " is an array of arrays: must be nested at most once");
      }
      value.count = in.read<std::uint64_t>(value.key);
      in.require_items(value.count, info(value.type).bytes, "length of array " + std::string(value.key));
    }
    value.data = in.here();
    if (value.type == GgufType::string) {
      for (std::uint64_t i = 0; i < value.count; ++i) { take_string(in, value.key); }
    } else {
      const auto bytes =
          in.take(value.count * info(value.type).bytes, value.key);  // cannot wrap: count was compared with the rest
      if (value.type == GgufType::boolean) {
        for (const std::byte b : bytes) {
          if (b > std::byte{1}) {
            in.fail_at(in.offset() - bytes.size(), std::string(value.key) + " holds the bool " +
                                                       std::to_string(std::to_integer<int>(b)) + ": must be 0 or 1");
          }
        }
      }
    }
    return value;
  }

  static GgufType parse_type(ByteCursor& in, std::string_view key) {
    const std::uint64_t at = in.offset();
    const auto code = in.read<std::uint32_t>(key);
    if (code >= gguf_type_table.size()) {
      in.fail_at(at, "value type of " + std::string(key) + " is " + std::to_string(code) + ": must be 0 to 12");
    }
    return static_cast<GgufType>(code);
  }

  void read_alignment() {
    const GgufValue* const value = find("general.alignment");
    if (value == nullptr) { return; }
    if (value->is_array || value->type != GgufType::uint32) { fail(*value, value->type_name(), "a uint32"); }
    alignment_ = detail::load_le<std::uint32_t>(value->data);
    if (!std::has_single_bit(alignment_) || alignment_ > GgufLimits::max_alignment) {
      fail(*value, std::to_string(alignment_), "a power of two, at most " + std::to_string(GgufLimits::max_alignment));
    }
  }

  /// Leaves the offset relative to the data section, whose place is known only behind the last tensor.
  GgufTensor parse_tensor(ByteCursor& in) const {
    const std::uint64_t start = in.offset();
    GgufTensor tensor;
    const auto name_bytes = in.read<std::uint64_t>("length of a tensor name");
    if (name_bytes == 0 || name_bytes > GgufLimits::max_tensor_name_bytes) {
      in.fail_at(start, "length of a tensor name is " + std::to_string(name_bytes) + ": must be 1 to " +
                            std::to_string(GgufLimits::max_tensor_name_bytes));
    }
    const auto name_span = in.take(name_bytes, "a tensor name");
    tensor.name = {reinterpret_cast<const char*>(name_span.data()), name_span.size()};
    const auto fail_here = [&](const std::string& what) {
      in.fail_at(start, "tensor " + detail::in_quotes(tensor.name) + ": " + what);
    };

    const auto num_dims = in.read<std::uint32_t>("number of dimensions");
    if (num_dims < 1 || num_dims > 4) { fail_here("number of dimensions is " + std::to_string(num_dims) + ": must be 1 to 4"); }
    tensor.num_dims = static_cast<std::uint8_t>(num_dims);
    for (std::uint32_t i = 0; i < num_dims; ++i) {  // stored innermost first
      const auto extent = in.read<std::uint64_t>("a dimension");
      if (extent == 0 || !std::in_range<std::int64_t>(extent)) {
        fail_here("dimension " + std::to_string(i) + " is " + std::to_string(extent) + ": must be 1 to 2^63 - 1");
      }
      tensor.dims[num_dims - 1 - i] = static_cast<std::int64_t>(extent);
    }
    const auto type = in.read<std::uint32_t>("tensor type");
    const auto row = std::find_if(detail::gguf_tensor_types.begin(), detail::gguf_tensor_types.end(),
                                  [&](const detail::GgufTensorType& t) { return t.code == type; });
    if (row == detail::gguf_tensor_types.end()) {
      fail_here("type is " + std::to_string(type) + ": must be one of GGUF's tensor types");
    }
    if (!row->dtype) {
      raise(Unsupported(path() + ": tensor " + detail::in_quotes(tensor.name) + " has type " + std::string(row->name) +
                        "; nvl reads " + detail::supported_gguf_tensor_types()));
    }
    tensor.dtype = *row->dtype;
    tensor.offset = in.read<std::uint64_t>("tensor offset");
    return tensor;
  }

  /// [bytes] of a tensor, or nothing if its size passes 63 bits.
  static std::optional<std::uint64_t> tensor_bytes(const GgufTensor& tensor) noexcept {
    const DTypeInfo& type = info(tensor.dtype);
    std::optional<std::int64_t> size = tensor.shape().back() / type.block_elements;
    size = checked_mul<std::int64_t>(*size, type.block_bytes);
    std::optional<std::int64_t> elements = tensor.shape().back();
    for (const std::int64_t extent : tensor.shape().first(tensor.num_dims - 1u)) {
      if (size) { size = checked_mul(*size, extent); }
      if (elements) { elements = checked_mul(*elements, extent); }
    }
    return size && elements ? std::optional(static_cast<std::uint64_t>(*size)) : std::nullopt;
  }

  void place_tensors(const ByteCursor& in) {
    const std::uint64_t file_bytes = file_.bytes().size();
    const auto begin = checked_align_up(in.offset(), alignment_);
    if (tensors_.empty()) {
      data_offset_ = std::min(begin.value_or(file_bytes), file_bytes);
      return;
    }
    if (!begin || *begin > file_bytes) { in.fail("the tensor data are missing"); }
    data_offset_ = *begin;
    for (GgufTensor& tensor : tensors_) {
      const auto fail_here = [&](const std::string& what) {
        in.fail_at(info_offset(tensor), "tensor " + detail::in_quotes(tensor.name) + ": " + what);
      };
      const std::int64_t row = tensor.shape().back();
      const DTypeInfo& type = info(tensor.dtype);
      if (row % type.block_elements != 0) {
        fail_here("rows have " + std::to_string(row) + " elements: must be a multiple of " + std::to_string(type.block_elements) +
                  ", the block of " + std::string(type.name));
      }
      const auto size = tensor_bytes(tensor);
      if (!size) { fail_here("the product of its dimensions passes 2^63 - 1 bytes or elements"); }
      if (tensor.offset % alignment_ != 0) {
        fail_here("offset is " + std::to_string(tensor.offset) + ": must be a multiple of the alignment " +
                  std::to_string(alignment_));
      }
      const std::uint64_t room = file_bytes - data_offset_;
      if (tensor.offset > room || *size > room - tensor.offset) {
        fail_here("offset " + std::to_string(tensor.offset) + " with " + std::to_string(*size) + " bytes passes the end of the " +
                  std::to_string(room) + " bytes of tensor data");
      }
      tensor.offset += data_offset_;
      tensor.data = file_.bytes().subspan(tensor.offset, *size);
    }
    require_disjoint(in);
  }

  /// [bytes] where the description of `tensor` begins: its name and the name's length.
  std::uint64_t info_offset(const GgufTensor& tensor) const noexcept {
    const auto name = reinterpret_cast<const std::byte*>(tensor.name.data()) - file_.bytes().data();
    return static_cast<std::uint64_t>(name) - sizeof(std::uint64_t);
  }

  void require_disjoint(const ByteCursor& in) const {
    std::vector<std::uint32_t> order(tensors_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return tensors_[a].offset < tensors_[b].offset; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = tensors_[order[i - 1]];
      const GgufTensor& after = tensors_[order[i]];
      if (before.offset + before.data.size() > after.offset) {
        in.fail_at(info_offset(after),
                   "tensors " + detail::in_quotes(before.name) + " and " + detail::in_quotes(after.name) + " overlap");
      }
    }
  }

  MappedFile file_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::uint64_t data_offset_ = 0;
  std::vector<GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::vector<std::uint32_t> value_order_;   // indices into values_, sorted by key
  std::vector<std::uint32_t> tensor_order_;  // indices into tensors_, sorted by name
};

}  // namespace nvl::inline NVL_ABI
