#pragma once
/// Weights of the CPU ops: matrices packed into panels of 16 output features, so that each lane of a register is one feature.
///
/// A panel holds, for its 16 features side by side, all K input features in order. Plain types: [K][16] elements. Block types
/// keep their integers: a chunk of 64 bytes is 16 lanes of 4 bytes, and a block of 32 input features is
///   Q4_0, Q4_1  4 chunks; byte b of a lane holds feature 8c + b of the block in its low nibble, 8c + 4 + b in its high one
///   Q8_0        8 chunks; byte b of a lane holds feature 4c + b, plus 128 (so it is unsigned)
/// with the fp16 scales (and minima) of the 16 features in an array of their own.

#include <nvl/core/aligned_buffer.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Weight of a norm, [size].
struct CpuVector {
  std::vector<float> values;

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(values.size()); }
  const float* data() const noexcept { return values.data(); }
};

enum class PanelFormat : std::uint8_t { f32, bf16, q4_0, q4_1, q8_0 };

inline constexpr std::int32_t panel_features = 16;
inline constexpr std::int32_t quant_block = 32;  // [input features] that share a scale

/// [bytes] of one panel's values per input feature (plain) or per block (quantised), and of its scales per block.
struct PanelFormatInfo {
  std::int32_t step_features;  // input features of one step
  std::int32_t value_bytes;    // of one step
  std::int32_t scale_bytes;    // of one step
};
constexpr PanelFormatInfo info(PanelFormat format) noexcept {
  switch (format) {
    case PanelFormat::f32: return {1, 64, 0};
    case PanelFormat::bf16: return {1, 32, 0};
    case PanelFormat::q4_0: return {quant_block, 256, 32};
    case PanelFormat::q4_1: return {quant_block, 256, 64};
    case PanelFormat::q8_0: return {quant_block, 512, 32};
  }
  return {};
}

/// A run of output features in one format.
class PanelMatrix {
 public:
  /// \param parts all of one dtype, [n_i, in_features], stacked along the output features.
  PanelMatrix(PanelFormat format, std::span<const HostTensor* const> parts, std::int32_t in_features, BufferArena& arena)
      : format_(format),
        in_features_(in_features) {
    for (const HostTensor* part : parts) { out_features_ += static_cast<std::int32_t>(part->num_rows()); }
    const PanelFormatInfo layout = info(format);
    const std::int64_t steps = in_features / layout.step_features;
    value_stride_ = steps * layout.value_bytes;
    scale_stride_ = steps * layout.scale_bytes;
    values_ = arena.allocate(static_cast<std::size_t>(num_panels() * value_stride_));
    scales_ = arena.allocate(static_cast<std::size_t>(num_panels() * scale_stride_));
    pack(parts);
  }

  PanelFormat format() const noexcept { return format_; }
  std::int32_t in_features() const noexcept { return in_features_; }
  std::int32_t out_features() const noexcept { return out_features_; }
  std::int64_t num_panels() const noexcept { return ceil_div(out_features_, panel_features); }
  std::int64_t num_blocks() const noexcept { return in_features_ / quant_block; }

  const std::byte* values(std::int64_t panel) const noexcept { return values_.data + panel * value_stride_; }
  const std::byte* scales(std::int64_t panel) const noexcept { return scales_.data + panel * scale_stride_; }
  std::size_t size_bytes() const noexcept { return values_.num_bytes + scales_.num_bytes; }

  /// out[in_features] = the weights of output feature `feature`, as stored. Slow: it reads one lane of a panel.
  void unpack_row(std::int64_t feature, float* out) const {
    const std::int64_t lane = feature % panel_features;
    const std::byte* const panel = values(feature / panel_features);
    if (format_ == PanelFormat::f32 || format_ == PanelFormat::bf16) {
      for (std::int64_t k = 0; k < in_features_; ++k) {
        const std::int64_t at = k * panel_features + lane;
        out[k] = format_ == PanelFormat::f32 ? detail::load_unaligned<float>(panel + at * 4)
                                             : static_cast<float>(detail::load_unaligned<bf16>(panel + at * 2));
      }
      return;
    }
    const std::byte* const scales_of_panel = scales(feature / panel_features);
    const std::int32_t scale_bytes = info(format_).scale_bytes;
    const std::int32_t value_bytes = info(format_).value_bytes;
    for (std::int64_t block = 0; block < num_blocks(); ++block) {
      const std::byte* const scale = scales_of_panel + block * scale_bytes + lane * 2;
      const float d = detail::load_fp16(scale);
      const float m = format_ == PanelFormat::q4_1 ? detail::load_fp16(scale + 32) : 0.0f;
      const std::byte* const quants = panel + block * value_bytes + lane * 4;
      for (std::int32_t k = 0; k < quant_block; ++k) {
        out[block * quant_block + k] = d * static_cast<float>(quant(quants, k)) + m;
      }
    }
  }

