// Two engines on a GPU, or on two, against one: every bit the same where results do not depend on the batch.

#include "support/cuda_tiny_model.cuh"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

using namespace nvl;
using namespace nvl_test;

namespace {

constexpr PagedAttentionOptions batch_invariant{.block_size = 16, .batch_invariant = true};

DisaggregatedOptions pair_options(std::int32_t second_device) {
  DisaggregatedOptions options;
  options.prefill = options.decode = cuda_options();
  options.prefill.num_blocks = 40;
  options.decode.num_blocks = 30;  // some sequences lose their blocks
  options.decode.device.ordinal = second_device;
  return options;
}

template <class T>
void check_pair(std::int32_t second_device) {
  using Half = TinyCudaEngine<T, batch_invariant>;
  const auto requests = varied_requests(24);
  std::vector<std::vector<TokenId>> expected;
  {
    Half one(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
    expected = outputs_of(one.generate(requests));
  }
  DisaggregatedEngine<Half, Half, CudaKvTransfer<T>> pair(cuda_tiny_config(), cuda_tiny_weights(), pair_options(second_device));
  CHECK(outputs_of(pair.generate(requests)) == expected);
  while (pair.has_work()) { pair.step(); }
  CHECK(pair.failure().empty());
  CHECK(pair.handover_stats().num_prompts > 20);
  CHECK(pair.stats().num_free_blocks == pair.stats().num_blocks);

  // The same with every third request aborted at its first, second or fifth token.
  std::size_t num_ends = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto id = std::make_shared<RequestId>();
    const auto num_tokens = std::make_shared<std::size_t>(0);
    *id = pair.submit(requests[i], {.on_token =
                                        [&pair, id, num_tokens, i](const TokenEvent&) {
                                          if (i % 3 == 0 && ++*num_tokens == (i % 2 == 0 ? 1 + i % 4 : 5)) { pair.abort(*id); }
                                        },
                                    .on_finish =
                                        [&, i](const Completion& done) {
                                          ++num_ends;
                                          const auto& whole = expected[i];
                                          CHECK(done.output_ids.size() <= whole.size());
                                          CHECK(std::equal(done.output_ids.begin(), done.output_ids.end(), whole.begin()));
                                        }});
  }
  while (pair.has_work()) { pair.step(); }
  CHECK(num_ends == requests.size());
  CHECK(pair.failure().empty());
  CHECK(pair.stats().num_free_blocks == pair.stats().num_blocks);
}

}  // namespace

TEST_CASE("two engines on one GPU give what one gives", "[engine][gpu]") {
  require_device();
  check_pair<bf16>(0);
}

TEST_CASE("two engines on two GPUs give what one gives", "[engine][gpu]") {
  require_device();
  int count = 0;
  NVL_CUDA_CHECK(cudaGetDeviceCount(&count));
  if (count < 2) { SKIP("one CUDA device only"); }
  check_pair<bf16>(1);
}
