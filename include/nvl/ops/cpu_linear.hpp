#pragma once
/// out = x w^T + bias on the CPU, for weights packed in panels (ops/cpu_weight.hpp).
///
/// Two kernels. Where the target has fast integer dot products (AVX2, AVX-512), block-quantised weights are multiplied as
/// integers: each 32 activations become 16-bit integers with one scale, their dot product with the weights' integers is exact,
/// and one multiplication by both scales ends a block. Everything else is multiplied in float, integers turned into floats on
/// the way. Either way one output's sums run over the input features in the same order whatever the number of rows: tiles only
/// decide how many outputs share a load.

#include <nvl/core/aligned_buffer.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/simd.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/ops/cpu_weight.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Where a tile of outputs goes. The element type is a run-time value, so that the kernels are compiled once for all of them.
struct LinearOutput {
  void* out = nullptr;  // [rows, out_features] of float or bf16, first row and first feature of the matrix
  bool is_bf16 = false;
  std::int64_t stride = 0;      // [elements] from row to row
  const float* bias = nullptr;  // of the first feature of the matrix, nullptr: none
  std::int32_t num_features = 0;

  NVL_ALWAYS_INLINE void put(std::int64_t row, std::int64_t panel, simd::f32x16 sum) const noexcept {
    const std::int64_t feature = panel * panel_features;
    const int n = static_cast<int>(std::min<std::int64_t>(panel_features, num_features - feature));
    if (bias != nullptr) { sum = sum + simd::load_first(bias + feature, n); }
    if (is_bf16) {
      simd::store_first(static_cast<bf16*>(out) + row * stride + feature, sum, n);
    } else {
      simd::store_first(static_cast<float*>(out) + row * stride + feature, sum, n);
    }
  }
};

// --- Float kernel -----------------------------------------------------------------------------------------------------------

/// Panels and rows of the largest tile: its sums fill the registers of the target.
inline constexpr int float_tile_panels = simd::parts == 1 ? 2 : 1;
inline constexpr int float_tile_rows = simd::parts == 1 ? 12 : (simd::parts == 2 ? 6 : 2);
/// [input features] summed before they are added to the whole, which keeps rounding errors from growing with the row's length.
inline constexpr std::int64_t float_sum_features = 256;

template <int kPanels, int kRows>
struct FloatTile {
  simd::f32x16 sum[kPanels][kRows] = {};

  NVL_ALWAYS_INLINE void add(const simd::f32x16 (&w)[kPanels], const float* x, std::int64_t x_stride) noexcept {
    NVL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const simd::f32x16 value = simd::broadcast(x[r * x_stride]);
      NVL_UNROLL
      for (int p = 0; p < kPanels; ++p) { sum[p][r] = simd::fma(w[p], value, sum[p][r]); }
    }
  }
};

