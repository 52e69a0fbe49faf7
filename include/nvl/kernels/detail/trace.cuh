#pragma once
/// Named spans on the timeline of a profiler (NVTX), in a domain "nvl". Without a profiler a span costs a few nanoseconds of host
/// time. NVL_NO_TRACE leaves them out of the program.

#include <nvl/core/config.hpp>

#if !defined(NVL_NO_TRACE)
#include <nvtx3/nvToolsExt.h>
#endif

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

/// Spans the object's life on the calling thread. `name` outlives it. While a graph is captured the spans are those of the
/// capture; a replay shows as the span around the launch of the graph.
class TraceSpan {
 public:
#if defined(NVL_NO_TRACE)
  explicit TraceSpan(const char*) noexcept {}
#else
  explicit TraceSpan(const char* name) noexcept {
    nvtxEventAttributes_t event{};
    event.version = NVTX_VERSION;
    event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    event.messageType = NVTX_MESSAGE_TYPE_ASCII;
    event.message.ascii = name;
    nvtxDomainRangePushEx(domain(), &event);
  }
  ~TraceSpan() { nvtxDomainRangePop(domain()); }
#endif
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

#if !defined(NVL_NO_TRACE)
 private:
  static nvtxDomainHandle_t domain() noexcept {
    static const nvtxDomainHandle_t handle = nvtxDomainCreateA("nvl");
    return handle;
  }
#endif
};

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
