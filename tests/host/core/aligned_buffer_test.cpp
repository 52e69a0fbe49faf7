#include <nvl/core/aligned_buffer.hpp>

#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

namespace aligned_buffer_test {

using namespace nvl;

namespace {

bool is_zero(const std::byte* data, std::size_t count) {
  return std::all_of(data, data + count, [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

TEST_CASE("a buffer is zero and aligned whatever its size", "[core][aligned_buffer][host]") {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{63}, std::size_t{4097}, std::size_t{3} << 20}) {
    AlignedBuffer buffer(bytes);
    CHECK(buffer.size_bytes() == bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % AlignedBuffer::alignment == 0);
    CHECK(is_zero(buffer.data(), bytes));
    std::memset(buffer.data(), 1, bytes);
  }
  CHECK(AlignedBuffer(0).data() == nullptr);
}

TEST_CASE("moving a buffer moves its bytes", "[core][aligned_buffer][host]") {
  AlignedBuffer a(100);
  a.as<char>()[99] = 'x';
  const std::byte* const data = a.data();
  AlignedBuffer b = std::move(a);
  CHECK(b.data() == data);
  AlignedBuffer c(10);
  c = std::move(b);
  CHECK(c.size_bytes() == 100);
  CHECK(c.as<char>()[99] == 'x');
}

TEST_CASE("a size that no machine has is a typed error", "[core][aligned_buffer][host]") {
  nvl_test::expect_error<OutOfMemory>([] { AlignedBuffer buffer(~std::size_t{0}); },
                                      {"18446744073709551615", "cannot be allocated"});
}

TEST_CASE("pieces of an arena are apart, aligned, zero and outlive it", "[core][aligned_buffer][host]") {
  std::vector<BufferArena::Piece> pieces;
  {
    BufferArena arena(1000);
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{64}, std::size_t{65}, std::size_t{500}, std::size_t{500},
                                    std::size_t{5000}, std::size_t{1000}, std::size_t{1}}) {
      pieces.push_back(arena.allocate(bytes));
    }
    CHECK(arena.allocate(0).data == nullptr);
  }
  for (const BufferArena::Piece& piece : pieces) {
    CHECK(reinterpret_cast<std::uintptr_t>(piece.data) % AlignedBuffer::alignment == 0);
    REQUIRE(is_zero(piece.data, piece.num_bytes));  // and nobody wrote to it through another piece
    std::memset(piece.data, 255, piece.num_bytes);
  }
  CHECK(pieces[0].buffer == pieces[2].buffer);
  CHECK(pieces[3].buffer != pieces[4].buffer);  // what does not fit begins a new buffer
}

}  // namespace aligned_buffer_test
