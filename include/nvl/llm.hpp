#pragma once
/// The simplest way in: a model file, and text from it.
///
///     nvl::LLM llm("model.gguf");
///     for (const nvl::Completion& done : llm.generate({"The sky is"})) { std::puts(done.text.c_str()); }

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/with_engine.hpp>
#include <nvl/io/chat_format.hpp>
#include <nvl/io/check_tensors.hpp>
#include <nvl/io/checkpoint.hpp>
#include <nvl/io/generation_config.hpp>
#include <nvl/io/tokenizer.hpp>
#include <nvl/nvl.hpp>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct LlmOptions {
  EngineOptions engine{};        // token_text is filled in with the model's tokenizer
  std::optional<DType> dtype{};  // of activations and KV; none = from the checkpoint
  bool check_tensors = false;    // refuse weights that are NaN or infinite
  LoadProgress progress{};       // called while weights load

  /// Makes the engine; none = with_engine_type over DefaultEngines, on the CPU. For an engine type of one's own, or a GPU:
  ///     options.make_engine = [](const nvl::Checkpoint& checkpoint, const nvl::LlmOptions& o) {
  ///       return nvl::make_cuda_engine(checkpoint.config(), checkpoint, o.engine, o.dtype, o.progress);
  ///     };
  std::function<std::unique_ptr<AnyEngine>(const Checkpoint&, const LlmOptions&)> make_engine{};
};

/// A model, its tokenizer and an engine for it. Not thread-safe.
class LLM {
 public:
  /// Opens a .gguf file, a Hugging Face directory, or a .safetensors file beside its config.json.
  /// \throws FileError, Unsupported, InvalidArgument or OutOfMemory, naming what is wrong and where.
  explicit LLM(const std::filesystem::path& model, LlmOptions options = {}) {
    const Checkpoint checkpoint = Checkpoint::open(model);
    tokenizer_ = open_tokenizer(checkpoint);
    if (options.check_tensors) { require_finite(checkpoint); }
    warnings_.assign(checkpoint.warnings().begin(), checkpoint.warnings().end());
    defaults_ = checkpoint.generation_defaults();
    NVL_EXPECTS(tokenizer_->vocab_size() <= checkpoint.config().vocab_size, "vocab_size", checkpoint.config().vocab_size,
                "at least the tokenizer's " + std::to_string(tokenizer_->vocab_size()));
    options.engine.token_text = tokenizer_;
    checkpoint.check_unchanged();
    engine_ = options.make_engine ? options.make_engine(checkpoint, options) : make_default_engine(checkpoint, options);
    for (std::string& warning : engine_->warnings()) { warnings_.push_back(std::move(warning)); }
  }

  /// Continues each prompt. Text that spells a special token becomes that token.
  std::vector<Completion> generate(const std::vector<std::string>& prompts, const SamplingParams& sampling) {
    std::vector<Request> requests;
    requests.reserve(prompts.size());
    for (const std::string& prompt : prompts) {
      requests.push_back({.prompt_ids = tokenizer_->encode(prompt), .sampling = sampling});
    }
    return engine_->generate(std::move(requests));
  }
  std::vector<Completion> generate(const std::vector<std::string>& prompts) { return generate(prompts, default_sampling()); }

  /// Answers the last message of a conversation.
  Completion chat(std::span<const ChatMessage> messages, const SamplingParams& sampling) {
    std::vector<Request> requests;
    requests.push_back({.prompt_ids = format_chat(*tokenizer_, messages, true), .sampling = sampling});
    return std::move(engine_->generate(std::move(requests)).front());
  }

  /// The library's defaults with the model's generation_config.json over them. A request changes what it wants to.
  SamplingParams default_sampling() const {
    SamplingParams sampling;
    defaults_.apply_to(sampling);
    return sampling;
  }

  AnyEngine& engine() noexcept { return *engine_; }
  /// Gives the engine away, to an AsyncEngine say. Afterwards only `tokenizer`, `default_sampling` and `warnings` may be called.
  std::unique_ptr<AnyEngine> take_engine() noexcept { return std::move(engine_); }
  const ModelConfig& config() const noexcept { return engine_->config(); }
  const Tokenizer& tokenizer() const noexcept { return *tokenizer_; }
  /// What was odd about the checkpoint, or at the engine's start, but did no harm.
  const std::vector<std::string>& warnings() const noexcept { return warnings_; }

 private:
  static std::unique_ptr<AnyEngine> make_default_engine(const Checkpoint& checkpoint, const LlmOptions& options) {
    return with_engine_type(DefaultEngines{}, checkpoint.config(), options.dtype, [&]<class E>(std::type_identity<E>) {
      return make_any_engine<E>(checkpoint.config(), checkpoint, options.engine, options.progress);
    });
  }

  static std::shared_ptr<const Tokenizer> open_tokenizer(const Checkpoint& checkpoint) {
    if (checkpoint.gguf() != nullptr) { return std::make_shared<const Tokenizer>(Tokenizer::from_gguf(*checkpoint.gguf())); }
    const std::filesystem::path& path = checkpoint.path();
    return std::make_shared<const Tokenizer>(Tokenizer::open(std::filesystem::is_directory(path) ? path : path.parent_path()));
  }

  static void require_finite(const Checkpoint& checkpoint) {
    const std::vector<NonFiniteTensor> broken = find_non_finite(checkpoint);
    if (broken.empty()) { return; }
    std::string list;
    for (const NonFiniteTensor& tensor : broken) {
      list += (list.empty() ? "" : ", ") + tensor.name + " (" + std::to_string(tensor.count) +
              " of its values, the first at index " + std::to_string(tensor.first) + ")";
    }
    raise(FileError(checkpoint.path().string(), "weights are NaN or infinite: " + list));
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> warnings_;
  GenerationDefaults defaults_;
  std::unique_ptr<AnyEngine> engine_;
};

}  // namespace nvl::inline NVL_ABI
