#pragma once
/// Rows of logits as chunks that a warp holds in registers. The chunks of a row and the order of every sum in them depend on
/// nothing but the vocabulary, so a row gives the same bits wherever it stands in a batch and however many blocks share it.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/kernels/detail/vec.cuh>

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

inline constexpr int chunk_logits = 1024;                 // of a chunk, which one warp works on
inline constexpr int lane_logits = chunk_logits / 32;     // of a chunk that one lane holds: a group
inline constexpr float lowest_logit = -3.402823466e38f;   // the least finite float
inline constexpr std::uint32_t no_key = 0x007fffffu;      // logit_key(-infinity)
inline constexpr std::uint32_t lowest_key = 0x00800000u;  // logit_key(lowest_logit)
inline constexpr std::uint32_t all_lanes = 0xffffffffu;
inline constexpr int max_chunks_per_lane = 9;  // of the warp that finishes a row

NVL_HOST_DEVICE constexpr int num_chunks(int vocab) { return (vocab + chunk_logits - 1) / chunk_logits; }

#if defined(__CUDACC__)

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

/// Unsigned integers in the order of the floats they stand for (not NaN).
__device__ __forceinline__ std::uint32_t logit_key(float x) {
  const std::uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));  // -0 is 0
  return bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
}
__device__ __forceinline__ float logit_of_key(std::uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

/// 2^x, relative error 2^-22; exactly 1 at 0, 0 at -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Weight of a logit relative to that of `reference`: the one definition that every path uses. `scale` is log2(e) /
/// temperature.
__device__ __forceinline__ float logit_weight(float x, float reference, float scale) {
  return exp2_approx(__fmul_rn(__fsub_rn(x, reference), scale));
}

/// Operations on a register of one float or of two 16-bit elements.
template <class T>
struct LogitWord {
  static constexpr int elements = 2;
  using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
  __device__ static Pair pair(std::uint32_t w) { return *reinterpret_cast<const Pair*>(&w); }
  __device__ static std::uint32_t word(Pair p) { return *reinterpret_cast<const std::uint32_t*>(&p); }

  __device__ static float element(std::uint32_t w, int i) {
    if constexpr (std::is_same_v<T, bf16>) {
      return __uint_as_float(i == 0 ? w << 16 : w & 0xffff0000u);
    } else {
      return i == 0 ? __low2float(pair(w)) : __high2float(pair(w));
    }
  }
  __device__ static std::uint32_t max(std::uint32_t a, std::uint32_t b) { return word(__hmax2(pair(a), pair(b))); }
  /// Adds 0 * w: stays +-0 as long as every element is finite.
  __device__ static std::uint32_t probe(std::uint32_t w, std::uint32_t sum) {
    return word(__hfma2(pair(w), pair(0u), pair(sum)));
  }
  __device__ static bool is_zero(std::uint32_t sum) { return (sum & 0x7fff7fffu) == 0; }
  /// Of the largest number that is not above `x`.
  __device__ static std::uint32_t bits_below(float x) {
    if constexpr (std::is_same_v<T, bf16>) {
      return __bfloat16_as_ushort(__float2bfloat16_rd(x));
    } else {
      return __half_as_ushort(__float2half_rd(x));
    }
  }
  static constexpr std::uint32_t infinity_bits = std::is_same_v<T, bf16> ? 0xff80u : 0xfc00u;  // minus
};
template <>
struct LogitWord<float> {
  static constexpr int elements = 1;
  __device__ static float element(std::uint32_t w, int) { return __uint_as_float(w); }
  __device__ static std::uint32_t max(std::uint32_t a, std::uint32_t b) {
    return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
  }
  __device__ static std::uint32_t probe(std::uint32_t w, std::uint32_t sum) {
    return __float_as_uint(__fmaf_rn(__uint_as_float(w), 0.0f, __uint_as_float(sum)));
  }
  __device__ static bool is_zero(std::uint32_t sum) { return (sum & 0x7fffffffu) == 0; }
  static constexpr std::uint32_t infinity_bits = 0xff800000u;
};

/// One row of logits in device memory.
template <class T>
struct LogitRow {
  const T* logits;  // [vocab]
  int vocab;
  bool is_aligned;  // to 16 bytes

#if defined(__CUDACC__)
  /// -infinity past the end.
  __device__ __forceinline__ float at(int id) const { return id < vocab ? to_float(logits[id]) : minus_infinity(); }
#endif
};

/// 16 bytes of a row that no vector access fits, or that the row ends in. Past the end they are -infinity.
template <class T>
struct CarefulVector {
  uint4 words;
  bool is_finite;  // all that are not past the end
};
template <class T>
__device__ __noinline__ CarefulVector<T> load_carefully(LogitRow<T> row, int begin) {
  using Word = LogitWord<T>;
  std::uint32_t words[4] = {0, 0, 0, 0};
  bool is_finite = true;
#pragma unroll
  for (int i = 0; i < vec_elements<T>; ++i) {
    std::uint32_t bits = Word::infinity_bits;
    if (begin + i < row.vocab) {
      if constexpr (std::is_same_v<T, float>) {
        bits = __float_as_uint(row.logits[begin + i]);
      } else {
        bits = row.logits[begin + i].bits;
      }
      is_finite = is_finite && Word::is_zero(Word::probe(bits, 0u));
    }
    words[i / Word::elements] |= bits << (16 * (i % Word::elements));
  }
  return {make_uint4(words[0], words[1], words[2], words[3]), is_finite};
}

/// How a chunk is spread over the lanes of a warp: by vectors, so that a warp reads consecutive bytes, or in runs, so that lane
/// order is the order of ids.
enum class ChunkOrder { vectors, runs };

/// A lane's logits of one chunk. Past the end of the row they are -infinity.
template <class T, ChunkOrder order = ChunkOrder::vectors>
struct LogitChunk {
  using Word = LogitWord<T>;
  static constexpr int vec = vec_elements<T>;  // [elements] of a 16-byte access
  static constexpr int num_words = lane_logits / Word::elements;
  std::uint32_t words[num_words];
  bool is_whole;         // loaded by vectors
  bool ends_are_finite;  // if not whole: all of this lane's logits

  /// Id of the lane's element `i` relative to the chunk.
  __device__ static int offset_of(int lane, int i) {
    return order == ChunkOrder::runs ? lane * lane_logits + i : (i / vec * 32 + lane) * vec + i % vec;
  }
  __device__ __forceinline__ float element(int i) const { return Word::element(words[i / Word::elements], i % Word::elements); }

  /// A chunk that lies in an aligned row as a whole.
  __device__ __forceinline__ void load_whole(const LogitRow<T>& row, int chunk, int lane) {
    is_whole = true;
#pragma unroll
    for (int v = 0; v < lane_logits / vec; ++v) {
      const uint4 q = *reinterpret_cast<const uint4*>(row.logits + chunk * chunk_logits + offset_of(lane, v * vec));
      words[4 * v] = q.x;
      words[4 * v + 1] = q.y;
      words[4 * v + 2] = q.z;
      words[4 * v + 3] = q.w;
    }
  }
  __device__ __forceinline__ void load(const LogitRow<T>& row, int chunk, int lane) {
    const int begin = chunk * chunk_logits;
    if (row.is_aligned && begin + chunk_logits <= row.vocab) {
      load_whole(row, chunk, lane);
    } else {
      is_whole = false;
      ends_are_finite = true;
#pragma unroll
      for (int v = 0; v < lane_logits / vec; ++v) {
        const CarefulVector<T> q = load_carefully(row, begin + offset_of(lane, v * vec));
        words[4 * v] = q.words.x;
        words[4 * v + 1] = q.words.y;
        words[4 * v + 2] = q.words.z;
        words[4 * v + 3] = q.words.w;
        ends_are_finite = ends_are_finite && q.is_finite;
      }
    }
  }

  /// Whether all of this lane's logits are finite.
  __device__ __forceinline__ bool is_finite() const {
    if (!is_whole) { return ends_are_finite; }
    std::uint32_t probes[2] = {0, 0};
#pragma unroll
    for (int w = 0; w < num_words; ++w) { probes[w % 2] = Word::probe(words[w], probes[w % 2]); }
    return Word::is_zero(probes[0]) && Word::is_zero(probes[1]);
  }

  __device__ __forceinline__ float max() const {
    std::uint32_t m[2] = {words[0], words[1]};
#pragma unroll
    for (int w = 2; w < num_words; ++w) { m[w % 2] = Word::max(m[w % 2], words[w]); }
    const std::uint32_t both = Word::max(m[0], m[1]);
    return Word::elements == 1 ? Word::element(both, 0) : fmaxf(Word::element(both, 0), Word::element(both, 1));
  }
};

/// Largest of 32 floats, none NaN.
__device__ __forceinline__ float warp_max_logit(float x) { return logit_of_key(__reduce_max_sync(all_lanes, logit_key(x))); }

/// What one pass finds out about a chunk.
struct ChunkStat {
  float max;  // NaN if a logit is not finite, -infinity if all are banned
  float sum;  // of weights relative to `max`; 0 if not wanted
};

/// `value(i)`: logit `i` of this lane. All lanes get the result.
template <class Value>
__device__ __forceinline__ ChunkStat chunk_stat(float lane_max, bool is_finite, bool wants_sum, float scale, Value&& value) {
  const bool all_finite = __all_sync(all_lanes, is_finite);
  const float max = warp_max_logit(all_finite ? lane_max : 0.0f);
  const float reference = fmaxf(max, lowest_logit);
  float sum = 0.0f;
  if (wants_sum) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < lane_logits; ++i) { sums[i % 4] += logit_weight(value(i), reference, scale); }
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) { sum += __shfl_xor_sync(all_lanes, sum, offset); }
  }
  return {all_finite ? max : __uint_as_float(0x7fffffffu), sum};
}