/// Adds the products of input features [begin, end), whole blocks of a quantised format, to `tile`.
template <PanelFormat kFormat, int kPanels, int kRows>
NVL_ALWAYS_INLINE void add_features(FloatTile<kPanels, kRows>& tile, const PanelMatrix& w, const std::int64_t (&panels)[kPanels],
                                    const float* x, std::int64_t x_stride, std::int64_t begin, std::int64_t end) noexcept {
  constexpr PanelFormatInfo layout = info(kFormat);
  simd::f32x16 weights[kPanels];
  if constexpr (layout.step_features == 1) {
    for (std::int64_t k = begin; k < end; ++k) {
      NVL_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        const std::byte* const at = w.values(panels[p]) + k * layout.value_bytes;
        if constexpr (kFormat == PanelFormat::f32) {
          weights[p] = simd::load(reinterpret_cast<const float*>(at));
        } else {
          weights[p] = simd::load(reinterpret_cast<const bf16*>(at));
        }
      }
      tile.add(weights, x + k, x_stride);
    }
  } else {
    constexpr int chunks = layout.value_bytes / 64;
    constexpr int bits = kFormat == PanelFormat::q8_0 ? 8 : 4;
    for (std::int64_t block = begin / quant_block; block < end / quant_block; ++block) {
      simd::f32x16 scale[kPanels], offset[kPanels];
      for (int p = 0; p < kPanels; ++p) {
        const std::byte* const at = w.scales(panels[p]) + block * layout.scale_bytes;
        scale[p] = simd::load_fp16(at);
        if constexpr (kFormat == PanelFormat::q4_1) {
          offset[p] = simd::load_fp16(at + 32);
        } else {
          offset[p] = scale[p] * simd::broadcast(kFormat == PanelFormat::q8_0 ? -128.0f : -8.0f);
        }
      }
      for (int c = 0; c < chunks; ++c) {
        simd::u32x16 quants[kPanels];
        for (int p = 0; p < kPanels; ++p) {
          quants[p] = simd::load_u32(w.values(panels[p]) + block * layout.value_bytes + c * 64);
        }
        for (int j = 0; j < 32 / bits; ++j) {
          const int shift = bits == 8 ? 8 * j : j % 4 * 8 + j / 4 * 4;
          for (int p = 0; p < kPanels; ++p) {
            const simd::u32x16 q = simd::bit_and(simd::shift_right(quants[p], static_cast<unsigned>(shift)), (1u << bits) - 1u);
            weights[p] = simd::fma(simd::to_float(q), scale[p], offset[p]);
          }
          tile.add(weights, x + block * quant_block + c * (32 / bits) + j, x_stride);
        }
      }
    }
  }
}

/// Outputs of `kRows` rows and `kPanels` panels from `panel` on.
template <PanelFormat kFormat, int kPanels, int kRows>
void float_tile(const LinearOutput& out, const PanelMatrix& w, std::int64_t panel, const float* x, std::int64_t row) noexcept {
  const std::int64_t last = w.num_panels() - 1;
  std::int64_t panels[kPanels];
  for (int p = 0; p < kPanels; ++p) { panels[p] = std::min(panel + p, last); }
  const std::int64_t num_features = w.in_features();
  simd::f32x16 total[kPanels][kRows] = {};
  for (std::int64_t begin = 0; begin < num_features; begin += float_sum_features) {
    FloatTile<kPanels, kRows> tile;
    add_features<kFormat>(tile, w, panels, x + row * num_features, num_features, begin,
                          std::min(begin + float_sum_features, num_features));
    for (int p = 0; p < kPanels; ++p) {
      for (int r = 0; r < kRows; ++r) { total[p][r] = total[p][r] + tile.sum[p][r]; }
    }
  }
  for (int p = 0; p < kPanels && panel + p <= last; ++p) {
    for (int r = 0; r < kRows; ++r) { out.put(row + r, panel + p, total[p][r]); }
  }
}

/// Rows [begin, end) of one group of panels, in the largest tiles that fit.
template <PanelFormat kFormat, int kRows = float_tile_rows>
void float_rows(const LinearOutput& out, const PanelMatrix& w, std::int64_t panel, const float* x, std::int64_t begin,
                std::int64_t end) noexcept {
  for (; begin + kRows <= end; begin += kRows) { float_tile<kFormat, float_tile_panels, kRows>(out, w, panel, x, begin); }
  if constexpr (kRows > 1) {
    if (begin < end) { float_rows<kFormat, kRows / 2>(out, w, panel, x, begin, end); }
  }
}

#if NVL_SIMD_INT_DOT
// --- Integer kernel ---------------------------------------------------------------------------------------------------------

/// What is multiplied or added once a block.
struct QuantScale {
  float d;
  float sum;                    // of the 32 activations, d * integer sum
  std::int32_t minus_8_sums;    // of the integers: what Q4_0's offset contributes
  std::int32_t minus_128_sums;  // what Q8_0's packing as unsigned contributes
};

