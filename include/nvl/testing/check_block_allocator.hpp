#pragma once
/// Conformance suite of the concept BlockAllocator: tests the meaning column of its table on any allocator.
///
///     const auto broken = nvl::testing::check_block_allocator<MyAllocator>();
///     if (!broken.empty()) { std::puts(broken.text().c_str()); }

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/testing/allocator_model.hpp>
#include <nvl/testing/check_prefix_cache.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

template <class A>
void check_exhaustion(Violations& broken, const BlockPoolShape& shape) {
  broken.during("one block at a time");
  A allocator(shape);
  broken.expect(allocator.num_blocks() == shape.num_blocks, "num_blocks is not that of the shape");
  std::vector<BlockId> held(shape.num_blocks);
  std::vector<bool> seen(shape.num_blocks, false);
  for (std::uint32_t i = 0; i < shape.num_blocks; ++i) {
    broken.expect(allocator.num_free() == shape.num_blocks - i, "num_free does not count down by one");
    if (!broken.expect(allocator.try_allocate(std::span(held).subspan(i, 1)), "try_allocate failed while blocks were free")) {
      return;
    }
    if (!broken.expect(index_of(held[i]) < shape.num_blocks, "an id is out of range")) { return; }
    broken.expect(!seen[index_of(held[i])], "an id was handed out twice");
    seen[index_of(held[i])] = true;
  }
  BlockId one{};
  broken.expect(!allocator.try_allocate(std::span(&one, 1)), "try_allocate succeeded on an exhausted pool");
  broken.expect(allocator.try_allocate({}), "a request for no blocks failed on an exhausted pool");
  broken.expect(allocator.num_free() == 0, "num_free is not 0 on an exhausted pool");
  allocator.release({});
  broken.expect(allocator.num_free() == 0, "releasing nothing freed something");

  broken.during("release in another order");
  std::vector<BlockId> odd_first;
  for (std::uint32_t i = 1; i < shape.num_blocks; i += 2) { odd_first.push_back(held[i]); }
  for (std::uint32_t i = 0; i < shape.num_blocks; i += 2) { odd_first.push_back(held[i]); }
  allocator.release(odd_first);
  broken.expect(allocator.num_free() == shape.num_blocks, "not every block came back");
  broken.expect(allocator.try_allocate(held), "the whole pool cannot be taken after it was released");
  allocator.release(held);
}

template <class A>
void check_all_or_nothing(Violations& broken, const BlockPoolShape& shape) {
  broken.during("all or nothing");
  for (std::uint32_t taken = 0; taken <= shape.num_blocks; ++taken) {
    A allocator(shape);
    std::vector<BlockId> held(taken), wanted(shape.num_blocks - taken + 1), rest(shape.num_blocks - taken);
    broken.expect(allocator.try_allocate(held), "try_allocate failed while blocks were free");
    broken.expect(!allocator.try_allocate(wanted), "one block more than there are was handed out");
    broken.expect(allocator.num_free() == shape.num_blocks - taken, "a refused try_allocate kept blocks");
    broken.expect(allocator.try_allocate(rest), "what num_free promised was refused");
    rest.insert(rest.end(), held.begin(), held.end());
    std::sort(rest.begin(), rest.end());
    broken.expect(std::adjacent_find(rest.begin(), rest.end()) == rest.end(), "an id was handed out twice");
  }
}

template <class A>
void check_moves(Violations& broken, const BlockPoolShape& shape) {
  broken.during("moved");
  A first(shape);
  std::vector<BlockId> held(1), rest(shape.num_blocks - 1);
  broken.expect(first.try_allocate(held), "try_allocate failed while blocks were free");
  A second(std::move(first));
  broken.expect(second.num_free() == shape.num_blocks - 1 && second.num_blocks() == shape.num_blocks, "a move lost blocks");
  broken.expect(second.try_allocate(rest), "what num_free promised was refused after a move");
  broken.expect(std::find(rest.begin(), rest.end(), held[0]) == rest.end(), "an id was handed out twice after a move");
}

template <SharingAllocator A>
void check_sharing(Violations& broken, const BlockPoolShape& shape) {
  broken.during("shared blocks");
  A allocator(shape);
  std::vector<BlockId> held(shape.num_blocks);
  broken.expect(allocator.try_allocate(held), "try_allocate failed while blocks were free");
  const auto owners_are = [&](std::uint32_t count) {
    return std::all_of(held.begin(), held.end(), [&](BlockId id) { return allocator.num_owners(id) == count; });
  };
  broken.expect(owners_are(1), "a new block has not one owner");
  allocator.share({});
  allocator.share(held);
  if (!broken.expect(owners_are(2), "share did not add one owner to each block")) { return; }
  allocator.release(held);
  broken.expect(owners_are(1) && allocator.num_free() == 0, "a block was freed while it had an owner");
  allocator.release(held);
  broken.expect(owners_are(0) && allocator.num_free() == shape.num_blocks, "a block was not freed by its last owner");
}

