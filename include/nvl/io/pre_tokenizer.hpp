#pragma once
/// The cuts that come before BPE: no token reaches over them. Steps have the names and the meaning of Hugging Face's tokenizers.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/regex_pattern.hpp>
#include <nvl/io/sentencepiece_bpe.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Patterns as their models' publishers wrote them.
namespace split_patterns {
inline constexpr std::string_view gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view llama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view qwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view tekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                           R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                           R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
/// The step Digits goes by Rust's char::is_numeric, which knows the numbers of Unicode 17 already.
inline constexpr std::string_view digit = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])";
}  // namespace split_patterns

/// What becomes of a match that a split finds.
enum class SplitBehavior : std::uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// A sequence of steps, each applied to the pieces that the one before it left. Immutable.
class PreTokenizer {
 public:
  struct Split {
    std::shared_ptr<const RegexPattern> pattern;
    SplitBehavior behavior = SplitBehavior::isolated;
    bool invert = false;  // what lies between the matches counts as matched
  };
  /// A blank in front of each piece that has none (ByteLevel's add_prefix_space).
  struct PrefixSpace {};
  /// Blanks become U+2581; one more in front where there is none, of every piece or of the text's first.
  struct Metaspace {
    enum class Prepend : std::uint8_t { always, first, never } prepend = Prepend::always;
    bool split = true;  // each U+2581 begins a piece
  };
  using Step = std::variant<Split, PrefixSpace, Metaspace>;

  explicit PreTokenizer(std::vector<Step> steps = {}) : steps_(std::move(steps)) {}

  /// A split at `pattern`; matches and what lies between them are pieces.
  static Split isolate(std::string_view pattern, const std::string& path) {
    return {std::make_shared<const RegexPattern>(pattern, path), SplitBehavior::isolated, false};
  }

  /// Calls on_piece(std::string_view) for each piece of `text` (well-formed UTF-8). `at_start`: the text begins the input.
  template <class F>
  void for_each_piece(std::string_view text, bool at_start, F&& on_piece) const {
    Pieces pieces{std::string(text), {{0, text.size()}}};
    for (const Step& step : steps_) {
      std::visit([&](const auto& s) { apply(s, at_start, pieces); }, step);
    }
    for (const Range& range : pieces.ranges) {
      if (range.begin < range.end) { on_piece(pieces.view(range)); }
    }
  }

 private:
  struct Range {
    std::size_t begin, end;  // [bytes]
  };
  struct Pieces {
    std::string text;
    std::vector<Range> ranges;  // in order
    std::string_view view(const Range& r) const noexcept { return std::string_view(text).substr(r.begin, r.end - r.begin); }
  };

  static void apply(const Split& split, bool, Pieces& pieces) {
    RegexPattern::Matcher matcher(*split.pattern);
    std::vector<Range> result;
    result.reserve(pieces.ranges.size());
    for (const Range& piece : pieces.ranges) {
      Joiner joiner{split.behavior, result, false, false};
      std::size_t done = 0;
      const std::string_view text = pieces.view(piece);
      matcher.for_each(text, [&](std::size_t begin, std::size_t end) {
        if (done != begin) { joiner.add({piece.begin + done, piece.begin + begin}, split.invert); }
        joiner.add({piece.begin + begin, piece.begin + end}, !split.invert);
        done = end;
      });
      if (done != text.size()) { joiner.add({piece.begin + done, piece.end}, split.invert); }
    }
    std::erase_if(result, [](const Range& r) { return r.begin == r.end; });
    pieces.ranges = std::move(result);
  }

  /// Puts the parts of one piece together as the behaviour says.
  struct Joiner {
    SplitBehavior behavior;
    std::vector<Range>& out;
    bool any;  // this piece has a part in `out`
    bool previous_match;

    void add(Range part, bool match) {
      bool join = false;
      switch (behavior) {
        case SplitBehavior::removed:
          if (match) { return; }
          break;
        case SplitBehavior::isolated: break;
        case SplitBehavior::merged_with_previous: join = match && !previous_match && any; break;
        case SplitBehavior::merged_with_next: join = !match && previous_match && any; break;
        case SplitBehavior::contiguous: join = match == previous_match && any; break;
      }
      previous_match = match;
      any = true;
      if (join) {
        out.back().end = part.end;
      } else {
        out.push_back(part);
      }
    }
  };

  static void apply(const PrefixSpace&, bool, Pieces& pieces) {
    Pieces result;
    for (const Range& range : pieces.ranges) {
      const std::string_view text = pieces.view(range);
      const std::size_t begin = result.text.size();
      if (!text.starts_with(' ')) { result.text += ' '; }
      result.text += text;
      result.ranges.push_back({begin, result.text.size()});
    }
    pieces = std::move(result);
  }

  static void apply(const Metaspace& metaspace, bool at_start, Pieces& pieces) {
    Pieces result;
    bool first = at_start;
    for (const Range& range : pieces.ranges) {
      std::string text;
      for (const char c : pieces.view(range)) {
        if (c == ' ') {
          text += sentencepiece_space;
        } else {
          text += c;
        }
      }
      const bool wanted =
          metaspace.prepend == Metaspace::Prepend::always || (metaspace.prepend == Metaspace::Prepend::first && first);
      if (wanted && !text.starts_with(sentencepiece_space)) { text.insert(0, sentencepiece_space); }
      first = false;
      std::size_t begin = result.text.size();
      result.text += text;
      if (metaspace.split) {
        for (std::size_t at = result.text.find(sentencepiece_space, begin + 1); at != std::string::npos;
             at = result.text.find(sentencepiece_space, at + 1)) {
          result.ranges.push_back({begin, at});
          begin = at;
        }
      }
      result.ranges.push_back({begin, result.text.size()});
    }
    pieces = std::move(result);
  }

  std::vector<Step> steps_;
};

}  // namespace nvl::inline NVL_ABI