struct QuantRows {
  const simd::IntBlock* values = nullptr;  // [rows, num_blocks] activations / d
  const QuantScale* scales = nullptr;      // [rows, num_blocks]
  std::int64_t num_blocks = 0;
};

/// Blocks of one row. A row with a NaN or an infinity makes every output NaN.
template <class T>
void quantize_row(const T* x, std::int64_t num_blocks, simd::IntBlock* values, QuantScale* scales) noexcept {
  simd::f32x16 finite = simd::zero();
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const simd::f32x16 first = simd::load(x + b * quant_block);
    const simd::f32x16 second = simd::load(x + b * quant_block + simd::lanes);
    finite = simd::fma(first, simd::zero(), simd::fma(second, simd::zero(), finite));
    const float largest = simd::horizontal_max(simd::max(simd::abs(first), simd::abs(second)));
    constexpr float range = 32512.0f;  // 127 * 256: the high byte reaches 127 and no further
    const bool usable = largest >= std::numeric_limits<float>::min() * range && largest <= std::numeric_limits<float>::max();
    const float d = usable ? largest / range : 0.0f;
    const std::int32_t sum = simd::round_to_block(first, second, usable ? range / largest : 0.0f, values[b]);
    const auto minus = 0u - static_cast<std::uint32_t>(sum);  // unsigned: what is not finite gives any sum
    scales[b] = {d, d * static_cast<float>(sum), static_cast<std::int32_t>(8u * minus), static_cast<std::int32_t>(128u * minus)};
  }
  if (!(simd::sum(finite) == 0.0f)) {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    scales[0] = {nan, nan, 0, 0};
  }
}

template <PanelFormat kFormat, int kPanels, int kRows>
void int_tile(const LinearOutput& out, const PanelMatrix& w, std::int64_t panel, const QuantRows& x, std::int64_t row) noexcept {
  constexpr PanelFormatInfo layout = info(kFormat);
  const std::int64_t last = w.num_panels() - 1;
  const std::byte* values[kPanels];
  const std::byte* scales[kPanels];
  const std::byte* next_values[kPanels];  // of the tile after this one
  const std::byte* next_scales[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    values[p] = w.values(std::min(panel + p, last));
    scales[p] = w.scales(std::min(panel + p, last));
    next_values[p] = w.values(std::min(panel + kPanels + p, last));
    next_scales[p] = w.scales(std::min(panel + kPanels + p, last));
  }
  const simd::IntBlock* const x_values = x.values + row * x.num_blocks;
  const QuantScale* const x_scales = x.scales + row * x.num_blocks;
  simd::f32x16 total[kPanels][kRows] = {};
  for (std::int64_t block = 0; block < x.num_blocks; ++block) {
    NVL_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      if constexpr (kRows <= 8) {  // few rows: weights come from memory, one tile ahead of their use
        for (int line = 0; line < layout.value_bytes; line += 64) {
          __builtin_prefetch(next_values[p] + block * layout.value_bytes + line, 0, 2);
        }
        __builtin_prefetch(next_scales[p] + block * layout.scale_bytes, 0, 2);
      }
      const std::byte* const scale_at = scales[p] + block * layout.scale_bytes;
      const simd::f32x16 scale = simd::load_fp16(scale_at);
      simd::f32x16 minimum = simd::zero();
      if constexpr (kFormat == PanelFormat::q4_1) { minimum = simd::load_fp16(scale_at + 32); }
      NVL_UNROLL
      for (int part = 0; part < simd::parts; ++part) {
        const std::byte* const weights = values[p] + block * layout.value_bytes + part * simd::part_lanes * 4;
        simd::dot_block<layout.value_bytes / 64, kRows>(weights, x_values + block, x.num_blocks, [&](int r, simd::IntPart dot) {
          const QuantScale& xs = x_scales[r * x.num_blocks + block];
          if constexpr (kFormat == PanelFormat::q8_0) { dot += xs.minus_128_sums; }
          if constexpr (kFormat == PanelFormat::q4_0) { dot += xs.minus_8_sums; }
          simd::FloatPart& sum = total[p][r].part[part];
          sum = simd::fma(__builtin_convertvector(dot, simd::FloatPart), scale.part[part] * xs.d, sum);
          if constexpr (kFormat == PanelFormat::q4_1) { sum = simd::fma(minimum.part[part], simd::FloatPart{} + xs.sum, sum); }
        });
      }
    }
  }
  for (int p = 0; p < kPanels && panel + p <= last; ++p) {
    for (int r = 0; r < kRows; ++r) { out.put(row + r, panel + p, total[p][r]); }
  }
}

