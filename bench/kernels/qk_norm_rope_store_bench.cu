/// QK norm, RoPE and KV store in one pass over the rows of the QKV projection, bf16; page 16.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/qk_norm_rope_store_cases.hpp"
#include "support/slots.hpp"

#include <nvl/kernels/qk_norm_rope_store.cuh>
#include <nvl/kernels/reference/rope.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

using nvl::bf16;
using nvl::KvLayout;
using nvl::SlotId;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "qk_norm_rope_store", [](nvl_bench::KernelBench& bench) {
    const int num_positions = 1024;
    const nvl::RopeConfig config{.theta = 1e6};
    for (const bool whole_pages : {false, true}) {
      const std::string order = whole_pages ? "random pages" : "random slots";
      for (const nvl_test::QkNormRopeStoreCase& c : nvl_test::qk_norm_rope_store_cases()) {
        const std::string shape = std::to_string(c.num_tokens) + " x " + std::to_string(c.num_q_heads) + "/" +
                                  std::to_string(c.num_kv_heads) + " x " + std::to_string(c.head_dim);
        if (!c.timed || !bench.wants("qk_norm_rope_store " + order + " " + shape)) { continue; }
        const auto d = static_cast<std::size_t>(c.head_dim), tokens = static_cast<std::size_t>(c.num_tokens);
        const std::size_t width = static_cast<std::size_t>(c.num_q_heads + 2 * c.num_kv_heads) * d;
        const double bytes_written = 2.0 * static_cast<double>(tokens * width);
        const double angles =
            4.0 * static_cast<double>(d * std::min<std::size_t>(tokens, static_cast<std::size_t>(num_positions)));
        const double bytes_read = bytes_written + angles + 12.0 * static_cast<double>(tokens);
        const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_read + bytes_written));
        const KvLayout layout = nvl_test::layout_for(4 * c.num_tokens, c.block_size, c.num_kv_heads, c.head_dim);
        const nvl::RopeTable table(config, c.head_dim, num_positions);
        const nvl_bench::DeviceBuffer<float> cos_sin(nvl::kernels::pack_rope_table(table));
        std::vector<std::int32_t> host_positions;
        for (std::size_t i = 0; i < tokens; ++i) {
          host_positions.push_back(static_cast<std::int32_t>(i % static_cast<std::size_t>(num_positions)));
        }
        const nvl_bench::DeviceBuffer<std::int32_t> positions(host_positions);
        const nvl_bench::DeviceBuffer<SlotId> slots(whole_pages ? nvl_test::random_pages(c.num_tokens, layout, 1)
                                                                : nvl_test::random_slots(c.num_tokens, layout, false, 1));
        const auto norms = nvl_bench::random_normal_buffer<bf16>(d, 2, bench.seed() + 1);
        auto qkv = nvl_bench::random_normal_buffer<bf16>(tokens * width, sets, bench.seed());
        nvl_bench::DeviceBuffer<bf16> kv(static_cast<std::size_t>(layout.layer_elements()), sets);
        const auto launch = [&](int call, cudaStream_t stream) {
          nvl::kernels::launch_qk_norm_rope_store<bf16>({.qkv = qkv.set(call),
                                                         .positions = positions.data(),
                                                         .slot_mapping = slots.data(),
                                                         .q_norm = c.norm ? norms.set(0) : nullptr,
                                                         .k_norm = c.norm ? norms.set(1) : nullptr,
                                                         .rope = nvl::kernels::device_rope_table(table, cos_sin.data()),
                                                         .layout = layout,
                                                         .kv = kv.set(call),
                                                         .num_q_heads = c.num_q_heads,
                                                         .num_tokens = c.num_tokens},
                                                        stream);
        };

        // The Q heads of the last token.
        const auto q_width = static_cast<std::size_t>(c.num_q_heads) * d;
        const std::vector<bf16> before = qkv.to_host(0, (tokens - 1) * width, q_width), w16 = norms.to_host(0);
        std::vector<float> w;
        for (const bf16 value : w16) { w.push_back(static_cast<float>(value)); }
        launch(0, nullptr);
        std::vector<double> expected;
        for (std::size_t head = 0; head < q_width; head += d) {
          const std::vector<double> rotated = nvl::reference::norm_and_rope(
              std::span<const bf16>(before).subspan(head, d), w, 1e-6f, nvl::rope_inverse_frequencies(config, c.head_dim), 1.0,
              static_cast<double>(host_positions.back()), config.layout);
          expected.insert(expected.end(), rotated.begin(), rotated.end());
        }
        nvl_bench::verify("qk_norm_rope_store " + shape, qkv.to_host(0, (tokens - 1) * width, q_width), expected,
                          nvl::reference::max_nmse_of_few<bf16>);

        bench.add({.op = "qk_norm_rope_store",
                   .dtype = "bfloat16",
                   .shape = shape,
                   .bytes_read = bytes_read,
                   .bytes_written = bytes_written,
                   .variant = order},
                  sets, launch);
      }
    }
  });
}
