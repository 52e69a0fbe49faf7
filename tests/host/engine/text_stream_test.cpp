#include <nvl/engine/text_stream.hpp>

#include <nvl/core/error.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/core/utf8.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace text_stream_test {

using namespace nvl;

namespace {

/// A vocabulary of given pieces; ids are their indices.
struct Pieces : TokenText {
  std::vector<std::string> pieces;
  std::set<TokenId> special, fallback;

  explicit Pieces(std::vector<std::string> p) : pieces(std::move(p)) {}
  std::string_view bytes(TokenId id) const noexcept override {
    return id >= 0 && static_cast<std::size_t>(id) < pieces.size() ? std::string_view(pieces[static_cast<std::size_t>(id)])
                                                                   : std::string_view();
  }
  bool is_special(TokenId id) const noexcept override { return special.count(id) != 0; }
  bool is_byte_fallback(TokenId id) const noexcept override { return fallback.count(id) != 0; }
};

SamplingParams stops(std::vector<std::string> stop, bool include = false) {
  SamplingParams params;
  params.stop = std::move(stop);
  params.include_stop_str_in_output = include;
  return params;
}

/// What each push returns for tokens 0, 1, 2, …, then what finish returns.
struct Run {
  std::vector<std::string> shown;
  std::string text;
  bool stopped = false;
  std::string stop;
  std::size_t stopped_after = 1;  // [tokens]; 0: never

  Run(const Pieces& vocabulary, const SamplingParams& params) {
    TextStream stream(vocabulary, params);
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      shown.push_back(stream.push(static_cast<TokenId>(i)));
      if (!stream.stopped()) { stopped_after = i + 2; }
    }
    shown.push_back(stream.finish());
    for (const std::string& s : shown) { text += s; }
    stopped = stream.stopped();
    stop = stream.matched_stop();
    if (!stopped) { stopped_after = 0; }
  }
};

Run run(std::vector<std::string> tokens, const SamplingParams& params) { return Run(Pieces(std::move(tokens)), params); }

using Shown = std::vector<std::string>;

}  // namespace

TEST_CASE("Without stop strings text is shown at once, but for unfinished characters", "[engine][host]") {
  CHECK(run({"Hel", "lo", " w"}, {}).shown == Shown{"Hel", "lo", " w", ""});
  CHECK(run({"a\xF0\x9F", "\x98",
             "\x80"
             "b"},
            {})
            .shown == Shown{"a", "",
                            "\xF0\x9F\x98\x80"
                            "b",
                            ""});
  CHECK(run({"a\xF0\x9F", "\x98"}, {}).shown == Shown{"a", "", "\xEF\xBF\xBD"});
  CHECK(run({"a\xFF", "b"}, {}).shown == Shown{"a\xEF\xBF\xBD", "b", ""});
  CHECK(run({}, {}).shown == Shown{""});
}

TEST_CASE("A stop string cuts the text exactly", "[engine][host]") {
  SECTION("inside one token") {
    const Run r = run({"one STOP two", "three"}, stops({"STOP"}));
    CHECK(r.shown == Shown{"one ", "", ""});
    CHECK(r.stopped);
    CHECK(r.stop == "STOP");
    CHECK(r.stopped_after == 1);
  }
  SECTION("split over tokens") {
    const Run r = run({"one S", "T", "O", "P two"}, stops({"STOP"}));
    CHECK(r.shown == Shown{"one ", "", "", "", ""});
    CHECK(r.stopped_after == 4);
  }
  SECTION("at the first token") {
    CHECK(run({"STOP"}, stops({"STOP"})).shown == Shown{"", ""});
    CHECK(run({"STOP"}, stops({"STOP"}, true)).shown == Shown{"STOP", ""});
    CHECK(run({"\n", "x"}, stops({"\n"})).text.empty());
  }
  SECTION("included in the output") {
    const Run r = run({"one ST", "OP two"}, stops({"STOP"}, true));
    CHECK(r.shown == Shown{"one ", "STOP", ""});
  }
  SECTION("split inside a UTF-8 character") {
    // U+1F600 in pieces of one byte.
    const Run r = run({"a", "\xF0", "\x9F", "\x98", "\x80", "b"}, stops({"\xF0\x9F\x98\x80"}));
    CHECK(r.shown == Shown{"a", "", "", "", "", "", ""});
    CHECK(r.stopped_after == 5);
    // A character that shares its first bytes with the stop string is shown.
    CHECK(run({"a", "\xF0\x9F", "\x98\x81"}, stops({"\xF0\x9F\x98\x80"})).shown == Shown{"a", "", "\xF0\x9F\x98\x81", ""});
  }
  SECTION("the first of several wins, by its end") {
    CHECK(run({"xabcd"}, stops({"abcd", "bc"})).text == "xa");
    CHECK(run({"xab", "cd"}, stops({"abcd", "bc"})).text == "xa");
    CHECK(run({"xabcd"}, stops({"cd", "abcd"})).text == "x");
    CHECK(run({"xabcd"}, stops({"cd", "abcd"})).stop == "abcd");
  }
}