 private:
  /// Integer of input feature k of a block, without its offset; `quants` is the block's first chunk at the lane's bytes.
  std::int32_t quant(const std::byte* quants, std::int32_t k) const noexcept {
    if (format_ == PanelFormat::q8_0) { return std::to_integer<std::int32_t>(quants[k / 4 * 64 + k % 4]) - 128; }
    const std::byte pair = quants[k / 8 * 64 + k % 4];
    const std::int32_t q = std::to_integer<std::int32_t>(k % 8 < 4 ? pair & std::byte{15} : pair >> 4);
    return format_ == PanelFormat::q4_0 ? q - 8 : q;
  }

  void pack(std::span<const HostTensor* const> parts) {
    std::vector<float> row_values(static_cast<std::size_t>(in_features_));
    std::int64_t feature = 0;
    for (const HostTensor* part : parts) {
      const std::int64_t rows = part->num_rows();
      const DTypeInfo& type = info(part->dtype);
      const std::int64_t row_bytes = std::int64_t{in_features_} / type.block_elements * type.block_bytes;
      for (std::int64_t r = 0; r < rows; ++r, ++feature) {
        const std::byte* const source = part->data.data() + r * row_bytes;
        std::byte* const values = values_.data + feature / panel_features * value_stride_;
        const std::int64_t lane = feature % panel_features;
        if (format_ == PanelFormat::f32 || format_ == PanelFormat::bf16) {
          dequantize_row(part->dtype, source, row_values.data(), in_features_);
          pack_plain(values, lane, row_values.data());
        } else {
          pack_quants(values, scales_.data + feature / panel_features * scale_stride_, lane, source);
        }
      }
    }
  }

  void pack_plain(std::byte* panel, std::int64_t lane, const float* row) const {
    for (std::int64_t k = 0; k < in_features_; ++k) {
      const std::int64_t at = k * panel_features + lane;
      if (format_ == PanelFormat::f32) {
        std::memcpy(panel + at * 4, row + k, 4);
      } else {
        const bf16 rounded(row[k]);
        std::memcpy(panel + at * 2, &rounded, 2);
      }
    }
  }

  void pack_quants(std::byte* panel, std::byte* scales, std::int64_t lane, const std::byte* source) const {
    const PanelFormatInfo layout = info(format_);
    const std::int32_t header = layout.scale_bytes / panel_features;  // d, or d and m, in front of each block of the file
    const std::int32_t quant_bytes = format_ == PanelFormat::q8_0 ? 32 : 16;
    for (std::int64_t block = 0; block < num_blocks(); ++block) {
      const std::byte* const from = source + block * (header + quant_bytes);
      std::memcpy(scales + block * layout.scale_bytes + lane * 2, from, 2);
      if (header == 4) { std::memcpy(scales + block * layout.scale_bytes + 32 + lane * 2, from + 2, 2); }
      const std::byte* const quants = from + header;
      std::byte* const to = panel + block * layout.value_bytes + lane * 4;
      for (std::int32_t k = 0; k < quant_bytes; ++k) {
        if (format_ == PanelFormat::q8_0) {
          to[k / 4 * 64 + k % 4] = quants[k] ^ std::byte{0x80};
        } else {
          // The file has feature k in the low nibble of byte k and feature k + 16 in the high one.
          const auto nibble = [&](std::int32_t f) { return f < 16 ? quants[f] & std::byte{15} : quants[f - 16] >> 4; };
          const std::int32_t f = k / 4 * 8 + k % 4;
          to[k / 4 * 64 + k % 4] = nibble(f) | nibble(f + 4) << 4;
        }
      }
    }
  }

  PanelFormat format_;
  std::int32_t in_features_ = 0;
  std::int32_t out_features_ = 0;
  std::int64_t value_stride_ = 0;  // [bytes] from panel to panel
  std::int64_t scale_stride_ = 0;
  BufferArena::Piece values_;
  BufferArena::Piece scales_;
};

/// [out_features, in_features] with optional bias. Weights of type Q4_0, Q4_1 and Q8_0 stay as they are; others become T.
template <class T>
class CpuWeight {
 public:
  CpuWeight() = default;

