#pragma once
/// Concept KvTransfer: blocks of K and V from the cache of one engine into that of another.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>
#include <nvl/ops/cpu_device.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace nvl::inline NVL_ABI {

/// The K and V of one rank.
template <class T>
struct KvCache {
  T* kv = nullptr;  // [num_layers] x layout, memory of the rank's device
  KvLayout layout;
  std::int32_t num_layers = 0;
};

/// \throws InvalidArgument unless a block of one cache fits into the other
template <class T>
void expect_same_blocks(const KvCache<T>& from, const KvCache<T>& to) {
  NVL_EXPECTS(to.num_layers == from.num_layers, "layers of the cache to copy to", to.num_layers,
              "those of the other: " + std::to_string(from.num_layers));
  NVL_EXPECTS(to.layout.block_size == from.layout.block_size, "block_size of the cache to copy to", to.layout.block_size,
              "that of the other: " + std::to_string(from.layout.block_size));
  NVL_EXPECTS(to.layout.num_kv_heads == from.layout.num_kv_heads, "KV heads of the cache to copy to", to.layout.num_kv_heads,
              "those of the other: " + std::to_string(from.layout.num_kv_heads));
  NVL_EXPECTS(to.layout.head_dim == from.layout.head_dim, "head_dim of the cache to copy to", to.layout.head_dim,
              "that of the other: " + std::to_string(from.layout.head_dim));
}

namespace detail::kv_transfer {

template <class X>
concept has_types = requires {
  typename X::Element;
  typename X::Device;
};
template <class X>
concept has_constructor = std::constructible_from<X, typename X::Device&, const KvCache<typename X::Element>&,
                                                  typename X::Device&, const KvCache<typename X::Element>&>;
template <class X>
concept has_start = requires(X x, std::span<const BlockCopy> copies) { x.start(copies); };
template <class X>
concept has_num_done = requires(X x) {
  { x.num_done() } -> std::same_as<std::uint64_t>;
};

}  // namespace detail::kv_transfer

/// Copies between two caches, beside the steps of both engines. One a rank; called by one thread.
///
/// | expression                      | returns       | throws | meaning                                                            |
/// |---------------------------------|---------------|--------|--------------------------------------------------------------------|
/// | `X::Element`, `X::Device`       |               |        | of both caches                                                     |
/// | `X(device, from, device2, to)`  |               | may    | from `from` of `device` to `to` of `device2`; devices and caches   |
/// |                                 |               |        | outlive it; InvalidArgument unless their blocks are alike          |
/// | `x.start(copies)`               | void          | may    | begins to copy block `copies[i].from` to `copies[i].to` over all   |
/// |                                 |               |        | layers; the steps that wrote `from` have been collected; `to` is   |
/// |                                 |               |        | written behind all steps launched on `device2` so far; `copies`    |
/// |                                 |               |        | may die. Having thrown, nothing was begun                          |
/// | `x.num_done()`                  | std::uint64_t | may    | how many calls of `start` are done, which they are in order; does  |
/// |                                 |               |        | not wait. Throws if a copy failed, and then always                 |
///
/// Until a call of `start` is done nobody writes its `from` blocks and nobody reads or writes its `to` blocks: both caches keep them
/// under a lease. A copy that failed writes nothing any more. The destructor waits, unless a device hangs.
template <class X>
concept KvTransfer = detail::kv_transfer::has_types<X> && detail::kv_transfer::has_constructor<X> &&
                     detail::kv_transfer::has_start<X> && detail::kv_transfer::has_num_done<X>;

/// The least KvTransfer. Declared, not defined.
struct KvTransferArchetype {
  using Element = float;
  using Device = CpuDevice;
  KvTransferArchetype(Device&, const KvCache<float>&, Device&, const KvCache<float>&);
  void start(std::span<const BlockCopy>);
  std::uint64_t num_done();
};

/// True if X is a KvTransfer; else the compiler says which member is missing. For use beside a transfer of one's own:
/// `static_assert(nvl::require_kv_transfer<MyTransfer>());`
template <class X>
consteval bool require_kv_transfer() {
  namespace has = detail::kv_transfer;
  static_assert(has::has_types<X>, "nvl: a KvTransfer needs the types `Element` and `Device`");
  static_assert(
      has::has_constructor<X>,
      "nvl: a KvTransfer needs a constructor from `Device&, const KvCache<Element>&, Device&, const KvCache<Element>&`");
  static_assert(has::has_start<X>, "nvl: a KvTransfer needs `void start(std::span<const BlockCopy>)`");
  static_assert(has::has_num_done<X>, "nvl: a KvTransfer needs `std::uint64_t num_done()`");
  return true;
}
static_assert(require_kv_transfer<KvTransferArchetype>());

/// Between caches in host memory: done when `start` returns. For ops that compute a step while it is launched, as CpuOps does.
template <class T>
class HostKvTransfer {
 public:
  using Element = T;
  using Device = CpuDevice;
  static constexpr bool waits_for_steps = false;  // that were launched and are not done; a transfer that does not say so does

  HostKvTransfer(CpuDevice&, const KvCache<T>& from, CpuDevice&, const KvCache<T>& to) : from_(from), to_(to) {
    expect_same_blocks(from, to);
  }

  void start(std::span<const BlockCopy> copies) {
    const std::int64_t elements = from_.layout.block_elements();
    for (std::int32_t layer = 0; layer < from_.num_layers; ++layer) {
      const T* const from = from_.kv + layer * from_.layout.layer_elements();
      T* const to = to_.kv + layer * to_.layout.layer_elements();
      for (const BlockCopy& copy : copies) {
        std::memcpy(to + std::int64_t{index_of(copy.to)} * elements, from + std::int64_t{index_of(copy.from)} * elements,
                    static_cast<std::size_t>(elements) * sizeof(T));
      }
    }
    ++num_done_;
  }

  std::uint64_t num_done() const noexcept { return num_done_; }

 private:
  KvCache<T> from_, to_;
  std::uint64_t num_done_ = 0;
};
static_assert(require_kv_transfer<HostKvTransfer<float>>());

}  // namespace nvl::inline NVL_ABI
