#pragma once
/// Sixteen floats or 32-bit integers as one value, over GNU vector types of the width that the target has. The only header
/// with intrinsics: each has a fallback, so every other header is plain C++. Compile flags choose (-march=...).

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#if !defined(__clang__)
// GCC 12 takes its own "undefined" registers for uninitialised variables (GCC PR 105593); the state at the header's lines counts.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

/// Set where exact integer dot products are faster than floats. With VNNI one instruction multiplies bytes and sums four of them.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define NVL_SIMD_BYTE_DOT 1
#else
#define NVL_SIMD_BYTE_DOT 0
#endif
#if NVL_SIMD_BYTE_DOT || defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define NVL_SIMD_INT_DOT 1
#else
#define NVL_SIMD_INT_DOT 0
#endif

namespace nvl::inline NVL_ABI::simd {

inline constexpr int lanes = 16;

#if defined(__AVX512F__)
inline constexpr int part_lanes = 16;
#elif defined(__AVX2__)
inline constexpr int part_lanes = 8;
#else
inline constexpr int part_lanes = 4;
#endif
inline constexpr int parts = lanes / part_lanes;

typedef float FloatPart __attribute__((vector_size(part_lanes * 4)));
typedef std::int32_t IntPart __attribute__((vector_size(part_lanes * 4)));
typedef std::uint32_t UintPart __attribute__((vector_size(part_lanes * 4)));

/// Structs, not bare vectors: they pass between functions the same way whatever the target's registers are.
struct f32x16 {
  FloatPart part[parts];
};
struct u32x16 {
  UintPart part[parts];
};

NVL_ALWAYS_INLINE f32x16 broadcast(float value) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = FloatPart{} + value; }
  return r;
}
NVL_ALWAYS_INLINE f32x16 zero() noexcept { return f32x16{}; }

NVL_ALWAYS_INLINE f32x16 load(const float* p) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { std::memcpy(&r.part[i], p + i * part_lanes, sizeof(FloatPart)); }  // part by part: registers
  return r;
}
NVL_ALWAYS_INLINE void store(float* p, const f32x16& v) noexcept {
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { std::memcpy(p + i * part_lanes, &v.part[i], sizeof(FloatPart)); }
}

NVL_ALWAYS_INLINE u32x16 load_u32(const void* p) noexcept {
  u32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) {
    std::memcpy(&r.part[i], static_cast<const std::byte*>(p) + i * part_lanes * 4, sizeof(UintPart));
  }
  return r;
}

NVL_ALWAYS_INLINE f32x16 operator+(const f32x16& a, const f32x16& b) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = a.part[i] + b.part[i]; }
  return r;
}
NVL_ALWAYS_INLINE f32x16 operator-(const f32x16& a, const f32x16& b) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = a.part[i] - b.part[i]; }
  return r;
}
NVL_ALWAYS_INLINE f32x16 operator*(const f32x16& a, const f32x16& b) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = a.part[i] * b.part[i]; }
  return r;
}
NVL_ALWAYS_INLINE f32x16 operator/(const f32x16& a, const f32x16& b) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = a.part[i] / b.part[i]; }
  return r;
}

/// a * b + c with one rounding where the target can. Always called by name: if the compiler were free to fuse some products
/// and not others, two loops over the same row could differ in the last bit.
NVL_ALWAYS_INLINE FloatPart fma(const FloatPart& a, const FloatPart& b, const FloatPart& c) noexcept {
#if defined(__AVX512F__)
  return (FloatPart)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (FloatPart)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
  FloatPart r;
  for (int lane = 0; lane < part_lanes; ++lane) { r[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]); }
  return r;
#else
  return a * b + c;
#endif
}
NVL_ALWAYS_INLINE f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = fma(a.part[i], b.part[i], c.part[i]); }
  return r;
}

/// The same of scalars, for loops that finish what vectors began.
NVL_ALWAYS_INLINE float fma(float a, float b, float c) noexcept {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

/// Lane by lane; a NaN in `a` stays.
NVL_ALWAYS_INLINE f32x16 max(const f32x16& a, const f32x16& b) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = a.part[i] < b.part[i] ? b.part[i] : a.part[i]; }
  return r;
}
NVL_ALWAYS_INLINE f32x16 min(const f32x16& a, const f32x16& b) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = b.part[i] < a.part[i] ? b.part[i] : a.part[i]; }
  return r;
}
/// Clears the sign.
NVL_ALWAYS_INLINE f32x16 abs(const f32x16& a) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = (FloatPart)((UintPart)a.part[i] & 0x7fffffffu); }
  return r;
}

