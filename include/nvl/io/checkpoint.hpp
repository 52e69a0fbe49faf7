#pragma once
/// A model on disk, whatever its format: configuration, recommended sampling, and weights under canonical names.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>
#include <nvl/io/generation_config.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/gguf_config.hpp>
#include <nvl/io/hf_config.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/printable.hpp>
#include <nvl/io/safetensors.hpp>
#include <nvl/io/weight_map.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

enum class CheckpointKind : std::uint8_t { gguf, safetensors };

namespace detail {

/// A few names out of many, for a message.
class NameList {
 public:
  void add(const std::string& text) {
    if (count_ < max_shown) { text_ += (count_ == 0 ? "" : ", ") + text; }
    ++count_;
  }
  std::size_t count() const noexcept { return count_; }
  std::string text() const {
    return count_ <= max_shown ? text_ : text_ + " and " + std::to_string(count_ - max_shown) + " more";
  }

 private:
  static constexpr std::size_t max_shown = 8;
  std::string text_;
  std::size_t count_ = 0;
};

inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) { text += (i == 0 ? "" : ", ") + std::to_string(shape[i]); }
  return text + "]";
}

}  // namespace detail

/// Owns the files of one model. Move-only; the tensors that it hands out point into its files and die with it.
class Checkpoint {
 public:
  /// Opens a .gguf file, a Hugging Face directory (config.json with one or several .safetensors files), or a .safetensors file
  /// whose config.json lies beside it. All weights that the configuration calls for are there with the right shapes afterwards.
  /// \throws FileError, Unsupported; pickled weights (.bin, .pt) and code in a model's directory are never touched
  static Checkpoint open(const std::filesystem::path& path, MapMode mode = MapMode::map) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) { return open_directory(path, mode); }
    const std::string extension = path.extension().string();
    refuse_pickle(path, extension);
    if (extension == ".safetensors") {
      return open_safetensors(path, path.parent_path(), SafetensorsModel::from_file(path, mode));
    }
    MappedFile file(path, mode);
    if (extension != ".gguf" && !file.text().starts_with("GGUF")) {
      raise(Unsupported(file.path() + ": is neither GGUF nor safetensors; nvl reads those, and Hugging Face directories"));
    }
    return open_gguf(path, std::move(file));
  }

  const ModelConfig& config() const noexcept { return config_; }
  /// Its eos_token_ids are those to use: of generation_config.json, else config.json, else tokenizer_config.json.
  const GenerationDefaults& generation_defaults() const noexcept { return defaults_; }
  const std::filesystem::path& path() const noexcept { return path_; }  ///< as it was given to open()
  CheckpointKind kind() const noexcept { return gguf_ ? CheckpointKind::gguf : CheckpointKind::safetensors; }
  const GgufFile* gguf() const noexcept { return gguf_.get(); }  ///< nullptr unless kind() is gguf
  std::span<const std::string> warnings() const noexcept { return warnings_; }

  /// In the order of expected_weights().
  std::span<const HostTensor> tensors() const noexcept { return tensors_; }

  /// nullptr if the model has no weight of this canonical name
  const HostTensor* find(std::string_view canonical_name) const {
    const auto found = places_.find(canonical_name);
    return found == places_.end() ? nullptr : &tensors_[found->second];
  }

  /// Throws FileError if a file changed since it was opened. Call it before weights are copied: see mapped_file.hpp.
  void check_unchanged() const {
    if (gguf_) { gguf_->file().check_unchanged(); }
    if (safetensors_) {
      for (const SafetensorsFile& file : safetensors_->files()) { file.file().check_unchanged(); }
    }
  }

 private:
  Checkpoint() = default;

  static void refuse_pickle(const std::filesystem::path& path, const std::string& extension) {
    for (const char* const pickled : {".bin", ".pt", ".pth", ".ckpt", ".pkl"}) {
      if (extension == pickled) {
        raise(Unsupported(path.string() +
                          ": pickled weights can run code when they are read, so nvl does not; convert them to safetensors"));
      }
    }
  }

  static Checkpoint open_directory(const std::filesystem::path& directory, MapMode mode) {
    const auto exists = [&](const char* name) {
      std::error_code ignored;
      return std::filesystem::exists(directory / name, ignored);
    };
    if (!exists("config.json")) {
      raise(FileError(directory.string(),
                      "holds no config.json: must be a Hugging Face model directory, or give a .gguf file itself"));
    }
    if (exists("model.safetensors")) {
      const auto file = directory / "model.safetensors";
      return open_safetensors(directory, directory, SafetensorsModel::from_file(file, mode));
    }
    if (exists("model.safetensors.index.json")) {
      const auto index = directory / "model.safetensors.index.json";
      return open_safetensors(directory, directory, SafetensorsModel::from_index(index, mode));
    }
    for (const char* const pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
      if (exists(pickled)) { refuse_pickle(directory / pickled, ".bin"); }
    }
    raise(FileError(directory.string(), "holds neither model.safetensors nor model.safetensors.index.json"));
  }

  static Checkpoint open_safetensors(const std::filesystem::path& path, const std::filesystem::path& directory,
                                     SafetensorsModel model) {
    Checkpoint result;
    result.path_ = path;
    result.config_ = read_hf_config(directory / "config.json");
    result.safetensors_ = std::make_unique<SafetensorsModel>(std::move(model));
    result.read_generation_defaults(directory);

    // Checkpoints of the bare decoder have no "model." in front.
    const std::string prefix = result.safetensors_->find("model.embed_tokens.weight") != nullptr ? "model." : "";
    std::unordered_set<std::string> used;
    result.take_weights([&](const std::string& canonical, HostTensor& tensor) {
      std::string name = detail::weight_alias(canonical, &detail::WeightAlias::hf, "layers.");
      if (canonical != weight_names::lm_head) { name = prefix + name; }
      const SafetensorsTensor* const found = result.safetensors_->find(name);
      if (found != nullptr) {
        tensor.dtype = found->dtype;
        tensor.shape = found->shape;
        tensor.data = found->data;
      }
      used.insert(name);
      return std::pair(std::move(name), found != nullptr);
    });
    detail::NameList extra;
    for (const SafetensorsFile& file : result.safetensors_->files()) {
      for (const SafetensorsTensor& tensor : file.tensors()) {
        const std::string_view name = tensor.name;
        const bool is_buffer = name.ends_with("rotary_emb.inv_freq");  // computed, not learned
        const bool is_tied = result.config_.tie_word_embeddings && name == "lm_head.weight";
        if (!is_buffer && !is_tied && !used.contains(tensor.name)) { extra.add(detail::in_quotes(name)); }
      }
    }
    result.warn_extra(extra);
    return result;
  }

  static Checkpoint open_gguf(const std::filesystem::path& path, MappedFile file) {
    Checkpoint result;
    result.path_ = path;
    result.gguf_ = std::make_unique<GgufFile>(std::move(file));
    const GgufFile& gguf = *result.gguf_;
    if (const auto parts = gguf.find_uint("split.count"); parts && *parts > 1) {
      raise(Unsupported(gguf.path() + ": is one of " + std::to_string(*parts) +
                        " parts of a split model; nvl reads GGUF in one file"));
    }
    result.config_ = gguf_model_config(gguf);
    result.defaults_ = gguf_generation_defaults(gguf);
    result.defaults_.eos_token_ids = result.config_.eos_token_ids;
    if (result.config_.bos_token_id >= 0) { result.defaults_.bos_token_id = result.config_.bos_token_id; }

    std::unordered_set<std::string_view> used;
    result.take_weights([&](const std::string& canonical, HostTensor& tensor) {
      std::string name = detail::weight_alias(canonical, &detail::WeightAlias::gguf, "blk.");
      const GgufTensor* const found = gguf.find_tensor(name);
      if (found != nullptr) {
        tensor.dtype = found->dtype;
        tensor.shape.assign(found->shape().begin(), found->shape().end());
        tensor.data = found->data;
        used.insert(found->name);
      }
      return std::pair(std::move(name), found != nullptr);
    });
    detail::NameList extra;
    for (const GgufTensor& tensor : gguf.tensors()) {
      if (tensor.name != "rope_freqs.weight" && !used.contains(tensor.name)) { extra.add(detail::in_quotes(tensor.name)); }
    }
    result.warn_extra(extra);
    return result;
  }

  /// Fills tensors_. `take(canonical, tensor)` fills one from the file and returns its name there and whether it is there.
  template <class Take>
  void take_weights(Take&& take) {
    detail::NameList missing;
    detail::NameList wrong;
    std::array<std::int64_t, dtype_table.size()> elements{};
    for (WeightSpec& spec : expected_weights(config_)) {
      HostTensor tensor;
      tensor.name = std::move(spec.name);
      const auto [name, found] = take(tensor.name, tensor);
      if (!found) {
        missing.add(detail::in_quotes(name));
        continue;
      }
      if (tensor.shape != spec.shape) {
        wrong.add(detail::in_quotes(name) + " is " + detail::shape_text(tensor.shape) + " instead of " +
                  detail::shape_text(spec.shape));
      } else if (tensor.dtype == DType::int8 || tensor.dtype == DType::int32 || tensor.dtype == DType::int64) {
        wrong.add(detail::in_quotes(name) + " holds " + std::string(info(tensor.dtype).name));
      }
      if (spec.shape.size() == 2) { elements[static_cast<std::size_t>(tensor.dtype)] += spec.shape[0] * spec.shape[1]; }
      tensors_.push_back(std::move(tensor));
    }
    if (missing.count() + wrong.count() > 0) {
      std::string what = "does not hold the weights that its configuration calls for";
      if (missing.count() > 0) { what += "; missing: " + missing.text(); }
      if (wrong.count() > 0) { what += "; wrong shape or type: " + wrong.text(); }
      raise(FileError(path_.string(), what));
    }
    const auto most = std::max_element(elements.begin(), elements.end());
    config_.dtype = dtype_table[static_cast<std::size_t>(most - elements.begin())].type;
    for (std::size_t i = 0; i < tensors_.size(); ++i) { places_.emplace(tensors_[i].name, i); }
  }

  void warn_extra(const detail::NameList& extra) {
    if (extra.count() > 0) { warnings_.push_back(std::to_string(extra.count()) + " tensors are not used: " + extra.text()); }
  }

  /// Precedence of end-of-sequence ids: generation_config.json, config.json, tokenizer_config.json.
  void read_generation_defaults(const std::filesystem::path& directory) {
    std::error_code ignored;
    if (const auto file = directory / "generation_config.json"; std::filesystem::exists(file, ignored)) {
      defaults_ = read_generation_config(file, config_.vocab_size);
    }
    if (defaults_.eos_token_ids.empty()) { defaults_.eos_token_ids = config_.eos_token_ids; }
    if (defaults_.eos_token_ids.empty()) {
      if (const auto file = directory / "tokenizer_config.json"; std::filesystem::exists(file, ignored)) {
        defaults_.eos_token_ids = tokenizer_config_eos(file);
      }
    }
    config_.eos_token_ids = defaults_.eos_token_ids;
    if (defaults_.bos_token_id) { config_.bos_token_id = *defaults_.bos_token_id; }
    if (config_.bos_token_id >= 0) { defaults_.bos_token_id = config_.bos_token_id; }
  }

  /// tokenizer_config.json names the token by its text; its own table of added tokens knows the id.
  std::vector<TokenId> tokenizer_config_eos(const std::filesystem::path& path) const {
    constexpr std::uint64_t max_tokenizer_config_bytes = 64u << 20;
    const MappedFile file(path, MapMode::read, max_tokenizer_config_bytes);
    const nlohmann::json root = parse_json(file.text(), file.path());
    const nlohmann::json* const eos = json_find(root, "eos_token");
    const nlohmann::json* const added = json_find(root, "added_tokens_decoder");
    if (eos == nullptr || added == nullptr || !added->is_object()) { return {}; }
    const std::string& wanted =
        eos->is_object() ? json_string(*eos, "content", file.path()) : json_to_string(*eos, "eos_token", file.path());
    for (const auto& [id, token] : added->items()) {
      const nlohmann::json* const content = json_find(token, "content");
      if (content == nullptr || *content != wanted) { continue; }
      TokenId number = -1;
      const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), number);
      if (error != std::errc() || end != id.data() + id.size() || number < 0 || number >= config_.vocab_size) {
        detail::fail_json(file.path(), "added_tokens_decoder key of eos_token", detail::in_quotes(id),
                          "a token id below vocab_size (" + std::to_string(config_.vocab_size) + ")");
      }
      return {number};
    }
    return {};
  }

  std::filesystem::path path_;
  ModelConfig config_;
  GenerationDefaults defaults_;
  std::unique_ptr<GgufFile> gguf_;
  std::unique_ptr<SafetensorsModel> safetensors_;
  std::vector<HostTensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> places_;  // keys are the names in tensors_, whose buffer never moves
  std::vector<std::string> warnings_;
};

}  // namespace nvl::inline NVL_ABI
