#pragma once
/// Regular expressions of tokenizer files, run by PCRE2 with limits, with the meaning that Oniguruma (the engine of Hugging
/// Face's tokenizers) gives them. What would mean something else in PCRE2 is refused when the pattern is built.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/utf8.hpp>

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace nvl::inline NVL_ABI {

namespace detail {

/// A Unicode general category and the code points that Unicode 15.0 to 16.0 put in it. PCRE2 10.42 knows Unicode 14; the
/// union is what Unicode 16 says, with any later PCRE2 too.
struct UnicodeCategory {
  std::string_view name;
  std::string_view additions;  // ranges as they stand in a PCRE2 character class
};

inline constexpr std::array<UnicodeCategory, 11> unicode_categories{{
    {"L",
     R"(\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3}\x{10d4a}-\x{10d65}\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4})"
     R"(\x{1123f}-\x{11240}\x{11380}-\x{11389}\x{1138b}\x{1138e}\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3}\x{11bc0}-\x{11be0}\x{11f02})"
     R"(\x{11f04}-\x{11f10}\x{11f12}-\x{11f33}\x{1342f}\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d40}-\x{16d6c}\x{18cff})"
     R"(\x{1b132}\x{1b155}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d}\x{1e4d0}-\x{1e4eb}\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d})"
     R"(\x{31350}-\x{323af})"},
    {"Lu", R"(\x{1c89}\x{a7cb}-\x{a7cc}\x{a7da}\x{a7dc}\x{10d50}-\x{10d65})"},
    {"Ll", R"(\x{1c8a}\x{a7cd}\x{a7db}\x{10d70}-\x{10d85}\x{1df25}-\x{1df2a})"},
    {"Lt", ""},
    {"Lm", R"(\x{10d4e}\x{10d6f}\x{16d40}-\x{16d42}\x{16d6b}-\x{16d6c}\x{1e030}-\x{1e06d}\x{1e4eb})"},
    {"Lo",
     R"(\x{105c0}-\x{105f3}\x{10d4a}-\x{10d4d}\x{10d4f}\x{10ec2}-\x{10ec4}\x{1123f}-\x{11240}\x{11380}-\x{11389}\x{1138b}\x{1138e})"
     R"(\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3}\x{11bc0}-\x{11be0}\x{11f02}\x{11f04}-\x{11f10}\x{11f12}-\x{11f33}\x{1342f})"
     R"(\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d43}-\x{16d6a}\x{18cff}\x{1b132}\x{1b155}\x{1e4d0}-\x{1e4ea})"
     R"(\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})"},
    {"M",
     R"(\x{897}\x{cf3}\x{ece}\x{10d69}-\x{10d6d}\x{10efc}-\x{10eff}\x{11241}\x{113b8}-\x{113c0}\x{113c2}\x{113c5}\x{113c7}-\x{113ca})"
     R"(\x{113cc}-\x{113d0}\x{113d2}\x{113e1}-\x{113e2}\x{11f00}-\x{11f01}\x{11f03}\x{11f34}-\x{11f3a}\x{11f3e}-\x{11f42}\x{11f5a}\x{13440})"
     R"(\x{13447}-\x{13455}\x{1611e}-\x{1612f}\x{1e08f}\x{1e4ec}-\x{1e4ef}\x{1e5ee}-\x{1e5ef})"},
    {"N",
     R"(\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59}\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9})"
     R"(\x{1d2c0}-\x{1d2d3}\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})"},
    {"Nd",
     R"(\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59}\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9})"
     R"(\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})"},
    {"P",
     R"(\x{1b4e}-\x{1b4f}\x{1b7f}\x{10d6e}\x{113d4}-\x{113d5}\x{113d7}-\x{113d8}\x{11b00}-\x{11b09}\x{11be1}\x{11f43}-\x{11f4f})"
     R"(\x{16d6d}-\x{16d6f}\x{1e5ff})"},
    {"S",
     R"(\x{2427}-\x{2429}\x{2ffc}-\x{2fff}\x{31e4}-\x{31e5}\x{31ef}\x{10d8e}-\x{10d8f}\x{1cc00}-\x{1ccef}\x{1cd00}-\x{1ceb3}\x{1f6dc})"
     R"(\x{1f774}-\x{1f776}\x{1f77b}-\x{1f77f}\x{1f7d9}\x{1f8b2}-\x{1f8bb}\x{1f8c0}-\x{1f8c1}\x{1fa75}-\x{1fa77}\x{1fa87}-\x{1fa89}\x{1fa8f})"
     R"(\x{1faad}-\x{1faaf}\x{1fabb}-\x{1fabf}\x{1fac6}\x{1face}-\x{1facf}\x{1fada}-\x{1fadc}\x{1fadf}\x{1fae8}-\x{1fae9}\x{1faf7}-\x{1faf8})"
     R"(\x{1fbcb}-\x{1fbef})"},
}};

/// Unicode's White_Space. PCRE2's own \s counts U+180E too, which has not been white space since Unicode 6.3.
inline constexpr std::string_view white_space_class =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// Rewrites an Oniguruma pattern for PCRE2. Only constructs whose meaning is known to be the same pass.
class PatternTranslator {
 public:
  explicit PatternTranslator(std::string_view pattern) : in_(pattern) {}

  std::string translate() {
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_character(c);
      } else if (c == '[') {
        in_class_ = true;
        copy(1);
        if (next_is("^")) { copy(1); }
        if (next_is("]")) { refuse("a ] right after ["); }
      } else if (c == '(') {
        group();
      } else if (c == '}' && next_is("+", 1)) {
        refuse("}+");
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    raise(Unsupported(
        "the regular expression " + std::string(in_) + " uses " + what +
        ": nvl takes characters, classes, groups ( (?: (?i: (?= (?! , quantifiers, \\s \\S \\d \\r \\n \\t, \\x{...} and "
        "\\p{...} of L Lu Ll Lt Lm Lo M N Nd P S"));
  }

  bool next_is(std::string_view text, std::size_t ahead = 0) const {
    return in_.substr(pos_).substr(std::min(ahead, in_.size() - pos_)).starts_with(text);
  }

  void copy(std::size_t n) {
    out_.append(in_.substr(pos_, n));
    pos_ += n;
  }

  void put_class(std::string_view members) { out_ += in_class_ ? std::string(members) : "[" + std::string(members) + "]"; }

  void class_character(char c) {
    if (c == '[') { refuse("a class inside a class"); }
    if (c == '&' && next_is("&", 1)) { refuse("&& inside a class"); }
    if (c == ']') { in_class_ = false; }
    copy(1);
  }

  void group() {
    if (next_is("(*")) { refuse("(*"); }
    if (next_is("(?") && !next_is("(?:") && !next_is("(?i:") && !next_is("(?=") && !next_is("(?!")) {
      refuse(std::string(in_.substr(pos_, 4)));
    }
    copy(1);
    if (next_is("?")) { copy(2); }
  }

  void escape() {
    if (pos_ + 1 >= in_.size()) { refuse("a \\ at its end"); }
    const char c = in_[pos_ + 1];
    switch (c) {
      case 's':
        put_class(white_space_class);
        pos_ += 2;
        return;
      case 'S':
        if (in_class_) { refuse("\\S inside a class"); }
        out_ += "[^" + std::string(white_space_class) + "]";
        pos_ += 2;
        return;
      case 'd':
        put_category("Nd");
        pos_ += 2;
        return;
      case 'p': return category();
      case 'r':
      case 'n':
      case 't':
      case 'f': return copy(2);
      case 'x':
        if (!next_is("{", 2)) { refuse("\\x without braces"); }
        return copy(3);
      default: break;
    }
    const bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (alphanumeric || static_cast<unsigned char>(c) >= 0x80) {
      refuse(std::string("\\") + (alphanumeric ? std::string(1, c) : "and a non-ASCII character"));
    }
    copy(2);
  }

  void category() {
    const std::size_t close = in_.find('}', pos_);
    if (!next_is("{", 2) || close == std::string_view::npos) { refuse("\\p without {...}"); }
    put_category(in_.substr(pos_ + 3, close - pos_ - 3));
    pos_ = close + 1;
  }

  void put_category(std::string_view name) {
    for (const UnicodeCategory& known : unicode_categories) {
      if (known.name == name) { return put_class("\\p{" + std::string(name) + "}" + std::string(known.additions)); }
    }
    refuse("\\p{" + std::string(name.substr(0, 32)) + "}");
  }

  std::string_view in_;
  std::string out_;
  std::size_t pos_ = 0;
  bool in_class_ = false;
};

struct FreePcre2 {
  void operator()(pcre2_code* p) const noexcept { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const noexcept { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const noexcept { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const noexcept { pcre2_match_data_free(p); }
};

inline std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  return pcre2_get_error_message(code, text.data(), text.size()) < 0 ? "PCRE2 error " + std::to_string(code)
                                                                     : std::string(reinterpret_cast<const char*>(text.data()));
}

}  // namespace detail

/// A compiled pattern. Immutable; any number of threads may match with it at once, each with a Matcher of its own.
class RegexPattern {
 public:
  /// \throws Unsupported for a construct that PCRE2 would read differently; FileError (naming `path`) for a malformed pattern.
  RegexPattern(std::string_view pattern, const std::string& path) : source_(pattern) {
    if (!is_valid_utf8(pattern)) { raise(FileError(path, "a regular expression is not valid UTF-8")); }
    const std::string translated = detail::PatternTranslator(pattern).translate();
    const std::unique_ptr<pcre2_compile_context, detail::FreePcre2> context(pcre2_compile_context_create(nullptr));
    if (!context) { raise(OutOfMemory("no memory for a PCRE2 context")); }
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context.get(), 64);
    int error = 0;
    PCRE2_SIZE where = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &where, context.get()));
    if (!code_) {
      raise(
          FileError(path, "the regular expression " + source_.substr(0, 200) + " is malformed: " + detail::pcre2_message(error)));
    }
    // Best effort: without the JIT the interpreter gives the same matches.
    static_cast<void>(pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE));
  }

  const std::string& source() const noexcept { return source_; }

  /// Buffers of one thread for one pattern.
  class Matcher {
   public:
    explicit Matcher(const RegexPattern& pattern)
        : pattern_(&pattern),
          data_(pcre2_match_data_create(1, nullptr)),
          context_(pcre2_match_context_create(nullptr)) {
      if (!data_ || !context_) { raise(OutOfMemory("no memory for a PCRE2 match")); }
      pcre2_set_match_limit(context_.get(), match_limit);
      pcre2_set_depth_limit(context_.get(), match_limit);
      pcre2_set_heap_limit(context_.get(), heap_limit_kib);
    }

    /// Calls on_match(begin, end) [bytes] for each match in `text`, from left to right; matches may be empty.
    /// `text` must be well-formed UTF-8. \throws InvalidArgument if a limit is hit.
    template <class F>
    void for_each(std::string_view text, F&& on_match) {
      std::size_t at = 0;
      std::size_t last_end = 0;
      bool any = false;
      while (at <= text.size()) {
        const int rc = match(text, at);
        if (rc == PCRE2_ERROR_NOMATCH) { return; }
        const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
        const std::size_t begin = range[0];
        const std::size_t end = range[1];
        if (begin != end || !any || begin != last_end) { on_match(begin, end); }
        any = true;
        last_end = end;
        at = end;
        if (begin == end) {
          if (end == text.size()) { return; }
          at = end + read_utf8(text, end).length;
        }
      }
    }

   private:
    static constexpr std::uint32_t match_limit = 20'000'000;  // [steps] about one second
    static constexpr std::uint32_t heap_limit_kib = 64 * 1024;

    int match(std::string_view text, std::size_t at) {
      const auto run = [&](std::uint32_t options) {
        return pcre2_match(pattern_->code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                           PCRE2_NO_UTF_CHECK | options, data_.get(), context_.get());
      };
      int rc = run(0);
      if (rc == PCRE2_ERROR_JIT_STACKLIMIT) { rc = run(PCRE2_NO_JIT); }
      if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        raise(InvalidArgument(
            "text", std::to_string(text.size()) + " bytes that the pre-tokenizer cannot split",
            "text that " + pattern_->source_.substr(0, 80) + " matches within its limits (" + detail::pcre2_message(rc) + ")"));
      }
      return rc;
    }

    const RegexPattern* pattern_;
    std::unique_ptr<pcre2_match_data, detail::FreePcre2> data_;
    std::unique_ptr<pcre2_match_context, detail::FreePcre2> context_;
  };

 private:
  std::string source_;
  std::unique_ptr<pcre2_code, detail::FreePcre2> code_;
};

}  // namespace nvl::inline NVL_ABI
