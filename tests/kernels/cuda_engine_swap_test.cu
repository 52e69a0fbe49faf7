// Swapping on a GPU, in float: the tokens are those of the CPU engine, with and without graphs.

#include "support/cuda_tiny_model.cuh"

#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_test_macros.hpp>

#include <vector>

using namespace nvl;
using namespace nvl_test;

using SwapEngine = Engine<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, PrefixCacheAllocator,
                          PagedAttention<float, cuda_head_dim>, SingleDevice>;

TEST_CASE("requests that are swapped on a GPU get the tokens that they get undisturbed", "[engine][gpu]") {
  require_device();
  const std::vector<Request> requests = varied_requests(32, true);
  const auto expected = outputs_of(TinyEngine<>(cuda_tiny_config(), cuda_tiny_weights(), roomy_options()).generate(requests));
  for (const bool use_graphs : {true, false}) {
    INFO("graphs " << use_graphs);
    EngineOptions options = cuda_options();
    options.num_blocks = 14;
    options.swap_space_bytes = std::int64_t{1} << 21;
    options.scheduling.swap_in_steps = 4;
    options.device.use_graphs = use_graphs;
    SwapEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), options);
    for (int round = 0; round < 2; ++round) { CHECK(outputs_of(gpu.generate(requests)) == expected); }
    const EngineStats stats = gpu.stats();
    CHECK(gpu.failure().empty());
    CHECK(stats.num_swaps > 10);
    CHECK(stats.swapped_in_blocks > 0);
    CHECK(stats.num_free_blocks == stats.num_blocks);
    CHECK(stats.num_free_host_blocks == stats.num_host_blocks);
  }
}
