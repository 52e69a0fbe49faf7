#pragma once
/// Hugging Face's tokenizer.json (BPE models) and what belongs to it: tokenizer_config.json and chat_template.jinja.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/tokenizer_parts.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Token files are mostly short strings, each of which costs several times its length in memory.
inline nlohmann::json parse_tokenizer_json(std::string_view text, const std::string& path) {
  return parse_json(text, path, 64, 8 * text.size() + (std::size_t{64} << 20));
}

/// Maps one tokenizer.json to parts. What changes ids and is not known here is refused by name.
class TokenizerJsonReader {
 public:
  using json = nlohmann::json;

  TokenizerJsonReader(std::string_view text, std::string path) : root_(parse_tokenizer_json(text, path)) {
    parts_.path = std::move(path);
    if (!root_.is_object()) { fail("the file holds " + describe(root_) + ": must be an object"); }
  }

  TokenizerParts read() {
    const json& model = json_object(root_, "model", path());
    const std::string type = json_optional_string(model, "type", path()).value_or(json_find(model, "merges") ? "BPE" : "");
    if (type != "BPE") { refuse("model.type", type, "BPE"); }
    read_normalizer(json_find(root_, "normalizer"), "normalizer");
    read_pre_tokenizer(json_find(root_, "pre_tokenizer"), "pre_tokenizer", true);
    parts_.normalizer = Normalizer(std::move(normalizer_steps_));
    parts_.pre_tokenizer = PreTokenizer(std::move(pre_tokenizer_steps_));
    read_decoder(json_find(root_, "decoder"));
    read_tokens(model);
    read_model(model);
    read_post_processor(json_find(root_, "post_processor"));
    return std::move(parts_);
  }

 private:
  const std::string& path() const noexcept { return parts_.path; }
  [[noreturn]] void fail(const std::string& what) const { raise(FileError(path(), what)); }
  [[noreturn]] void refuse(const std::string& field, const std::string& value, const std::string& known) const {
    raise(Unsupported(path() + ": " + field + " is " + printable(value) + ": nvl knows " + known));
  }

  std::string type_of(const json& step, const std::string& where) const {
    if (!step.is_object()) { fail(where + " is " + describe(step) + ": must be an object"); }
    return json_string(step, "type", path());
  }

  /// The "pattern" of a Split or Replace: {"String": ...} or {"Regex": ...}. `literal` tells which.
  std::string pattern_of(const json& step, bool& literal) const {
    const json& pattern = json_object(step, "pattern", path());
    literal = json_find(pattern, "String") != nullptr;
    return json_string(pattern, literal ? "String" : "Regex", path());
  }

  static std::string escape_pattern(std::string_view text) {
    std::string out;
    for (const char c : text) {
      const bool plain = static_cast<unsigned char>(c) >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                         (c >= 'A' && c <= 'Z') || static_cast<unsigned char>(c) <= ' ';
      if (!plain) { out += '\\'; }
      out += c;
    }
    return out;
  }

  void read_normalizer(const json* step, const std::string& where) {
    if (step == nullptr) { return; }
    const std::string type = type_of(*step, where);
    if (type == "Sequence") {
      for (const json& inner : json_array(*step, "normalizers", path())) { read_normalizer(&inner, where + ".normalizers"); }
    } else if (type == "NFC") {
      normalizer_steps_.emplace_back(Normalizer::Nfc{});
    } else if (type == "Prepend") {
      normalizer_steps_.emplace_back(Normalizer::Prepend{json_string(*step, "prepend", path())});
    } else if (type == "Replace") {
      bool literal = false;
      const std::string pattern = pattern_of(*step, literal);
      const std::string content = json_string(*step, "content", path());
      if (pattern.empty()) { fail(where + ": a Replace has an empty pattern"); }
      if (literal) {
        normalizer_steps_.emplace_back(Normalizer::ReplaceText{pattern, content});
      } else {
        normalizer_steps_.emplace_back(
            Normalizer::ReplacePattern{std::make_shared<const RegexPattern>(pattern, path()), content});
      }
    } else if (type == "Strip") {
      normalizer_steps_.emplace_back(Normalizer::Strip{json_optional_bool(*step, "strip_left", path()).value_or(true),
                                                       json_optional_bool(*step, "strip_right", path()).value_or(true)});
    } else {
      refuse(where + ".type", type, "Sequence, NFC, Prepend, Replace, Strip");
    }
  }

