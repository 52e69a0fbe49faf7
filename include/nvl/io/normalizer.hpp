#pragma once
/// What is done to a text before it is cut into pieces. Steps have the names and the meaning of Hugging Face's tokenizers.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/regex_pattern.hpp>

#include <utf8proc.h>

#include <algorithm>
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

/// Normalization form C (Unicode Standard Annex 15): canonical decomposition, canonical order, composition. `text` must be
/// well-formed UTF-8. Linear but for sorting each run of combining marks, so long runs of marks stay cheap.
inline std::string to_nfc(std::string_view text) {
  constexpr char32_t first_that_changes = 0x300;  // text below it is in form C already
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  bool changes = false;
  for (std::size_t pos = 0; pos < text.size();) {
    const Utf8Char c = read_utf8(text, pos);
    pos += c.length;
    changes = changes || c.code_point >= first_that_changes;
    std::array<utf8proc_int32_t, 8> parts{};  // the longest canonical decomposition has 4 code points
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code_point), parts.data(), std::ssize(parts),
                                               UTF8PROC_DECOMPOSE, &boundary);
    points.insert(points.end(), parts.begin(), parts.begin() + std::clamp<std::ptrdiff_t>(count, 0, std::ssize(parts)));
  }
  if (!changes) { return std::string(text); }

  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto it = points.begin(); it != points.end();) {
    const auto run = std::find_if(it, points.end(), [&](utf8proc_int32_t c) { return combining_class(c) != 0; });
    const auto run_end = std::find_if(run, points.end(), [&](utf8proc_int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(run, run_end, [&](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); });
    it = run_end;
  }
  const auto length = utf8proc_normalize_utf32(points.data(), std::ssize(points), static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  std::string out;
  out.reserve(text.size());
  for (std::ptrdiff_t i = 0; i < length; ++i) { append_utf8(out, static_cast<char32_t>(points[static_cast<std::size_t>(i)])); }
  return out;
}

namespace detail {

/// Every `what` (not empty), from the left, becomes `with`.
inline std::string replace_all(std::string_view text, std::string_view what, std::string_view with) {
  std::string out;
  out.reserve(text.size());
  std::size_t done = 0;
  for (std::size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, done)) {
    out.append(text.substr(done, at - done));
    out.append(with);
    done = at + what.size();
  }
  out.append(text.substr(done));
  return out;
}

}  // namespace detail

/// A sequence of steps. Immutable.
class Normalizer {
 public:
  struct Nfc {};
  struct Prepend {
    std::string text;  // put in front of what is not empty
  };
  struct ReplaceText {
    std::string what;  // not empty
    std::string with;
  };
  struct ReplacePattern {
    std::shared_ptr<const RegexPattern> what;
    std::string with;
  };
  struct Strip {
    bool left = true, right = true;  // white space
  };
  using Step = std::variant<Nfc, Prepend, ReplaceText, ReplacePattern, Strip>;

  explicit Normalizer(std::vector<Step> steps = {}) : steps_(std::move(steps)) {}

  bool empty() const noexcept { return steps_.empty(); }

  /// `text` must be well-formed UTF-8; so is the result.
  std::string apply(std::string_view text) const {
    std::string out(text);
    for (const Step& step : steps_) {
      out = std::visit([&](const auto& s) { return apply_step(s, std::move(out)); }, step);
    }
    return out;
  }

 private:
  static std::string apply_step(const Nfc&, std::string text) { return to_nfc(text); }

  static std::string apply_step(const Prepend& step, std::string text) { return text.empty() ? text : step.text + text; }

  static std::string apply_step(const ReplaceText& step, std::string text) { return detail::replace_all(text, step.what, step.with); }

  static std::string apply_step(const ReplacePattern& step, std::string text) {
    std::string out;
    std::size_t done = 0;
    RegexPattern::Matcher(*step.what).for_each(text, [&](std::size_t begin, std::size_t end) {
      out.append(text, done, begin - done);
      out += step.with;
      done = end;
    });
    out.append(text, done);
    return out;
  }

  static std::string apply_step(const Strip& step, std::string text) {
    std::string_view rest = text;
    const auto blank_at = [&](std::size_t at) {
      const Utf8Char c = read_utf8(rest, at);
      return is_white_space(c.code_point) ? std::size_t{c.length} : std::size_t{0};
    };
    while (step.left && !rest.empty()) {
      const std::size_t n = blank_at(0);
      if (n == 0) { break; }
      rest.remove_prefix(n);
    }
    while (step.right && !rest.empty()) {
      std::size_t at = rest.size() - 1;
      while (at > 0 && (static_cast<unsigned char>(rest[at]) & 0xC0) == 0x80) { --at; }
      if (blank_at(at) == 0) { break; }
      rest = rest.substr(0, at);
    }
    return std::string(rest);
  }

  std::vector<Step> steps_;
};

}  // namespace nvl::inline NVL_ABI