/// Calls `f(c, chunk)` for the chunks c = first, first + stride, … below n. Where registers allow it, the next chunk
/// is under way
/// while `f` works on one. `before_first()` is called when the first is under way. All lanes of the warp call it.
template <class T, class BeforeFirst, class F>
__device__ __forceinline__ void for_each_chunk(const LogitRow<T>& row, int first, int stride, int n, BeforeFirst&& before_first,
                                               F&& f) {
  constexpr bool loads_ahead = sizeof(T) == 2;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int num_whole = row.is_aligned ? row.vocab / chunk_logits : 0;
  LogitChunk<T> chunk;
  if (first < num_whole) { chunk.load_whole(row, first, lane); }
  before_first();
  int c = first;
  for (; c < num_whole; c += stride) {
    const int next = c + stride;
    LogitChunk<T> ahead;
    if (loads_ahead && next < num_whole) { ahead.load_whole(row, next, lane); }
    f(c, chunk);
    if constexpr (loads_ahead) {
      chunk = ahead;
    } else if (next < num_whole) {
      chunk.load_whole(row, next, lane);
    }
  }
  for (; c < n; c += stride) {
    chunk.load(row, c, lane);
    f(c, chunk);
  }
}

/// Sum over the lanes up to and including this one.
template <class Number>
__device__ __forceinline__ Number warp_prefix_sum(Number x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Number before = __shfl_up_sync(all_lanes, x, offset);
    if (lane >= offset) { x += before; }
  }
  return x;
}

