#pragma once
/// The whole program's operator new, which can be told to fail. For one source file of a program.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace nvl_test {

/// Allocations until they fail; negative: none does. Of this thread only.
inline thread_local std::int64_t allocations_left = -1;
/// Then one fails and no more, else all until `allocations_left` is set again.
inline thread_local bool fails_once = false;

/// Runs `work` with the n-th allocation failing. \returns whether it did fail
template <class Work>
bool fails_at(std::int64_t n, Work&& work) {
  allocations_left = n;
  bool failed = false;
  try {
    std::forward<Work>(work)();
  } catch (const std::bad_alloc&) { failed = true; }
  allocations_left = -1;
  return failed;
}

/// No allocation of this thread fails or counts while one of these lives: what the test itself needs.
class NoFailures {
 public:
  NoFailures() : left_(std::exchange(allocations_left, -1)) {}
  NoFailures(const NoFailures&) = delete;
  NoFailures& operator=(const NoFailures&) = delete;
  ~NoFailures() { allocations_left = left_; }

 private:
  std::int64_t left_;
};

}  // namespace nvl_test

// It counts only while a test asks for it. Inlined, g++ 12 would take malloc and delete for a mismatched pair.
[[gnu::noinline]] void* operator new(std::size_t size) {
  using nvl_test::allocations_left;
  if (allocations_left == 0) {
    if (nvl_test::fails_once) { allocations_left = -1; }
    throw std::bad_alloc();
  }
  if (allocations_left > 0) { --allocations_left; }
  if (void* const memory = std::malloc(size > 0 ? size : 1)) { return memory; }
  throw std::bad_alloc();
}
// Sorting asks in this way; without one of its own it would come from another heap than delete gives to.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  using nvl_test::allocations_left;
  if (allocations_left == 0) {
    if (nvl_test::fails_once) { allocations_left = -1; }
    return nullptr;
  }
  if (allocations_left > 0) { --allocations_left; }
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
