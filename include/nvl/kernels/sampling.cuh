#pragma once
/// Logits to tokens: the most likely token, or a draw from softmax(logits / temperature), with everything a
/// SamplingRow asks for.
///
/// The draw is that of ops/cpu_sampler.hpp: the first token, by ascending id, at which the cumulated probability exceeds
/// uniform(seed, choice, output_index). One random number a row, one exponential a logit; Gumbel-max would need a random number
/// and two logarithms a logit, which is more than the memory's time. Chunks of a row are summed by warps, then one warp
/// finds the chunk and the token in it. The result of a row is a function of the row alone, bit for bit, whatever the batch.
///
/// Two kernels: `launch_sample_plain` for rows of which needs_general_sampling() is false, `launch_sample_general` for any.
/// Oracle: kernels/reference/sampling.hpp.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/philox.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/sampling_adjust.cuh>
#include <nvl/kernels/detail/sampling_chunk.cuh>
#include <nvl/kernels/detail/sampling_cut.cuh>
#include <nvl/kernels/detail/sampling_sort.cuh>
#include <nvl/kernels/detail/sampling_work.cuh>
#include <nvl/kernels/sampling_result.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// [logits] of the longest row.
inline constexpr int max_sampled_vocab = 32 * detail::max_chunks_per_lane * detail::chunk_logits;

/// Run-time values of both kernels. All pointers are device memory. Rows of padding hold SamplingRow{} or any row that
/// was valid.
template <class T>
struct SampleParams {
  const T* logits = nullptr;              // [num_rows, vocab]
  std::int64_t row_stride = 0;            // [elements] from row to row of logits
  const SamplingRow* rows = nullptr;      // [num_rows]
  const LogitBias* logit_bias = nullptr;  // flat, as in StepInput; the plain kernel reads none of these three
  const TokenId* banned = nullptr;
  const TokenId* history = nullptr;
  TokenId* tokens = nullptr;             // [num_rows] the sampled ids alone, for the next step
  SampledRow* results = nullptr;         // [num_rows]
  TokenLogprob* top_logprobs = nullptr;  // [num_rows, max_top_logprobs]; null if max_top_logprobs is 0
  void* workspace = nullptr;             // sampling_workspace_bytes(), general kernel only; need not be initialised
  int max_top_logprobs = 0;              // SamplingRow::num_logprobs beyond it count as it
  int num_rows = 0;                      // 0 is legal: nothing is launched
  int vocab = 0;                         // [logits] of a row
  bool overlap_previous = true;
};

/// Compile-time choices.
template <class T, int kThreads = 1024, int kBlocksPerSm = 1>
struct SamplePlainTraits {
  using Element = T;
  static constexpr int threads = kThreads;
  static constexpr int warps = kThreads / 32;
  static constexpr int blocks_per_sm = kBlocksPerSm;  // that registers must suffice for
  static constexpr int max_splits = 8;                // [blocks] of a row: a cluster that every GPU with clusters can hold
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "nvl: SamplePlainTraits needs whole warps, at most 1024 threads");
};

template <class T, int kThreads = 512>
struct SampleGeneralTraits {
  using Element = T;
  static constexpr int threads = kThreads;  // [threads] of a row
  static constexpr int warps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "nvl: SampleGeneralTraits needs whole warps, at most 1024 threads");
};

namespace detail {

#if defined(__CUDACC__)

/// Where the warps of a row's blocks leave what they know of their chunks: in the shared memory of the first block of the
/// cluster. On GPUs without clusters a row has one block.
struct ChunkStats {
  float2* stats;           // [num_chunks] max and sum, in this block's memory
  std::uint64_t* barrier;  // in this block's memory: completes when the first block has them all
  bool is_cluster;         // more than one block

  /// By all threads, once, before anything is stored.
  __device__ __forceinline__ void prepare(bool is_first_block) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (!is_cluster) { return; }
    if (is_first_block && threadIdx.x == 0) {
      asm volatile(
          "mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
          "fence.mbarrier_init.release.cluster;" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier)))
          : "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
  }
  /// By all threads, once: the first block is ready for stores, `num_chunks` of them.
  __device__ __forceinline__ void wait_until_prepared(int num_chunks, bool is_first_block) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (!is_cluster) { return; }
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (is_first_block && threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                       static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))),
                   "r"(num_chunks * 8)
                   : "memory");
    }
