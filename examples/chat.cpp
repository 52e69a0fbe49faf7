/// nvl-chat: a conversation with a model. What was said before is in the prefix cache, so a turn computes only what is new.

#include "support/abort_guard.hpp"
#include "support/open_llm.hpp"

#include <nvl/core/error.hpp>
#include <nvl/io/chat_format.hpp>

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace nvl_examples;

constexpr std::string_view help_text =
    "  /reset   forgets the conversation\n"
    "  /help    shows this\n"
    "  /exit    ends, as Ctrl-D does\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.\n";

volatile std::sig_atomic_t interrupted = 0;
void on_interrupt(int) { interrupted = 1; }

/// Without SA_RESTART, so that a read of the terminal comes back too.
void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
}

/// Lines of standard input, with a prompt where a person types.
class Input {
 public:
  bool is_person() const { return person_; }

  /// The next message, lines joined; nothing at the end of the input.
  std::optional<std::string> next_message() {
    std::string message;
    while (true) {
      const std::optional<std::string> line = next_line(message.empty() ? "> " : ". ");
      if (!line) { return message.empty() ? std::nullopt : std::optional(message); }
      message += *line;
      if (!message.ends_with('\\')) { return message; }
      message.back() = '\n';
    }
  }

 private:
  std::optional<std::string> next_line(const char* prompt) {
    while (true) {
      if (person_) { std::fprintf(stderr, "%s%s%s", bold_ ? "\033[1m" : "", prompt, bold_ ? "\033[0m" : ""); }
      char* text = nullptr;
      std::size_t capacity = 0;
      const ssize_t length = ::getline(&text, &capacity, stdin);
      const std::unique_ptr<char, decltype(&std::free)> owner(text, &std::free);
      if (length >= 0) {
        std::string line(text, static_cast<std::size_t>(length));
        while (line.ends_with('\n') || line.ends_with('\r')) { line.pop_back(); }
        return line;
      }
      if (std::ferror(stdin) == 0 || errno != EINTR) {
        if (person_) { std::fputc('\n', stderr); }
        return std::nullopt;
      }
      std::clearerr(stdin);
      interrupted = 0;
      std::fputs("\n(/exit or Ctrl-D ends)\n", stderr);
    }
  }

  bool person_ = ::isatty(STDIN_FILENO) != 0;
  bool bold_ = may_color(stderr);
};

class Chat {
 public:
  Chat(nvl::LLM& llm, nvl::SamplingParams sampling, std::optional<std::string> system)
      : llm_(llm),
        sampling_(std::move(sampling)),
        system_(std::move(system)) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (system_) { messages_.push_back({.role = "system", .content = *system_}); }
  }

  /// Streams the answer to `text`. \throws nvl::InvalidArgument if the conversation has become too long; then `text` is forgotten
  void answer(std::string text) {
    messages_.push_back({.role = "user", .content = std::move(text)});
    std::optional<nvl::Completion> done;
    try {
      interrupted = 0;
      AbortGuard guard(llm_.engine());
      nvl::Request request{.prompt_ids = nvl::format_chat(llm_.tokenizer(), messages_, true), .sampling = sampling_};
      nvl::RequestCallbacks callbacks;
      callbacks.on_token = [](const nvl::TokenEvent& event) {
        std::fwrite(event.text.data(), 1, event.text.size(), stdout);
        std::fflush(stdout);
      };
      callbacks.on_finish = [&done](const nvl::Completion& completion) { done = completion; };
      const nvl::RequestId id = llm_.engine().submit(std::move(request), std::move(callbacks));
      guard.add(id);
      while (!done) {
        if (interrupted != 0) {
          interrupted = 0;
          llm_.engine().abort(id);
        } else {
          llm_.engine().step();
        }
      }
      if (!done->error.empty()) { throw UsageError(done->error); }
    } catch (...) {
      messages_.pop_back();
      throw;
    }
    std::fputs(done->text.ends_with('\n') ? "" : "\n", stdout);
    std::fflush(stdout);
    report(*done);
    messages_.push_back({.role = "assistant", .content = std::move(done->text)});
  }

 private:
  static void report(const nvl::Completion& done) {
    char speed[128];
    std::snprintf(speed, sizeof speed, "[TTFT %.0f ms, %.1f tokens/s", 1e3 * done.timings.ttft,
                  done.timings.tpot > 0 ? 1 / done.timings.tpot : 0.0);
    std::string text = speed;
    text += "; " + std::to_string(done.prompt_ids.size()) + " prompt tokens, " + std::to_string(done.num_cached_tokens) +
            " of them cached; " + std::to_string(done.output_ids.size()) + " output tokens";
    if (done.finish_reason == nvl::FinishReason::abort) { text += ", stopped"; }
    if (done.finish_reason == nvl::FinishReason::length) { text += ", cut off by --max-tokens or the end of the context"; }
    print_note(text + "]");
  }

  nvl::LLM& llm_;
  nvl::SamplingParams sampling_;
  std::optional<std::string> system_;
  std::vector<nvl::ChatMessage> messages_;
};

int chat(int argc, char** argv) {
  OptionParser parser("nvl-chat", "Talks with a model. Works on a terminal and on a pipe, a message a line.");
  ModelOptions model;
  SamplingOptions sampling;
  CapacityOptions capacity;
  std::optional<std::string> system;
  model.add_model_to(parser);
  parser.group("Conversation");
  parser.option("--system", system, "TEXT", "The system message. Default: the one in the model's chat format, if it has one.");
  sampling.add_to(parser, false);
  parser.group("Machine");
  model.add_device_to(parser);
  capacity.add_to(parser);
  parser.footer("While it runs:\n" + std::string(help_text));
  if (!parser.parse(argc, argv)) { return 0; }
  model.validate();
  if (!sampling.max_tokens) { sampling.max_tokens = 1024; }

  nvl::EngineOptions options;
  options.max_num_seqs = 1;
  nvl::LLM llm = open_llm("nvl-chat", model, capacity.over(options));
  Chat conversation(llm, sampling.over(llm.default_sampling()), system);
  Input input;
  if (input.is_person()) { std::fprintf(stderr, "%s. /help shows what can be typed.\n", model.model.filename().c_str()); }
  catch_interrupts();
  while (const std::optional<std::string> message = input.next_message()) {
    if (message->find_first_not_of(" \t\n") == std::string::npos) { continue; }
    if (*message == "/exit" || *message == "/quit") { break; }
    if (*message == "/help") {
      std::fputs(help_text.data(), stderr);
    } else if (*message == "/reset") {
      conversation.reset();
    } else if (message->starts_with('/')) {
      std::fprintf(stderr, "%s is no command; /help lists them, and a blank before / makes it text.\n",
                   one_line(*message).c_str());
    } else {
      try {
        conversation.answer(*message);
      } catch (const nvl::InvalidArgument& error) {
        if (!input.is_person()) { throw; }
        std::fprintf(stderr, "That message was left out: %s. /reset starts a new conversation.\n", error.what());
      }
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program("nvl-chat", [&] { return chat(argc, argv); });
}
