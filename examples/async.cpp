// An engine inside a program that does other things: answers each line of the input as it comes, many at a time.
#include <nvl/llm.hpp>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <thread>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: nvl-async model.gguf < prompts.txt\n");
    return 1;
  }
  try {
    nvl::LLM llm(argv[1]);
    const nvl::Tokenizer& tokenizer = llm.tokenizer();
    nvl::SamplingParams sampling = llm.default_sampling();
    sampling.max_tokens = 32;
    nvl::AsyncEngine engine(llm.take_engine(), {.max_num_queued_reqs = 8});

    for (std::string prompt; std::getline(std::cin, prompt);) {
      const nvl::Request request{.prompt_ids = tokenizer.encode(prompt), .sampling = sampling};
      if (request.prompt_ids.empty()) { continue; }
      // Runs on the engine's thread, exactly once.
      const auto print = [prompt](const nvl::Completion& done) {
        std::printf("%s%s [%s]\n", prompt.c_str(), done.text.c_str(), std::string(to_string(done.finish_reason)).c_str());
      };
      nvl::Submission answer = engine.submit(request, {.on_finish = print});
      while (answer.admission == nvl::Admission::too_many_requests) {  // a server would say 429 here
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        answer = engine.submit(request, {.on_finish = print});
      }
      if (!answer) { throw nvl::Error(std::string(to_string(answer.admission)) + ": " + engine.failure()); }
    }
    engine.drain(std::chrono::minutes(1));
    return engine.failure().empty() ? 0 : 1;
  } catch (const nvl::Error& error) {
    std::fprintf(stderr, "nvl-async: error: %s\n", error.what());
    return 1;
  }
}
