#pragma once
/// What a conformance suite returns: one sentence for each promise that a policy broke. Needs no test framework.

#include <nvl/core/config.hpp>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

/// Empty: the policy keeps the promises of its concept.
class Violations {
 public:
  /// Notes `what` unless `holds`. Returns `holds`.
  bool expect(bool holds, const std::string& what) {
    if (!holds && messages_.size() < most) { messages_.push_back(context_.empty() ? what : context_ + ": " + what); }
    return holds;
  }

  /// What was being done: goes in front of the messages that follow.
  void during(std::string context) { context_ = std::move(context); }

  void append(const Violations& more) { messages_.insert(messages_.end(), more.messages_.begin(), more.messages_.end()); }

  bool empty() const noexcept { return messages_.empty(); }
  const std::vector<std::string>& messages() const noexcept { return messages_; }
  /// One message a line.
  std::string text() const {
    std::string all;
    for (const std::string& message : messages_) { all += message + "\n"; }
    return all;
  }

 private:
  static constexpr std::size_t most = 20;  // what follows a broken promise says little
  std::vector<std::string> messages_;
  std::string context_;
};

}  // namespace nvl::inline NVL_ABI::testing