/// The lane whose share of [0, total) holds `target`, by prefix sums; the last lane with a share if rounding left none.
template <class Number>
__device__ __forceinline__ int lane_at(Number target, Number inclusive, Number own) {
  const std::uint32_t reached = __ballot_sync(all_lanes, inclusive > target && own > Number(0));
  const std::uint32_t positive = __ballot_sync(all_lanes, own > Number(0));
  return reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : 31 - __clz(static_cast<int>(positive | 1u));
}

struct Picked {
  int index;
  float rest;  // what is left of the target inside it
};

/// A lane's share of a row's chunks, consecutive ones, in registers so that one warp is done with them fast.
struct LaneMasses {
  float mass[max_chunks_per_lane];
  int begin;

  /// `mass_of(c)` for c in [0, n).
  template <class MassOf>
  __device__ __forceinline__ void fill(int n, MassOf&& mass_of) {
    const int lane = static_cast<int>(threadIdx.x) % 32, per_lane = (n + 31) / 32;
    begin = lane * per_lane;
#pragma unroll
    for (int i = 0; i < max_chunks_per_lane; ++i) { mass[i] = i < per_lane && begin + i < n ? mass_of(begin + i) : 0.0f; }
  }
  __device__ __forceinline__ float sum() const {
    float x = 0.0f;
#pragma unroll
    for (int i = 0; i < max_chunks_per_lane; ++i) { x += mass[i]; }
    return x;
  }
  /// The chunk at which the cumulated mass exceeds the fraction `u` of all.
  __device__ __forceinline__ Picked pick(double u) const {
    const double own = sum();
    const double inclusive = warp_prefix_sum(own);
    const double target = u * __shfl_sync(all_lanes, inclusive, 31);
    const int source = lane_at(target, inclusive, own);
    auto rest = static_cast<float>(fmax(target - (inclusive - own), 0.0));
    float left = rest;
    int index = begin;
    bool is_past = false;
#pragma unroll
    for (int i = 0; i < max_chunks_per_lane; ++i) {
      if (!is_past && mass[i] > 0.0f) {  // rounding must not lead into chunks without mass
        index = begin + i;
        left = rest;
        is_past = rest < mass[i];
        rest -= mass[i];
      }
    }
    return {__shfl_sync(all_lanes, index, source), __shfl_sync(all_lanes, left, source)};
  }
};

