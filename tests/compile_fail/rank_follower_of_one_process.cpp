// EXPECT: nvl::RankFollower: with this strategy all ranks are in the engine's process
#include <nvl/engine/rank_follower.hpp>
#include <nvl/nvl.hpp>
#include <nvl/parallel/across_processes.hpp>

#include <cstdint>
#include <string_view>

struct Wire {
  static constexpr bool is_eager = true;
  nvl::Rank rank() const noexcept;
  std::uint32_t size() const noexcept;
  template <class T>
  void all_reduce_sum(T*, std::int64_t);
  template <class T>
  void all_gather(const T*, T*, std::int64_t);
  template <class T>
  void broadcast(T*, std::int64_t, nvl::Rank);
  template <class T>
  void send(const T*, std::int64_t, nvl::Rank);
  template <class T>
  void recv(T*, std::int64_t, nvl::Rank);
  void barrier();
  void abort(std::string_view) noexcept;
};

#ifdef NVL_FIXED
using MyStrategy = nvl::AcrossProcesses<nvl::TensorParallel<>, Wire>;
#else
using MyStrategy = nvl::TensorParallel<>;
#endif
using MyFollower =
    nvl::RankFollower<nvl::PrefillFirstScheduler, nvl::FreeListAllocator, nvl::CpuPagedAttention<float>, MyStrategy>;

void follow(MyFollower&& follower) { static_cast<void>(follower.memory_plan()); }
