#pragma once
/// Percentiles of any number of durations in fixed memory.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace nvl_bench {

/// Exact count, sum and extremes; percentiles within 0.8 %: 128 buckets of equal width an octave, from 60 ns to 18 hours. A
/// bucket's number is a piece of the value's floating-point representation, so that adding one takes a shift and no logarithm.
class LogHistogram {
 public:
  void add(double seconds) { add(seconds, 1); }
  void add(double seconds, std::uint64_t count) {
    if (count == 0) { return; }
    min_ = count_ == 0 ? seconds : std::min(min_, seconds);
    max_ = count_ == 0 ? seconds : std::max(max_, seconds);
    count_ += count;
    sum_ += seconds * static_cast<double>(count);
    buckets_[bucket_of(seconds)] += count;
  }

  std::uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double min() const { return min_; }
  double max() const { return max_; }

  /// `p` in [0, 100]; 0 while nothing was added.
  double percentile(double p) const {
    if (p <= 0) { return min_; }
    if (p >= 100) { return max_; }
    const double wanted = p / 100 * static_cast<double>(count_);
    double before = 0;
    for (std::size_t b = 0; b < buckets_.size(); ++b) {
      const auto here = static_cast<double>(buckets_[b]);
      if (here > 0 && before + here >= wanted) {
        const double low = value_of(b), high = value_of(b + 1);
        return std::clamp(low + (high - low) * (wanted - before) / here, min_, max_);
      }
      before += here;
    }
    return max_;
  }

 private:
  static constexpr int mantissa_bits = 52, bucket_bits = 7;                        // 128 buckets an octave
  static constexpr std::uint64_t first = std::uint64_t{1023 - 24} << bucket_bits;  // of 2^-24 s
  static constexpr std::size_t num_buckets = std::size_t{40} << bucket_bits;

  static std::size_t bucket_of(double seconds) {
    const std::uint64_t place = std::bit_cast<std::uint64_t>(std::max(seconds, 0.0)) >> (mantissa_bits - bucket_bits);
    return static_cast<std::size_t>(std::clamp(place, first, first + num_buckets - 1) - first);
  }
  /// [s] where the bucket begins
  static double value_of(std::size_t bucket) { return std::bit_cast<double>((first + bucket) << (mantissa_bits - bucket_bits)); }

  std::array<std::uint64_t, num_buckets> buckets_{};
  std::uint64_t count_ = 0;
  double sum_ = 0, min_ = 0, max_ = 0;
};

}  // namespace nvl_bench
