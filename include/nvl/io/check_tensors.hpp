#pragma once
/// A look through all weights for NaN and infinity, as programs offer with --check-tensors.

#include <nvl/core/config.hpp>
#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/io/checkpoint.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct NonFiniteTensor {
  std::string name;        // canonical
  std::int64_t first = 0;  // index of the first NaN or infinity, counted over the whole tensor
  std::int64_t count = 0;  // how many there are
};

/// The tensors of `checkpoint` with a value that is not finite, in the checkpoint's order. Reads every weight once.
inline std::vector<NonFiniteTensor> find_non_finite(const Checkpoint& checkpoint) {
  checkpoint.check_unchanged();
  std::vector<NonFiniteTensor> result;
  std::vector<float> values;
  for (const HostTensor& tensor : checkpoint.tensors()) {
    const std::int64_t row_elements = tensor.shape.back();
    const DTypeInfo& type = info(tensor.dtype);
    const auto row_bytes = static_cast<std::size_t>(row_elements) / type.block_elements * type.block_bytes;
    values.resize(static_cast<std::size_t>(row_elements));
    NonFiniteTensor found{.name = tensor.name};
    for (std::int64_t row = 0; row < tensor.num_rows(); ++row) {
      dequantize_row(tensor.dtype, tensor.data.data() + static_cast<std::size_t>(row) * row_bytes, values.data(), row_elements);
      for (std::int64_t i = 0; i < row_elements; ++i) {
        if (std::isfinite(values[static_cast<std::size_t>(i)])) { continue; }
        if (found.count == 0) { found.first = row * row_elements + i; }
        ++found.count;
      }
    }
    if (found.count > 0) { result.push_back(std::move(found)); }
  }
  return result;
}

}  // namespace nvl::inline NVL_ABI
