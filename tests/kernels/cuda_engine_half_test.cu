// The engine on a GPU in bf16 and fp16 against the float CPU engine, teacher forced; and batch-invariant engines.

#include "support/cuda_tiny_model.cuh"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <concepts>
#include <vector>

using namespace nvl;
using namespace nvl_test;

namespace {

constexpr PagedAttentionOptions batch_invariant{.block_size = 16, .batch_invariant = true};

/// Above this margin of the float logits the choice has to be the same.
template <class T>
constexpr float decisive_margin = std::same_as<T, fp16> ? 0.02f : 0.5f;
template <class T>
constexpr float max_logit_error = std::same_as<T, fp16> ? 0.02f : 0.16f;

/// Checks the tokens that `gpu` chooses against the float logits of the same text.
template <class T, class E>
void check_teacher_forced(E& gpu) {
  TinyEngine<> cpu(cuda_tiny_config(), cuda_tiny_weights(), roomy_options());
  const std::vector<Request> requests = varied_requests(16, true);
  const std::vector<Completion> done = gpu.generate(requests);
  int num_decided = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    std::vector<TokenId> text = requests[i].prompt_ids;
    text.insert(text.end(), done[i].output_ids.begin(), done[i].output_ids.end());
    const std::vector<float> expected = all_logits(cpu, text);
    const float worst = largest_difference(all_logits(gpu, text), expected);
    const Judgement said = judge(expected, text, requests[i].prompt_ids.size(), decisive_margin<T>);
    INFO("request " << i << ": worst error " << worst << ", largest regret " << said.largest_regret);
    CHECK(worst <= max_logit_error<T>);
    CHECK(said.num_wrong == 0);
    num_decided += said.num_decided;
  }
  CHECK(num_decided >= 20);
}

}  // namespace

TEMPLATE_TEST_CASE("in 16 bits a GPU engine chooses what the float CPU engine does where it is decided", "[engine][gpu]", bf16,
                   fp16) {
  require_device();
  TinyCudaEngine<TestType> gpu(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
  check_teacher_forced<TestType>(gpu);
}

TEMPLATE_TEST_CASE("in 16 bits a small engine and a batch-invariant one give all their tokens", "[engine][gpu][sanitize]", bf16,
                   fp16) {
  require_device();
  const std::vector<Request> requests = varied_requests(6);
  TinyCudaEngine<TestType> gpu(cuda_tiny_config(), cuda_tiny_weights(), small_cuda_options());
  TinyCudaEngine<TestType, batch_invariant> invariant(cuda_tiny_config(), cuda_tiny_weights(), small_cuda_options());
  const auto fast = gpu.generate(requests), same = invariant.generate(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto max_tokens = static_cast<std::size_t>(requests[i].sampling.max_tokens);
    CHECK(fast[i].output_ids.size() == max_tokens);
    CHECK(same[i].output_ids.size() == max_tokens);
  }
}

TEMPLATE_TEST_CASE("a batch-invariant engine gives the same bits in any batch, chunk and cache state", "[engine][gpu]", bf16,
                   fp16) {
  require_device();
  using Invariant = TinyCudaEngine<TestType, batch_invariant>;
  const std::vector<Request> requests = varied_requests(24);
  Invariant gpu(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
  check_teacher_forced<TestType>(gpu);
  const auto together = outputs_of(gpu.generate(requests));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(gpu.generate({requests[i]}).front().output_ids == together[i]);  // over prefix hits, alone
  }
  EngineOptions chunked = cuda_options();
  chunked.max_num_seqs = 16;
  chunked.max_num_batched_tokens = 16;
  chunked.num_blocks = 20;
  chunked.device.use_graphs = false;
  Invariant other(cuda_tiny_config(), cuda_tiny_weights(), chunked);
  CHECK(outputs_of(other.generate(requests)) == together);
  CHECK(all_logits(other, tiny_prompt(3, 77)) == all_logits(gpu, tiny_prompt(3, 77)));
}