  SplitBehavior behavior_of(const json& step, const std::string& where) const {
    const std::string name = json_string(step, "behavior", path());
    if (name == "Removed") { return SplitBehavior::removed; }
    if (name == "Isolated") { return SplitBehavior::isolated; }
    if (name == "MergedWithPrevious") { return SplitBehavior::merged_with_previous; }
    if (name == "MergedWithNext") { return SplitBehavior::merged_with_next; }
    if (name == "Contiguous") { return SplitBehavior::contiguous; }
    refuse(where + ".behavior", name, "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
  }

  void add_split(std::string_view pattern, SplitBehavior behavior, bool invert) {
    pre_tokenizer_steps_.emplace_back(
        PreTokenizer::Split{std::make_shared<const RegexPattern>(pattern, path()), behavior, invert});
  }

  /// `last`: no step follows. ByteLevel has to be last: what follows it would see letters that stand for bytes.
  void read_pre_tokenizer(const json* step, const std::string& where, bool last) {
    if (step == nullptr) { return; }
    const std::string type = type_of(*step, where);
    if (type == "Sequence") {
      const json& inner = json_array(*step, "pretokenizers", path());
      for (std::size_t i = 0; i < inner.size(); ++i) {
        read_pre_tokenizer(&inner[i], where + ".pretokenizers", last && i + 1 == inner.size());
      }
    } else if (type == "Split") {
      bool literal = false;
      const std::string pattern = pattern_of(*step, literal);
      if (pattern.empty()) { fail(where + ": a Split has an empty pattern"); }
      const bool invert = json_optional_bool(*step, "invert", path()).value_or(false);
      add_split(literal ? escape_pattern(pattern) : pattern, behavior_of(*step, where), invert);
    } else if (type == "Digits") {
      const bool individual = json_optional_bool(*step, "individual_digits", path()).value_or(false);
      add_split(split_patterns::digit, individual ? SplitBehavior::isolated : SplitBehavior::contiguous, false);
    } else if (type == "ByteLevel") {
      if (!last) { refuse(where, "a sequence that goes on after ByteLevel", "ByteLevel as the last step"); }
      byte_level_ = true;
      if (json_optional_bool(*step, "add_prefix_space", path()).value_or(true)) {
        pre_tokenizer_steps_.emplace_back(PreTokenizer::PrefixSpace{});
      }
      if (json_optional_bool(*step, "use_regex", path()).value_or(true)) {
        add_split(split_patterns::gpt2, SplitBehavior::isolated, false);
      }
    } else if (type == "Metaspace") {
      read_metaspace(*step, where);
    } else {
      refuse(where + ".type", type, "Sequence, Split, Digits, ByteLevel, Metaspace");
    }
  }

  void read_metaspace(const json& step, const std::string& where) {
    const std::string replacement = json_optional_string(step, "replacement", path()).value_or(std::string(sentencepiece_space));
    if (replacement != sentencepiece_space) { refuse(where + ".replacement", replacement, "U+2581"); }
    PreTokenizer::Metaspace metaspace;
    metaspace.split = json_optional_bool(step, "split", path()).value_or(true);
    const bool prefix = json_optional_bool(step, "add_prefix_space", path()).value_or(true);  // the older spelling
    const std::string scheme = json_optional_string(step, "prepend_scheme", path()).value_or(prefix ? "always" : "never");
    using Prepend = PreTokenizer::Metaspace::Prepend;
    if (scheme == "always") {
      metaspace.prepend = Prepend::always;
    } else if (scheme == "first") {
      metaspace.prepend = Prepend::first;
    } else if (scheme == "never") {
      metaspace.prepend = Prepend::never;
    } else {
      refuse(where + ".prepend_scheme", scheme, "always, first, never");
    }
    pre_tokenizer_steps_.emplace_back(metaspace);
  }

  /// Byte-level vocabularies need a ByteLevel decoder; the others SentencePiece's: Replace U+2581, ByteFallback, Fuse, then
  /// perhaps Strip of one blank at the start.
  void read_decoder(const json* decoder) {
    std::vector<const json*> steps;
    if (decoder != nullptr) {
      if (type_of(*decoder, "decoder") == "Sequence") {
        for (const json& inner : json_array(*decoder, "decoders", path())) { steps.push_back(&inner); }
      } else {
        steps.push_back(decoder);
      }
    }
    std::string types;
    for (const json* step : steps) { types += (types.empty() ? "" : ", ") + type_of(*step, "decoder"); }
    if (byte_level_) {
      if (types != "ByteLevel") { refuse("decoder", types.empty() ? "missing" : types, "ByteLevel for byte-level vocabularies"); }
      return;
    }
    const std::string known = "Replace, ByteFallback, Fuse and perhaps Strip for vocabularies that are not byte-level";
    if (types != "Replace, ByteFallback, Fuse" && types != "Replace, ByteFallback, Fuse, Strip") {
      refuse("decoder", types.empty() ? "missing" : types, known);
    }
    bool literal = false;
    const std::string replaced = pattern_of(*steps[0], literal);
    if (!literal || replaced != sentencepiece_space || json_string(*steps[0], "content", path()) != " ") {
      refuse("decoder's Replace", replaced, "U+2581 by a blank");
    }
    if (steps.size() == 4) {
      const std::int64_t start = json_int(*steps[3], "start", 0, 1, path());
      const std::int64_t stop = json_int(*steps[3], "stop", 0, 0, path());
      if (json_string(*steps[3], "content", path()) != " " || stop != 0) {
        refuse("decoder's Strip", "of something else", "one blank at the start");
      }
      parts_.drops_leading_space = start == 1;
    }
  }

  void read_tokens(const json& model) {
    const json& vocab = json_object(model, "vocab", path());
    const json* added = json_find(root_, "added_tokens");
    if (added != nullptr && !added->is_array()) { fail("added_tokens is " + describe(*added) + ": must be an array"); }
    const std::size_t count = vocab.size() + (added != nullptr ? added->size() : 0);
    // Gaps between ids are allowed, but they may not make a small file cost much memory.
    const auto max_id = static_cast<std::int64_t>(std::min<std::size_t>(2 * count + 65536, (1u << 24) - 1));

    tokens_.resize(vocab.size());
    const auto slot = [&](std::int64_t id) -> std::string_view& {
      const auto at = static_cast<std::size_t>(id);
      if (at >= tokens_.size()) { tokens_.resize(at + 1); }
      return tokens_[at];
    };
    for (const auto& [text, id] : vocab.items()) {
      if (text.empty()) { fail("model.vocab holds a token of length 0"); }
      const std::int64_t number = json_to_int(id, "id of token \"" + printable(text) + "\"", 0, max_id, path());
      std::string_view& token = slot(number);
      if (!token.empty()) {
        fail("tokens \"" + printable(token) + "\" and \"" + printable(text) + "\" have the same id " + std::to_string(number));
      }
      token = text;
      ids_.emplace(text, static_cast<TokenId>(number));
    }
    model_tokens_ = tokens_;
    if (added == nullptr) { return; }
    for (const json& entry : *added) { read_added_token(entry, max_id, slot); }
  }

  template <class Slot>
  void read_added_token(const json& entry, std::int64_t max_id, Slot&& slot) {
    if (!entry.is_object()) { fail("an element of added_tokens is " + describe(entry) + ": must be an object"); }
    const std::string& content = json_string(entry, "content", path());
    if (content.empty()) { fail("added_tokens holds a token of length 0"); }
    if (content.size() > AddedTokenMatcher::max_content_bytes) {
      fail("an added token has " + std::to_string(content.size()) + " bytes: must be at most " +
           std::to_string(AddedTokenMatcher::max_content_bytes));
    }
    const std::int64_t id = json_int(entry, "id", 0, max_id, path());
    const auto known = ids_.find(content);
    if (known != ids_.end() && known->second != id) {
      fail("added token \"" + printable(content) + "\" has id " + std::to_string(id) + ", but model.vocab gives it " +
           std::to_string(known->second));
    }
    std::string_view& token = slot(id);
    if (!token.empty() && token != content) {
      fail("tokens \"" + printable(token) + "\" and \"" + printable(content) + "\" have the same id " + std::to_string(id));
    }
    token = content;
    AddedToken result{.id = static_cast<TokenId>(id), .content = content};
    result.special = json_optional_bool(entry, "special", path()).value_or(false);
    result.normalized = json_optional_bool(entry, "normalized", path()).value_or(!result.special);
    result.left_strip = json_optional_bool(entry, "lstrip", path()).value_or(false);
    result.right_strip = json_optional_bool(entry, "rstrip", path()).value_or(false);
    result.single_word = json_optional_bool(entry, "single_word", path()).value_or(false);
    if (result.special) { parts_.special.push_back(result.id); }
    parts_.added.push_back(std::move(result));
  }

  void read_model(const json& model) {
    if (json_optional_float(model, "dropout", 0, 1, path()).value_or(0) > 0) {
      refuse("model.dropout", "above 0", "models without dropout");
    }
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const auto text = json_optional_string(model, affix, path());
      if (text && !text->empty()) { refuse(std::string("model.") + affix, *text, "models without it"); }
    }
    std::optional<TokenId> unknown;
    if (const auto text = json_optional_string(model, "unk_token", path())) {
      const auto found = ids_.find(*text);
      if (found == ids_.end()) { fail("model.unk_token \"" + printable(*text) + "\" is not in the vocabulary"); }
      unknown = found->second;
    }
    const bool whole_pieces_first = json_optional_bool(model, "ignore_merges", path()).value_or(false);
    const bool fuse_unknown = json_optional_bool(model, "fuse_unk", path()).value_or(false);
    const bool byte_fallback = json_optional_bool(model, "byte_fallback", path()).value_or(false);
    MergeTable merges = read_merges(json_array(model, "merges", path()));
    build_vocabulary();
    if (byte_level_) {
      if (byte_fallback) { refuse("model.byte_fallback", "true", "byte_fallback only without ByteLevel"); }
      ByteLevelBpe::Options options;
      options.whole_pieces_first = whole_pieces_first;
      options.unknown = unknown;
      options.fuse_unknown = fuse_unknown;
      options.never_whole = parts_.special;
      parts_.model = ByteLevelBpe(parts_.vocabulary, std::move(merges), std::move(options));
    } else {
      SentencePieceBpe::Options options;
      options.whole_pieces_first = whole_pieces_first;
      options.unknown = unknown;
      options.fuse_unknown = fuse_unknown;
      options.byte_fallback = byte_fallback;
      std::vector<SentencePieceBpe::Piece> pieces(ids_.begin(), ids_.end());
      parts_.model = SentencePieceBpe(pieces, std::move(merges), options);
    }
  }

