#pragma once
/// The memory that matrix products need beside their operands.

#include <nvl/core/config.hpp>

#include <cstddef>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// [bytes] with which cuBLASLt's fast Hopper kernels all fit.
inline constexpr std::size_t gemm_workspace_bytes = std::size_t{32} << 20;

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
