// EXPECT: nvl::DisaggregatedEngine: caches are moved within one process
#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/nvl.hpp>

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

template <class Parallel>
using Half = nvl::Engine<nvl::PrefillFirstScheduler, nvl::FreeListAllocator, nvl::CpuPagedAttention<float>, Parallel>;
#ifdef NVL_FIXED
using Pair = nvl::DisaggregatedEngine<Half<nvl::SingleDevice>, Half<nvl::TensorParallel<>>>;
#else
using Pair = nvl::DisaggregatedEngine<Half<nvl::SingleDevice>, Half<nvl::AcrossProcesses<nvl::TensorParallel<>, Wire>>>;
#endif

std::size_t size() { return sizeof(Pair); }