  /// Merges are strings "a b" (older files) or pairs ["a", "b"].
  MergeTable read_merges(const json& merges) const {
    if (merges.size() >= (std::size_t{1} << 31)) { fail("model.merges has too many elements"); }
    MergeTable table(merges.size());
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const json& merge = merges[rank];
      std::pair<std::string_view, std::string_view> pair;
      if (merge.is_string()) {
        pair = split_merge(merge.get_ref<const std::string&>(), rank, path());
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        pair = {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
      } else {
        fail("model.merges[" + std::to_string(rank) + "] is " + describe(merge) + ": must be \"a b\" or [\"a\", \"b\"]");
      }
      add_merge(table, ids_, pair.first, pair.second, static_cast<std::uint32_t>(rank), path());
    }
    return table;
  }

  void build_vocabulary() {
    // The decoder spells an added token that is looked for in normalized text in its normalized form.
    std::vector<std::string> normalized;
    normalized.reserve(parts_.added.size());
    for (const AddedToken& token : parts_.added) {
      if (!token.normalized) { continue; }
      normalized.push_back(parts_.normalizer.apply(token.content));
      tokens_[static_cast<std::size_t>(token.id)] = normalized.back();
    }
    std::vector<std::string> bytes;
    bytes.reserve(tokens_.size());
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      if (byte_level_) {
        // Added tokens too: the ByteLevel decoder reads their letters as bytes if all of them can be read so.
        auto decoded = ByteAlphabet::decode(tokens_[i]);
        bytes.push_back(decoded ? std::move(*decoded) : std::string(tokens_[i]));
      } else if (const auto byte = parse_byte_piece(tokens_[i])) {
        bytes.emplace_back(1, static_cast<char>(*byte));
        parts_.byte_fallback.push_back(static_cast<TokenId>(i));
      } else {
        bytes.push_back(with_blanks(tokens_[i]));
      }
    }
    parts_.vocabulary = Vocabulary(bytes);
    // Tokens that text becomes come first, because whole pieces are looked up here; the chat markers are not among them.
    for (std::size_t i = 0; i < model_tokens_.size(); ++i) {
      if (!model_tokens_[i].empty()) { parts_.vocabulary.index(static_cast<TokenId>(i)); }
    }
    for (const AddedToken& token : parts_.added) { parts_.vocabulary.index(token.id); }
  }

  void read_post_processor(const json* step) {
    if (step == nullptr) { return; }
    const std::string type = type_of(*step, "post_processor");
    if (type == "ByteLevel") { return; }  // changes offsets only
    if (type == "Sequence") {
      for (const json& inner : json_array(*step, "processors", path())) { read_post_processor(&inner); }
    } else if (type == "TemplateProcessing") {
      read_template(*step);
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      parts_.prefix.push_back(id_of_pair(json_array(*step, "cls", path())));
      parts_.suffix.insert(parts_.suffix.begin(), id_of_pair(json_array(*step, "sep", path())));
    } else {
      refuse("post_processor.type", type, "Sequence, ByteLevel, TemplateProcessing, RobertaProcessing, BertProcessing");
    }
  }

  std::int64_t last_id() const noexcept { return static_cast<std::int64_t>(tokens_.size()) - 1; }

  /// ["<s>", 1]
  TokenId id_of_pair(const json& pair) const {
    if (pair.size() != 2) { fail("post_processor: a token must be [text, id]"); }
    return static_cast<TokenId>(json_to_int(pair[1], "post_processor token id", 0, last_id(), path()));
  }

  void read_template(const json& step) {
    const json& single = json_array(step, "single", path());
    std::vector<TokenId> before, after;
    int sequences = 0;
    for (const json& item : single) {
      if (json_find(item, "Sequence") != nullptr) {
        ++sequences;
        continue;
      }
      const std::string& name = json_string(json_object(item, "SpecialToken", path()), "id", path());
      const json& token = json_object(json_object(step, "special_tokens", path()), name, path());
      for (const json& id : json_array(token, "ids", path())) {
        (sequences == 0 ? before : after)
            .push_back(static_cast<TokenId>(json_to_int(id, "post_processor token id", 0, last_id(), path())));
      }
    }
    if (sequences != 1) { fail("post_processor.single holds " + std::to_string(sequences) + " sequences: must be 1"); }
    parts_.prefix.insert(parts_.prefix.begin(), before.begin(), before.end());
    parts_.suffix.insert(parts_.suffix.end(), after.begin(), after.end());
  }

  json root_;
  TokenizerParts parts_;
  std::vector<Normalizer::Step> normalizer_steps_;
  std::vector<PreTokenizer::Step> pre_tokenizer_steps_;
  bool byte_level_ = false;
  std::vector<std::string_view> tokens_;        // by id, spelled as in the file; views of root_
  std::vector<std::string_view> model_tokens_;  // the same without added tokens
  TokenIds ids_;                                // of model.vocab
};

