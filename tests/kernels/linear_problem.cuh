#pragma once
/// One linear layer in device memory, with what the oracle says of it.

#include "kernels/linear_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"

#include <nvl/kernels/gemv.cuh>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/linear.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl_test {

/// The output reads as NaN until it is written; 64 elements behind it must stay so.
template <class T, class Out>
struct LinearProblem {
  static constexpr std::size_t guard = 64;

  LinearProblem(const LinearShape& s, bool with_bias)
      : shape(s),
        x(random_values<T>(static_cast<std::size_t>(s.num_rows) * static_cast<std::size_t>(s.in_features), 1)),
        w(random_values<T>(static_cast<std::size_t>(s.out_features) * static_cast<std::size_t>(s.in_features), 2)),
        bias(random_values<Out>(with_bias ? static_cast<std::size_t>(s.out_features) : 0, 3)),
        device_x(x),
        device_w(w),
        device_bias(bias),
        device_out(static_cast<std::size_t>(s.num_rows) * static_cast<std::size_t>(s.out_features) + guard) {}

  nvl::kernels::GemvParams<T, Out> params() { return params(shape.num_rows); }
  /// Of the first `num_rows` tokens.
  nvl::kernels::GemvParams<T, Out> params(int num_rows) {
    return {.out = device_out.data(),
            .x = device_x.data(),
            .w = device_w.data(),
            .bias = bias.empty() ? nullptr : device_bias.data(),
            .num_rows = num_rows,
            .out_features = shape.out_features,
            .in_features = shape.in_features};
  }
  std::vector<Out> result() const {
    std::vector<Out> values = device_out.to_host();
    values.resize(values.size() - guard);
    return values;
  }
  bool wrote_past_the_end() const {
    const std::vector<Out> values = device_out.to_host();
    for (std::size_t i = values.size() - guard; i < values.size(); ++i) {
      const float value = static_cast<float>(values[i]);
      if (value == value) { return true; }  // not the NaN that was there
    }
    return false;
  }
  double error() {
    if (expected_.empty()) { expected_ = oracle(); }
    return nvl::reference::nmse(result(), expected_);
  }
  std::vector<double> oracle() const {
    const std::vector<float> weights(w.begin(), w.end()), biases(bias.begin(), bias.end());
    return nvl::reference::linear(std::span<const T>(x), std::span<const float>(weights), std::span<const float>(biases),
                                  static_cast<std::size_t>(shape.num_rows), static_cast<std::size_t>(shape.in_features),
                                  static_cast<std::size_t>(shape.out_features));
  }
  /// Tensor cores cut the low bits of what they add to a sum: as float, 2e-11 is measured of 4104 products in one sum.
  double bound() const {
    if (sizeof(T) == 2 && sizeof(Out) == 4) { return 1e-11 + 1e-14 * shape.in_features; }
    return device_out.size() - guard < 1000 ? nvl::reference::max_nmse_of_few<Out> : nvl::reference::max_nmse<Out>;
  }

  LinearShape shape;
  std::vector<T> x, w;
  std::vector<Out> bias;
  DeviceVector<T> device_x, device_w;
  DeviceVector<Out> device_bias, device_out;

 private:
  std::vector<double> expected_;
};

}  // namespace nvl_test
