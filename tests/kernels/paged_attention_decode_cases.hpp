#pragma once
/// Shapes of paged decode attention that tests and benchmarks read.

#include <cstdint>
#include <string>
#include <vector>

namespace nvl_test {

struct DecodeSequence {
  std::int32_t seq_len = 0;
  std::int32_t query_len = 1;
};

struct DecodeCase {
  std::string name;
  std::int32_t num_q_heads = 0, num_kv_heads = 0, head_dim = 0, block_size = 16;
  std::vector<DecodeSequence> sequences;
  std::int32_t max_query_len = 1;
  std::int32_t window = 0;
  float softcap = 0.0f;
  std::int32_t split_tokens = 0;
  std::int32_t extra_stride = 0;  // [elements] between rows of q, beyond the heads
  std::int32_t padding_seqs = 0;  // of length 0, after the sequences
  std::int64_t first_block = 0;   // the pool begins with so many blocks that nobody uses
};

inline std::vector<DecodeSequence> decode_sequences(std::vector<std::int32_t> seq_lens, std::int32_t query_len = 1) {
  std::vector<DecodeSequence> sequences;
  for (const std::int32_t n : seq_lens) { sequences.push_back({n, query_len}); }
  return sequences;
}

/// Lengths spread evenly over [low, high], in an order that looks random and is always the same.
inline std::vector<DecodeSequence> mixed_decode_sequences(std::int32_t count, std::int32_t low, std::int32_t high) {
  std::vector<DecodeSequence> sequences;
  for (std::int32_t i = 0; i < count; ++i) {
    const auto place = static_cast<std::int32_t>(static_cast<std::int64_t>(i) * 7919 % count);
    sequences.push_back(
        {low + static_cast<std::int32_t>(static_cast<std::int64_t>(place) * (high - low) / (count > 1 ? count - 1 : 1)), 1});
  }
  return sequences;
}

/// Shapes whose results are compared with the oracle.
inline std::vector<DecodeCase> decode_test_cases() {
  std::vector<DecodeCase> cases;
  const auto add = [&](DecodeCase c) { cases.push_back(std::move(c)); };
  const auto edges = decode_sequences({1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 300});
  add({.name = "edges of tiles", .num_q_heads = 16, .num_kv_heads = 8, .head_dim = 128, .sequences = edges});
  add({.name = "one token", .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 128, .sequences = decode_sequences({1})});
  add({.name = "one long sequence",
       .num_q_heads = 16,
       .num_kv_heads = 8,
       .head_dim = 128,
       .sequences = decode_sequences({4097})});
  add({.name = "one KV head, cut many times",
       .num_q_heads = 3,
       .num_kv_heads = 1,
       .head_dim = 128,
       .sequences = decode_sequences({20011})});
  add({.name = "mixed",
       .num_q_heads = 16,
       .num_kv_heads = 8,
       .head_dim = 128,
       .sequences = mixed_decode_sequences(37, 1, 1200),
       .extra_stride = 4096,
       .padding_seqs = 3});
  for (const std::int32_t head_dim : {64, 80, 96, 256}) {
    add({.name = "head_dim " + std::to_string(head_dim),
         .num_q_heads = 8,
         .num_kv_heads = 4,
         .head_dim = head_dim,
         .sequences = decode_sequences({1, 16, 47, 300, 2049}),
         .extra_stride = 8});
  }
  for (const std::int32_t head_dim : {16, 32, 72}) {
    add({.name = "plain head_dim " + std::to_string(head_dim),
         .num_q_heads = 4,
         .num_kv_heads = 2,
         .head_dim = head_dim,
         .sequences = decode_sequences({1, 33, 200}, 1),
         .window = 70,
         .softcap = 5.0f,
         .padding_seqs = 1});
  }
  for (const std::int32_t group : {1, 3, 4, 7, 8, 12, 16}) {
    add({.name = "group of " + std::to_string(group),
         .num_q_heads = 2 * group,
         .num_kv_heads = 2,
         .head_dim = 128,
         .block_size = 32,
         .sequences = decode_sequences({5, 64, 333, 1500})});
  }
  for (const std::int32_t block_size : {64, 128, 256}) {
    add({.name = "blocks of " + std::to_string(block_size),
         .num_q_heads = 4,
         .num_kv_heads = 2,
         .head_dim = 128,
         .block_size = block_size,
         .sequences = decode_sequences({block_size - 1, block_size, block_size + 1, 1000})});
  }
  add({.name = "window",
       .num_q_heads = 8,
       .num_kv_heads = 4,
       .head_dim = 128,
       .sequences = decode_sequences({1, 99, 100, 101, 116, 3000, 777}),
       .window = 100});
  add({.name = "window of one token",
       .num_q_heads = 2,
       .num_kv_heads = 2,
       .head_dim = 64,
       .sequences = decode_sequences({1, 16, 17, 100}),
       .window = 1});
  add({.name = "soft-cap",
       .num_q_heads = 8,
       .num_kv_heads = 4,
       .head_dim = 128,
       .sequences = decode_sequences({10, 500, 1025}),
       .softcap = 2.0f});
  add({.name = "several queries",
       .num_q_heads = 8,
       .num_kv_heads = 4,
       .head_dim = 128,
       .sequences = {{4, 4}, {100, 1}, {17, 2}, {2000, 8}, {33, 3}, {50, 9}, {300, 5}},
       .max_query_len = 8});
  add({.name = "several queries in a window",
       .num_q_heads = 6,
       .num_kv_heads = 2,
       .head_dim = 128,
       .sequences = {{8, 8}, {100, 3}, {17, 2}, {2000, 8}, {301, 6}},
       .max_query_len = 8,
       .window = 33,
       .softcap = 10.0f});
  add({.name = "more columns than a unit",
       .num_q_heads = 16,
       .num_kv_heads = 2,
       .head_dim = 64,
       .sequences = {{500, 5}, {40, 4}, {1, 1}},
       .max_query_len = 5});
  add({.name = "wide head_dim 256",
       .num_q_heads = 16,
       .num_kv_heads = 1,
       .head_dim = 256,
       .sequences = decode_sequences({700, 30})});
  add({.name = "wide head_dim 80",
       .num_q_heads = 9,
       .num_kv_heads = 1,
       .head_dim = 80,
       .sequences = decode_sequences({700, 30})});
  for (const std::int32_t split : {64, 256}) {
    add({.name = "fixed splits of " + std::to_string(split),
         .num_q_heads = 8,
         .num_kv_heads = 4,
         .head_dim = 128,
         .sequences = decode_sequences({1, 63, 64, 65, 300, 2000, 511, 513}),
         .split_tokens = split});
  }
  return cases;
}

/// A row of the table of public kernels on one H200, head_dim 128, bf16, blocks of 16: median of a chain in a graph, cold.
struct DecodePeerRow {
  std::int32_t num_q_heads, num_kv_heads, num_seqs, seq_len;
  double best_us;  // the fastest of FlashAttention 3 and FlashInfer 0.6.13, whatever its block size
};

inline constexpr DecodePeerRow decode_peer_rows[] = {
    {16, 8, 1, 512, 8.5},      {16, 8, 1, 1024, 9.0},     {16, 8, 1, 4096, 12.1},    {16, 8, 8, 512, 11.7},
    {16, 8, 8, 1024, 14.9},    {16, 8, 8, 4096, 40.1},    {16, 8, 32, 512, 24.0},    {16, 8, 32, 1024, 38.9},
    {16, 8, 32, 4096, 128.8},  {16, 8, 64, 512, 41.0},    {16, 8, 64, 1024, 71.6},   {16, 8, 64, 4096, 249.1},
    {16, 8, 128, 512, 67.6},   {16, 8, 128, 1024, 129.0}, {16, 8, 128, 4096, 491.7}, {16, 8, 256, 512, 137.2},
    {16, 8, 256, 1024, 259.2}, {16, 8, 256, 4096, 973.1}, {32, 8, 1, 1024, 9.3},     {32, 8, 1, 4096, 13.4},
    {32, 8, 32, 1024, 39.2},   {32, 8, 32, 4096, 129.1},  {32, 8, 128, 1024, 137.4}, {32, 8, 128, 4096, 489.0},
    {64, 8, 1, 1024, 9.2},     {64, 8, 1, 4096, 13.7},    {64, 8, 32, 1024, 39.3},   {64, 8, 32, 4096, 129.6},
    {64, 8, 128, 1024, 138.1}, {64, 8, 128, 4096, 491.3},
};

}  // namespace nvl_test