/// The text of a token in tokenizer_config.json: a string, or an object with "content".
inline std::optional<std::string> config_token(const nlohmann::json& config, const char* key, const std::string& path) {
  const nlohmann::json* value = json_find(config, key);
  if (value == nullptr) { return std::nullopt; }
  return value->is_object() ? json_optional_string(*value, "content", path) : std::optional(json_to_string(*value, key, path));
}

/// "chat_template" is a text, or a list of named ones of which "default" counts.
inline std::string config_chat_template(const nlohmann::json& config, const std::string& path) {
  const nlohmann::json* value = json_find(config, "chat_template");
  if (value == nullptr) { return {}; }
  if (!value->is_array()) { return json_to_string(*value, "chat_template", path); }
  for (const nlohmann::json& entry : *value) {
    if (json_optional_string(entry, "name", path) == "default") { return json_string(entry, "template", path); }
  }
  return {};
}

}  // namespace detail

/// A tokenizer.json given as text; `path` is for messages. There is no chat template and no EOS in it.
/// \throws FileError for a malformed file; Unsupported for what nvl could not reproduce exactly.
inline TokenizerParts parse_tokenizer_json(std::string_view text, const std::string& path) {
  return detail::TokenizerJsonReader(text, path).read();
}

/// `path`: a tokenizer.json, or the directory that holds it. Files beside it are read if they are there.
inline TokenizerParts read_tokenizer_json(const std::filesystem::path& path) {
  const bool is_directory = std::filesystem::is_directory(path);
  const std::filesystem::path directory = is_directory ? path : path.parent_path();
  const MappedFile file(is_directory ? path / "tokenizer.json" : path);
  TokenizerParts parts = parse_tokenizer_json(file.text(), file.path());

  if (const auto config_path = directory / "tokenizer_config.json"; std::filesystem::exists(config_path)) {
    const MappedFile config_file(config_path);
    const nlohmann::json config = detail::parse_tokenizer_json(config_file.text(), config_file.path());
    parts.chat_template = detail::config_chat_template(config, config_file.path());
    if (const auto eos = detail::config_token(config, "eos_token", config_file.path())) {
      if (const auto id = parts.vocabulary.find(*eos)) { parts.eos = {*id}; }
    }
    if (const auto bos = detail::config_token(config, "bos_token", config_file.path())) {
      parts.bos = parts.vocabulary.find(*bos);
    }
  }
  if (const auto template_path = directory / "chat_template.jinja"; std::filesystem::exists(template_path)) {
    parts.chat_template = std::string(MappedFile(template_path).text());
  }
  return parts;
}

}  // namespace nvl::inline NVL_ABI