#endif
  }
  __device__ __forceinline__ void store(int c, ChunkStat stat) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (is_cluster) {
      const auto in_first_block = [](const void* p) {
        std::uint32_t address;
        asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(address) : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(p))));
        return address;
      };
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(in_first_block(stats + c)),
          "f"(stat.max), "f"(stat.sum), "r"(in_first_block(barrier))
          : "memory");
      return;
    }
#endif
    stats[c] = make_float2(stat.max, stat.sum);
  }
  /// By the threads of the first block: returns when all are stored.
  __device__ __forceinline__ void wait_for_all() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (is_cluster) {
      const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier));
      std::uint32_t is_complete = 0;
      while (is_complete == 0) {
        asm volatile(
            "{\n\t.reg .pred complete;\n\t"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], 0;\n\t"
            "selp.u32 %0, 1, 0, complete;\n\t}"
            : "=r"(is_complete)
            : "r"(address)
            : "memory");
      }
      return;
    }
#endif
    __syncthreads();
  }
};

/// log2(e) / temperature as a float that never makes 0 * scale a NaN; temperature 0 counts as 1.
__device__ __forceinline__ float logit_scale(float temperature) {
  return temperature == 0.0f ? 1.44269504f : fminf(__fdiv_rn(1.44269504f, temperature), 3e38f);
}

template <class T>
__device__ __forceinline__ LogitRow<T> logit_row(const SampleParams<T>& p, int row) {
  const T* const logits = p.logits + static_cast<std::int64_t>(row) * p.row_stride;
  return {logits, p.vocab, reinterpret_cast<std::uintptr_t>(logits) % 16 == 0};
}

/// The token of a row without truncation, from what is known of its chunks. By one warp. `with_runs(chunk, f)` calls
/// `f(value, lane_max)` with the lane's logits of a chunk in runs; `u`: the row's random number; `stat_of(c)`: max and sum.
template <class StatOf, class WithRuns, class ValueAt>
__device__ __forceinline__ PickedToken pick_from_all(bool is_greedy, double u, StatOf&& stat_of, int n, float max, float scale,
                                                     WithRuns&& with_runs, ValueAt&& value_at) {
  PickedToken token{};
  if (is_greedy) {
    const int chunk = first_chunk_with([&](int c) { return stat_of(c).x; }, n, max);
    with_runs(chunk, [&](auto&&, float lane_max) { token = pick_largest(chunk, lane_max, max, value_at); });
    return token;
  }
  LaneMasses masses;
  masses.fill(n, [&](int c) {
    const float2 stat = stat_of(c);
    return stat.y * logit_weight(stat.x, max, scale);
  });
  const Picked picked = masses.pick(u);
  with_runs(picked.index,
            [&](auto&& value, float) { token = pick_token(picked.index, picked.rest, max, scale, all_lanes, value, value_at); });
  return token;
}

/// `splits` blocks, one cluster, share a row; warp w of block b takes the chunks b * warps + w, and so on.
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads, Traits::blocks_per_sm)
    sample_plain_kernel(const __grid_constant__ SampleParams<typename Traits::Element> p, int splits) {
  using T = typename Traits::Element;
  extern __shared__ std::uint64_t shared_words[];
  const int n = num_chunks(p.vocab);
  ChunkStats chunks{.stats = reinterpret_cast<float2*>(shared_words + 1), .barrier = shared_words, .is_cluster = splits > 1};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row_index = static_cast<int>(blockIdx.x) / splits, split = static_cast<int>(blockIdx.x) % splits;
  chunks.prepare(split == 0);
  wait_for_previous();
  let_next_start();

  const SamplingRow& options = p.rows[row_index];
  const bool is_greedy = options.temperature == 0.0f;
  const float scale = logit_scale(options.temperature);
  const LogitRow<T> row = logit_row(p, row_index);
  for_each_chunk(
      row, split * Traits::warps + warp, splits * Traits::warps, n, [&] { chunks.wait_until_prepared(n, split == 0); },
      [&](int c, const LogitChunk<T>& chunk) {
        const ChunkStat stat =
            chunk_stat(chunk.max(), chunk.is_finite(), !is_greedy, scale, [&](int i) { return chunk.element(i); });
        if (lane == 0) { chunks.store(c, stat); }
      });
  if (split != 0) { return; }
  double u = 0;
  if (warp == 0 && !is_greedy) { u = uniform(options.seed, options.choice, options.output_index); }
  chunks.wait_for_all();
  if (warp != 0) { return; }

  bool is_finite = false;
  const float2* const stats = chunks.stats;
  const float max = row_max([&](int c) { return stats[c].x; }, n, is_finite);
  int token = 0;
  if (is_finite) {
    token = pick_from_all(
                is_greedy, u, [&](int c) { return stats[c]; }, n, max, scale,
                [&](int picked, auto&& f) {
                  LogitChunk<T, ChunkOrder::runs> runs;
                  runs.load(row, picked, lane);
                  f([&](int i) { return runs.element(i); }, runs.max());
                },
                [&](int id) { return row.at(id); })
                .id;
  }
  if (lane == 0) {
    p.tokens[row_index] = token;
    p.results[row_index] = {token, 0.0f, is_finite ? 1 : 0, 0};
  }
}

