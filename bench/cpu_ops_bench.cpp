/// nvl-cpu-ops-bench: how fast the CPU ops are. Each case is compared with its double-precision oracle before it is timed.

#include "bench/support/report.hpp"
#include "support/options.hpp"

#include <nvl/attention/cpu_paged_attention.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/kernels/reference/attention.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/linear.hpp>
#include <nvl/ops/cpu_device.hpp>
#include <nvl/ops/cpu_ops.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace nvl;
using nvl_bench::Json;
using Clock = std::chrono::steady_clock;

/// Weights that one round of a case reads in all: more than the last-level cache holds, as a whole model is.
constexpr std::size_t cold_bytes = std::size_t{96} << 20;

struct LinearCase {
  DType type;
  std::int32_t out_features, in_features;
};
/// The layers of SmolLM2-135M, its output projection, and a layer of an 8-billion-parameter model.
constexpr LinearCase linear_cases[] = {{DType::q4_1, 960, 576},     {DType::q4_1, 3072, 576},  {DType::q4_1, 576, 1536},
                                       {DType::q8_0, 49152, 576},   {DType::q4_0, 4096, 4096}, {DType::float32, 3072, 576},
                                       {DType::bfloat16, 3072, 576}};
constexpr std::int32_t linear_rows[] = {1, 8, 512};

struct AttentionCase {
  std::int32_t q_heads, kv_heads, head_dim, num_seqs, num_queries, seq_len;
};
constexpr AttentionCase attention_cases[] = {{9, 3, 64, 1, 1, 1024},   {9, 3, 64, 8, 1, 1024},   {9, 3, 64, 1, 512, 512},
                                             {32, 8, 128, 1, 1, 1024}, {32, 8, 128, 8, 1, 1024}, {32, 8, 128, 1, 512, 512}};

template <class T>
std::vector<T> random_values(std::size_t count, std::uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<T> values(count);
  for (T& value : values) { value = static_cast<T>(normal(random)); }
  return values;
}

/// Bytes of a random weight. Scales and minima of block types are set, their integers are anything.
std::vector<std::byte> random_weight(const LinearCase& c) {
  const DTypeInfo& type = info(c.type);
  const std::size_t count = static_cast<std::size_t>(c.out_features) * static_cast<std::size_t>(c.in_features);
  std::vector<std::byte> bytes(count / type.block_elements * type.block_bytes);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  for (std::byte& b : bytes) { b = static_cast<std::byte>(random()); }
  for (std::size_t at = 0; at < bytes.size(); at += type.block_bytes) {
    const auto put = [&](std::size_t offset, auto value) { std::memcpy(bytes.data() + at + offset, &value, sizeof(value)); };
    switch (c.type) {
      case DType::float32: put(0, normal(random)); break;
      case DType::bfloat16: put(0, bf16(normal(random))); break;
      case DType::q4_1: put(2, fp16(-0.08f)); [[fallthrough]];
      default: put(0, fp16(0.01f));
    }
  }
  return bytes;
}

[[noreturn]] void fail(const std::string& what, double error, double bound) {
  throw std::runtime_error(what + " is wrong: NMSE " + std::to_string(error) + ", at most " + std::to_string(bound) +
                           " is right");
}

