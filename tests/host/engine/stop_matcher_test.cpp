#include <nvl/engine/stop_matcher.hpp>

#include <nvl/core/error.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace stop_matcher_test {

using namespace nvl;

namespace {

struct Found {
  std::size_t end = std::string::npos;
  std::int32_t stop = StopMatcher::no_match;
  friend bool operator==(const Found&, const Found&) = default;
};

Found first_match(const StopMatcher& matcher, std::string_view text) {
  StopMatcher::State state{};
  for (std::size_t i = 0; i < text.size(); ++i) {
    state = matcher.next(state, text[i]);
    if (matcher.match(state) != StopMatcher::no_match) { return {i + 1, matcher.match(state)}; }
  }
  return {};
}

/// The definition: try every end, and there every stop string.
Found first_match_slowly(const std::vector<std::string>& stops, std::string_view text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    Found found;
    for (std::size_t i = 0; i < stops.size(); ++i) {
      const bool longer =
          found.stop == StopMatcher::no_match || stops[i].size() > stops[static_cast<std::size_t>(found.stop)].size();
      if (longer && text.substr(0, end).ends_with(stops[i])) { found = {end, static_cast<std::int32_t>(i)}; }
    }
    if (found.stop != StopMatcher::no_match) { return found; }
  }
  return {};
}

std::size_t held_slowly(const std::vector<std::string>& stops, std::string_view text) {
  std::size_t held = 0;
  for (const std::string& stop : stops) {
    for (std::size_t n = 1; n < stop.size(); ++n) {
      if (text.ends_with(stop.substr(0, n))) { held = std::max(held, n); }
    }
  }
  return held;
}

StopMatcher matcher_of(const std::vector<std::string>& stops) { return StopMatcher(stops); }

}  // namespace

TEST_CASE("The first match is the one that ends first, and of those the longest", "[engine][host]") {
  CHECK(first_match(matcher_of({"abcd", "bc"}), "xabcd") == Found{4, 1});
  CHECK(first_match(matcher_of({"c", "abc", "bc"}), "xabc") == Found{4, 1});
  CHECK(first_match(matcher_of({"abab"}), "abaabab") == Found{7, 0});
  CHECK(first_match(matcher_of({"aaa"}), "aabaaa") == Found{6, 0});
  CHECK(first_match(matcher_of({"he", "she", "hers", "his"}), "ushers") == Found{4, 1});
  CHECK(first_match(matcher_of({"abc"}), "ab") == Found{});
  CHECK(first_match(matcher_of({"x"}), "") == Found{});
  CHECK(first_match(matcher_of({"a", "a"}), "a") == Found{1, 0});
  CHECK(first_match(matcher_of({std::string("\0\xff", 2)}), std::string_view("a\0\0\xff", 4)) == Found{4, 0});
}

TEST_CASE("A matcher without stop strings matches and holds nothing", "[engine][host]") {
  const StopMatcher matcher;
  CHECK(matcher.empty());
  CHECK_FALSE(matcher_of({"a"}).empty());
  StopMatcher::State state{};
  for (int byte = 0; byte < 256; ++byte) {
    state = matcher.next(state, static_cast<char>(byte));
    CHECK(matcher.match(state) == StopMatcher::no_match);
    CHECK(matcher.held_bytes(state) == 0);
  }
}

TEST_CASE("An empty stop string is refused", "[engine][host]") { CHECK_THROWS_AS(matcher_of({"a", ""}), InvalidArgument); }

TEST_CASE("Matches and held bytes equal the definition on random texts", "[engine][host]") {
  std::mt19937 random(1);
  const auto text_of = [&](std::size_t longest, int letters) {
    std::string text(std::uniform_int_distribution<std::size_t>(1, longest)(random), ' ');
    for (char& c : text) { c = static_cast<char>('a' + std::uniform_int_distribution<int>(0, letters - 1)(random)); }
    return text;
  };
  int matches = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int letters = 1 + trial % 4;
    std::vector<std::string> stops(1 + static_cast<std::size_t>(trial % 5));
    for (std::string& stop : stops) { stop = text_of(6, letters); }
    const StopMatcher matcher(stops);
    const std::string text = text_of(60, letters);
    INFO(text);
    const Found expected = first_match_slowly(stops, text);
    const Found found = first_match(matcher, text);
    CHECK(found.end == expected.end);
    if (found.end == expected.end && found.end != std::string::npos) {
      ++matches;
      CHECK(stops[static_cast<std::size_t>(found.stop)] == stops[static_cast<std::size_t>(expected.stop)]);
    }
    StopMatcher::State state{};
    bool right = true;
    for (std::size_t i = 0; i < text.size(); ++i) {
      state = matcher.next(state, text[i]);
      right = right && matcher.held_bytes(state) == held_slowly(stops, std::string_view(text).substr(0, i + 1));
    }
    CHECK(right);
  }
  CHECK(matches > 1000);
}

TEST_CASE("Time is linear in the text, whatever the stop strings", "[engine][host]") {
  // The worst case of a search that starts again at every byte: 16 strings of 256 bytes that nearly match everywhere.
  std::vector<std::string> stops;
  for (char c = 'b'; c < 'b' + 16; ++c) { stops.push_back(std::string(255, 'a') + c); }
  const StopMatcher matcher(stops);
  const std::string text(4 << 20, 'a');
  const auto begin = std::chrono::steady_clock::now();
  CHECK(first_match(matcher, text) == Found{});
  // 4 MiB take about 0.05 s optimised, 16 GiB of comparisons would take minutes; the bound leaves room for sanitizers.
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
}

}  // namespace stop_matcher_test
