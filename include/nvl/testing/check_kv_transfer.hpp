#pragma once
/// Conformance suite of the concept KvTransfer.
///
///     struct Host {                                                   // where the two caches are, and how a test gets at them
///       nvl::CpuDevice& device(int side);                             // 0: copies come from it, 1: they go to it
///       float* allocate(int side, std::size_t n);                     // memory of that device, until the Host dies
///       void write(float* memory, std::span<const float> values);
///       std::vector<float> read(const float* memory, std::size_t n);  // after all that the device was told
///     };
///     Host host;
///     const auto broken = nvl::testing::check_kv_transfer<MyTransfer>(host);

#include <nvl/attention/kv_transfer.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

/// Two caches of different sizes, each element of which is another number.
template <class X, class World>
class TransferCase {
 public:
  using Element = typename X::Element;

  TransferCase(World& world, const KvLayout& from, const KvLayout& to, std::int32_t num_layers)
      : world_(world),
        from_{.layout = from, .num_layers = num_layers},
        to_{.layout = to, .num_layers = num_layers} {
    fill(from_, 0, 1.0f, source_);
    fill(to_, 1, -1.0f, target_);
  }

  std::unique_ptr<X> make() { return std::make_unique<X>(world_.device(0), from_, world_.device(1), to_); }

  /// What the target holds once `copies` are done.
  void expect(std::span<const BlockCopy> copies) {
    const std::int64_t elements = from_.layout.block_elements();
    for (std::int32_t layer = 0; layer < from_.num_layers; ++layer) {
      for (const BlockCopy& copy : copies) {
        const auto from =
            source_.begin() + static_cast<std::ptrdiff_t>(layer * from_.layout.layer_elements() + index_of(copy.from) * elements);
        std::copy(
            from, from + static_cast<std::ptrdiff_t>(elements),
            target_.begin() + static_cast<std::ptrdiff_t>(layer * to_.layout.layer_elements() + index_of(copy.to) * elements));
      }
    }
  }
  bool target_is_right() { return equal(world_.read(to_.kv, target_.size()), target_); }
  bool source_is_unchanged() { return equal(world_.read(from_.kv, source_.size()), source_); }

 private:
  void fill(KvCache<Element>& cache, int side, float sign, std::vector<Element>& values) {
    const auto n = static_cast<std::size_t>(cache.layout.layer_elements() * cache.num_layers);
    for (std::size_t i = 0; i < n; ++i) { values.push_back(Element(sign * static_cast<float>(i % 251 + i / 251 % 3 * 256 + 1))); }
    cache.kv = world_.allocate(side, n);
    world_.write(cache.kv, values);
  }
  static bool equal(const std::vector<Element>& a, const std::vector<Element>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Element& x, const Element& y) { return static_cast<float>(x) == static_cast<float>(y); });
  }

  World& world_;
  KvCache<Element> from_, to_;
  std::vector<Element> source_, target_;
};

inline BlockCopy block_copy(std::uint32_t from, std::uint32_t to) { return {.from = BlockId{from}, .to = BlockId{to}}; }

/// Asks until `wanted` are done. False if that never comes, or goes too far.
template <class X>
bool wait_for(X& transfer, std::uint64_t wanted) {
  constexpr int patience = 10'000'000;
  for (int i = 0; i < patience; ++i) {
    const std::uint64_t done = transfer.num_done();
    if (done >= wanted) { return done == wanted; }
    std::this_thread::yield();
  }
  return false;
}

template <class X, class World>
void check_refusal(Violations& broken, World& world, const KvLayout& other, std::int32_t other_layers, const std::string& what) {
  using Element = typename X::Element;
  const KvLayout layout{.num_blocks = 2, .block_size = 16, .num_kv_heads = 2, .head_dim = 16};
  Element* const memory = world.allocate(0, 4096);
  bool refused = false;
  contain(
      [&] {
        const KvCache<Element> from{.kv = memory, .layout = layout, .num_layers = 2};
        const KvCache<Element> to{.kv = memory, .layout = other, .num_layers = other_layers};
        const X transfer(world.device(0), from, world.device(1), to);
      },
      [&](const char*) { refused = true; });
  broken.expect(refused, "caches that differ in " + what + " are accepted");
}

}  // namespace detail

template <class X, class World>
Violations check_kv_transfer(World& world) {
  static_assert(require_kv_transfer<X>());
  Violations broken;
  for (const std::int32_t block_size : {16, 32}) {
    const KvLayout small{.num_blocks = 5, .block_size = block_size, .num_kv_heads = 3, .head_dim = 16};
    KvLayout large = small;
    large.num_blocks = 9;
    for (const bool grows : {true, false}) {
      broken.during(std::to_string(block_size) + " tokens a block, " + (grows ? "small to large" : "large to small"));
      detail::TransferCase<X, World> one(world, grows ? small : large, grows ? large : small, 3);
      auto transfer = one.make();
      broken.expect(transfer->num_done() == 0, "something is done before anything was begun");
      std::vector<BlockCopy> copies{detail::block_copy(4, 0), detail::block_copy(0, 4), detail::block_copy(2, 1)};
      one.expect(copies);
      transfer->start(copies);
      std::fill(copies.begin(), copies.end(), detail::block_copy(1, 3));  // the list is the caller's again
      broken.expect(detail::wait_for(*transfer, 1), "one call of start: num_done does not become 1");
      broken.expect(one.target_is_right(), "the target does not hold the named blocks, and all else as it was");
      broken.expect(one.source_is_unchanged(), "the source has changed");

      transfer->start({});
      const std::vector<BlockCopy> first{detail::block_copy(1, 2)}, second{detail::block_copy(3, 3)};
      one.expect(first);
      one.expect(second);
      transfer->start(first);
      transfer->start(second);
      broken.expect(detail::wait_for(*transfer, 4), "four calls of start, one of them empty: num_done does not become 4");
      broken.expect(one.target_is_right(), "a call of start is missing in the target");

      const std::vector<BlockCopy> last{detail::block_copy(2, 0)};
      one.expect(last);
      transfer->start(last);
      transfer.reset();
      broken.expect(one.target_is_right(), "the destructor does not wait for what was begun");
    }
  }
  broken.during("construction");
  const KvLayout layout{.num_blocks = 2, .block_size = 16, .num_kv_heads = 2, .head_dim = 16};
  KvLayout other = layout;
  other.block_size = 32;
  detail::check_refusal<X>(broken, world, other, 2, "block_size");
  other = layout;
  other.num_kv_heads = 1;
  detail::check_refusal<X>(broken, world, other, 2, "KV heads");
  other = layout;
  other.head_dim = 32;
  detail::check_refusal<X>(broken, world, other, 2, "head_dim");
  detail::check_refusal<X>(broken, world, layout, 1, "layers");
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
