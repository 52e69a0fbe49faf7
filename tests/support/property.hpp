#pragma once
/// RapidCheck properties as a part of Catch2 tests.

#include <catch2/catch_test_macros.hpp>
#include <rapidcheck.h>

#include <sstream>
#include <string>
#include <utility>

/// Fails the test with the shrunk counter-example and the string that reproduces it (environment variable RC_PARAMS).
/// The seed is a new one in each run unless RC_PARAMS says otherwise.
template <class Testable>
void check_property(const std::string& name, int num_cases, Testable&& testable) {
  rc::detail::TestMetadata metadata;
  metadata.id = metadata.description = name;
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = num_cases;
  const auto result = rc::detail::checkTestable(std::forward<Testable>(testable), metadata, params);
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  INFO(name << ", seed " << params.seed << ": " << text.str());
  REQUIRE(result.template is<rc::detail::SuccessResult>());
}