  /// \param biases none, or one per part
  /// \param arena where the panels are allocated
  /// \throws InvalidArgument if the shapes do not stack
  CpuWeight(std::span<const HostTensor* const> parts, std::span<const HostTensor* const> biases, BufferArena& arena) {
    NVL_EXPECTS(!parts.empty(), "parts of a weight", parts.size(), "at least one");
    NVL_EXPECTS(biases.empty() || biases.size() == parts.size(), "biases of a weight", biases.size(), "none, or one per part");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      check_shape(*parts[i], *parts.front());
      if (!biases.empty()) { append_bias(*biases[i], *parts[i]); }
    }
    in_features_ = static_cast<std::int32_t>(parts.front()->shape[1]);
    for (std::size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
      const PanelFormat format = format_of(parts[begin]->dtype);
      while (end < parts.size() && format_of(parts[end]->dtype) == format) { ++end; }
      out_features_ += matrices_.emplace_back(format, parts.subspan(begin, end - begin), in_features_, arena).out_features();
    }
  }

  std::int32_t in_features() const noexcept { return in_features_; }
  std::int32_t out_features() const noexcept { return out_features_; }
  /// Stacked along the output features.
  std::span<const PanelMatrix> matrices() const noexcept { return matrices_; }
  /// [out_features], empty: none
  std::span<const float> bias() const noexcept { return bias_; }
  /// [bytes] held
  std::size_t size_bytes() const noexcept {
    std::size_t bytes = bias_.size() * sizeof(float);
    for (const PanelMatrix& matrix : matrices_) { bytes += matrix.size_bytes(); }
    return bytes;
  }

  /// out[in_features] = the weights of one output feature. \throws InvalidArgument for one that is not there
  void unpack_row(std::int64_t feature, float* out) const {
    NVL_EXPECTS(feature >= 0 && feature < out_features_, "row of a weight", feature, "0 to " + std::to_string(out_features_ - 1));
    std::size_t i = 0;
    while (feature >= matrices_[i].out_features()) { feature -= matrices_[i++].out_features(); }
    matrices_[i].unpack_row(feature, out);
  }

 private:
  static constexpr PanelFormat format_of(DType type) noexcept {
    switch (type) {
      case DType::q4_0: return PanelFormat::q4_0;
      case DType::q4_1: return PanelFormat::q4_1;
      case DType::q8_0: return PanelFormat::q8_0;
      default: return std::is_same_v<T, float> ? PanelFormat::f32 : PanelFormat::bf16;
    }
  }

  static void check_shape(const HostTensor& part, const HostTensor& first) {
    constexpr std::int64_t max_extent = std::int64_t{1} << 30;
    const std::string field = "shape of weight " + part.name;
    NVL_EXPECTS(part.shape.size() == 2, field, part.shape.size(), "[out_features, in_features]");
    NVL_EXPECTS(part.shape[0] > 0 && part.shape[0] <= max_extent, field + "[0]", part.shape[0], "1 to 2^30");
    NVL_EXPECTS(part.shape[1] > 0 && part.shape[1] <= max_extent, field + "[1]", part.shape[1], "1 to 2^30");
    NVL_EXPECTS(part.shape[1] == first.shape[1], field + "[1]", part.shape[1],
                "that of " + first.name + " (" + std::to_string(first.shape[1]) + ")");
    const DTypeInfo& type = info(part.dtype);
    NVL_EXPECTS(part.shape[1] % type.block_elements == 0, field + "[1]", part.shape[1],
                "a multiple of the block of " + std::string(type.name));
    const std::int64_t bytes = part.shape[0] * (part.shape[1] / type.block_elements) * type.block_bytes;
    NVL_EXPECTS(static_cast<std::int64_t>(part.data.size()) == bytes, "bytes of weight " + part.name, part.data.size(),
                std::to_string(bytes) + ", as its shape says");
  }

  void append_bias(const HostTensor& bias, const HostTensor& part) {
    const std::size_t at = bias_.size();
    const std::int64_t n = part.shape[0];
    NVL_EXPECTS(bias.shape.size() == 1 && bias.shape[0] == n, "shape of bias " + bias.name,
                bias.shape.empty() ? 0 : bias.shape[0], "that of its weight (" + std::to_string(n) + ")");
    bias_.resize(at + static_cast<std::size_t>(n));
    dequantize_row(bias.dtype, bias.data.data(), bias_.data() + at, n);
  }

  std::int32_t in_features_ = 0;
  std::int32_t out_features_ = 0;
  std::vector<PanelMatrix> matrices_;
  std::vector<float> bias_;
};

}  // namespace nvl::inline NVL_ABI
