#pragma once
/// Requests from a list to their results, for every engine that is stepped.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/engine/request.hpp>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::detail {

/// Runs `requests` to the end, along with whatever else was submitted to `engine`, and returns their results in order.
/// \throws what `validate` does, and then nothing was submitted
template <class E>
std::vector<Completion> generate(E& engine, std::vector<Request> requests) {
  for (const Request& request : requests) { engine.validate(request); }
  struct Results {
    std::vector<Completion> completions;
    std::size_t remaining;
  };
  // Shared: should a submit throw, the requests before it outlive this call.
  const auto results = std::make_shared<Results>(Results{std::vector<Completion>(requests.size()), requests.size()});
  for (std::size_t i = 0; i < requests.size(); ++i) {
    engine.submit(std::move(requests[i]), {.on_token = {}, .on_finish = [results, i](const Completion& done) {
                                             --results->remaining;
                                             results->completions[i].finish_reason =
                                                 FinishReason::error;  // if there is no memory
                                             results->completions[i] = done;
                                           }});
  }
  while (results->remaining > 0) { engine.step(); }
  return std::move(results->completions);
}

}  // namespace nvl::inline NVL_ABI::detail
