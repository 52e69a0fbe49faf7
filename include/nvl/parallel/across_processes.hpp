#pragma once
/// The ParallelStrategy of ranks in several processes, on one host or on many.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

namespace nvl::inline NVL_ABI {

struct AcrossProcessesOptions {
  std::chrono::milliseconds pulse{
      5'000};  // at least so often a process says that it lives: a few times within the group's timeout
};

/// What the ranks exchange goes over the groups of `Parallel`; what processes tell each other, which step comes next for one, over a
/// group of its own. So the one may be a library's for devices, and the other TCP.
/// \tparam Parallel of the ranks that this process has: such as TensorParallel<TcpGroup>
/// \tparam Group of processes
template <class Parallel, class Group>
class AcrossProcesses {
  static_assert(require_parallel_strategy<Parallel>());
  static_assert(EagerRankGroup<Group>,
                "nvl: processes need a group whose `send` does not wait for the receiver, such as TcpGroup (EagerRankGroup)");

 public:
  using Context = typename Parallel::Context;

  AcrossProcesses(Parallel local, Group processes, const AcrossProcessesOptions& options = {})
      : local_(std::move(local)),
        processes_(std::make_unique<Group>(std::move(processes))),
        options_(options) {
    NVL_EXPECTS(options.pulse.count() > 0, "AcrossProcessesOptions::pulse", options.pulse.count(), "positive");
  }

  std::uint32_t num_local_ranks() const noexcept { return local_.num_local_ranks(); }

  template <class F>
  void for_each_rank(F&& f) {
    local_.for_each_rank(std::forward<F>(f));
  }

  Group& processes() noexcept { return *processes_; }
  std::chrono::milliseconds pulse() const noexcept { return options_.pulse; }

 private:
  Parallel local_;
  std::unique_ptr<Group> processes_;
  AcrossProcessesOptions options_;
};

}  // namespace nvl::inline NVL_ABI
