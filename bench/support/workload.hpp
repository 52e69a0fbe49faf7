#pragma once
/// What a benchmark asks of an engine: prompts of random ids, and how many tokens each request generates.

#include "bench/support/python_random.hpp"
#include "bench/support/trace.hpp"

#include <nvl/core/ids.hpp>
#include <nvl/engine/request.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nvl_bench {

/// Tokens of one request.
struct RequestLengths {
  std::int32_t input = 0, output = 0;
};

/// Random ids, the same for the same seed in every standard library.
class RandomIds {
 public:
  /// \param num_ids ids are below it
  RandomIds(std::int32_t num_ids, std::uint64_t seed) : num_ids_(num_ids), random_(seed) {}

  std::vector<nvl::TokenId> ids(std::int32_t length) {
    std::vector<nvl::TokenId> ids(static_cast<std::size_t>(length));
    for (nvl::TokenId& id : ids) { id = uniform(0, num_ids_ - 1); }
    return ids;
  }
  /// std::uniform_int_distribution is another function in each standard library; this one is not.
  std::int32_t uniform(std::int32_t low, std::int32_t high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<std::int32_t>(random_() % range);
  }

 private:
  std::int32_t num_ids_;
  std::mt19937_64 random_;
};

/// The requests of one run.
struct Workload {
  std::string name;
  float temperature = 0;
  std::int32_t num_ids = 0;  // ids of prompts are below it
  std::vector<std::vector<nvl::TokenId>> prompts;
  std::vector<std::int32_t> output_lens;
  std::vector<double> arrivals;        // [s] after the start, ascending; empty: all at once
  std::shared_ptr<const Trace> turns;  // what follows an answer, prompt i being the first turn of session i; or nullptr

  std::size_t size() const { return prompts.size(); }
  std::int64_t input_tokens() const {
    std::int64_t sum = 0;
    for (const auto& prompt : prompts) { sum += std::ssize(prompt); }
    return sum;
  }
  std::int64_t output_tokens() const {
    std::int64_t sum = 0;
    for (const std::int32_t length : output_lens) { sum += length; }
    return sum;
  }
  std::vector<RequestLengths> lengths() const {
    std::vector<RequestLengths> lengths;
    for (std::size_t i = 0; i < size(); ++i) {
      lengths.push_back({static_cast<std::int32_t>(prompts[i].size()), output_lens[i]});
    }
    return lengths;
  }
  /// [tokens] of the longest request
  std::int32_t max_total_len() const {
    std::int32_t most = turns != nullptr ? turns->max_total_len() : 0;
    for (const RequestLengths& one : lengths()) { most = std::max(most, one.input + one.output); }
    return most;
  }

  /// End-of-sequence is ignored, so that all lengths are exact.
  nvl::Request request(std::vector<nvl::TokenId> prompt, std::int32_t output_len) const {
    nvl::Request request;
    request.prompt_ids = std::move(prompt);
    request.sampling.temperature = temperature;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = output_len;
    return request;
  }
  std::vector<nvl::Request> requests() const {
    std::vector<nvl::Request> requests;
    for (std::size_t i = 0; i < size(); ++i) { requests.push_back(request(prompts[i], output_lens[i])); }
    return requests;
  }

  /// The same lengths with other ids.
  Workload with_fresh_ids(RandomIds& random) const {
    Workload fresh = *this;
    for (auto& prompt : fresh.prompts) { prompt = random.ids(static_cast<std::int32_t>(prompt.size())); }
    return fresh;
  }

  /// The requests of `more` come behind these; neither has arrival times.
  void append(const Workload& more) {
    prompts.insert(prompts.end(), more.prompts.begin(), more.prompts.end());
    output_lens.insert(output_lens.end(), more.output_lens.begin(), more.output_lens.end());
  }
};

/// What bench.py of nano-vllm asks (https://github.com/GeeeekExplorer/nano-vllm), draw by draw:
///
///     seed(0)
///     prompts = [[randint(0, 10000) for _ in range(randint(100, 1024))] for _ in range(256)]
///     outputs = [randint(100, 1024) for _ in range(256)]          # temperature 0.6, ignore_eos
///
/// \throws std::logic_error if the totals are not the published ones
inline Workload nano_vllm_workload() {
  constexpr int num_requests = 256;
  constexpr std::int64_t published_input = 142827, published_output = 133966;
  Workload load;
  load.name = "nano-vllm";
  load.temperature = 0.6f;
  load.num_ids = 10001;
  PythonRandom random(0);
  for (int i = 0; i < num_requests; ++i) {
    std::vector<nvl::TokenId>& prompt = load.prompts.emplace_back(static_cast<std::size_t>(random.randint(100, 1024)));
    for (nvl::TokenId& id : prompt) { id = static_cast<nvl::TokenId>(random.randint(0, 10000)); }
  }
  for (int i = 0; i < num_requests; ++i) { load.output_lens.push_back(static_cast<std::int32_t>(random.randint(100, 1024))); }
  if (load.input_tokens() != published_input || load.output_tokens() != published_output) {
    throw std::logic_error("the nano-vllm load has " + std::to_string(load.input_tokens()) + " prompt and " +
                           std::to_string(load.output_tokens()) + " output tokens: must be 142827 and 133966");
  }
  return load;
}

/// `count` requests whose lengths vary evenly from (1 - range_ratio) to (1 + range_ratio) times the given ones.
inline Workload random_workload(std::int32_t count, RequestLengths mean, double range_ratio, std::int32_t num_ids,
                                RandomIds& random) {
  const auto draw = [&](std::int32_t length) {
    return random.uniform(std::max(1, static_cast<std::int32_t>(length * (1 - range_ratio))),
                          static_cast<std::int32_t>(length * (1 + range_ratio)));
  };
  Workload load;
  load.name = "random";
  load.num_ids = num_ids;
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t input = draw(mean.input);
    load.output_lens.push_back(draw(mean.output));
    load.prompts.push_back(random.ids(input));
  }
  return load;
}

}  // namespace nvl_bench
