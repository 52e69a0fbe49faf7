/// Random operations on each allocator beside a model, with shrunk counter-examples.
#include "support/colliding_hash.hpp"
#include "support/property.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/testing/allocator_model.hpp>

#include <catch2/catch_test_macros.hpp>
#include <rapidcheck.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace allocator_model_test {

using namespace nvl;

namespace {

struct Operation {
  int kind = 0;  // 0 to 20
  std::uint32_t a = 0, b = 0;
};

std::ostream& operator<<(std::ostream& out, const Operation& op) {
  return out << "{" << op.kind << ", " << op.a << ", " << op.b << "}";
}

rc::Gen<Operation> operations() {
  return rc::gen::build<Operation>(rc::gen::set(&Operation::kind, rc::gen::inRange(0, 21)),
                                   rc::gen::set(&Operation::a, rc::gen::inRange(0u, 64u)),
                                   rc::gen::set(&Operation::b, rc::gen::inRange(0u, 1u << 16)));
}

/// Tokens of a sequence: few different ones, so that prefixes meet and part.
std::vector<TokenId> some_tokens(std::uint32_t length, std::uint32_t bits) {
  std::vector<TokenId> tokens(length);
  for (std::uint32_t i = 0; i < length; ++i) { tokens[i] = static_cast<TokenId>(bits >> (i % 5) & 1u); }
  return tokens;
}

template <class A>
void apply(testing::AllocatorModel<A>& model, const Operation& op, const BlockPoolShape& shape) {
  const std::uint32_t most = shape.num_blocks + 1;
  if constexpr (PrefixCachingAllocator<A>) {
    if (op.kind < 5) {
      model.admit(op.b % 7 == 0 ? "salt" : "", some_tokens(op.a % (most * shape.block_size), op.b));
      return;
    }
    if (op.kind < 10) { return model.publish(op.a); }
    if (op.kind == 10) { return model.forget(op.a, op.b); }
    if (op.kind == 11) { return model.share(op.a); }
  }
  if constexpr (TieredPrefixCache<A>) {
    if (op.kind >= 18) { return model.demote(op.a % 4); }
  }
  if constexpr (ManagedPrefixCache<A>) {
    if (op.kind == 17) { return op.b % 16 == 0 ? model.reset() : model.pin(op.a, op.b % 2 == 0); }
  }
  if constexpr (TieredAllocator<A>) {
    if (op.kind == 16) { return op.b % 2 == 0 ? model.allocate_host(op.a % 4) : model.release_host(op.a); }
  }
  if (op.kind < 12) {
    model.allocate(op.a % most);
  } else if (op.kind < 14) {
    model.release(op.a);
  } else {
    model.release(op.a, op.b);
  }
}

/// \returns how many operations were run
template <class A>
std::uint64_t check_random_operations(const std::string& name, int num_cases) {
  std::uint64_t count = 0;
  check_property(name, num_cases, [&] {
    const BlockPoolShape shape{.num_blocks = *rc::gen::inRange(0u, 12u),
                               .block_size = *rc::gen::inRange(1u, 4u),
                               .num_host_blocks = *rc::gen::inRange(0u, 12u)};
    const auto list = *rc::gen::resize(2000, rc::gen::container<std::vector<Operation>>(operations()));
    testing::AllocatorModel<A> model(shape);
    for (const Operation& op : list) {
      apply(model, op, shape);
      ++count;
      if (!model.violations().empty()) { RC_FAIL(model.violations().text()); }
    }
    model.release_all();
    if (!model.violations().empty()) { RC_FAIL(model.violations().text()); }
  });
  return count;
}

constexpr std::uint64_t many = 1'000'000;

}  // namespace

TEST_CASE("the free list does what its model does in any sequence of operations", "[kv][host][slow]") {
  CHECK(check_random_operations<FreeListAllocator>("FreeListAllocator", 1100) >= many);
}

TEST_CASE("the prefix cache does what its model does in any sequence of operations", "[kv][host][slow]") {
  CHECK(check_random_operations<PrefixCacheAllocator>("PrefixCacheAllocator", 1100) >= many);
}

TEST_CASE("the prefix cache never gives wrong blocks when its hash has four bits", "[kv][host][slow]") {
  CHECK(check_random_operations<FourBitCache>("four-bit hash", 1100) >= many);
}

TEST_CASE("the prefix cache never gives wrong blocks when its hash is a constant", "[kv][host]") {
  CHECK(check_random_operations<OneBucketCache>("constant hash", 20) > 1000);
}

TEST_CASE("the radix cache does what its model does in any sequence of operations", "[kv][host][slow]") {
  CHECK(check_random_operations<RadixCacheAllocator>("RadixCacheAllocator", 1100) >= many);
}

TEST_CASE("the radix cache never gives wrong blocks when its hash has four bits", "[kv][host][slow]") {
  CHECK(check_random_operations<FourBitRadixCache>("four-bit hash", 1100) >= many);
}

TEST_CASE("the radix cache never gives wrong blocks when its hash is a constant", "[kv][host]") {
  CHECK(check_random_operations<OneBucketRadixCache>("constant hash", 20) > 1000);
}

}  // namespace allocator_model_test
