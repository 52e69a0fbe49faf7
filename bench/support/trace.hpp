#pragma once
/// A load as a stream of requests, made while it is asked for: ten million of them take no more memory than one.

#include <nvl/core/ids.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

namespace nvl_bench {

/// SplitMix64 (Steele, Lea, Flood 2014) as a family of streams: the same numbers for the same (seed, stream, index), in any order
/// of asking. Unlike those of <random>, the distributions are the same functions in every standard library.
class TraceRandom {
 public:
  explicit TraceRandom(std::uint64_t seed, std::uint64_t stream = 0, std::uint64_t index = 0)
      : state_(mixed(mixed(mixed(seed) ^ stream) ^ index)) {}

  std::uint64_t bits() { return mixed(state_ += golden); }
  /// In (0, 1].
  double uniform() { return static_cast<double>((bits() >> 11) + 1) * 0x1p-53; }
  /// From `low` to `high`, both included.
  std::int32_t between(std::int32_t low, std::int32_t high) {
    return low + static_cast<std::int32_t>(((bits() >> 32) * (static_cast<std::uint64_t>(high - low) + 1)) >> 32);
  }
  double exponential(double mean) { return -mean * std::log(uniform()); }
  double normal() {  // Box, Muller 1958
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }
  /// Appends `count` token ids below `num_ids`.
  void append_ids(std::vector<nvl::TokenId>& ids, std::int32_t count, std::int32_t num_ids) {
    const std::size_t first = ids.size();
    ids.resize(first + static_cast<std::size_t>(count));
    const auto range = static_cast<std::uint64_t>(num_ids);
    for (std::size_t i = first; i < ids.size(); ++i) { ids[i] = static_cast<nvl::TokenId>(((bits() >> 32) * range) >> 32); }
  }

 private:
  static constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;
  static std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) + golden;
  }

  std::uint64_t state_;
};

/// Lengths whose logarithm is normal; what falls outside [min, max] is drawn again.
struct LogNormalLength {
  double mu = 0, sigma = 0;  // of the logarithm of a length in tokens
  std::int32_t min = 1, max = 1;

  std::int32_t draw(TraceRandom& random) const {
    for (;;) {
      const double length = std::exp(mu + sigma * random.normal());
      if (length >= min && length < max + 1.0) { return static_cast<std::int32_t>(length); }
    }
  }
};

struct TraceRequest {
  double arrival = 0;  // [s] after the start; of a further turn: after the end of the turn before
  std::vector<nvl::TokenId> prompt;
  std::int32_t output_len = 0;  // [tokens] exactly: end-of-sequence is ignored
  std::int32_t priority = 0;    // lower is served first, by schedulers that look
  std::uint64_t user = 0;       // whose it is, for schedulers that share fairly
  std::uint64_t session = 0;    // with `turn`, its place in a conversation
  std::int32_t turn = 0;
};

class Trace {
 public:
  virtual ~Trace() = default;
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  /// The next request that comes by itself, in the order of arrivals. False: there are no more. Overwrites all of `out`.
  virtual bool next(TraceRequest& out) = 0;

  /// What the user says when turn `turn` of `session` has been answered; `history` is its prompt and answer.
  /// False: the conversation is over.
  virtual bool next_turn(std::uint64_t /*session*/, std::int32_t /*turn*/, std::span<const nvl::TokenId> /*history*/,
                         TraceRequest& /*out*/) const {
    return false;
  }

  /// [tokens] that no request is longer than, prompt and output
  virtual std::int32_t max_total_len() const = 0;

 protected:
  Trace() = default;
};

}  // namespace nvl_bench