/// What the chunks of a row amount to.
struct RowSummary {
  float max;
  bool is_finite;  // false also if all are banned
  double total;    // weight of all tokens relative to `max`
};

/// Largest of `max_of(c)`, c in [0, n), and whether all are finite and the row is not all banned. By one warp.
template <class MaxOf>
__device__ __forceinline__ float row_max(MaxOf&& max_of, int n, bool& is_finite) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float max = minus_infinity();
  bool is_number = true;
#pragma unroll
  for (int i = 0; i < max_chunks_per_lane; ++i) {
    const float m = i * 32 + lane < n ? max_of(i * 32 + lane) : minus_infinity();
    is_number = is_number && m == m;
    max = fmaxf(max, m);
  }
  max = warp_max_logit(max);
  is_finite = __all_sync(all_lanes, is_number) != 0 && max > minus_infinity();
  return max;
}

struct PickedToken {
  int id;
  float logit;
};

/// The token of a chunk at which the cumulated weight exceeds `target`. By one warp. `value(i)`: logit of token
/// `chunk * chunk_logits + lane * lane_logits + i`; `kept`: a bit for each, 0 for what was cut off; `value_at(id)`: any logit.
template <class Value, class ValueAt>
__device__ __forceinline__ PickedToken pick_token(int chunk, float target, float max, float scale, std::uint32_t kept,
                                                  Value&& value, ValueAt&& value_at) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < lane_logits; ++i) { sums[i % 4] += (kept >> i & 1) != 0 ? logit_weight(value(i), max, scale) : 0.0f; }
  const float own = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float inclusive = warp_prefix_sum(own);
  const int source = lane_at(target, inclusive, own);
  // The logits of that lane, one for each lane.
  const int begin = chunk * chunk_logits + source * lane_logits;
  const float logit = value_at(begin + lane);
  const float weight = (__shfl_sync(all_lanes, kept, source) >> lane & 1) != 0 ? logit_weight(logit, max, scale) : 0.0f;
  inclusive = __shfl_sync(all_lanes, inclusive - own, source) + warp_prefix_sum(weight);
  const int place = lane_at(target, inclusive, weight);
  return {begin + place, __shfl_sync(all_lanes, logit, place)};
}

/// The first chunk whose maximum is `max`. By one warp.
template <class MaxOf>
__device__ __forceinline__ int first_chunk_with(MaxOf&& max_of, int n, float max) {
  int chunk = n - 1;
#pragma unroll
  for (int i = max_chunks_per_lane - 1; i >= 0; --i) {
    const int c = i * 32 + static_cast<int>(threadIdx.x) % 32;
    if (c < n && max_of(c) == max) { chunk = c; }
  }
  return static_cast<int>(__reduce_min_sync(all_lanes, static_cast<unsigned>(chunk)));
}

/// The first token of a chunk, in runs, whose logit is `max`. By one warp.
template <class ValueAt>
__device__ __forceinline__ PickedToken pick_largest(int chunk, float lane_max, float max, ValueAt&& value_at) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint32_t lanes = __ballot_sync(all_lanes, lane_max == max);
  const int begin = chunk * chunk_logits + (lanes != 0 ? __ffs(static_cast<int>(lanes)) - 1 : 0) * lane_logits;
  const std::uint32_t places = __ballot_sync(all_lanes, value_at(begin + lane) == max);
  return {begin + (places != 0 ? __ffs(static_cast<int>(places)) - 1 : 0), max};
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