/// a where lane index is in [begin, end), b elsewhere.
NVL_ALWAYS_INLINE f32x16 select_range(int begin, int end, const f32x16& a, const f32x16& b) noexcept {
#if defined(__AVX512F__)
  const std::uint32_t below_end = end >= lanes ? 0xffffu : (1u << end) - 1u;
  const std::uint32_t below_begin = (1u << begin) - 1u;
  f32x16 r;
  r.part[0] =
      (FloatPart)_mm512_mask_blend_ps(static_cast<__mmask16>(below_end & ~below_begin), (__m512)b.part[0], (__m512)a.part[0]);
  return r;
#else
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) {
    IntPart lane{};
    for (int j = 0; j < part_lanes; ++j) { lane[j] = i * part_lanes + j; }
    r.part[i] = ((lane >= begin) & (lane < end)) ? a.part[i] : b.part[i];
  }
  return r;
#endif
}

/// Pairs of lanes at distance 8, then 4, 2, 1: the one order of every horizontal sum.
NVL_ALWAYS_INLINE float sum(const f32x16& v) noexcept {
#if defined(__AVX512F__)
  // With a mask of all, which costs nothing: without one g++ 12 warns of what its own header leaves uninitialised.
  const __m512d whole = (__m512d)v.part[0];
  const __m256 low = _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(static_cast<__mmask8>(-1), whole, 0));
  const __m256 high = _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(static_cast<__mmask8>(-1), whole, 1));
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float a[lanes];
  store(a, v);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) { a[i] += a[i + width]; }
  }
  return a[0];
#endif
}

/// Lane i of the result is the sum of the lanes of v[i].
NVL_ALWAYS_INLINE f32x16 sums(const f32x16 (&v)[lanes]) noexcept {
#if defined(__AVX512F__)
  // Four rounds, each of which adds halves and puts two vectors into one.
  __m512 a[8], b[4];
  NVL_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m512 x = (__m512)v[2 * i].part[0], y = (__m512)v[2 * i + 1].part[0];
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
  }
  NVL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const auto fold = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  };
  f32x16 r;
  r.part[0] = (FloatPart)fold(fold(b[0], b[1]), fold(b[2], b[3]));
  return r;
#elif defined(__AVX2__)
  f32x16 r;
  NVL_UNROLL
  for (int half = 0; half < 2; ++half) {
    __m256 a[8];
    NVL_UNROLL
    for (int i = 0; i < 8; ++i) { a[i] = (__m256)(v[8 * half + i].part[0] + v[8 * half + i].part[1]); }
    const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const __m256 y = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    r.part[half] = (FloatPart)_mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  }
  return r;
#else
  float a[lanes];
  for (int i = 0; i < lanes; ++i) { a[i] = sum(v[i]); }
  return load(a);
#endif
}

NVL_ALWAYS_INLINE float horizontal_max(const f32x16& v) noexcept {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v.part[0]);
#else
  float a[lanes];
  store(a, v);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) { a[i] = a[i] < a[i + width] ? a[i + width] : a[i]; }
  }
  return a[0];
#endif
}

NVL_ALWAYS_INLINE u32x16 shift_right(const u32x16& v, unsigned bits) noexcept {
  u32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = v.part[i] >> bits; }
  return r;
}
NVL_ALWAYS_INLINE u32x16 bit_and(const u32x16& v, std::uint32_t mask) noexcept {
  u32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = v.part[i] & mask; }
  return r;
}
/// Lanes below 2^31, as float.
NVL_ALWAYS_INLINE f32x16 to_float(const u32x16& v) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) { r.part[i] = __builtin_convertvector((IntPart)v.part[i], FloatPart); }
  return r;
}

/// bf16 memory: the bits are the upper half of a float's.
NVL_ALWAYS_INLINE f32x16 load(const bf16* p) noexcept {
  f32x16 r;
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  r.part[0] = (FloatPart)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif defined(__AVX2__)
  for (int i = 0; i < 2; ++i) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i));
    r.part[i] = (FloatPart)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
  }
#else
  float a[lanes];
  for (int i = 0; i < lanes; ++i) { a[i] = static_cast<float>(p[i]); }
  r = load(a);
#endif
  return r;
}
/// Rounds to nearest, ties to even, as bf16's constructor does.
NVL_ALWAYS_INLINE void store(bf16* p, const f32x16& v) noexcept {
#if defined(__AVX512F__)
  const __m512i u = (__m512i)v.part[0];
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v.part[0], (__m512)v.part[0], _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet)));
#else
  float a[lanes];
  store(a, v);
  for (int i = 0; i < lanes; ++i) { p[i] = bf16(a[i]); }
