#pragma once
/// The computing warps of paged decode attention on tensor cores, and the merge of their sums.
///
/// A tile is 16 keys. Scores are S^T = K Q^T and sums are O^T = V^T P^T: the keys and the head's elements are on the side of the
/// matrix instruction that has 16 rows, the queries on the side that has 8 columns, so a group of 1 to 8 heads costs the same
/// and nothing else is padded. A thread's column of S^T is its column of O^T: maximum and sum of a query stay in its threads.
/// Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; split over keys: Dao et al. 2023, Flash-Decoding.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/paged_decode_instructions.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/paged_attention_decode_copy.cuh>

#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::paged_decode {

#if defined(__CUDACC__)

/// Partial softmax of the tiles that one warp has seen. Lane 4 g + t: queries 8 n + 2 t and 8 n + 2 t + 1.
template <class Traits>
struct WarpState {
  static constexpr int steps = Traits::head_dim / 16;
  static constexpr int n_tiles = Traits::column_tiles;

  float sums[steps][n_tiles][4];  // rows 16 s + g and + 8 of O^T
  float totals[n_tiles][4];       // sums of the weights
  float maximum[n_tiles][2];      // of some of the scores so far, in powers of 2; weights are relative to it

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      maximum[n][0] = maximum[n][1] = -1e30f;  // finite: a difference of two is not NaN
#pragma unroll
      for (int j = 0; j < 4; ++j) { totals[n][j] = 0.0f; }
#pragma unroll
      for (int s = 0; s < steps; ++s) {
#pragma unroll
        for (int j = 0; j < 4; ++j) { sums[s][n][j] = 0.0f; }
      }
    }
  }

  /// Moves the maximum up to that of `scores` and rescales what was summed.
  __device__ __forceinline__ void raise_maximum(const float (&scores)[n_tiles][4]) {
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float highest = fmaxf(scores[n][j], scores[n][j + 2]);
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) {
          highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, offset));
        }
        highest = fmaxf(highest, maximum[n][j]);
        const float factor = exp2_fast(maximum[n][j] - highest);
        maximum[n][j] = highest;
        totals[n][j] *= factor;
        totals[n][j + 2] *= factor;
#pragma unroll
        for (int s = 0; s < steps; ++s) {
          sums[s][n][j] *= factor;
          sums[s][n][j + 2] *= factor;
        }
      }
    }
  }
};

/// Four elements of one query: the sums of up to `kParts` parts that are relative to different maxima, made one.
template <int kParts>
struct PartialSums {
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float total = 0.0f, maximum = -1e30f;
  float4 sums[kParts] = {};
  float totals[kParts] = {}, maxima[kParts];

  __device__ __forceinline__ PartialSums() {
#pragma unroll
    for (int i = 0; i < kParts; ++i) { clear(i); }
  }
  __device__ __forceinline__ void clear(int i) {
    sums[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    totals[i] = 0.0f;
    maxima[i] = -1e30f;
  }
  __device__ __forceinline__ void load(int i, float part_maximum, float part_total, float4 part_sum) {
    maxima[i] = part_maximum;
    totals[i] = part_total;
    sums[i] = part_sum;
  }
  /// Adds the parts, in their order, to what is there.
  __device__ __forceinline__ void add() {
    const float before = maximum;
#pragma unroll
    for (int i = 0; i < kParts; ++i) { maximum = fmaxf(maximum, maxima[i]); }
    const float rescale = exp2_fast(before - maximum);
    total *= rescale;
    sum = make_float4(sum.x * rescale, sum.y * rescale, sum.z * rescale, sum.w * rescale);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float factor = exp2_fast(maxima[i] - maximum);
      total += factor * totals[i];
      sum.x += factor * sums[i].x;
      sum.y += factor * sums[i].y;
      sum.z += factor * sums[i].z;
      sum.w += factor * sums[i].w;
    }
  }
};

template <class Traits>
struct Consumer {
  using T = typename Traits::Element;
  using Rows = RowLayout<Traits::head_dim>;
  static constexpr int head_dim = Traits::head_dim;
  static constexpr int steps = head_dim / 16;
  static constexpr int n_tiles = Traits::column_tiles;
  static constexpr int threads = Traits::warps * 32;
  static constexpr std::uint32_t ones = std::is_same_v<T, bf16> ? 0x3f803f80u : 0x3c003c00u;
  static constexpr float headroom = 8.0f;  // weights reach 2^8 before sums are rescaled

