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

namespace detail {

/// Characters with a combining class or a composition that Unicode got after version 9. Hugging Face's tokenizers normalise by
/// Unicode 9, where these are characters like any other that nothing moves across; ids depend on it.
inline constexpr std::array<std::pair<char32_t, char32_t>, 42> assigned_after_unicode_9{{
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},     {0xD3B, 0xD3C},
    {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x105C0, 0x105F3},
    {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070},
    {0x1133B, 0x1133B}, {0x11380, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16100, 0x16139}, {0x16D40, 0x16D79}, {0x16FF0, 0x16FF1},
    {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
}};

inline bool is_assigned_after_unicode_9(char32_t c) noexcept {
  if (c < assigned_after_unicode_9.front().first) { return false; }
  return std::any_of(assigned_after_unicode_9.begin(), assigned_after_unicode_9.end(),
                     [&](const auto& range) { return c >= range.first && c <= range.second; });
}

/// Puts decomposed code points in canonical order and composes them, in place; linear but for sorting each run of marks.
inline void order_and_compose(std::vector<utf8proc_int32_t>& points) {
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto it = points.begin(); it != points.end();) {
    const auto run = std::find_if(it, points.end(), [&](utf8proc_int32_t c) { return combining_class(c) != 0; });
    const auto run_end = std::find_if(run, points.end(), [&](utf8proc_int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(run, run_end,
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); });
    it = run_end;
  }
  const auto length = utf8proc_normalize_utf32(points.data(), std::ssize(points),
                                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  points.resize(static_cast<std::size_t>(std::max<utf8proc_ssize_t>(length, 0)));
}

}  // namespace detail

/// Normalization form C (Unicode Standard Annex 15) by the tables of Unicode 9, as Hugging Face's tokenizers have it. `text`
/// must be well-formed UTF-8.
inline std::string to_nfc(std::string_view text) {
  constexpr char first_lead_byte = '\xCC';  // of U+0300; characters below are in form C already
  const auto below = [](char c) { return static_cast<unsigned char>(c) < static_cast<unsigned char>(first_lead_byte); };
  if (std::all_of(text.begin(), text.end(), below)) { return std::string(text); }
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;  // decomposed, since the last character that nothing moves across
  const auto flush = [&] {
    detail::order_and_compose(points);
    for (const utf8proc_int32_t c : points) { append_utf8(out, static_cast<char32_t>(c)); }
    points.clear();
  };
  for (std::size_t pos = 0; pos < text.size();) {
    const Utf8Char c = read_utf8(text, pos);
    pos += c.length;
    if (detail::is_assigned_after_unicode_9(c.code_point)) {
      flush();
      append_utf8(out, c.code_point);
      continue;
    }
    std::array<utf8proc_int32_t, 8> parts{};  // the longest canonical decomposition has 4 code points
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code_point), parts.data(), std::ssize(parts),
                                               UTF8PROC_DECOMPOSE, &boundary);
    points.insert(points.end(), parts.begin(), parts.begin() + std::clamp<std::ptrdiff_t>(count, 0, std::ssize(parts)));
  }
  flush();
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
  static std::string apply_step(const Nfc&, const std::string& text) { return to_nfc(text); }

  static std::string apply_step(const Prepend& step, const std::string& text) { return text.empty() ? text : step.text + text; }

  static std::string apply_step(const ReplaceText& step, const std::string& text) {
    return detail::replace_all(text, step.what, step.with);
  }

  static std::string apply_step(const ReplacePattern& step, const std::string& text) {
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

  static std::string apply_step(const Strip& step, const std::string& text) {
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