TEST_CASE("Text that may begin a stop string is held back and no longer than needed", "[engine][host]") {
  SECTION("and shown when it does not become one") {
    CHECK(run({"a<", "|", "e", "nd", "|x"}, stops({"<|end|>"})).shown == Shown{"a", "", "", "", "<|end|x", ""});
    CHECK(run({"aab", "aab", "c"}, stops({"aabaac"})).shown == Shown{"", "aab", "aabc", ""});
  }
  SECTION("a stop string equal to the end of a partial output is flushed at the end") {
    const Run r = run({"one ST", "O"}, stops({"STOP"}));
    CHECK(r.shown == Shown{"one ", "", "STO"});
    CHECK_FALSE(r.stopped);
    CHECK(r.stop.empty());
  }
  SECTION("only the part that can still match") {
    CHECK(run({"S", "ST", "x"}, stops({"STOP"})).shown == Shown{"", "S", "STx", ""});
  }
}

TEST_CASE("Nothing is shown after a match", "[engine][host]") {
  const Pieces vocabulary({"a", "b"});
  TextStream stream(vocabulary, stops({"b"}));
  CHECK(stream.push(0) == "a");
  CHECK(stream.push(1).empty());
  CHECK(stream.stopped());
  CHECK(stream.push(0).empty());
  CHECK(stream.finish().empty());
  CHECK(stream.matched_stop() == "b");
}

TEST_CASE("Before min_tokens stop strings are passed over", "[engine][host]") {
  const Pieces vocabulary({"x", "\n", "y", "a", "b"});
  TextStream stream(vocabulary, stops({"\n", "ab"}));
  CHECK(stream.push(0, false) == "x");
  CHECK(stream.push(1, false) == "\n");
  CHECK_FALSE(stream.stopped());
  CHECK(stream.push(2, true) == "y");
  // One that began before and ends after holds.
  CHECK(stream.push(3, false).empty());
  CHECK(stream.push(4, true).empty());
  CHECK(stream.stopped());
  CHECK(stream.matched_stop() == "ab");

  TextStream ends_early(vocabulary, stops({"\n"}));
  CHECK(ends_early.push(1, false) == "\n");
  CHECK(ends_early.finish().empty());
  CHECK_FALSE(ends_early.stopped());
}

TEST_CASE("Special tokens give no text unless they are asked for", "[engine][host]") {
  Pieces vocabulary({"a", "<|end|>", "b"});
  vocabulary.special = {1};
  CHECK(Run(vocabulary, {}).text == "ab");
  CHECK(Run(vocabulary, stops({"<|end|>"})).text == "ab");
  SamplingParams shown;
  shown.skip_special_tokens = false;
  CHECK(Run(vocabulary, shown).text == "a<|end|>b");
  shown.stop = {"<|end|>"};
  CHECK(Run(vocabulary, shown).text == "a");
  // A stop string across a skipped token is one in the text that is shown.
  CHECK(Run(vocabulary, stops({"ab"})).text.empty());
}

TEST_CASE("A stop string of byte-fallback tokens ends the sequence without waiting for the next token", "[engine][host]") {
  SECTION("line feed, as in Llama 2") {
    Pieces vocabulary({"a", "\n", "b"});
    vocabulary.fallback = {1};
    const Run r(vocabulary, stops({"\n"}));
    CHECK(r.shown == Shown{"a", "", "", ""});
    CHECK(r.stopped_after == 2);
    CHECK(Run(vocabulary, stops({"\n"}, true)).text == "a\n");
    CHECK(Run(vocabulary, stops({"a\n"})).shown == Shown{"", "", "", ""});
    CHECK(Run(vocabulary, stops({"\nc"})).text == "a\nb");
  }
  SECTION("a character of three bytes") {
    Pieces vocabulary({"a", "\xE2", "\x82", "\xAC", "b"});
    vocabulary.fallback = {1, 2, 3};
    const Run r(vocabulary, stops({"\xE2\x82\xAC"}));
    CHECK(r.text == "a");
    CHECK(r.stopped_after == 4);
  }
  SECTION("an unfinished run is not taken for U+FFFD") {
    Pieces vocabulary({"a", "\xE2", "\x82", "\xAC", "b"});
    vocabulary.fallback = {1, 2, 3};
    const Run r(vocabulary, stops({"\xEF\xBF\xBD"}));
    CHECK_FALSE(r.stopped);
    CHECK(r.text ==
          "a\xE2\x82\xAC"
          "b");
  }
  SECTION("before min_tokens the run is kept") {
    Pieces vocabulary({"a", "\n", "b"});
    vocabulary.fallback = {1};
    TextStream stream(vocabulary, stops({"\n"}));
    CHECK(stream.push(0, false) == "a");
    CHECK(stream.push(1, false).empty());
    CHECK_FALSE(stream.stopped());
  }
}

