#pragma once
/// Parts of the tensors of a checkpoint, for ranks that hold a part of each layer.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>

namespace nvl::inline NVL_ABI {

/// Cuts tensors. Rows are views of the whole tensor's bytes; columns are copied, and only they are read. What it returns is valid
/// while it lives, and the whole tensor too.
class TensorSlices {
 public:
  /// Elements of the first dimension: rows of a matrix, or elements of a vector.
  /// \throws InvalidArgument for a tensor that does not have them, or whose bytes are not those of its shape
  const HostTensor* rows(const HostTensor& whole, Shard wanted) {
    const std::int64_t num_rows = whole.shape.empty() ? 0 : whole.shape[0];
    if (wanted == Shard{0, static_cast<std::int32_t>(num_rows)}) { return &whole; }
    check(whole, wanted, num_rows, "rows");
    const std::int64_t row_bytes = static_cast<std::int64_t>(whole.data.size()) / num_rows;
    HostTensor& part = slices_.emplace_back(whole);
    part.shape[0] = wanted.size();
    part.data = whole.data.subspan(bytes(wanted.begin * row_bytes), bytes(wanted.size() * row_bytes));
    return &part;
  }

  /// Elements of the second dimension of a matrix.
  /// \throws as `rows`; InvalidArgument too where a block of a quantised type would be cut; OutOfMemory
  const HostTensor* columns(const HostTensor& whole, Shard wanted) {
    const std::int64_t num_columns = whole.shape.size() == 2 ? whole.shape[1] : 0;
    if (wanted == Shard{0, static_cast<std::int32_t>(num_columns)}) { return &whole; }
    check(whole, wanted, num_columns, "columns");
    const DTypeInfo& type = info(whole.dtype);
    const auto block = static_cast<std::int32_t>(type.block_elements);
    NVL_EXPECTS(wanted.begin % block == 0 && wanted.size() % block == 0, "columns of weight " + whole.name + " on one rank",
                wanted.size(), "whole blocks of " + std::to_string(block) + " elements of " + std::string(type.name));
    const auto columns_to_bytes = [&](std::int64_t n) { return n / type.block_elements * type.block_bytes; };
    const std::int64_t from_stride = columns_to_bytes(num_columns);
    const std::int64_t to_stride = columns_to_bytes(wanted.size());
    const std::int64_t num_rows = whole.shape[0];
    std::byte* const copy = copies_.emplace_back(std::make_unique_for_overwrite<std::byte[]>(bytes(num_rows * to_stride))).get();
    for (std::int64_t r = 0; r < num_rows; ++r) {
      std::memcpy(copy + r * to_stride, whole.data.data() + r * from_stride + columns_to_bytes(wanted.begin), bytes(to_stride));
    }
    HostTensor& part = slices_.emplace_back(whole);
    part.shape[1] = wanted.size();
    part.data = {copy, bytes(num_rows * to_stride)};
    return &part;
  }

 private:
  static constexpr std::size_t bytes(std::int64_t n) noexcept { return static_cast<std::size_t>(n); }

  static void check(const HostTensor& whole, Shard wanted, std::int64_t extent, const char* what) {
    NVL_EXPECTS(wanted.begin >= 0 && wanted.size() > 0 && wanted.end <= extent, std::string(what) + " of weight " + whole.name,
                extent, "at least the " + std::to_string(wanted.end) + " that the configuration has");
    std::int64_t elements = 1;
    for (const std::int64_t n : whole.shape) { elements *= n; }
    const DTypeInfo& type = info(whole.dtype);
    const std::int64_t num_bytes = elements / type.block_elements * type.block_bytes;
    NVL_EXPECTS(static_cast<std::int64_t>(whole.data.size()) == num_bytes, "bytes of weight " + whole.name, whole.data.size(),
                std::to_string(num_bytes) + ", as its shape says");
  }

  std::deque<HostTensor> slices_;  // their addresses stay
  std::deque<std::unique_ptr<std::byte[]>> copies_;
};

}  // namespace nvl::inline NVL_ABI
