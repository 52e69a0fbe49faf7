// EXPECT: nvl: processes need a group whose `send` does not wait for the receiver
#include <nvl/nvl.hpp>
#include <nvl/parallel/across_processes.hpp>

#ifdef NVL_FIXED
struct MyGroup : nvl::ThreadGroup {
  static constexpr bool is_eager = true;
};
#else
using MyGroup = nvl::ThreadGroup;
#endif
using MyStrategy = nvl::AcrossProcesses<nvl::TensorParallel<>, MyGroup>;

std::uint32_t count(const MyStrategy& strategy) { return strategy.num_local_ranks(); }