#endif

/// Places the arrays of RowWork in dynamic shared memory. Called with null, it only counts: returns the bytes.
template <class T>
struct GeneralMemory {
  RowWork<T> work{};
  AdjustMemory adjust{};

  NVL_HOST_DEVICE std::size_t place(std::byte* base, int num_chunks, int values_capacity) {
    std::size_t offset = 0;
    const auto take = [&](auto*& array, std::size_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(base + offset);
      offset += (count * sizeof(*array) + 15) / 16 * 16;
    };
    const auto n = static_cast<std::size_t>(num_chunks);
    take(work.shared, 1);
    take(work.mirror, 1);
    take(work.candidates, max_candidates);
    take(work.bins, num_value_bins);
    take(work.maxima, n);
    take(work.sums, n);
    take(work.group_max, n * 32);
    take(adjust.bits, n * chunk_bit_words);
    take(adjust.ranks, n * chunk_bit_words);
    take(adjust.values, static_cast<std::size_t>(values_capacity));
    adjust.capacity = values_capacity;
    return offset;
  }
};

#if defined(__CUDACC__)

/// The key that min-p asks for: of the least float whose probability is at least min_p times the largest one.
__device__ inline std::uint32_t min_p_key(float max, float temperature, float min_p) {
  const double inverse = 1.0 / double{temperature};
  const double least = log(fmin(double{min_p}, 1.0));
  const auto passes = [&](std::uint32_t key) { return (double{logit_of_key(key)} - double{max}) * inverse >= least; };
  const double estimate = fmax(double{max} + least * double{temperature}, double{lowest_logit});
  std::uint32_t key = min(logit_key(static_cast<float>(estimate)), logit_key(max));
  for (int i = 0; i < 4 && key > lowest_key && passes(key - 1); ++i) { --key; }
  for (int i = 0; i < 4 && !passes(key); ++i) { ++key; }
  return min(key, logit_key(max));
}

