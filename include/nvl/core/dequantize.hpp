#pragma once
/// Stored elements as float: plain types and the block-quantised types of GGUF, whose layouts are those of ggml-quants.
///
/// Every block type stores a scale (fp16) and integers; some add a minimum. Below, d is the scale, m the minimum, q an integer:
///   Q4_0, Q5_0, Q8_0: x = d q      Q4_1, Q5_1: x = d q + m      Q4_K, Q5_K: x = d s q - m t      Q6_K: x = d s q
/// where s and t are small integers of a sub-block.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace nvl::inline NVL_ABI {

namespace detail {

template <class T>
T load_unaligned(const std::byte* source) noexcept {
  T value;
  std::memcpy(&value, source, sizeof(T));
  return value;
}

inline float load_fp16(const std::byte* source) noexcept { return static_cast<float>(load_unaligned<fp16>(source)); }
inline int load_byte(const std::byte* source) noexcept { return std::to_integer<int>(*source); }

template <class T>
void widen_row(const std::byte* source, float* out, std::int64_t n) noexcept {
  for (std::int64_t i = 0; i < n; ++i) { out[i] = static_cast<float>(load_unaligned<T>(source + i * std::int64_t{sizeof(T)})); }
}

// 32 elements: byte j of the nibbles holds element j below and element j + 16 above.

inline void dequantize_q4_0(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  for (int j = 0; j < 16; ++j) {
    const int q = load_byte(block + 2 + j);
    out[j] = static_cast<float>((q & 15) - 8) * d;
    out[j + 16] = static_cast<float>((q >> 4) - 8) * d;
  }
}

inline void dequantize_q4_1(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  const float m = load_fp16(block + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = load_byte(block + 4 + j);
    out[j] = static_cast<float>(q & 15) * d + m;
    out[j + 16] = static_cast<float>(q >> 4) * d + m;
  }
}

// The fifth bit of element j is bit j of a 32-bit word.

inline void dequantize_q5_0(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  const auto high = load_unaligned<std::uint32_t>(block + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = load_byte(block + 6 + j);
    out[j] = static_cast<float>(((q & 15) | static_cast<int>((high >> j) & 1u) << 4) - 16) * d;
    out[j + 16] = static_cast<float>(((q >> 4) | static_cast<int>((high >> (j + 16)) & 1u) << 4) - 16) * d;
  }
}

inline void dequantize_q5_1(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  const float m = load_fp16(block + 2);
  const auto high = load_unaligned<std::uint32_t>(block + 4);
  for (int j = 0; j < 16; ++j) {
    const int q = load_byte(block + 8 + j);
    out[j] = static_cast<float>((q & 15) | static_cast<int>((high >> j) & 1u) << 4) * d + m;
    out[j + 16] = static_cast<float>((q >> 4) | static_cast<int>((high >> (j + 16)) & 1u) << 4) * d + m;
  }
}

inline void dequantize_q8_0(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  for (int j = 0; j < 32; ++j) { out[j] = static_cast<float>(load_unaligned<std::int8_t>(block + 2 + j)) * d; }
}

struct ScaleAndMin {
  float scale = 0, min = 0;
};

/// The 6-bit scale and minimum of sub-block `j` (0 to 7) out of the 12 bytes of Q4_K and Q5_K.
inline ScaleAndMin unpack_k_scales(const std::byte* packed, int j) noexcept {
  int scale = 0, min = 0;
  if (j < 4) {
    scale = load_byte(packed + j) & 63;
    min = load_byte(packed + j + 4) & 63;
  } else {
    const int low = load_byte(packed + j + 4);
    scale = (low & 15) | (load_byte(packed + j - 4) >> 6) << 4;
    min = (low >> 4) | (load_byte(packed + j) >> 6) << 4;
  }
  return {static_cast<float>(scale), static_cast<float>(min)};
}

// 256 elements in 8 sub-blocks of 32: 32 bytes of nibbles hold one sub-block below and the next one above.

inline void dequantize_q4_k(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  const float m = load_fp16(block + 2);
  const std::byte* nibbles = block + 16;
  for (int pair = 0; pair < 4; ++pair, nibbles += 32, out += 64) {
    const ScaleAndMin low = unpack_k_scales(block + 4, 2 * pair);
    const ScaleAndMin high = unpack_k_scales(block + 4, 2 * pair + 1);
    for (int l = 0; l < 32; ++l) {
      const int q = load_byte(nibbles + l);
      out[l] = d * low.scale * static_cast<float>(q & 15) - m * low.min;
      out[l + 32] = d * high.scale * static_cast<float>(q >> 4) - m * high.min;
    }
  }
}

inline void dequantize_q5_k(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block);
  const float m = load_fp16(block + 2);
  const std::byte* const fifth_bits = block + 16;  // bit j of byte l belongs to element l of sub-block j
  const std::byte* nibbles = block + 48;
  for (int pair = 0; pair < 4; ++pair, nibbles += 32, out += 64) {
    const ScaleAndMin low = unpack_k_scales(block + 4, 2 * pair);
    const ScaleAndMin high = unpack_k_scales(block + 4, 2 * pair + 1);
    for (int l = 0; l < 32; ++l) {
      const int q = load_byte(nibbles + l);
      const int fifth = load_byte(fifth_bits + l) >> (2 * pair);
      out[l] = d * low.scale * static_cast<float>((q & 15) | (fifth & 1) << 4) - m * low.min;
      out[l + 32] = d * high.scale * static_cast<float>((q >> 4) | (fifth >> 1 & 1) << 4) - m * high.min;
    }
  }
}

