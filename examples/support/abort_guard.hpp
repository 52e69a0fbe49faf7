#pragma once
/// Ends requests whose callbacks are about to lose what they refer to.

#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/engine/any_engine.hpp>

#include <vector>

namespace nvl_examples {

/// Aborts the requests it was given that have not finished: an engine that outlives them would call them back when it goes.
/// Declare it after everything that the callbacks use.
class AbortGuard {
 public:
  explicit AbortGuard(nvl::AnyEngine& engine) : engine_(engine) {}
  AbortGuard(const AbortGuard&) = delete;
  AbortGuard& operator=(const AbortGuard&) = delete;
  ~AbortGuard() {
    for (const nvl::RequestId id : ids_) {
      nvl::contain([&] { engine_.abort(id); }, [](const char*) {});
    }
  }

  void add(nvl::RequestId id) { ids_.push_back(id); }

 private:
  nvl::AnyEngine& engine_;
  std::vector<nvl::RequestId> ids_;
};

}  // namespace nvl_examples
