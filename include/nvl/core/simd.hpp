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

/// Set where one instruction sums products of unsigned and signed bytes into 32-bit lanes.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define NVL_SIMD_HAS_BYTE_DOT 1
#else
#define NVL_SIMD_HAS_BYTE_DOT 0
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
  std::memcpy(&r, p, sizeof(r));
  return r;
}
NVL_ALWAYS_INLINE void store(float* p, const f32x16& v) noexcept { std::memcpy(p, &v, sizeof(v)); }

NVL_ALWAYS_INLINE u32x16 load_u32(const void* p) noexcept {
  u32x16 r;
  std::memcpy(&r, p, sizeof(r));
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
NVL_ALWAYS_INLINE f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) noexcept {
  f32x16 r;
  NVL_UNROLL
  for (int i = 0; i < parts; ++i) {
#if defined(__AVX512F__)
    r.part[i] = (FloatPart)_mm512_fmadd_ps((__m512)a.part[i], (__m512)b.part[i], (__m512)c.part[i]);
#elif defined(__AVX2__) && defined(__FMA__)
    r.part[i] = (FloatPart)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]);
#elif defined(__FP_FAST_FMAF)
    for (int lane = 0; lane < part_lanes; ++lane) { r.part[i][lane] = __builtin_fmaf(a.part[i][lane], b.part[i][lane], c.part[i][lane]); }
#else
    r.part[i] = a.part[i] * b.part[i] + c.part[i];
#endif
  }
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
  r.part[0] = (FloatPart)_mm512_mask_blend_ps(static_cast<__mmask16>(below_end & ~below_begin), (__m512)b.part[0], (__m512)a.part[0]);
  return r;
#else
  float from_a[lanes], from_b[lanes];
  store(from_a, a);
  store(from_b, b);
  for (int i = begin; i < end; ++i) { from_b[i] = from_a[i]; }
  return load(from_b);
#endif
}

/// Pairs of lanes at distance 8, then 4, 2, 1: the one order of every horizontal sum.
NVL_ALWAYS_INLINE float sum(const f32x16& v) noexcept {
#if defined(__AVX512F__)
  const __m512 whole = (__m512)v.part[0];
  const __m256 low = _mm512_castps512_ps256(whole);
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1));
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

#if NVL_SIMD_HAS_BYTE_DOT
/// 64 bytes.
struct bytes64 {
  __m512i value;
};
struct i32x16 {
  __m512i value;
};
NVL_ALWAYS_INLINE bytes64 load_bytes(const void* p) noexcept { return {_mm512_loadu_si512(p)}; }
NVL_ALWAYS_INLINE bytes64 low_nibbles(const bytes64& b) noexcept { return {_mm512_and_si512(b.value, _mm512_set1_epi8(15))}; }
NVL_ALWAYS_INLINE bytes64 high_nibbles(const bytes64& b) noexcept {
  return {_mm512_and_si512(_mm512_srli_epi16(b.value, 4), _mm512_set1_epi8(15))};
}
NVL_ALWAYS_INLINE i32x16 broadcast_i32(std::int32_t value) noexcept { return {_mm512_set1_epi32(value)}; }
/// Lane i: sum + the four unsigned bytes of lane i of `a` times the four signed bytes of `b`.
NVL_ALWAYS_INLINE i32x16 dot(const i32x16& sum, const bytes64& a, std::int32_t b) noexcept {
  return {_mm512_dpbusd_epi32(sum.value, a.value, _mm512_set1_epi32(b))};
}
/// Rounds 32 floats times `scale`, |product| <= 32512, to integers 256 * high + low and returns their sum.
NVL_ALWAYS_INLINE std::int32_t split_bytes(const f32x16& first, const f32x16& second, float scale, std::int8_t* high,
                                           std::int8_t* low) noexcept {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512i half = _mm512_set1_epi32(128);
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)first.part[0], factor));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)second.part[0], factor));
  // The low byte is taken as signed, so the high one is that of the nearest multiple of 256.
  const auto put = [](std::int8_t* to, __m512i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(v)); };
  put(low, a);
  put(low + 16, b);
  put(high, _mm512_srai_epi32(_mm512_add_epi32(a, half), 8));
  put(high + 16, _mm512_srai_epi32(_mm512_add_epi32(b, half), 8));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}
/// 256 * high + low, as float.
NVL_ALWAYS_INLINE f32x16 join_bytes(const i32x16& high, const i32x16& low) noexcept {
  f32x16 r;
  r.part[0] = (FloatPart)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high.value, 8), low.value));
  return r;
}
#endif

}  // namespace nvl::inline NVL_ABI::simd