#endif
}

/// 16 fp16 values.
NVL_ALWAYS_INLINE f32x16 load_fp16(const void* p) noexcept {
  f32x16 r;
#if defined(__AVX512F__)
  r.part[0] = (FloatPart)_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__) && defined(__F16C__)
  for (int i = 0; i < 2; ++i) { r.part[i] = (FloatPart)_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p) + i)); }
#else
  fp16 halves[lanes];
  std::memcpy(halves, p, sizeof(halves));
  float a[lanes];
  for (int i = 0; i < lanes; ++i) { a[i] = static_cast<float>(halves[i]); }
  r = load(a);
#endif
  return r;
}

/// The first `n` lanes, 0 <= n <= 16; the others are 0, and nothing behind p + n is read.
template <class T>
NVL_ALWAYS_INLINE f32x16 load_first(const T* p, int n) noexcept {
  if (n == lanes) { return load(p); }
  float a[lanes] = {};
  for (int i = 0; i < n; ++i) { a[i] = static_cast<float>(p[i]); }
  return load(a);
}
template <class T>
NVL_ALWAYS_INLINE void store_first(T* p, const f32x16& v, int n) noexcept {
  if (n == lanes) {
    store(p, v);
    return;
  }
  float a[lanes];
  store(a, v);
  for (int i = 0; i < n; ++i) { p[i] = static_cast<T>(a[i]); }
}

/// e^x to about one unit in the last place; 0 below -87.3, the largest finite values above 88.3, NaN for NaN.
NVL_ALWAYS_INLINE f32x16 exp(const f32x16& x) noexcept {
  const f32x16 clamped = min(max(x, broadcast(-87.5f)), broadcast(88.3f));
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the integer in the low bits of the sum.
  const f32x16 magic = broadcast(12582912.0f);
  const f32x16 shifted = fma(clamped, broadcast(1.44269504088896341f), magic);
  const f32x16 n = shifted - magic;
  // x - n ln 2, with ln 2 in two parts (Cody & Waite).
  const f32x16 r = fma(n, broadcast(-1.42860677e-6f), fma(n, broadcast(-0.693145751953125f), clamped));
  f32x16 p = broadcast(1.9875691500e-4f);  // minimax polynomial of e^r on [-ln2/2, ln2/2], Cephes expf
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  f32x16 result;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) {
    const UintPart exponent = ((UintPart)shifted.part[i] - 0x4b400000u + 127u) << 23;
    const FloatPart scaled = p.part[i] * (FloatPart)exponent;
    result.part[i] = x.part[i] < -87.3f ? FloatPart{} : scaled;
  }
  return result;
}

#if NVL_SIMD_INT_DOT
inline constexpr int int_block = 32;  // elements of an IntBlock

/// 32 integers of 16 bits, arranged for `dot_block`.
struct IntBlock {
#if NVL_SIMD_BYTE_DOT
  std::int8_t high[int_block];  // x = 256 high + low, low signed
  std::int8_t low[int_block];
#else
  std::int16_t pairs[int_block];  // elements 4g, 4g + 2, 4g + 1, 4g + 3 for g = 0 .. 7
#endif
};

/// Rounds 32 floats times `scale`, |product| <= 32512, and returns the sum of the integers. Floats that are not finite become
/// some integers.
NVL_ALWAYS_INLINE std::int32_t round_to_block(const f32x16& first, const f32x16& second, float scale, IntBlock& block) noexcept {
  // Adding 1.5 * 2^23 leaves the integer in the low bits.
  const f32x16 factor = broadcast(scale), magic = broadcast(12582912.0f);
  const f32x16 a = fma(first, factor, magic), b = fma(second, factor, magic);
#if NVL_SIMD_BYTE_DOT
  const __m512i offset = _mm512_set1_epi32(0x4b400000), half = _mm512_set1_epi32(128);
  const __m512i x = _mm512_sub_epi32((__m512i)a.part[0], offset), y = _mm512_sub_epi32((__m512i)b.part[0], offset);
  // The low byte is taken as signed, so the high one is that of the nearest multiple of 256.
  const auto put = [](std::int8_t* to, __m512i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(v)); };
  put(block.low, x);
  put(block.low + 16, y);
  put(block.high, _mm512_srai_epi32(_mm512_add_epi32(x, half), 8));
  put(block.high + 16, _mm512_srai_epi32(_mm512_add_epi32(y, half), 8));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(x, y));
