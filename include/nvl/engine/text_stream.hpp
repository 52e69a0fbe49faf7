#pragma once
/// The text of one sequence as its tokens come: whole characters only, nothing that a stop string may yet take back, and an
/// exact cut where one matches.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/stream_decoder.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/engine/stop_matcher.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Not thread-safe; one per sequence. All pieces put together are the text of the output, cut at the first stop string (the one
/// that ends first; of those that end together the longest), however the text is split into tokens. Stop strings are looked
/// for in the text as it is shown, special tokens that are skipped not included.
class TextStream {
 public:
  /// `vocabulary` must outlive the stream; `params` need not.
  /// \throws InvalidArgument for a stop string that is empty or not UTF-8, which could never match.
  TextStream(const TokenText& vocabulary, const SamplingParams& params)
      : vocabulary_(&vocabulary),
        decoder_(vocabulary, params.skip_special_tokens),
        stops_(params.stop),
        matcher_(stops_),
        include_stop_(params.include_stop_str_in_output) {
    for (std::size_t i = 0; i < stops_.size(); ++i) {
      if (!is_valid_utf8(stops_[i])) {
        raise(InvalidArgument("stop string " + std::to_string(i), "not UTF-8", "a well-formed UTF-8 string"));
      }
    }
  }

  /// The text that may be shown after `id`; often empty. While `stops_apply` is false (min_tokens), stop strings that end in the
  /// text of this token are passed over. After a match every call returns nothing.
  std::string push(TokenId id, bool stops_apply = true) {
    if (stopped()) { return {}; }
    stops_apply_ = stops_apply;
    std::string shown = accept(decoder_.push(id));
    if (!stopped() && stops_apply && !matcher_.empty() && vocabulary_->is_byte_fallback(id)) { shown += look_ahead(); }
    return shown;
  }

  /// What was held back, at the end of the sequence: an unfinished character becomes U+FFFD. It may complete a stop string, if
  /// stop strings applied to the last token.
  std::string finish() {
    if (stopped()) { return {}; }
    std::string shown = accept(decoder_.finish());
    shown += held_;
    held_.clear();
    state_ = StopMatcher::State::start;
    return shown;
  }

  /// Whether a stop string has matched.
  bool stopped() const noexcept { return matched_ != StopMatcher::no_match; }

  /// The stop string that matched; empty if none has.
  std::string_view matched_stop() const noexcept {
    return stopped() ? std::string_view(stops_[static_cast<std::size_t>(matched_)]) : std::string_view();
  }

 private:
  /// Takes decoded text; returns what may be shown of all that is held.
  std::string accept(std::string text) {
    if (matcher_.empty()) { return text; }
    std::size_t end = held_.size();
    held_ += text;
    for (const char byte : text) {
      state_ = matcher_.next(state_, byte);
      ++end;
      if (stops_apply_ && matcher_.match(state_) != StopMatcher::no_match) {
        matched_ = matcher_.match(state_);
        held_.resize(include_stop_ ? end : end - matched_stop().size());
        return std::exchange(held_, {});
      }
    }
    std::string shown = held_.substr(0, held_.size() - matcher_.held_bytes(state_));
    held_.erase(0, shown.size());
    return shown;
  }

  /// The decoder keeps a run of byte tokens until it knows what follows. If the run as it stands completes a stop string, as a
  /// line feed does in Llama 2's vocabulary, the sequence ends here and nothing follows: so this is the text.
  std::string look_ahead() {
    StreamDecoder decoder = decoder_;
    std::string text = decoder.finish();
    if (text.find(replacement_utf8) != std::string::npos) { return {}; }  // perhaps not U+FFFD when the next byte comes
    StopMatcher::State state = state_;
    for (const char byte : text) {
      state = matcher_.next(state, byte);
      if (matcher_.match(state) != StopMatcher::no_match) { return accept(std::move(text)); }
    }
    return {};
  }

  const TokenText* vocabulary_;
  StreamDecoder decoder_;
  std::vector<std::string> stops_;
  StopMatcher matcher_;
  bool include_stop_;
  bool stops_apply_ = true;  // to the last token
  StopMatcher::State state_{};
  std::string held_;  // decoded text that may begin a stop string
  std::int32_t matched_ = StopMatcher::no_match;
};

}  // namespace nvl::inline NVL_ABI
