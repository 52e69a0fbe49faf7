#pragma once
/// One check for every test of bad input: the right type of error, one line, and words that must be in its message.

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <vector>

namespace nvl_test {

/// Runs `action`; it has to throw exactly an E, whose message is one line and holds every one of `words`.
template <class E, class Action>
void expect_error(Action&& action, const std::vector<std::string>& words) {
  std::string message;
  bool thrown = false;
  try {
    action();
  } catch (const E& error) {
    thrown = true;
    message = error.what();
  }
  REQUIRE(thrown);
  CAPTURE(message);
  CHECK(message.find('\n') == std::string::npos);
  CHECK(message.size() < 2000);
  for (const std::string& word : words) {
    CAPTURE(word);
    CHECK(message.find(word) != std::string::npos);
  }
}

}  // namespace nvl_test
