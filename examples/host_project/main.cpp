// A program outside nvl's tree with an engine of its own. It makes up the weights of a tiny model, so it needs no file: what it
// prints means nothing, and is the same every time.
#include <nvl/nvl.hpp>

#include <cstdio>
#include <string>

using MyEngine =
    nvl::Engine<nvl::PrefillFirstScheduler, nvl::PrefixCacheAllocator, nvl::CpuPagedAttention<float>, nvl::SingleDevice>;

int main() {
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
    options.num_blocks = 32;  // of the KV cache
    MyEngine engine(config, nvl::RandomWeights(config, 1), options);

    nvl::Request request;
    request.prompt_ids = {1, 2, 3};
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 8;
    for (const nvl::Completion& done : engine.generate({request, request})) {
      for (const nvl::TokenId id : done.output_ids) { std::printf("%d ", id); }
      std::printf("(%s)\n", std::string(nvl::to_string(done.finish_reason)).c_str());
    }
  } catch (const nvl::Error& error) {
    std::fprintf(stderr, "host_project: error: %s\n", error.what());
    return 1;
  }
}