/// Panels side by side: many for few rows, so that several streams of weights come from memory at once.
inline constexpr int int_tile_panels = 4;
inline constexpr int int_tile_rows = simd::parts == 1 ? 16 : 8;

template <PanelFormat kFormat, int kRows = int_tile_rows>
void int_rows(const LinearOutput& out, const PanelMatrix& w, std::int64_t panel, const QuantRows& x, std::int64_t begin,
              std::int64_t end) noexcept {
  constexpr int panels = kRows >= 8 ? 1 : int_tile_panels / kRows;
  for (; begin + kRows <= end; begin += kRows) {
    for (std::int64_t p = panel; p < std::min(panel + int_tile_panels, w.num_panels()); p += panels) {
      int_tile<kFormat, panels, kRows>(out, w, p, x, begin);
    }
  }
  if constexpr (kRows > 1) {
    if (begin < end) { int_rows<kFormat, kRows / 2>(out, w, panel, x, begin, end); }
  }
}
#endif

}  // namespace detail

/// Multiplies activations of type T by packed weights. Owns the scratch for converted activations; one call at a time.
template <class T>
class CpuLinear {
 public:
  explicit CpuLinear(ThreadPool& threads) : threads_(threads) {}

  /// out[rows, out_features] = x[rows, in_features] w^T + bias
  template <class Out>
  void operator()(Out* out, const T* x, const CpuWeight<T>& w, std::int32_t rows) {
    for (std::int64_t row = 0; row < rows; row += max_rows) {
      const std::int64_t count = std::min<std::int64_t>(max_rows, rows - row);
      multiply(out + row * w.out_features(), x + row * w.in_features(), w, count);
    }
  }

 private:
  static constexpr std::int64_t max_rows = 256;     // converted at once: they stay in the second-level cache
  static constexpr std::int64_t rows_of_item = 64;  // rows and panels of one unit of work
  static constexpr std::int64_t panels_of_item = 4;
  static constexpr std::int64_t inline_products = 1 << 15;  // fewer are not worth waking a thread

  static constexpr bool multiplies_integers(PanelFormat format) noexcept {
    return NVL_SIMD_INT_DOT && info(format).step_features == quant_block;
  }

