#pragma once
/// Two caches in host memory, for check_kv_transfer.

#include <nvl/ops/cpu_device.hpp>

#include <algorithm>
#include <cstddef>
#include <list>
#include <span>
#include <vector>

namespace nvl_test {

template <class T>
struct HostCaches {
  nvl::CpuDevice& device(int) { return cpu; }
  T* allocate(int, std::size_t n) { return memory.emplace_back(n).data(); }
  void write(T* to, std::span<const T> values) { std::copy(values.begin(), values.end(), to); }
  std::vector<T> read(const T* from, std::size_t n) { return std::vector<T>(from, from + n); }

  nvl::CpuDevice cpu{{.num_threads = 1}};
  std::list<std::vector<T>> memory;
};

}  // namespace nvl_test
