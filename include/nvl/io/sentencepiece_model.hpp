#pragma once
/// SentencePiece's own files (`tokenizer.model`): a protocol-buffer message, of which the fields that decide ids are read.
/// Format: sentencepiece_model.proto of the SentencePiece project; wire format: protobuf.dev/programming-guides/encoding.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/tokenizer_parts.hpp>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Walks over the fields of one message. Every length is checked before it is used.
class ProtobufReader {
 public:
  ProtobufReader(std::string_view message, const std::string& path) : rest_(message), path_(&path) {}

  std::uint32_t field = 0;   // number of the field that next() read
  std::uint64_t number = 0;  // its value if it is a varint
  float real = 0;            // its value if it is 32 bits wide
  std::string_view bytes;    // its value if it is a string, bytes or a message

  /// False at the end of the message. Values of another wire type than the caller expects read as 0 or empty.
  bool next() {
    if (rest_.empty()) { return false; }
    const std::uint64_t key = varint();
    field = static_cast<std::uint32_t>(key >> 3);
    number = 0;
    real = 0;
    bytes = {};
    switch (key & 7) {
      case 0: number = varint(); break;
      case 1: take(8); break;
      case 2: bytes = take(varint()); break;
      case 5: real = std::bit_cast<float>(little_endian(take(4))); break;
      default: fail("a field of unknown wire type " + std::to_string(key & 7));
    }
    return true;
  }

  [[noreturn]] void fail(const std::string& what) const { raise(FileError(*path_, "not a SentencePiece model: " + what)); }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if ((byte & 0x80) == 0) { return value; }
    }
    fail("a varint longer than 10 bytes");
  }

  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) {
      fail("a field of " + std::to_string(size) + " bytes where only " + std::to_string(rest_.size()) + " are left");
    }
    const std::string_view result = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return result;
  }

  static std::uint32_t little_endian(std::string_view four) {
    std::uint32_t value = 0;
    for (std::size_t i = 4; i-- > 0;) { value = (value << 8) | static_cast<unsigned char>(four[i]); }
    return value;
  }

  std::string_view rest_;
  const std::string* path_;
};

/// ModelProto.SentencePiece.
struct SentencePiecePiece {
  enum class Type : std::uint64_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  std::string_view text;
  float score = 0;
  Type type = Type::normal;
};

class SentencePieceModelReader {
 public:
  SentencePieceModelReader(std::string_view file, std::string path) : file_(file) { parts_.path = std::move(path); }

