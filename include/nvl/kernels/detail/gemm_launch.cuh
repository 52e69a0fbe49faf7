#pragma once
/// What the launch functions of linear layers share: checks of arguments and facts of the device.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>

#include <cstdint>
#include <string>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::gemm {

inline int num_multiprocessors() {
  int device = 0, count = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <class Params>
void check_linear(const char* op, const Params& p) {
  const auto field = [&](const char* name) { return std::string(op) + " " + name; };
  NVL_EXPECTS(p.num_rows >= 0, field("num_rows"), p.num_rows, "at least 0");
  NVL_EXPECTS(p.out_features > 0, field("out_features"), p.out_features, "at least 1");
  NVL_EXPECTS(p.in_features > 0, field("in_features"), p.in_features, "at least 1");
  if (p.num_rows == 0) { return; }
  NVL_EXPECTS(p.out != nullptr, field("out"), 0, "device memory");
  NVL_EXPECTS(p.x != nullptr, field("x"), 0, "device memory");
  NVL_EXPECTS(p.w != nullptr, field("w"), 0, "device memory");
}

inline bool is_aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace kernels::detail::gemm
}  // namespace nvl::inline NVL_ABI
