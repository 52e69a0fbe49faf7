// A scheduler of one's own in an engine: short prompts first, and prefills and decodes share a step.
// The model is tiny and made up, so no file is needed; what it writes means nothing.
#include <nvl/nvl.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

class ShortestFirst {
 public:
  explicit ShortestFirst(const nvl::SchedulerOptions& options) : options_(options) {}

  void add(nvl::Sequence& seq) { waiting_.push_back(&seq); }
  void remove(nvl::Sequence& seq) {
    std::erase(waiting_, &seq);
    std::erase(running_, &seq);
  }
  std::uint32_t num_waiting() const noexcept { return static_cast<std::uint32_t>(waiting_.size()); }
  std::uint32_t num_running() const noexcept { return static_cast<std::uint32_t>(running_.size()); }

  template <nvl::BlockAllocator Allocator>
  void schedule(Allocator& allocator, nvl::ScheduledBatch& batch) {
    const auto budget = [&] { return options_.max_num_batched_tokens - batch.num_tokens; };
    const auto plan = [&](nvl::Sequence& seq) { nvl::append_to_batch(batch, seq, std::min(seq.num_uncomputed(), budget())); };

    // Whoever runs goes on: with its next token, or the next part of its prompt. Who came last gives up blocks if there are none.
    for (std::size_t i = 0; i < running_.size() && budget() > 0;) {
      if (nvl::try_grow(*running_[i], allocator, running_[i]->num_tokens(), options_.block_size, batch)) {
        plan(*running_[i++]);
      } else {
        nvl::preempt_by_recompute(*running_.back(), allocator, batch);
        waiting_.push_back(running_.back());
        running_.pop_back();
      }
    }
    if (!batch.preempted.empty()) { return; }  // no room for more
    std::ranges::stable_sort(waiting_, {}, &nvl::Sequence::num_tokens);
    while (!waiting_.empty() && num_running() < static_cast<std::uint32_t>(options_.max_num_seqs) && budget() > 0 &&
           nvl::try_admit(*waiting_.front(), allocator, options_.block_size)) {
      running_.push_back(waiting_.front());
      waiting_.erase(waiting_.begin());
      plan(*running_.back());
    }
  }

 private:
  nvl::SchedulerOptions options_;
  std::vector<nvl::Sequence*> waiting_, running_;
};
static_assert(nvl::require_scheduler_policy<ShortestFirst>());  // a missing member is named here

int main() {
  // Thousands of random requests against every promise of the concept.
  if (const auto broken = nvl::testing::check_scheduler_policy<ShortestFirst>(); !broken.empty()) {
    std::fprintf(stderr, "nvl-custom-policy: error: %s", broken.text().c_str());
    return 1;
  }
  using MyEngine = nvl::Engine<ShortestFirst, nvl::PrefixCacheAllocator, nvl::CpuPagedAttention<float>, nvl::SingleDevice>;
  nvl::ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.num_layers = 2;
  config.num_q_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.max_position_embeddings = 256;
  try {
    nvl::EngineOptions options;
    options.max_num_seqs = 1;
    options.num_blocks = 32;  // of the KV cache
    MyEngine engine(config, nvl::RandomWeights(config, 1), options);
    for (const std::size_t length : {100u, 10u, 1u}) {  // one runs at a time: the last comes first
      nvl::Request request;
      request.prompt_ids.assign(length, 7);
      request.sampling.temperature = 0;
      request.sampling.max_tokens = 4;
      engine.submit(std::move(request), {.on_token = {}, .on_finish = [](const nvl::Completion& done) {
                                           std::printf("prompt of %3zu tokens: %zu more\n", done.prompt_ids.size(),
                                                       done.output_ids.size());
                                         }});
    }
    while (engine.has_work()) { engine.step(); }
  } catch (const nvl::Error& error) {
    std::fprintf(stderr, "nvl-custom-policy: error: %s\n", error.what());
    return 1;
  }
}