TEST_CASE("Bytes held at the end may complete a stop string", "[engine][host]") {
  const Run r = run({"a", "\xF0\x9F"}, stops({"a\xEF\xBF\xBD"}));
  CHECK(r.text.empty());
  CHECK(r.stopped);
}

TEST_CASE("Stop strings that could never match are refused", "[engine][host]") {
  const Pieces vocabulary({"a"});
  CHECK_THROWS_AS(TextStream(vocabulary, stops({"ok", "\xFF"})), InvalidArgument);
  CHECK_THROWS_AS(TextStream(vocabulary, stops({"\xF0\x9F"})), InvalidArgument);
  CHECK_THROWS_AS(TextStream(vocabulary, stops({""})), InvalidArgument);
}

TEST_CASE("For any text, split and stop strings: the pieces are the text up to the cut, at no time more", "[engine][host]") {
  const std::vector<std::string> letters{
      "a", "b", "c", "\xC3\xA9", "\xC3\xA8", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF0\x9F\x98\x81"};
  std::mt19937 random(12);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  const auto text_of = [&](std::size_t longest, std::size_t alphabet, bool broken) {
    std::string text;
    for (std::size_t n = 1 + below(longest); n > 0; --n) {
      text += letters[below(alphabet)];
      if (broken && below(12) == 0) { text.pop_back(); }
    }
    return text;
  };
  int cuts = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const std::size_t alphabet = trial % 2 == 0 ? 3 : letters.size();
    const std::string raw = text_of(40, alphabet, trial % 5 == 0);
    std::vector<std::string> tokens;
    for (std::size_t begin = 0; begin < raw.size();) {
      const std::size_t size = 1 + below(trial % 3 == 0 ? 1 : 6);
      tokens.push_back(raw.substr(begin, size));
      begin += size;
    }
    SamplingParams params = stops({}, trial % 7 == 0);
    for (std::size_t n = below(5); n > 0; --n) { params.stop.push_back(text_of(5, alphabet, false)); }

    // The definition: the first end at which some stop string ends, there the longest.
    const std::string text = replace_invalid_utf8(raw);
    std::size_t match_end = std::string::npos, cut = text.size();
    for (std::size_t end = 1; end <= text.size() && match_end == std::string::npos; ++end) {
      for (const std::string& stop : params.stop) {
        if (!std::string_view(text).substr(0, end).ends_with(stop)) { continue; }
        const std::size_t here = params.include_stop_str_in_output ? end : end - stop.size();
        cut = match_end == std::string::npos ? here : std::min(cut, here);
        match_end = end;
      }
    }
    const bool matches = match_end != std::string::npos;
    cuts += matches ? 1 : 0;
    const std::string expected = text.substr(0, cut);

    const Pieces vocabulary(tokens);
    TextStream stream(vocabulary, params);
    std::string shown, fed;
    bool prefix = true, whole = true, prompt = true, on_time = true;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool stopped_before = stream.stopped();
      const std::string piece = stream.push(static_cast<TokenId>(i));
      shown += piece;
      fed += tokens[i];
      whole = whole && is_valid_utf8(piece);
      prefix = prefix && expected.starts_with(shown);
      // What is certain: the finished characters so far. A match must be seen as soon as they contain it.
      const std::string certain = replace_invalid_utf8(std::string_view(fed).substr(0, fed.size() - unfinished_utf8_suffix(fed)));
      const bool ended = matches && certain.size() >= match_end;
      on_time = on_time && stream.stopped() == ended;
      if (!ended) {
        std::size_t held = 0;
        for (const std::string& stop : params.stop) {
          for (std::size_t n = 1; n < stop.size(); ++n) {
            if (certain.ends_with(std::string_view(stop).substr(0, n))) { held = std::max(held, n); }
          }
        }
        prompt = prompt && shown.size() == certain.size() - held;
      }
      if (stopped_before) { CHECK(piece.empty()); }
    }
    shown += stream.finish();
    INFO("trial " << trial << ": " << raw);
    CHECK(shown == expected);
    CHECK(prefix);
    CHECK(whole);
    CHECK(on_time);
    CHECK(prompt);
    CHECK(stream.stopped() == matches);
  }
  CHECK(cuts > 5000);
}

}  // namespace text_stream_test