  TokenizerParts read() {
    for (ProtobufReader model(file_, parts_.path); model.next();) {
      if (model.field == 1) { read_piece(model.bytes); }
      if (model.field == 2) { read_trainer(model.bytes); }
      if (model.field == 3) { read_normalizer(model.bytes); }
    }
    if (pieces_.empty()) { raise(FileError(parts_.path, "not a SentencePiece model: it has no pieces")); }
    if (!is_bpe_) { refuse("model_type is not BPE", "BPE"); }
    if (changes_text_) { refuse("the normalizer changes characters (precompiled_charsmap)", "models without it"); }
    if (removes_whitespace_) { refuse("remove_extra_whitespaces is true", "models without it"); }
    if (!escapes_whitespace_) { refuse("escape_whitespaces is false", "models with it"); }
    build();
    return std::move(parts_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what, const std::string& known) const {
    raise(Unsupported(parts_.path + ": " + what + ": nvl knows " + known));
  }

  void read_piece(std::string_view message) {
    SentencePiecePiece piece;
    for (ProtobufReader in(message, parts_.path); in.next();) {
      if (in.field == 1) { piece.text = in.bytes; }
      if (in.field == 2) { piece.score = in.real; }
      if (in.field == 3) { piece.type = static_cast<SentencePiecePiece::Type>(in.number); }
    }
    if (piece.text.empty() || !is_valid_utf8(piece.text) || !std::isfinite(piece.score)) {
      raise(FileError(parts_.path,
                      "piece " + std::to_string(pieces_.size()) + " is empty, not UTF-8, or has a score that is not finite"));
    }
    pieces_.push_back(piece);
  }

  void read_trainer(std::string_view message) {
    for (ProtobufReader in(message, parts_.path); in.next();) {
      if (in.field == 3) { is_bpe_ = in.number == 2; }
      if (in.field == 24 && in.number != 0) { refuse("treat_whitespace_as_suffix is true", "models without it"); }
      if (in.field == 35) { byte_fallback_ = in.number != 0; }
      if (in.field == 41) { bos_ = in.number; }
      if (in.field == 42) { eos_ = in.number; }
    }
  }

  void read_normalizer(std::string_view message) {
    for (ProtobufReader in(message, parts_.path); in.next();) {
      if (in.field == 2) { changes_text_ = !in.bytes.empty(); }
      if (in.field == 3) { dummy_prefix_ = in.number != 0; }
      if (in.field == 4) { removes_whitespace_ = in.number != 0; }
      if (in.field == 5) { escapes_whitespace_ = in.number != 0; }
    }
  }

  void build() {
    using Type = SentencePiecePiece::Type;
    std::vector<std::string> bytes;
    std::vector<SentencePieceBpe::Piece> normal, byte_pieces;
    std::vector<float> scores;
    SentencePieceBpe::Options options;
    options.byte_fallback = byte_fallback_;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const SentencePiecePiece& piece = pieces_[i];
      const auto id = static_cast<TokenId>(i);
      bytes.push_back(with_blanks(piece.text));
      switch (piece.type) {
        case Type::normal:
          normal.emplace_back(piece.text, id);
          scores.push_back(piece.score);
          break;
        case Type::unknown: options.unknown = id; [[fallthrough]];
        case Type::control:
          parts_.special.push_back(id);
          add_token(piece.text, id, true);
          break;
        case Type::user_defined: add_token(piece.text, id, false); break;
        case Type::byte: {
          const auto byte = parse_byte_piece(piece.text);
          if (!byte) { raise(FileError(parts_.path, "byte piece " + std::to_string(i) + " must be <0x00> to <0xFF>")); }
          bytes.back().assign(1, static_cast<char>(*byte));
          byte_pieces.emplace_back(piece.text, id);
          parts_.byte_fallback.push_back(id);
          break;
        }
        case Type::unused: refuse("piece " + std::to_string(i) + " has type unused", "models without such pieces");
        default: raise(FileError(parts_.path, "piece " + std::to_string(i) + " has a type that is not 1 to 6"));
      }
    }
    parts_.vocabulary = Vocabulary(bytes);
    for (const AddedToken& token : parts_.added) { parts_.vocabulary.index(token.id); }
    for (const auto& piece : normal) { parts_.vocabulary.index(piece.second); }
    parts_.model = SentencePieceBpe::from_scores(normal, scores, byte_pieces, options);
    std::vector<Normalizer::Step> steps;
    if (dummy_prefix_) { steps.emplace_back(Normalizer::Prepend{std::string(sentencepiece_space)}); }
    steps.emplace_back(Normalizer::ReplaceText{" ", std::string(sentencepiece_space)});
    parts_.normalizer = Normalizer(std::move(steps));
    parts_.drops_leading_space = dummy_prefix_;
    if (bos_ < pieces_.size()) { parts_.bos = static_cast<TokenId>(bos_); }
    if (eos_ < pieces_.size()) { parts_.eos = {static_cast<TokenId>(eos_)}; }
  }

  void add_token(std::string_view text, TokenId id, bool special) {
    if (text.size() > AddedTokenMatcher::max_content_bytes) { raise(FileError(parts_.path, "a control piece is too long")); }
    parts_.added.push_back({.id = id, .content = std::string(text), .special = special});
  }

  std::string_view file_;
  TokenizerParts parts_;
  std::vector<SentencePiecePiece> pieces_;
  // The defaults of the .proto file.
  bool is_bpe_ = false;
  bool byte_fallback_ = false;
  bool changes_text_ = false;
  bool dummy_prefix_ = true;
  bool removes_whitespace_ = true;
  bool escapes_whitespace_ = true;
  std::uint64_t bos_ = 1;
  std::uint64_t eos_ = 2;
};

}  // namespace detail

/// The bytes of a `tokenizer.model`; `path` is for messages. BOS is known but not put in front: the file has no template.
/// \throws FileError for a malformed file; Unsupported for models that are not plain BPE.
inline TokenizerParts parse_sentencepiece_model(std::string_view file, std::string path) {
  return detail::SentencePieceModelReader(file, std::move(path)).read();
}

inline TokenizerParts read_sentencepiece_model(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_sentencepiece_model(file.text(), file.path());
}

}  // namespace nvl::inline NVL_ABI
