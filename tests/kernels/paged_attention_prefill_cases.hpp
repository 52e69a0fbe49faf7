#pragma once
/// Shapes of prefill attention that its test checks and its benchmark times.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nvl_test {

struct PrefillSequence {
  std::int32_t query_len = 0;  // [tokens] computed in this step
  std::int32_t seq_len = 0;    // [tokens] visible to the last of them
};

struct PrefillCase {
  std::string name = {};
  std::vector<PrefillSequence> sequences = {};
  std::int32_t num_q_heads = 2;
  std::int32_t num_kv_heads = 1;
  std::int32_t head_dim = 128;
  std::int32_t block_size = 16;
  std::int32_t window = 0;
  float softcap = 0.0f;
  std::int32_t min_query_len = 0;
  std::int32_t padding_tokens = 0;   // rows of q and out after the last sequence's
  std::int64_t extra_stride = 0;     // [elements] between one token's heads and the next token's
  std::int64_t first_block = 0;      // unused blocks before those of the sequences
  bool device_block_stride = false;  // the row stride of block_tables is read on the device
};

/// Lengths around tiles and blocks, whole prompts and chunks.
inline std::vector<PrefillSequence> odd_sequences() {
  return {{1, 1},  {15, 15},   {16, 16},   {17, 33},   {63, 200}, {64, 64},  {65, 65},
          {0, 77}, {127, 127}, {128, 300}, {129, 129}, {2, 257},  {190, 511}};
}

/// As steps that are padded for a graph have them: sequences that see no key, with and without queries, among others.
inline std::vector<PrefillSequence> sequences_with_padding() {
  return {{3, 0}, {65, 65}, {1, 0}, {0, 0}, {17, 33}, {0, 40}, {300, 0}, {2, 257}, {1, 0}, {1, 0}};
}

inline std::vector<PrefillCase> prefill_test_cases(std::int32_t head_dim) {
  const std::int32_t d = head_dim;
  return {
      {.name = "odd lengths, GQA 2", .sequences = odd_sequences(), .num_q_heads = 4, .num_kv_heads = 2, .head_dim = d},
      {.name = "GQA 1", .sequences = odd_sequences(), .num_q_heads = 2, .num_kv_heads = 2, .head_dim = d, .extra_stride = 64},
      {.name = "GQA 3", .sequences = odd_sequences(), .num_q_heads = 9, .num_kv_heads = 3, .head_dim = d, .padding_tokens = 9},
      {.name = "GQA 4, blocks of 32", .sequences = odd_sequences(), .num_q_heads = 4, .head_dim = d, .block_size = 32},
      {.name = "GQA 7, blocks of 64", .sequences = odd_sequences(), .num_q_heads = 7, .head_dim = d, .block_size = 64},
      {.name = "GQA 8, blocks of 256", .sequences = odd_sequences(), .num_q_heads = 8, .head_dim = d, .block_size = 256},
      {.name = "blocks of 128",
       .sequences = odd_sequences(),
       .num_q_heads = 4,
       .num_kv_heads = 2,
       .head_dim = d,
       .block_size = 128},
      {.name = "window 1", .sequences = odd_sequences(), .num_q_heads = 3, .head_dim = d, .window = 1},
      {.name = "window 100", .sequences = odd_sequences(), .num_q_heads = 4, .num_kv_heads = 2, .head_dim = d, .window = 100},
      {.name = "soft-cap", .sequences = odd_sequences(), .num_q_heads = 2, .head_dim = d, .softcap = 2.0f},
      {.name = "soft-cap and window", .sequences = {{300, 700}}, .num_q_heads = 2, .head_dim = d, .window = 64, .softcap = 20.0f},
      {.name = "short sequences left out", .sequences = odd_sequences(), .num_q_heads = 2, .head_dim = d, .min_query_len = 3},
      {.name = "padding among others", .sequences = sequences_with_padding(), .num_q_heads = 4, .num_kv_heads = 2, .head_dim = d},
      {.name = "stride on the device", .sequences = odd_sequences(), .head_dim = d, .device_block_stride = true},
      {.name = "one token", .sequences = {{1, 1}}, .head_dim = d},
      {.name = "one token of many", .sequences = {{1, 1000}}, .num_q_heads = 8, .head_dim = d},
      {.name = "one long chunk", .sequences = {{700, 3001}, {5, 5}}, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = d},
  };
}

/// Few and small ones that take every way through the kernels, for tools that are slow.
inline std::vector<PrefillCase> small_prefill_cases(std::int32_t head_dim) {
  const std::int32_t d = head_dim;
  const std::vector<PrefillSequence> sequences = {{3, 0}, {65, 65}, {1, 0}, {17, 33}, {0, 40}, {129, 190}, {2, 257}, {1, 0}};
  return {{.name = "small, GQA 3", .sequences = sequences, .num_q_heads = 3, .head_dim = d, .padding_tokens = 9},
          {.name = "small, blocks of 64, window",
           .sequences = sequences,
           .num_q_heads = 2,
           .head_dim = d,
           .block_size = 64,
           .window = 50,
           .device_block_stride = true},
          {.name = "small, soft-cap", .sequences = sequences, .head_dim = d, .softcap = 2.0f, .min_query_len = 3}};
}

/// The peers' table: 16,384 tokens in all, heads 32/8 or 16/8. FlashAttention 3 on an H200, K and V in pages of 16 (µs).
struct PrefillBenchCase {
  PrefillCase shape;
  double peer_us = 0.0;
};

inline std::vector<PrefillBenchCase> prefill_bench_cases() {
  std::vector<PrefillBenchCase> cases;
  struct Peer {
    std::int32_t q_heads, head_dim, length;
    double us;
  };
  for (const Peer& peer : {Peer{32, 128, 512, 237}, Peer{32, 128, 1024, 350}, Peer{32, 128, 2048, 578}, Peer{32, 128, 4096, 1035},
                           Peer{32, 128, 8192, 1938}, Peer{16, 128, 512, 136}, Peer{16, 128, 1024, 186}, Peer{16, 128, 2048, 302},
                           Peer{16, 128, 4096, 531}, Peer{16, 128, 8192, 992}, Peer{32, 64, 512, 171}, Peer{32, 64, 1024, 241},
                           Peer{32, 64, 2048, 364}, Peer{32, 64, 4096, 642}, Peer{32, 64, 8192, 1191}}) {
    PrefillCase shape{
        .name = "S " + std::to_string(peer.length), .num_q_heads = peer.q_heads, .num_kv_heads = 8, .head_dim = peer.head_dim};
    shape.sequences.assign(static_cast<std::size_t>(16384 / peer.length), {peer.length, peer.length});
    cases.push_back({shape, peer.us});
  }
  return cases;
}

}  // namespace nvl_test