/// The token of one row that top-k, top-p or min-p truncate, into shared.picked. `num_sorted` of the most likely tokens are in
/// work.candidates, all of them if `is_all`; none if 0. By the whole block.
template <int threads, class T>
__device__ __noinline__ void draw_truncated(const RowWork<T>* mirror, const SamplingRow& options, int num_sorted, bool is_all) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  RowShared& shared = *work.shared;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const float max = shared.summary.max;
  const bool has_top_k = options.top_k > 0 && options.top_k < work.row.vocab;
  const bool has_top_p = options.top_p < 1.0f;
  const double u = shared.uniform;
  const std::uint32_t min_key = options.min_p > 0.0f ? min_p_key(max, options.temperature, options.min_p) : lowest_key;

  if (num_sorted > 0) {
    if (thread < 32) {  // by likelihood: where the kept tokens end
      const auto weight = [&](int i) { return logit_weight(candidate_logit(work.candidates[i]), max, work.scale); };
      int kept = has_top_k ? min(options.top_k, num_sorted) : num_sorted;
      const int per_lane = (kept + 31) / 32;
      const int begin = min(lane * per_lane, kept), end = min(begin + per_lane, kept);
      bool is_enough = has_top_k || is_all || !has_top_p;
      if (has_top_p) {
        double own = 0;
        for (int i = begin; i < end; ++i) { own += double{weight(i)}; }
        const double inclusive = warp_prefix_sum(own);
        const double total = has_top_k ? __shfl_sync(all_lanes, inclusive, 31) : shared.summary.total;
        const double wanted = total * double{options.top_p};
        const std::uint32_t reached = __ballot_sync(all_lanes, inclusive >= wanted);
        if (reached != 0) {
          is_enough = true;
          const int source = __ffs(static_cast<int>(reached)) - 1;
          double sum = inclusive - own;
          int count = begin;
          while (count < end && sum < wanted) { sum += double{weight(count++)}; }
          kept = ::max(__shfl_sync(all_lanes, count, source), 1);
        }
      }
      int last = 0;  // min-p keeps a run, too
      for (int i = lane; i < kept; i += 32) {
        if (~static_cast<std::uint32_t>(work.candidates[i] >> 32) >= min_key) { last = i + 1; }
      }
      kept = static_cast<int>(__reduce_max_sync(all_lanes, static_cast<unsigned>(last)));
      if (lane == 0) { shared.num_kept = is_enough ? kept : 0; }
    }
    __syncthreads();
    const int kept = shared.num_kept;
    if (kept > 0) {
      for (int i = thread; i < kept; i += threads) {  // by id
        const std::uint64_t c = work.candidates[i];
        work.candidates[i] = (c << 32) | __float_as_uint(candidate_logit(c));
      }
      sort_block<threads>(work.candidates, kept);
      if (thread < 32) {
        const auto logit = [&](int i) { return __uint_as_float(static_cast<std::uint32_t>(work.candidates[i])); };
        const int picked = pick_item(u, kept, [&](int i) { return logit_weight(logit(i), max, work.scale); });
        if (lane == 0) { shared.picked = {static_cast<int>(work.candidates[picked] >> 32), logit(picked)}; }
      }
      __syncthreads();
      return;
    }
  }

  const std::uint32_t max_key = logit_key(max);
  LogitCut cut{lowest_key, all_ties};
  double total = shared.summary.total;
  if (has_top_k) {
    cut = find_cut<threads, false>(work, double(options.top_k),
                                   bound_from_groups<threads>(work, static_cast<std::uint32_t>(options.top_k)), max_key);
    if (has_top_p) {
      weigh_chunks<threads>(work.mirror, cut, work.sums);
      const double tie_weight = logit_weight(logit_of_key(cut.key), max, work.scale);
      double own = 0;
      for (int c = thread; c < num_chunks(work.row.vocab); c += threads) {
        own += double{work.sums[c]} + double(work.bins[c]) * tie_weight;
      }
      total = block_total<threads>(own, shared.double_scratch);
    }
  }
  if (has_top_p) {
    // Tokens further than this below the largest weigh less than 1 - top_p together.
    const double farthest = log(double(work.row.vocab) / ((1.0 - double{options.top_p}) * total)) * 1.0001 + 1e-3;
    const double least = fmax(double{max} - farthest * double{options.temperature}, double{lowest_logit});
    const std::uint32_t low = ::max(cut.key, logit_key(static_cast<float>(least)));
    const LogitCut by_mass = find_cut<threads, true>(work, total * double{options.top_p}, low, max_key);
    if (by_mass.key > cut.key || by_mass.ties < cut.ties) { cut = by_mass; }
  }
  if (min_key > cut.key) { cut = {min_key, all_ties}; }
  draw_above_cut<threads>(work.mirror, cut, u);
}

/// The token of a row that nothing truncates, into shared.picked. By one warp.
template <class T>
__device__ __noinline__ void pick_untruncated(const RowWork<T>* mirror, bool is_greedy) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  const PickedToken picked = pick_from_all(
      is_greedy, work.shared->uniform, [&](int c) { return make_float2(work.maxima[c], work.sums[c]); },
      num_chunks(work.row.vocab), work.shared->summary.max, work.scale,
      [&](int chunk, auto&& f) {
        with_chunk<ChunkOrder::runs>(work.row, work.adjust, chunk, [&](auto&& value, float max, bool) { f(value, max); });
      },
      [&](int id) { return logit_at(work.row, work.adjust, id); });
  if (threadIdx.x % 32 == 0) { work.shared->picked = picked; }
}

template <class T>
__device__ __forceinline__ RowLists row_lists(const SampleParams<T>& p, const SamplingRow& options) {
  const auto size = [](IndexRange r) { return static_cast<int>(r.end - r.begin); };
  const bool has_penalty =
      options.repetition_penalty != 1.0f || options.presence_penalty != 0.0f || options.frequency_penalty != 0.0f;
  return {.bias = p.logit_bias + options.bias.begin,
          .banned = p.banned + options.banned.begin,
          .history = p.history + options.history.begin,
          .num_bias = size(options.bias),
          .num_banned = size(options.banned),
          .num_history = has_penalty ? size(options.history) : 0,
          .num_prompt = static_cast<int>(options.num_prompt),
          .has_penalty = has_penalty};
}

