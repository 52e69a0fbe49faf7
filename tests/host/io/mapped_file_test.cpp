#include <nvl/io/mapped_file.hpp>

#include "support/expect_error.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include <sys/stat.h>
#include <sys/un.h>
#include <sys/socket.h>
#include <unistd.h>

namespace mapped_file_test {

using namespace nvl;
using nvl_test::expect_error;
using nvl_test::TempDir;

TEST_CASE("a file's bytes are the same mapped and read", "[io][host]") {
  const MapMode mode = GENERATE(MapMode::map, MapMode::read);
  const TempDir dir;
  const std::string text("a\0b\nc", 5);
  const auto path = dir.write("file", text);
  MappedFile file(path, mode);
  CHECK(file.text() == text);
  CHECK(file.bytes().size() == 5);
  CHECK(file.path() == path.string());
  CHECK_NOTHROW(file.check_unchanged());

  const std::byte* const data = file.bytes().data();
  MappedFile moved = std::move(file);
  CHECK(moved.bytes().data() == data);
  CHECK_NOTHROW(moved.check_unchanged());
  MappedFile assigned;
  CHECK(assigned.bytes().empty());
  assigned = std::move(moved);
  CHECK(assigned.text() == text);
}

TEST_CASE("an empty file has no bytes", "[io][host]") {
  const TempDir dir;
  CHECK(MappedFile(dir.write("empty", ""), MapMode::map).bytes().empty());
  CHECK(MappedFile(dir.write("empty", ""), MapMode::read).text().empty());
}

TEST_CASE("symbolic links are followed", "[io][host]") {
  const TempDir dir;
  dir.write("target", "text");
  std::filesystem::create_symlink("target", dir.path() / "link");
  CHECK(MappedFile(dir.path() / "link").text() == "text");
}

TEST_CASE("what is not a regular file is refused at once", "[io][host]") {
  const MapMode mode = GENERATE(MapMode::map, MapMode::read);
  const TempDir dir;
  expect_error<FileError>([&] { MappedFile(dir.path() / "absent", mode); }, {"absent", "No such file"});
  expect_error<FileError>([&] { MappedFile(dir.path(), mode); }, {dir.path().string(), "a directory", "regular file"});
  expect_error<FileError>([&] { MappedFile("/dev/zero", mode); }, {"/dev/zero", "a device"});
  const auto fifo = dir.path() / "fifo";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  expect_error<FileError>([&] { MappedFile(fifo, mode); }, {fifo.string(), "a FIFO"});
  std::filesystem::create_symlink("/dev/zero", dir.path() / "zero");
  expect_error<FileError>([&] { MappedFile(dir.path() / "zero", mode); }, {"a device"});
  std::filesystem::create_symlink("loop", dir.path() / "loop");
  expect_error<FileError>([&] { MappedFile(dir.path() / "loop", mode); }, {"loop", "cannot be opened"});

  const auto socket_path = dir.path() / "socket";
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  REQUIRE(socket >= 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.string().copy(address.sun_path, sizeof(address.sun_path) - 1);
  REQUIRE(::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  expect_error<FileError>([&] { MappedFile(socket_path, mode); }, {"a socket"});
  ::close(socket);
}

TEST_CASE("a file that may not be read is refused", "[io][host]") {
  const TempDir dir;
  const auto path = dir.write("secret", "text");
  std::filesystem::permissions(path, std::filesystem::perms::none);
  // Root may read every file, so root becomes nobody meanwhile.
  constexpr uid_t nobody = 65'534;
  const bool is_root = ::geteuid() == 0;
  if (is_root) { REQUIRE(::seteuid(nobody) == 0); }
  expect_error<FileError>([&] { MappedFile{path}; }, {path.string(), "Permission denied"});
  if (is_root) { REQUIRE(::seteuid(0) == 0); }
}

TEST_CASE("a file above the limit is refused before it is read", "[io][host]") {
  const TempDir dir;
  const auto path = dir.write("file", "12345");
  CHECK_NOTHROW(MappedFile(path, MapMode::read, 5));
  expect_error<FileError>([&] { MappedFile(path, MapMode::read, 4); }, {path.string(), "is 5 bytes long", "at most 4"});
}

TEST_CASE("a mapped file that was truncated, extended or rewritten is noticed", "[io][host]") {
  const TempDir dir;
  const auto path = dir.write("weights", std::string(10'000, 'w'));
  const MappedFile mapped(path, MapMode::map);
  const MappedFile in_memory(path, MapMode::read);
  SECTION("truncated") {
    std::filesystem::resize_file(path, 100);
    expect_error<FileError>([&] { mapped.check_unchanged(); }, {path.string(), "changed", "10000", "100"});
  }
  SECTION("extended") {
    std::filesystem::resize_file(path, 20'000);
    expect_error<FileError>([&] { mapped.check_unchanged(); }, {"changed", "20000"});
  }
  SECTION("rewritten with the same size") {
    dir.write("weights", std::string(10'000, 'x'));
    std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::seconds(5));
    expect_error<FileError>([&] { mapped.check_unchanged(); }, {"changed", "written to"});
  }
  // What was read into memory stays whole whatever happens to the file.
  CHECK_NOTHROW(in_memory.check_unchanged());
  CHECK(in_memory.text() == std::string(10'000, 'w'));
}

TEST_CASE("a deleted or replaced file stays readable through its mapping", "[io][host]") {
  const TempDir dir;
  const auto path = dir.write("weights", "old");
  const MappedFile file(path);
  std::filesystem::rename(dir.write("new", "replacement"), path);
  CHECK_NOTHROW(file.check_unchanged());
  CHECK(file.text() == "old");
}

TEST_CASE("bytes in memory can stand in for a file", "[io][host]") {
  std::string text = "abc";
  const MappedFile file = MappedFile::from_bytes(std::as_bytes(std::span(text)), "built in");
  text = "xyz";
  CHECK(file.text() == "abc");
  CHECK(file.path() == "built in");
  CHECK_NOTHROW(file.check_unchanged());
  CHECK(MappedFile::from_bytes({}, "none").bytes().empty());
}

}  // namespace mapped_file_test
