// A thread needs something to step.
// EXPECT: nvl::AsyncEngine takes an engine with the calls of nvl::AnyEngine
#include <nvl/engine/async_engine.hpp>

struct MyEngine {
  void validate(const nvl::Request&) const;
  nvl::RequestId submit(nvl::Request, nvl::RequestCallbacks);
  bool abort(nvl::RequestId);
  bool step();
  bool has_work() const;
#ifdef NVL_FIXED
  nvl::EngineStats stats() const;
#endif
  const std::string& failure() const;
};
static_assert(sizeof(nvl::AsyncEngine<MyEngine>) > 0);