#else
  std::uint32_t bits[int_block];
  std::memcpy(bits, &a, sizeof(a));
  std::memcpy(bits + lanes, &b, sizeof(b));
  std::int32_t sum = 0;
  for (int i = 0; i < int_block; ++i) {
    const auto value = static_cast<std::int16_t>(bits[i]);  // the low half of the offset is zero
    block.pairs[i / 4 * 4 + i % 2 * 2 + i % 4 / 2] = value;
    sum += value;
  }
  return sum;
#endif
}

/// Dot products of one part of a panel (`part_lanes` features, one block of 32) with one block of each of `kRows` rows: calls
/// f(row, sums as IntPart). `weights`: chunks of 64 bytes as in ops/cpu_weight.hpp, from the part's first lane on; kBits 4 or 8.
template <int kBits, int kRows, class F>
NVL_ALWAYS_INLINE void dot_block(const std::byte* weights, const IntBlock* x, std::int64_t x_stride, F&& f) noexcept {
#if NVL_SIMD_BYTE_DOT
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i quants[8];  // of elements 4g .. 4g + 3
  NVL_UNROLL
  for (int g = 0; g < 8; ++g) {
    if constexpr (kBits == 8) {
      quants[g] = _mm512_loadu_si512(weights + g * 64);
    } else {
      const __m512i both = _mm512_loadu_si512(weights + g / 2 * 64);
      quants[g] = _mm512_and_si512(g % 2 == 0 ? both : _mm512_srli_epi16(both, 4), nibble);
    }
  }
  NVL_UNROLL
  for (int r = 0; r < kRows; ++r) {
    __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
    NVL_UNROLL
    for (int g = 0; g < 8; ++g) {
      std::int32_t four_high, four_low;
      std::memcpy(&four_high, x[r * x_stride].high + 4 * g, 4);
      std::memcpy(&four_low, x[r * x_stride].low + 4 * g, 4);
      high = _mm512_dpbusd_epi32(high, quants[g], _mm512_set1_epi32(four_high));
      low = _mm512_dpbusd_epi32(low, quants[g], _mm512_set1_epi32(four_low));
    }
    f(r, (IntPart)_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
  }
#else
#if defined(__AVX512F__)
  using Register = __m512i;
  const auto load_part = [](const std::byte* p) { return _mm512_loadu_si512(p); };
  const auto words = [](int value) { return _mm512_set1_epi16(static_cast<short>(value)); };
  const auto shift = [](Register v, unsigned bits) { return _mm512_srli_epi16(v, bits); };
  const auto pair = [](std::int32_t value) { return _mm512_set1_epi32(value); };
  const auto multiply = [](Register a, Register b) { return (IntPart)_mm512_madd_epi16(a, b); };
#else
  using Register = __m256i;
  const auto load_part = [](const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
  const auto words = [](int value) { return _mm256_set1_epi16(static_cast<short>(value)); };
  const auto shift = [](Register v, int bits) { return _mm256_srli_epi16(v, bits); };
  const auto pair = [](std::int32_t value) { return _mm256_set1_epi32(value); };
  const auto multiply = [](Register a, Register b) { return (IntPart)_mm256_madd_epi16(a, b); };
#endif
  IntPart sum[kRows] = {};
  const auto add = [&](Register even, Register odd, int g) {
    NVL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      std::int32_t first, second;
      std::memcpy(&first, x[r * x_stride].pairs + 4 * g, 4);
      std::memcpy(&second, x[r * x_stride].pairs + 4 * g + 2, 4);
      sum[r] += multiply(even, pair(first)) + multiply(odd, pair(second));
    }
  };
  NVL_NO_UNROLL                      // all weights of a block at once would not fit the registers
  for (int c = 0; c < kBits; ++c) {  // kBits chunks of 32 / kBits elements
    const Register bytes = load_part(weights + c * 64);
    if constexpr (kBits == 8) {
      add((Register)((UintPart)bytes & 0x00ff00ffu), shift(bytes, 8), c);
    } else {
      const Register nibble = words(15);
      add((Register)((UintPart)bytes & (UintPart)nibble), (Register)((UintPart)shift(bytes, 8) & (UintPart)nibble), 2 * c);
      add((Register)((UintPart)shift(bytes, 4) & (UintPart)nibble), shift(bytes, 12), 2 * c + 1);
    }
  }
  NVL_UNROLL
  for (int r = 0; r < kRows; ++r) { f(r, sum[r]); }
#endif
}
#endif

}  // namespace nvl::inline NVL_ABI::simd