/// Runs `work(i)`, i = 0, 1, ..., for about `budget` seconds and returns the seconds of each but the first.
template <class Work>
nvl_bench::Samples time_rounds(double budget, Work&& work) {
  work(std::size_t{0});
  std::vector<double> seconds;
  const Clock::time_point begin = Clock::now();
  for (std::size_t i = 1; seconds.size() < 5 || std::chrono::duration<double>(Clock::now() - begin).count() < budget; ++i) {
    const Clock::time_point start = Clock::now();
    work(i);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return nvl_bench::Samples(std::move(seconds));
}

class Bench {
 public:
  Bench(std::int32_t num_threads, double budget) : device_(DeviceOptions{.num_threads = num_threads}), budget_(budget) {}

  void run() {
    for (const LinearCase& c : linear_cases) {
      for (const std::int32_t rows : linear_rows) {
        if (c.out_features > 10000 && rows > 8) { continue; }  // the output projection sees sampled rows only
        if (c.type == DType::bfloat16) {
          linear<bf16>(c, rows);
        } else {
          linear<float>(c, rows);
        }
      }
    }
    for (const AttentionCase& c : attention_cases) {
      attention<float>(c);
      attention<bf16>(c);
    }
  }

  std::int32_t num_threads() { return device_.threads().num_threads(); }
  const std::vector<std::vector<std::string>>& table() const { return table_; }
  const Json& json() const { return json_; }

 private:
  template <class T>
  void linear(const LinearCase& c, std::int32_t rows) {
    CpuOps<T> ops(device_);
    const std::vector<std::byte> bytes = random_weight(c);
    const HostTensor tensor{.name = "weight", .dtype = c.type, .shape = {c.out_features, c.in_features}, .data = bytes};
    const HostTensor* const part = &tensor;
    std::vector<CpuWeight<T>> copies;
    do { copies.push_back(ops.load_weight(std::span(&part, 1))); } while (rows <= 8 && copies.size() * bytes.size() < cold_bytes);

    const auto k = static_cast<std::size_t>(c.in_features), n = static_cast<std::size_t>(c.out_features);
    const std::vector<T> x = random_values<T>(static_cast<std::size_t>(rows) * k, 2);
    std::vector<float> out(static_cast<std::size_t>(rows) * n);
    ops.logits(out.data(), x.data(), copies.front(), rows);
    std::vector<float> weights(n * k);
    dequantize_row(c.type, bytes.data(), weights.data(), static_cast<std::int64_t>(weights.size()));
    const std::size_t checked = std::min<std::size_t>(static_cast<std::size_t>(rows), 2);
    const double error = reference::nmse(std::span<const float>(out).first(checked * n),
                                         std::span<const double>(reference::linear<T>(x, weights, {}, checked, k, n)));
    const double bound = info(c.type).block_elements > 1 ? reference::max_nmse_quantized : reference::max_nmse<float>;
    if (!(error <= bound)) { fail("linear", error, bound); }

    const nvl_bench::Samples samples =
        time_rounds(budget_, [&](std::size_t i) { ops.logits(out.data(), x.data(), copies[i % copies.size()], rows); });
    const double products = static_cast<double>(rows) * static_cast<double>(n * k);
    add("linear", std::string(info(c.type).name),
        std::to_string(n) + " x " + std::to_string(k) + ", rows " + std::to_string(rows), samples,
        static_cast<double>(copies.front().size_bytes()), 2 * products);
  }

  template <class T>
  void attention(const AttentionCase& c) {
    CpuOps<T> ops(device_);
    const std::int32_t blocks_per_seq = (c.seq_len + 15) / 16;
    const KvLayout layout{.num_blocks = std::int64_t{blocks_per_seq} * c.num_seqs,
                          .block_size = 16,
                          .num_kv_heads = c.kv_heads,
                          .head_dim = c.head_dim};
    CpuPagedAttention<T> backend({.num_q_heads = c.q_heads, .kv = layout}, ops);
    std::vector<std::int32_t> cu{0}, lens;
    std::vector<BlockId> tables;
    for (std::int32_t s = 0; s < c.num_seqs; ++s) {
      cu.push_back(cu.back() + c.num_queries);
      lens.push_back(c.seq_len);
    }
    for (std::int64_t b = 0; b < layout.num_blocks; ++b) { tables.push_back(static_cast<BlockId>(b)); }
    std::shuffle(tables.begin(), tables.end(), std::mt19937(5));  // blocks lie apart, as in a cache that has been in use

    const auto row = static_cast<std::size_t>(c.q_heads * c.head_dim);
    const auto layer_bytes = static_cast<std::size_t>(layout.layer_elements()) * sizeof(T);
    const std::size_t num_layers = c.num_queries == 1 ? cold_bytes / layer_bytes + 1 : 1;
    // In the device's own memory: pages of its buffers are large, and small ones would be measured instead.
    CpuDevice::Buffer kv(device_, num_layers * layer_bytes);
    const std::vector<T> values = random_values<T>(static_cast<std::size_t>(layout.layer_elements()), 3);
    for (std::size_t i = 0; i < num_layers; ++i) { std::copy(values.begin(), values.end(), kv.as<T>() + i * values.size()); }
    const std::vector<T> q = random_values<T>(static_cast<std::size_t>(cu.back()) * row, 4);
    std::vector<T> out(q.size());
    const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    backend.plan({.cu_query_lens = cu, .seq_lens = lens, .block_tables = tables, .max_blocks_per_seq = blocks_per_seq});
    const auto run = [&](std::size_t i) {
      backend.run({.out = out.data(),
                   .q = q.data(),
                   .q_row_stride = static_cast<std::int64_t>(row),
                   .kv = kv.as<T>() + i % num_layers * values.size(),
                   .scale = scale});
    };
    run(0);
    check(c, layout, tables, values, q, out, scale);

    const nvl_bench::Samples samples = time_rounds(budget_, run);
    const double keys = static_cast<double>(c.num_seqs) * c.num_queries * (c.seq_len - (c.num_queries - 1) / 2.0);
    add("attention", std::string(info(dtype_of<T>).name),
        std::to_string(c.q_heads) + "/" + std::to_string(c.kv_heads) + " heads x " + std::to_string(c.head_dim) + ", " +
            std::to_string(c.num_seqs) + " x " + std::to_string(c.num_queries) + " queries, " + std::to_string(c.seq_len) +
            " keys",
        samples, static_cast<double>(layer_bytes), 4 * keys * c.q_heads * c.head_dim);
  }

  /// The last query of the last sequence, all heads.
  template <class T>
  static void check(const AttentionCase& c, const KvLayout& layout, const std::vector<BlockId>& tables, const std::vector<T>& kv,
                    const std::vector<T>& q, const std::vector<T>& out, float scale) {
    const auto d = static_cast<std::size_t>(c.head_dim);
    const std::size_t last = q.size() - static_cast<std::size_t>(c.q_heads) * d;
    const std::size_t table = tables.size() / static_cast<std::size_t>(c.num_seqs) * static_cast<std::size_t>(c.num_seqs - 1);
    std::vector<double> expected;
    for (std::int32_t h = 0; h < c.q_heads; ++h) {
      std::vector<T> keys, values;
      for (std::int32_t p = 0; p < c.seq_len; ++p) {
        const std::int64_t block = index_of(tables[table + static_cast<std::size_t>(p / 16)]);
        const std::int32_t head = h / (c.q_heads / c.kv_heads);
        const T* const k = kv.data() + layout.k_offset(block, head, p % 16);
        const T* const v = kv.data() + layout.v_offset(block, head, p % 16);
        keys.insert(keys.end(), k, k + d);
        values.insert(values.end(), v, v + d);
      }
      const std::span<const T> query(q.data() + last + static_cast<std::size_t>(h) * d, d);
      const std::vector<double> head =
          reference::attention<T>(query, keys, values, 0, static_cast<std::size_t>(c.seq_len - 1), static_cast<double>(scale));
      expected.insert(expected.end(), head.begin(), head.end());
    }
    const double error = reference::nmse(std::span<const T>(out).subspan(last), std::span<const double>(expected));
    if (!(error <= reference::max_nmse<T>)) { fail("attention", error, reference::max_nmse<T>); }
  }

  void add(const std::string& op, const std::string& type, const std::string& shape, const nvl_bench::Samples& samples,
           double bytes, double flops) {
    const double median = samples.median();
    const auto number = [](double value, int digits) {
      char text[32];
      std::snprintf(text, sizeof text, "%.*f", digits, value);
      return std::string(text);
    };
    const double spread = 100 * (samples.percentile(90) - samples.percentile(10)) / median;
    table_.push_back({op, type, shape, number(1e6 * median, 1), number(spread, 0) + " %", number(bytes / median / 1e9, 1),
                      number(flops / median / 1e9, 1)});
    Json line{{"op", op}, {"type", type}, {"shape", shape}, {"bytes", bytes}, {"flops", flops}};
    nvl_bench::add_distribution(line, "us", samples, 1e6);
    json_.push_back(std::move(line));
    std::fprintf(stderr, "%s %s %s: %s us\n", op.c_str(), type.c_str(), shape.c_str(), number(1e6 * median, 1).c_str());
  }

  CpuDevice device_;
  double budget_;  // [s] of measuring a case
  std::vector<std::vector<std::string>> table_{{"op", "type", "shape", "median us", "p10-p90", "GB/s", "GFLOP/s"}};
  Json json_ = Json::array();
};

int bench(int argc, char** argv) {
  std::int32_t num_threads = 0;
  double seconds = 0.3;
  std::optional<std::filesystem::path> output_json;
  nvl_examples::OptionParser parser("nvl-cpu-ops-bench", "Times the CPU ops, after checking each against double precision.");
  parser.option("-t,--threads", num_threads, "N", "Threads that compute. Default: 0, one per core.");
  parser.option("--seconds", seconds, "S", "Measuring time of each case. Default: 0.3.");
  parser.option("--output-json", output_json, "FILE", "Writes all numbers to a file.");
  if (!parser.parse(argc, argv)) { return 0; }

  Bench bench(num_threads, seconds);
  bench.run();
  Json report =
      nvl_bench::environment(std::vector<std::string>(argv, argv + argc), "random values", DType::float32, bench.num_threads());
  std::printf("%s%s", nvl_bench::markdown_header(report, "cpu-ops").c_str(), nvl_bench::markdown_table(bench.table()).c_str());
  std::printf(
      "\nMedian over rounds whose weights or keys do not fit the caches (prefill: that do); GB/s of weights or of keys and "
      "values.\n");
  if (output_json) {
    report["cases"] = bench.json();
    nvl_bench::write_json(*output_json, report);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_examples::run_program("nvl-cpu-ops-bench", [&] { return bench(argc, argv); });
}