  const KernelArgs<T>& args;
  SharedStorage<Traits>& shared;
  std::uint32_t stages;
  int lane = static_cast<int>(threadIdx.x % 32);
  int warp = static_cast<int>(threadIdx.x / 32);
  // Where this lane's row of a tile begins, as load_matrices wants it.
  std::uint32_t k_at = Rows::template at<tile_tokens>(lane & 15, lane >> 4);
  std::uint32_t v_at = Traits::tile_bytes + Rows::template at<tile_tokens>((lane & 7) | (lane >> 1 & 8), lane >> 3 & 1);

  __device__ void run() {
    wait_for_previous();
    if (threadIdx.x == 0) { let_next_start(); }
    int slot = 0;
    std::uint32_t parity = 0;
    std::int32_t mine = warp;  // next tile of this warp, counted over the thread block
    std::int32_t begin = 0;    // first tile of the piece
    for (std::uint32_t count = 0;; ++count) {
      const std::uint32_t entry = count % 2;
      wait_phase(shared_address(&shared.piece_full[entry]), count / 2 % 2);
      const Piece piece = shared.pieces[entry];
      if (piece.num_tiles == 0) { return; }
      const std::uint32_t q_at = shared_address(&shared.q[entry][0]);
      std::uint32_t q[Traits::q_in_registers ? n_tiles : 1][steps][2];
      if constexpr (Traits::q_in_registers) {
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) { load_queries(q[n], q_at, n); }
        release(&shared.piece_empty[entry]);
      }

      WarpState<Traits> state;
      state.clear();
      std::int32_t last_visible[n_tiles][2];
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const std::int32_t query = args.batch.group.divide(piece.first_column + n * 8 + lane % 4 * 2 + j);
          last_visible[n][j] = piece.seq_len - piece.query_len + min(query, piece.query_len - 1);
        }
      }
      const std::int32_t end = begin + piece.num_tiles;
      const bool has_tiles = mine < end;
      std::uint32_t kept = 0;  // place of this warp's last tile: its sums go there
      while (mine < end) {
        const std::int32_t token = piece.first_token + (mine - begin) * tile_tokens;
        const int stage = slot * Traits::warps + warp;
        const std::uint32_t at = stages + static_cast<std::uint32_t>(stage) * Traits::stage_bytes;
        wait_phase(shared_address(&shared.full[stage]), parity);
        attend(state, q, q_at, at, token, piece, last_visible);
        mine += Traits::warps;
        if (mine < end) {
          release(&shared.empty[stage]);
        } else {
          kept = static_cast<std::uint32_t>(stage);
        }
        if (++slot == args.depth) {
          slot = 0;
          parity ^= 1;
        }
      }
      if constexpr (!Traits::q_in_registers) { release(&shared.piece_empty[entry]); }
      finish(state, piece, begin, has_tiles, kept);
      begin = end;
      if (piece.last) { return; }
    }
  }

 private:
  __device__ __forceinline__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane == 0) { arrive(shared_address(barrier)); }
  }

  /// The 8 queries of column tile `n` as the right-hand side of S^T = K Q^T.
  __device__ __forceinline__ void load_queries(std::uint32_t (&q)[steps][2], std::uint32_t q_at, int n) const {
    const std::uint32_t start = q_at + Rows::template at<Traits::columns>(n * 8 + lane % 8, lane / 8);
#pragma unroll
    for (int s = 0; s < steps; s += 2) {
      // With an odd number of steps the last two matrices lie past the row; they are not used.
      std::uint32_t r[4];
      load_matrices(r, Rows::template step<Traits::columns, 2>(start, s / 2));
      q[s][0] = r[0];
      q[s][1] = r[1];
      if (s + 1 < steps) {
        q[s + 1][0] = r[2];
        q[s + 1][1] = r[3];
      }
    }
  }

  __device__ __forceinline__ void attend(WarpState<Traits>& state,
                                         const std::uint32_t (&q)[Traits::q_in_registers ? n_tiles : 1][steps][2],
                                         std::uint32_t q_at, std::uint32_t at, std::int32_t token, const Piece& piece,
                                         const std::int32_t (&last_visible)[n_tiles][2]) const {
    float scores[n_tiles][4];
    {
      float part[2][n_tiles][4] = {};  // two chains of products
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        std::uint32_t k[4];
        load_matrices(k, Rows::template step<tile_tokens, 1>(at + k_at, s));
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) {
          if constexpr (Traits::q_in_registers) {
            multiply_add<T>(part[s % 2][n], k, q[n][s][0], q[n][s][1]);
          } else {
            std::uint32_t r[4];
            const std::uint32_t start = q_at + Rows::template at<Traits::columns>(n * 8 + lane % 8, lane / 8 % 2);
            load_matrices(r, Rows::template step<Traits::columns, 1>(start, s));
            multiply_add<T>(part[s % 2][n], k, r[0], r[1]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) { scores[n][j] = (part[0][n][j] + part[1][n][j]) * args.scale_log2; }
      }
    }
    if (args.softcap_log2 > 0.0f) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // cap * tanh(x / cap) with tanh(y) = 1 - 2 / (e^2y + 1)
          const float y = scores[n][j] / args.softcap_log2 * (2.0f * 1.4426950408889634f);
          scores[n][j] = args.softcap_log2 * (1.0f - 2.0f / (exp2_fast(y) + 1.0f));
        }
      }
    }
    const std::int32_t window = args.batch.window;
    if (token + tile_tokens > piece.seq_len - piece.query_len + 1 || (window > 0 && token < piece.seq_len - window)) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::int32_t key = token + lane / 4 + j / 2 * 8;
          const std::int32_t last = last_visible[n][j % 2];
          if (key > last || (window > 0 && key <= last - window)) { scores[n][j] = -INFINITY; }
        }
      }
    }
    bool above = false;
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) { above |= scores[n][j] > state.maximum[n][j % 2] + headroom; }
    }
    if (__any_sync(0xffffffffu, above)) { state.raise_maximum(scores); }

    std::uint32_t weights[n_tiles][2];
    constexpr std::uint32_t all_ones[4] = {ones, ones, ones, ones};
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) { w[j] = exp2_fast(scores[n][j] - state.maximum[n][j % 2]); }
      weights[n][0] = transpose_matrix(pack2<T>(w[0], w[1]));
      weights[n][1] = transpose_matrix(pack2<T>(w[2], w[3]));
      // The sum of the weights as they were rounded, in every row.
      multiply_add<T>(state.totals[n], all_ones, weights[n][0], weights[n][1]);
    }
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      std::uint32_t v[4];
      load_matrices_transposed(v, Rows::template step<tile_tokens, 1>(at + v_at, s));
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) { multiply_add<T>(state.sums[s][n], v, weights[n][0], weights[n][1]); }
    }
  }

  /// Merges the sums of the warps, in the order of their tiles, into the output or, if the unit has other pieces, into a partial
  /// result; the thread block whose piece is done last merges these.
  __device__ __forceinline__ void finish(const WarpState<Traits>& state, const Piece& piece, std::int32_t begin, bool has_tiles,
                                         std::uint32_t kept) const {
    const std::int32_t columns = min(Traits::columns, piece.query_len * args.batch.group_size - piece.first_column);
    const int g = lane / 4, t = lane % 4;
    if (has_tiles) {
      __syncwarp();  // all lanes have read the tile whose place the sums take
      auto* const sums = reinterpret_cast<float*>(stage_pointer(kept));
      if (lane == 0) { shared.sums[warp] = kept; }
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = n * 8 + t * 2 + j;
          if (column >= columns) { continue; }
          if (g == 0) {
            shared.maximum[warp][column] = state.maximum[n][j];
            shared.total[warp][column] = state.totals[n][j];
          }
#pragma unroll
          for (int s = 0; s < steps; ++s) {
            sums[column * head_dim + s * 16 + g] = state.sums[s][n][j];
            sums[column * head_dim + s * 16 + g + 8] = state.sums[s][n][j + 2];
          }
        }
      }
    }
    sync_first<threads>();
    const int warps = min(Traits::warps, piece.num_tiles);
    float* const partial = partial_at(piece, piece.index);
    for (int i = static_cast<int>(threadIdx.x); i < columns * head_dim / 4; i += threads) {
      const int column = i / (head_dim / 4), element = i % (head_dim / 4) * 4;
      PartialSums<Traits::warps> sums;
#pragma unroll
      for (int w = 0; w < Traits::warps; ++w) {
        if (w < warps) {
          const int from = (begin + w) % Traits::warps;
          sums.load(w, shared.maximum[from][column], shared.total[from][column],
                    *reinterpret_cast<const float4*>(stage_pointer(shared.sums[from]) +
                                                     (column * head_dim + element) * int{sizeof(float)}));
        }
      }
      sums.add();
      if (piece.num_pieces == 1) {
        write(piece, column, element, sums);
      } else {
        *reinterpret_cast<float4*>(partial + column * head_dim + element) = sums.sum;
        if (element == 0) {
          *reinterpret_cast<float2*>(partial + Traits::columns * head_dim + column * 2) = make_float2(sums.maximum, sums.total);
        }
      }
    }
    sync_first<threads>();
    if (has_tiles && !piece.last) { release(&shared.empty[kept]); }
    if (piece.num_pieces == 1) { return; }

    if (threadIdx.x == 0) {
      unsigned* const arrivals = args.workspace.arrivals + piece.arrivals;
      const bool last = count_arrival(arrivals) == static_cast<unsigned>(piece.num_pieces - 1);
      if (last) { *arrivals = 0; }
      shared.merges = last;
    }
    sync_first<threads>();
    if (!shared.merges) { return; }
    for (int i = static_cast<int>(threadIdx.x); i < columns * head_dim / 4; i += threads) {
      merge(piece, i / (head_dim / 4), i % (head_dim / 4) * 4);
    }
  }

  /// Four elements of one query from the partial results of its unit, in the order of the keys.
  __device__ __forceinline__ void merge(const Piece& piece, int column, int element) const {
    constexpr int batch = 8;
    PartialSums<batch> sums;
    for (std::int32_t first = 0; first < piece.num_pieces; first += batch) {
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        sums.clear(i);
        if (first + i < piece.num_pieces) {
          const float* const from = partial_at(piece, first + i);
          const float2 weight = __ldcg(reinterpret_cast<const float2*>(from + Traits::columns * head_dim + column * 2));
          sums.load(i, weight.x, weight.y, __ldcg(reinterpret_cast<const float4*>(from + column * head_dim + element)));
        }
      }
      sums.add();
    }
    write(piece, column, element, sums);
  }

  template <int kParts>
  __device__ __forceinline__ void write(const Piece& piece, int column, int element, const PartialSums<kParts>& sums) const {
    const std::int32_t group = args.batch.group_size;
    const std::int32_t query = args.batch.group.divide(piece.first_column + column);
    const std::int32_t head = piece.kv_head * group + piece.first_column + column - query * group;
    const std::int64_t row = std::int64_t{piece.query_row + query} * args.batch.num_kv_heads * group + head;
    const float scale = 1.0f / sums.total;
    *reinterpret_cast<uint2*>(args.out + row * head_dim + element) =
        make_uint2(pack2<T>(sums.sum.x * scale, sums.sum.y * scale), pack2<T>(sums.sum.z * scale, sums.sum.w * scale));
  }

  __device__ __forceinline__ unsigned char* stage_pointer(std::uint32_t stage) const {
    return reinterpret_cast<unsigned char*>(&shared + 1) + stage * Traits::stage_bytes;
  }
  __device__ __forceinline__ float* partial_at(const Piece& piece, std::int32_t index) const {
    const std::int64_t at = index == 0 ? piece.first_partial : piece.next_partial + index;
    return args.workspace.partials + at * Traits::partial_floats;
  }
};

template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads, Traits::blocks_per_sm)
    paged_decode_kernel(const __grid_constant__ KernelArgs<typename Traits::Element> args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<SharedStorage<Traits>*>(memory);
  const std::uint32_t stages = shared_address(memory) + static_cast<std::uint32_t>(sizeof(SharedStorage<Traits>));
  if (threadIdx.x / 32 == Traits::warps) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int i = lane; i < args.depth * Traits::warps; i += 32) {
      init_barrier(shared_address(&shared.full[i]), 32);  // the lanes that copy
      init_barrier(shared_address(&shared.empty[i]), 1);
    }
    if (lane < 2) {
      init_barrier(shared_address(&shared.piece_full[lane]), 33);  // likewise, and lane 0 for what it writes itself
      init_barrier(shared_address(&shared.piece_empty[lane]), Traits::warps);
    }
  }
  __syncthreads();
  if (threadIdx.x / 32 >= Traits::warps) {
    Producer<Traits>{args, shared, stages}.run();
  } else {
    Consumer<Traits>{args, shared, stages}.run();
  }
}

#endif

}  // namespace kernels::detail::paged_decode
}  // namespace nvl::inline NVL_ABI
