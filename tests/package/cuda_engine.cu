// A host program with one CUDA engine: what it takes to compile, link and start one. Made-up weights; prints ten token ids.

#include <nvl/nvl.cuh>

#include <cstdio>

using MyEngine =
    nvl::Engine<nvl::PrefillFirstScheduler, nvl::PrefixCacheAllocator, nvl::PagedAttention<nvl::bf16, 128>, nvl::SingleDevice>;

int main() {
  nvl::ModelConfig config;
  config.architecture = "qwen3";
  config.vocab_size = 1000;
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.num_layers = 2;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 128;
  config.max_position_embeddings = 512;
  config.qk_norm = true;
  config.tie_word_embeddings = true;
  config.dtype = nvl::DType::bfloat16;
  try {
    MyEngine engine(config, nvl::RandomWeights(config, 1), {.max_num_seqs = 8, .max_num_batched_tokens = 512});
    nvl::Request request;
    request.prompt_ids = {1, 2, 3, 4, 5};
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 10;
    for (const nvl::TokenId id : engine.generate({request}).front().output_ids) { std::printf("%d ", id); }
    std::printf("\n");
  } catch (const nvl::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
