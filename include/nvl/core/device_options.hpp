#pragma once
/// Which device a backend runs on. Each backend reads the fields that concern it.

#include <nvl/core/config.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {

struct DeviceOptions {
  std::int32_t num_threads = 0;  // CPU: threads that compute, the caller's included; 0 = one per core
};

}  // namespace nvl::inline NVL_ABI