/// Each block takes one row after another.
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads)
    sample_general_kernel(const __grid_constant__ SampleParams<typename Traits::Element> p, int values_capacity) {
  using T = typename Traits::Element;
  constexpr int threads = Traits::threads;
  extern __shared__ std::uint64_t shared_words[];
  GeneralMemory<T> memory;
  memory.place(reinterpret_cast<std::byte*>(shared_words), num_chunks(p.vocab), values_capacity);
  RowWork<T>& work = memory.work;
  RowShared& shared = *work.shared;
  memory.adjust.scratch = shared.word_scratch;
  memory.adjust.overflow =
      static_cast<float*>(p.workspace) + static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(p.vocab);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int n = num_chunks(p.vocab);
  wait_for_previous();
  let_next_start();

  for (int row_index = static_cast<int>(blockIdx.x); row_index < p.num_rows; row_index += static_cast<int>(gridDim.x)) {
    const SamplingRow& options = p.rows[row_index];
    const bool is_greedy = options.temperature == 0.0f;
    const bool wants_logprobs = options.num_logprobs >= 0;
    const bool truncates = !is_greedy && (options.top_k > 0 || options.top_p < 1.0f || options.min_p > 0.0f);
    work.row = logit_row(p, row_index);
    work.scale = logit_scale(options.temperature);
    work.adjust = {};
    const RowLists lists = row_lists(p, options);
    if (lists.num_bias + lists.num_banned > 0 || lists.has_penalty) {
      work.adjust = build_adjustments<threads>(work.row, options, lists, memory.adjust);
    }

    if (thread == 0) { *work.mirror = work; }
    __syncthreads();
    if (thread == threads - 1 && !is_greedy) { shared.uniform = uniform(options.seed, options.choice, options.output_index); }
    if (work.adjust.any()) {
      scan_adjusted_row<Traits::warps>(work.mirror, !is_greedy || wants_logprobs);
    } else {
      scan_row<Traits::warps>(work.mirror, !is_greedy || wants_logprobs);
    }
    __syncthreads();
    if (warp == 0) {
      RowSummary summary{};
      summary.max = row_max([&](int c) { return work.maxima[c]; }, n, summary.is_finite);
      LaneMasses masses;
      masses.fill(n, [&](int c) { return work.sums[c] * logit_weight(work.maxima[c], summary.max, work.scale); });
      summary.total = warp_total(double{masses.sum()});
      if (lane == 0) { shared.summary = summary; }
    }
    __syncthreads();
    const RowSummary summary = shared.summary;
    if (!summary.is_finite) {
      if (thread == 0) {
        p.tokens[row_index] = 0;
        p.results[row_index] = {0, 0.0f, 0, 0};
      }
      __syncthreads();
      continue;
    }

    const double log_total = wants_logprobs ? log(summary.total) : 0.0;
    const double inverse = is_greedy ? 1.0 : 1.0 / double{options.temperature};
    const auto logprob = [&](float x) {
      return static_cast<float>(fmax((double{x} - double{summary.max}) * inverse - log_total, double{lowest_logit}));
    };

    if (!truncates && warp == 0) { pick_untruncated(work.mirror, is_greedy); }
    // The most likely tokens in order, as many as the log-probabilities and the truncation ask for.
    const int num_top = min(max(options.num_logprobs, 0), p.max_top_logprobs);
    const bool has_top_k = options.top_k > 0 && options.top_k < p.vocab;
    int wanted = num_top;
    bool draws_from_sorted = false;
    if (truncates && (has_top_k ? options.top_k <= max_sorted_wanted : options.top_p < 1.0f)) {
      draws_from_sorted = true;
      wanted = max(wanted, has_top_k ? options.top_k : nucleus_guess);
    }
    bool is_all = false;
    const bool only_for_top_p = draws_from_sorted && !has_top_k && num_top == 0;
    const double least_mass = only_for_top_p ? summary.total * double{options.top_p} : 0.0;
    const int num_sorted = wanted > 0 ? sort_most_likely<threads>(work, wanted, least_mass, is_all) : 0;
    const int num_written = min(num_top, num_sorted);
    for (int i = thread; i < num_written; i += threads) {
      const std::uint64_t c = work.candidates[i];
      p.top_logprobs[static_cast<std::int64_t>(row_index) * p.max_top_logprobs + i] = {candidate_id(c),
                                                                                       logprob(candidate_logit(c))};
    }
    __syncthreads();
    if (truncates) { draw_truncated<threads>(work.mirror, options, draws_from_sorted ? num_sorted : 0, is_all); }
    if (thread == 0) {
      const PickedToken picked = shared.picked;
      p.tokens[row_index] = picked.id;
      p.results[row_index] = {picked.id, wants_logprobs ? logprob(picked.logit) : 0.0f, 1, num_written};
    }
    __syncthreads();
  }
}