/// The host pool, while the pool of the device is full and again while it is empty: neither takes from the other.
template <TieredAllocator A>
void check_host_pool(Violations& broken, BlockPoolShape shape) {
  broken.during("host blocks");
  for (const std::uint32_t num_host_blocks : {std::uint32_t{0}, std::uint32_t{1}, shape.num_blocks + 3}) {
    shape.num_host_blocks = num_host_blocks;
    A allocator(shape);
    broken.expect(allocator.num_host_blocks() == num_host_blocks, "num_host_blocks is not that of the shape");
    std::vector<BlockId> device(shape.num_blocks);
    broken.expect(allocator.try_allocate(device), "the host pool takes device blocks");
    for (int round = 0; round < 2; ++round) {
      if (!broken.expect(allocator.num_free_host() == num_host_blocks, "not every host block is free")) { return; }
      std::vector<HostBlockId> wanted(num_host_blocks + 1), half(num_host_blocks / 2), rest(num_host_blocks - half.size());
      broken.expect(!allocator.try_allocate_host(wanted), "one host block more than there are was handed out");
      broken.expect(allocator.num_free_host() == num_host_blocks, "a refused try_allocate_host kept blocks");
      broken.expect(allocator.try_allocate_host(half) && allocator.num_free_host() == rest.size(),
                    "try_allocate_host failed while host blocks were free, or num_free_host is wrong after it");
      broken.expect(allocator.try_allocate_host(rest), "what num_free_host promised was refused");
      broken.expect(allocator.try_allocate_host({}), "a request for no host blocks failed on an exhausted pool");
      half.insert(half.end(), rest.begin(), rest.end());
      std::vector<HostBlockId> distinct = half;
      std::sort(distinct.begin(), distinct.end());
      broken.expect(std::adjacent_find(distinct.begin(), distinct.end()) == distinct.end(), "a host id was handed out twice");
      broken.expect(distinct.empty() || index_of(distinct.back()) < num_host_blocks, "a host id is out of range");
      allocator.release_host(half);
      if (round == 0) { allocator.release(device); }
    }
    broken.expect(allocator.num_free() == shape.num_blocks, "the host pool keeps device blocks");
  }
}

/// `num_operations` random ones on a model; prefix operations where the allocator has them.
template <class A>
void check_random_use(Violations& broken, const BlockPoolShape& shape, std::uint64_t seed, int num_operations) {
  AllocatorModel<A> model(shape);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return static_cast<std::uint32_t>(random() % n); };
  for (int i = 0; i < num_operations && model.violations().empty(); ++i) {
    switch (below(8)) {
      case 0: model.allocate(below(shape.num_blocks + 2)); break;
      case 1: model.release(below(64)); break;
      case 2: model.release(below(64), random()); break;
      case 3:
        if constexpr (SharingAllocator<A>) { model.share(below(64)); }
        break;
      default:
        if constexpr (TieredAllocator<A>) {
          if (below(8) == 0) { model.allocate_host(below(shape.num_host_blocks + 2)); }
          if (below(8) == 0) { model.release_host(below(64)); }
        }
        if constexpr (TieredPrefixCache<A>) {
          if (below(4) == 0) { model.demote(below(4)); }
        }
        if constexpr (ManagedPrefixCache<A>) {
          if (below(16) == 0) { model.pin(below(64), below(2) == 0); }
          if (below(64) == 0) { model.reset(); }
        }
        if constexpr (PrefixCachingAllocator<A>) {
          if (below(16) == 0) {
            model.forget(below(64), below(64));
          } else if (below(2) == 0) {
            model.publish(below(64));
          } else {
            std::vector<TokenId> tokens(below(shape.block_size * shape.num_blocks + 2));
            for (TokenId& token : tokens) { token = static_cast<TokenId>(below(2)); }
            model.admit(below(4) == 0 ? "salt" : "", tokens);
          }
        } else {
          model.allocate(below(3));
        }
    }
  }
  if (model.violations().empty()) { model.release_all(); }
  Violations found = model.violations();
  broken.during("");
  broken.append(found);
}

}  // namespace detail

/// Everything that the tables of BlockAllocator, SharingAllocator, TieredAllocator and PrefixCachingAllocator promise, as far
/// as A is one.
/// A pool of `shape` is constructed some dozens of times; at least 4 blocks. Reproducible: randomness is of `seed` alone.
template <BlockAllocator A>
Violations check_block_allocator(const BlockPoolShape& shape = {.num_blocks = 8, .block_size = 2}, std::uint64_t seed = 1) {
  NVL_EXPECTS(shape.num_blocks >= 4, "num_blocks of the suite", shape.num_blocks, "at least 4");
  Violations broken;
  detail::check_exhaustion<A>(broken, shape);
  detail::check_all_or_nothing<A>(broken, shape);
  detail::check_moves<A>(broken, shape);
  if constexpr (SharingAllocator<A>) { detail::check_sharing<A>(broken, shape); }
  if constexpr (TieredAllocator<A>) { detail::check_host_pool<A>(broken, shape); }
  if constexpr (PrefixCachingAllocator<A>) { broken.append(check_prefix_cache<A>(shape)); }
  for (std::uint64_t run = 0; run < 8 && broken.empty(); ++run) {
    BlockPoolShape with_host = shape;
    if (run % 2 == 1) { with_host.num_host_blocks = shape.num_blocks; }
    detail::check_random_use<A>(broken, with_host, seed * 8 + run, 500);
  }
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
