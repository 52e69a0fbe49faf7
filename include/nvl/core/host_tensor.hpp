#pragma once
/// A tensor in host memory that somebody else owns, as a checkpoint hands it out.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Contiguous, row-major, not owning: valid as long as the checkpoint that returned it.
struct HostTensor {
  std::string name;                 // canonical name (core/weight_names.hpp)
  DType dtype = DType::float32;     // element or block type of `data`
  std::vector<std::int64_t> shape;  // [elements], outermost first; for a linear layer [out_features, in_features]
  std::span<const std::byte> data;  // exactly the bytes of shape x dtype, not necessarily aligned

  /// Elements of all dimensions but the last: how many rows of `shape.back()` elements there are.
  std::int64_t num_rows() const noexcept {
    std::int64_t rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) { rows *= shape[i]; }
    return rows;
  }
};

}  // namespace nvl::inline NVL_ABI
