#include <nvl/model/random_weights.hpp>
#include <nvl/nvl.hpp>
#include <nvl/parallel/context_parallel.hpp>
#include <nvl/parallel/pipeline_parallel.hpp>
#include <nvl/parallel/tensor_parallel.hpp>

#include "support/counted_group.hpp"
#include "support/tiny_model.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace traffic_test {

using namespace nvl;
using nvl_test::CountedGroup;
using nvl_test::Traffic;

namespace {

/// Bytes of each rank for a prompt of `num_tokens` and its answer of `num_outputs`, the first of which comes with the prompt.
template <template <class> class Strategy>
std::vector<Traffic> traffic_of(const ModelConfig& config, std::uint32_t num_ranks, std::int32_t num_tokens,
                                std::int32_t num_outputs) {
  std::vector<CountedGroup> ends = CountedGroup::make(num_ranks);
  std::vector<std::shared_ptr<const Traffic>> counts;
  for (const CountedGroup& end : ends) { counts.push_back(end.traffic()); }
  const RandomWeights weights(config, 3);
  using OnRanks = DefaultCpuEngine<float>::with_parallel<Strategy<CountedGroup>>;
  OnRanks engine(config, weights, nvl_test::roomy_options(), {}, Strategy<CountedGroup>(std::move(ends)));
  std::vector<Request> requests;
  requests.push_back(nvl_test::greedy_request(nvl_test::tiny_prompt(0, num_tokens), num_outputs));
  REQUIRE(engine.generate(std::move(requests)).front().error.empty());
  std::vector<Traffic> traffic;
  for (const auto& count : counts) { traffic.push_back(*count); }
  return traffic;
}

}  // namespace

// The sentences of docs/parallel.md about what crosses.
TEST_CASE("a decoded token costs split layers two sums a layer and one of the embedding, and a pipeline one message a stage",
          "[parallel][host]") {
  const ModelConfig config = nvl_test::tiny_config();
  const std::int64_t row = config.hidden_size * std::int64_t{sizeof(float)};
  const auto split_before = traffic_of<TensorParallel>(config, 2, 40, 1);
  const auto split_after = traffic_of<TensorParallel>(config, 2, 40, 9);
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(split_after[r].summed - split_before[r].summed == 8 * (2 * config.num_layers + 1) * row);
    CHECK(split_after[r].gathered - split_before[r].gathered == 8 * 12);  // a most likely token
    CHECK(split_after[r].sent == 0);
    // The prompt: after the last layer's attention its last token goes on alone.
    CHECK(split_before[r].summed == 40 * (2 * config.num_layers - 1) * row + 2 * row);
  }
  for (const std::uint32_t num_stages : {2u, 3u}) {
    const auto staged_before = traffic_of<PipelineParallel>(config, num_stages, 40, 1);
    const auto staged_after = traffic_of<PipelineParallel>(config, num_stages, 40, 9);
    for (std::size_t r = 0; r < num_stages; ++r) {
      const bool is_last = r + 1 == num_stages;
      CHECK(staged_after[r].sent - staged_before[r].sent == (is_last ? 0 : 8 * row));
      CHECK(staged_before[r].sent == (is_last ? 0 : 40 * row));
      CHECK(staged_after[r].summed == 0);
      CHECK(staged_after[r].gathered == 0);
    }
  }
}

// Those of docs/policies.md.
TEST_CASE("a prompt's K and V pass every rank that shares its tokens once; a decoded token's query and states do",
          "[parallel][host]") {
  const ModelConfig config = nvl_test::tiny_config();
  const std::int64_t number = sizeof(float);
  constexpr std::int32_t num_ranks = 4, num_tokens = 64;  // a block of 16 on each rank
  const auto before = traffic_of<ContextParallel>(config, num_ranks, num_tokens, 1);
  const auto after = traffic_of<ContextParallel>(config, num_ranks, num_tokens, 9);
  std::int64_t sent_of_prompt = 0;
  for (std::size_t r = 0; r < num_ranks; ++r) {
    sent_of_prompt += before[r].sent;
    CHECK(before[r].gathered == config.hidden_size * number);  // the last hidden state
    // The eight tokens that decode are kept, and so computed, on rank 0: the others send it what they find.
    const std::int64_t states = config.q_size() + config.num_q_heads;
    CHECK(after[r].sent - before[r].sent == (r == 0 ? 0 : 8 * config.num_layers * states * number));
    CHECK(after[r].gathered - before[r].gathered == 8 * (config.num_layers * config.q_size() + config.hidden_size) * number);
    CHECK(after[r].summed == 0);
  }
  CHECK(sent_of_prompt == num_tokens * config.num_layers * (num_ranks - 1) * 2 * config.kv_size() * number);
}

}  // namespace traffic_test
