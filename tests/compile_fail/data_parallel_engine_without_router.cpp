// Replicas with something that chooses none of them.
// EXPECT: nvl: a RouterPolicy needs `std::size_t route(const Request&, std::span<const EngineLoad>) noexcept`
#include <nvl/engine/data_parallel_engine.hpp>

struct MyRouter {
#ifdef NVL_FIXED
  std::size_t route(const nvl::Request&, std::span<const nvl::EngineLoad>) noexcept { return 0; }
#endif
};
static_assert(sizeof(nvl::DataParallelEngine<nvl::AnyEngine, MyRouter>) > 0);
