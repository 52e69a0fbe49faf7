#include <nvl/llm.hpp>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: nvl-quickstart model.gguf\n");
    return 1;
  }
  try {
    nvl::LLM llm(argv[1]);
    nvl::SamplingParams sampling = llm.default_sampling();
    sampling.temperature = 0;
    sampling.max_tokens = 32;
    for (const nvl::Completion& done : llm.generate({"The sky is blue because", "1, 2, 3,"}, sampling)) {
      std::printf("%s\n---\n", done.text.c_str());
    }
  } catch (const nvl::Error& error) {
    std::fprintf(stderr, "nvl-quickstart: error: %s\n", error.what());
    return 1;
  }
}
