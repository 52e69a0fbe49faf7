#include <nvl/io/byte_cursor.hpp>

#include "support/expect_error.hpp"

#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

namespace byte_cursor_test {

using namespace nvl;
using nvl_test::expect_error;

TEST_CASE("a cursor reads little-endian values and never past its end", "[io][host]") {
  const std::array<unsigned char, 9> bytes{0x01, 0x02, 0x00, 0x00, 0x80, 0x3f, 'a', 'b', 'c'};
  const std::string path = "file.bin";
  ByteCursor in(std::as_bytes(std::span(bytes)), path);
  CHECK(in.read<std::uint16_t>("x") == 0x0201);
  CHECK(in.read<float>("y") == 1.0f);
  CHECK(in.offset() == 6);
  CHECK(in.remaining() == 3);
  expect_error<FileError>([&] { in.read<std::uint32_t>("the count"); }, {path, "offset 6", "the count needs 4 bytes", "only 3"});
  CHECK(in.take(3, "text").size() == 3);
  CHECK(in.remaining() == 0);
  CHECK(in.take(0, "nothing").empty());
  expect_error<FileError>([&] { in.take(std::numeric_limits<std::uint64_t>::max(), "z"); }, {"z needs 18446744073709551615"});
}

TEST_CASE("a cursor compares counts with the bytes left", "[io][host]") {
  const std::array<std::byte, 16> bytes{};
  const std::string path = "file.bin";
  const ByteCursor in(bytes, path);
  CHECK_NOTHROW(in.require_items(4, 4, "count"));
  expect_error<FileError>([&] { in.require_items(5, 4, "count"); }, {path, "count is 5", "at most 4", "16 bytes left"});
  expect_error<FileError>([&] { in.require_items(std::numeric_limits<std::uint64_t>::max(), 8, "count"); }, {"count is"});
  expect_error<FileError>([&] { in.fail("why"); }, {"offset 0", "why"});
}

}  // namespace byte_cursor_test