  template <class Out>
  void multiply(Out* out, const T* x, const CpuWeight<T>& w, std::int64_t rows) {
    const bool any_int = std::ranges::any_of(w.matrices(), [](const PanelMatrix& m) { return multiplies_integers(m.format()); });
    const bool any_float =
        std::ranges::any_of(w.matrices(), [](const PanelMatrix& m) { return !multiplies_integers(m.format()); });
    const std::int64_t k = w.in_features();
    const float* float_rows = any_float ? to_float(x, rows, k) : nullptr;
#if NVL_SIMD_INT_DOT
    const detail::QuantRows quant_rows = any_int ? quantize(x, rows, k) : detail::QuantRows{};
#endif
    static_cast<void>(any_int);

    std::int64_t feature = 0;
    for (const PanelMatrix& m : w.matrices()) {
      const detail::LinearOutput to{.out = out + feature,
                                    .is_bf16 = std::same_as<Out, bf16>,
                                    .stride = w.out_features(),
                                    .bias = w.bias().empty() ? nullptr : w.bias().data() + feature,
                                    .num_features = m.out_features()};
      feature += m.out_features();
      for_each_item(m, rows, [&](std::int64_t panel, std::int64_t begin, std::int64_t end) {
        const auto in_float = [&]<PanelFormat kFormat>() {
          for (std::int64_t p = panel; p < std::min(panel + panels_of_item, m.num_panels()); p += detail::float_tile_panels) {
            detail::float_rows<kFormat>(to, m, p, float_rows, begin, end);
          }
        };
        const auto of_blocks = [&]<PanelFormat kFormat>() {
#if NVL_SIMD_INT_DOT
          detail::int_rows<kFormat>(to, m, panel, quant_rows, begin, end);
#else
          in_float.template operator()<kFormat>();
#endif
        };
        switch (m.format()) {
          case PanelFormat::f32:
            if constexpr (std::same_as<T, float>) { in_float.template operator()<PanelFormat::f32>(); }
            break;
          case PanelFormat::bf16:
            if constexpr (std::same_as<T, bf16>) { in_float.template operator()<PanelFormat::bf16>(); }
            break;
          case PanelFormat::q4_0: of_blocks.template operator()<PanelFormat::q4_0>(); break;
          case PanelFormat::q4_1: of_blocks.template operator()<PanelFormat::q4_1>(); break;
          case PanelFormat::q8_0: of_blocks.template operator()<PanelFormat::q8_0>(); break;
        }
      });
    }
  }

  /// Splits the outputs of `m` over the threads: f(panel, first row, end row), panels_of_item panels each.
  template <class F>
  void for_each_item(const PanelMatrix& m, std::int64_t rows, F&& f) {
    const std::int64_t groups = ceil_div(m.num_panels(), panels_of_item);
    const std::int64_t items = groups * ceil_div(rows, rows_of_item);
    const std::int64_t products = rows * m.in_features() * m.out_features();
    threads_.parallel_for(items, products < inline_products ? items : 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t item = first; item < last; ++item) {
        const std::int64_t begin = item / groups * rows_of_item;
        f(item % groups * panels_of_item, begin, std::min(begin + rows_of_item, rows));
      }
    });
  }

  /// The rows as floats: they themselves, or a copy.
  const float* to_float(const T* x, std::int64_t rows, std::int64_t k) {
    if constexpr (std::same_as<T, float>) {
      return x;
    } else {
      float* const copy = scratch<float>(float_scratch_, rows * k);
      threads_.parallel_for(rows, rows_of_conversion, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin * k; i < end * k; i += simd::lanes) {
          const int n = static_cast<int>(std::min<std::int64_t>(simd::lanes, end * k - i));
          simd::store_first(copy + i, simd::load_first(x + i, n), n);
        }
      });
      return copy;
    }
  }

#if NVL_SIMD_INT_DOT
  detail::QuantRows quantize(const T* x, std::int64_t rows, std::int64_t k) {
    const std::int64_t num_blocks = k / quant_block;
    simd::IntBlock* const values = scratch<simd::IntBlock>(quant_scratch_, rows * num_blocks);
    detail::QuantScale* const scales = scratch<detail::QuantScale>(scale_scratch_, rows * num_blocks);
    threads_.parallel_for(rows, rows_of_conversion, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        detail::quantize_row(x + r * k, num_blocks, values + r * num_blocks, scales + r * num_blocks);
      }
    });
    return {values, scales, num_blocks};
  }
  AlignedBuffer quant_scratch_;
  AlignedBuffer scale_scratch_;
#endif

  static constexpr std::int64_t rows_of_conversion = 16;

  template <class Element>
  static Element* scratch(AlignedBuffer& buffer, std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(Element);
    if (buffer.size_bytes() < bytes) { buffer = AlignedBuffer(std::max(bytes, 2 * buffer.size_bytes())); }
    return buffer.as<Element>();
  }

  ThreadPool& threads_;
  AlignedBuffer float_scratch_;
};

}  // namespace nvl::inline NVL_ABI