/// Two halves of 128 elements; in each, 64 bytes of nibbles and 32 bytes of upper bit pairs, a scale per 16 elements.
inline void dequantize_q6_k(const std::byte* block, float* out) noexcept {
  const float d = load_fp16(block + 208);
  const std::byte* nibbles = block;
  const std::byte* upper = block + 128;
  const std::byte* scales = block + 192;
  for (int half = 0; half < 2; ++half, nibbles += 64, upper += 32, scales += 8, out += 128) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      const std::byte* const low = nibbles + (quarter % 2) * 32;
      const int nibble_shift = quarter / 2 * 4;
      for (int l = 0; l < 32; ++l) {
        const int q = ((load_byte(low + l) >> nibble_shift) & 15) | ((load_byte(upper + l) >> (2 * quarter)) & 3) << 4;
        const auto scale = static_cast<float>(load_unaligned<std::int8_t>(scales + quarter * 2 + l / 16));
        out[quarter * 32 + l] = d * scale * static_cast<float>(q - 32);
      }
    }
  }
}

template <void (*Dequantize)(const std::byte*, float*) noexcept>
void dequantize_blocks(const DTypeInfo& type, const std::byte* source, float* out, std::int64_t n) noexcept {
  for (std::int64_t done = 0; done < n; done += type.block_elements, source += type.block_bytes) {
    Dequantize(source, out + done);
  }
}

}  // namespace detail

/// out[0 .. n) = the `n` elements of type `type` at `source` (any alignment). `n` counts whole blocks.
/// \throws InvalidArgument for integer types and for an `n` that does not divide into blocks
inline void dequantize_row(DType type, const std::byte* source, float* out, std::int64_t n) {
  const DTypeInfo& row = info(type);
  NVL_EXPECTS(n >= 0 && n % row.block_elements == 0, "dequantize_row n", n,
              "a multiple of " + std::to_string(row.block_elements));
  switch (type) {
    case DType::float32: std::memcpy(out, source, static_cast<std::size_t>(n) * sizeof(float)); return;
    case DType::float16: return detail::widen_row<fp16>(source, out, n);
    case DType::bfloat16: return detail::widen_row<bf16>(source, out, n);
    case DType::q4_0: return detail::dequantize_blocks<detail::dequantize_q4_0>(row, source, out, n);
    case DType::q4_1: return detail::dequantize_blocks<detail::dequantize_q4_1>(row, source, out, n);
    case DType::q5_0: return detail::dequantize_blocks<detail::dequantize_q5_0>(row, source, out, n);
    case DType::q5_1: return detail::dequantize_blocks<detail::dequantize_q5_1>(row, source, out, n);
    case DType::q8_0: return detail::dequantize_blocks<detail::dequantize_q8_0>(row, source, out, n);
    case DType::q4_k: return detail::dequantize_blocks<detail::dequantize_q4_k>(row, source, out, n);
    case DType::q5_k: return detail::dequantize_blocks<detail::dequantize_q5_k>(row, source, out, n);
    case DType::q6_k: return detail::dequantize_blocks<detail::dequantize_q6_k>(row, source, out, n);
    case DType::int8:
    case DType::int32:
    case DType::int64: break;
  }
  raise(InvalidArgument("dequantize_row type", std::string(row.name), "a floating-point or block-quantised type"));
}

}  // namespace nvl::inline NVL_ABI