#endif

/// How many clusters of such a launch run at once.
template <class Kernel>
int max_active_clusters(const LaunchConfig& config, Kernel kernel) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = config.cluster_size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t c{};
  c.gridDim = config.grid;
  c.blockDim = config.block;
  c.dynamicSmemBytes = config.shared_bytes;
  c.attrs = &attribute;
  c.numAttrs = 1;
  int count = 0;
  NVL_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel, &c));
  return count;
}

template <class T>
void check_sample_params(const SampleParams<T>& p) {
  NVL_EXPECTS(p.vocab > 0 && p.vocab <= max_sampled_vocab, "sampling vocab", p.vocab,
              "1 to " + std::to_string(max_sampled_vocab));
  NVL_EXPECTS(p.num_rows >= 0, "sampling num_rows", p.num_rows, "at least 0");
  NVL_EXPECTS(p.row_stride >= p.vocab, "sampling row_stride", p.row_stride, "at least vocab");
  NVL_EXPECTS(p.max_top_logprobs >= 0 && (p.max_top_logprobs == 0 || p.top_logprobs != nullptr), "sampling max_top_logprobs",
              p.max_top_logprobs, "0, or positive with memory for them");
}

}  // namespace detail

#if defined(__CUDACC__)

/// Samples any rows. Checks, configures, launches. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_sample_general(const SampleParams<typename Traits::Element>& p, cudaStream_t stream) {
  detail::check_sample_params(p);
  NVL_EXPECTS(p.max_top_logprobs <= detail::max_sorted_wanted, "sampling max_top_logprobs", p.max_top_logprobs,
              "at most " + std::to_string(detail::max_sorted_wanted));
  NVL_EXPECTS(p.num_rows == 0 || p.workspace != nullptr, "bytes of sampling workspace", 0, "sampling_workspace_bytes()");
  if (p.num_rows == 0) { return; }
  int device = 0, max_shared = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  // Changed logits are kept in shared memory as far as it reaches, beyond in the workspace.
  int capacity = 8192;
  const auto bytes = [&] {
    return detail::GeneralMemory<typename Traits::Element>{}.place(nullptr, detail::num_chunks(p.vocab), capacity);
  };
  while (capacity > 0 && bytes() > static_cast<std::size_t>(max_shared)) { capacity /= 2; }
  NVL_EXPECTS(bytes() <= static_cast<std::size_t>(max_shared), "sampling vocab", p.vocab, "less: shared memory is full");
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(p.num_rows, max_general_sampling_blocks))),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = bytes(),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, detail::sample_general_kernel<Traits>, p, capacity));
}

/// Samples rows of which needs_general_sampling() is false; of other rows only temperature, seed, choice and
/// output_index count.
/// Checks, configures, launches. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_sample_plain(const SampleParams<typename Traits::Element>& p, cudaStream_t stream) {
  detail::check_sample_params(p);
  if (p.num_rows == 0) { return; }
  const auto kernel = detail::sample_plain_kernel<Traits>;
  const int n = detail::num_chunks(p.vocab);
  // As many blocks a row as run all at once, if the code in use can run clusters.
  cudaFuncAttributes attributes{};
  NVL_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  int splits = attributes.binaryVersion >= 90 ? Traits::max_splits : 1;
  const auto config_of = [&](int blocks) {
    return detail::LaunchConfig{.grid = dim3(static_cast<unsigned>(p.num_rows * blocks)),
                                .block = dim3(Traits::threads),
                                .shared_bytes = (static_cast<std::size_t>(n) + 1) * sizeof(std::uint64_t),
                                .stream = stream,
                                .cluster_size = static_cast<unsigned>(blocks),
                                .overlap_previous = p.overlap_previous};
  };
  while (splits > 1 &&
         ((splits / 2) * Traits::warps >= n || detail::max_active_clusters(config_of(splits), kernel) < p.num_rows)) {
    splits /= 2;
  }
  const detail::LaunchConfig config = config_of(splits);
  NVL_CUDA_CHECK(detail::launch(config, kernel, p, splits));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
