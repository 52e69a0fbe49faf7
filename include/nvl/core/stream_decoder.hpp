#pragma once
/// Token ids in, text out, one id at a time. No piece ever ends inside a UTF-8 character, and the pieces put together are
/// the decoding of all the ids: Tokenizer::decode is this class over a finished sequence.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/core/utf8.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Text of one growing sequence. Not thread-safe; one per sequence.
///
/// Bytes that can never become a character turn into U+FFFD, one per maximal invalid part. Byte-fallback tokens
/// follow Hugging Face's rule: a run of them is text if all of it is valid UTF-8, else each byte is U+FFFD; so a run is held
/// back until a token of another kind, or finish(), ends it.
class StreamDecoder {
 public:
  /// `vocabulary` must outlive the decoder.
  explicit StreamDecoder(const TokenText& vocabulary, bool skip_special = true)
      : vocabulary_(&vocabulary),
        skip_special_(skip_special),
        at_start_(vocabulary.drops_leading_space()) {}

  /// The text that is certain after `id`; may be empty. Ids outside the vocabulary add nothing.
  std::string push(TokenId id) {
    std::string out;
    if (skip_special_ && vocabulary_->is_special(id)) { return out; }
    const std::string_view bytes = vocabulary_->bytes(id);
    if (bytes.empty()) { return out; }
    if (vocabulary_->is_byte_fallback(id)) {
      end_text(out);
      byte_run_.append(bytes);
    } else {
      end_byte_run(out);
      pending_.append(bytes);
      const std::size_t held = unfinished_utf8_suffix(pending_);
      append_with_replacement(out, std::string_view(pending_).substr(0, pending_.size() - held));
      pending_.erase(0, pending_.size() - held);
    }
    return drop_space(std::move(out));
  }

  /// What was held back. The decoder may be used for a new sequence afterwards.
  std::string finish() {
    std::string out;
    end_byte_run(out);
    end_text(out);
    out = drop_space(std::move(out));
    at_start_ = vocabulary_->drops_leading_space();
    return out;
  }

  /// Whether finish() would return text.
  bool holds_text() const noexcept { return !pending_.empty() || !byte_run_.empty(); }

 private:
  void end_text(std::string& out) {
    append_with_replacement(out, pending_);
    pending_.clear();
  }

  void end_byte_run(std::string& out) {
    if (is_valid_utf8(byte_run_)) {
      out.append(byte_run_);
    } else {
      for (std::size_t i = 0; i < byte_run_.size(); ++i) { out.append(replacement_utf8); }
    }
    byte_run_.clear();
  }

  std::string drop_space(std::string text) {
    if (at_start_ && !text.empty()) {
      at_start_ = false;
      if (text.front() == ' ') { text.erase(0, 1); }
    }
    return text;
  }

  const TokenText* vocabulary_;
  bool skip_special_;
  bool at_start_;         // nothing was emitted yet, and a leading blank is to be dropped
  std::string pending_;   // an unfinished character, at most 3 bytes between calls
  std::string byte_run_;  // byte-fallback tokens since the last token of another kind
};

}  // namespace nvl::inline NVL_ABI
