#pragma once
/// A read-only regular file as one span of bytes, mapped or read into memory.
///
/// A mapping is private, but the kernel still delivers SIGBUS when pages are touched that a truncation took away. nvl parses
/// right after opening and calls check_unchanged() before it copies weights, so that only a truncation in the midst of a copy
/// can reach it. Where files may change under a running program, open them with MapMode::read: the bytes are then its own.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nvl::inline NVL_ABI {

enum class MapMode : std::uint8_t {
  map,   // pages come in when they are touched; memory is shared with the page cache
  read,  // the whole file is copied into memory; immune to later changes
};

/// Owns the bytes of one file. Move-only; spans handed out stay valid when the object moves and die with it.
class MappedFile {
 public:
  MappedFile() = default;

  /// Opens a regular file (symbolic links are followed).
  /// \throws FileError if it cannot be opened, is not a regular file, is larger than `max_bytes`, or changes meanwhile
  explicit MappedFile(const std::filesystem::path& path, MapMode mode = MapMode::map,
                      std::uint64_t max_bytes = std::numeric_limits<std::int64_t>::max())
      : path_(path.string()) {
    // A device or a FIFO may act on being opened, so look first; fstat below decides about what was really opened.
    Stat before{};
    if (::stat(path_.c_str(), &before) != 0) { fail_errno("cannot be opened"); }
    require_regular(before);
    file_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file_.get() < 0) { fail_errno("cannot be opened"); }
    status_ = status();
    require_regular(status_);
    const auto size = static_cast<std::uint64_t>(status_.st_size);
    if (size > max_bytes) {
      raise(FileError(path_, "is " + std::to_string(size) + " bytes long: must be at most " + std::to_string(max_bytes)));
    }
    if (size > 0) { mode == MapMode::map ? map_all(size) : read_all(size); }
    check_unchanged();
    if (mode == MapMode::read) { file_ = Descriptor(); }
  }

  /// A file whose bytes the caller already has, e.g. linked into the program. Copies them; `name` is used in messages.
  static MappedFile from_bytes(std::span<const std::byte> bytes, std::string name) {
    MappedFile file;
    file.path_ = std::move(name);
    if (!bytes.empty()) {
      file.data_ = {new std::byte[bytes.size()], Release{bytes.size(), false}};
      std::memcpy(file.data_.get(), bytes.data(), bytes.size());
    }
    return file;
  }

  std::span<const std::byte> bytes() const noexcept { return {data_.get(), data_ ? data_.get_deleter().size : 0}; }
  /// The same bytes as characters.
  std::string_view text() const noexcept { return {reinterpret_cast<const char*>(data_.get()), bytes().size()}; }
  const std::string& path() const noexcept { return path_; }

  /// Throws FileError if the file's size or modification time is no longer what it was when it was opened. Files that were
  /// read into memory cannot change.
  void check_unchanged() const {
    if (file_.get() < 0) { return; }
    const Stat now = status();
    if (now.st_size != status_.st_size) {
      raise(FileError(path_, "changed while it was in use: its size was " + std::to_string(status_.st_size) +
                                 " bytes and is now " + std::to_string(now.st_size)));
    }
    if (now.st_mtim.tv_sec != status_.st_mtim.tv_sec || now.st_mtim.tv_nsec != status_.st_mtim.tv_nsec) {
      raise(FileError(path_, "changed while it was in use: it was written to"));
    }
  }

 private:
  using Stat = struct ::stat;

  class Descriptor {
   public:
    Descriptor() = default;
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
      std::swap(fd_, other.fd_);
      return *this;
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
      if (fd_ >= 0) { ::close(fd_); }
    }
    int get() const noexcept { return fd_; }

   private:
    int fd_ = -1;
  };

  struct Release {
    std::size_t size;
    bool mapped;
    // Written out: a default member initialiser is not usable before the enclosing class is complete.
    Release() noexcept : size(0), mapped(false) {}
    Release(std::size_t bytes, bool is_mapped) noexcept : size(bytes), mapped(is_mapped) {}
    void operator()(std::byte* data) const noexcept {
      if (mapped) {
        ::munmap(data, size);
      } else {
        delete[] data;
      }
    }
  };

  [[noreturn]] void fail_errno(const char* what) const {
    raise(FileError(path_, std::string(what) + ": " + std::generic_category().message(errno)));
  }

  void require_regular(const Stat& status) const {
    if (S_ISREG(status.st_mode)) { return; }
    const char* const kind = S_ISDIR(status.st_mode)    ? "a directory"
                             : S_ISFIFO(status.st_mode) ? "a FIFO"
                             : S_ISSOCK(status.st_mode) ? "a socket"
                                                        : "a device";
    raise(FileError(path_, std::string("is ") + kind + ": must be a regular file"));
  }

  Stat status() const {
    Stat result{};
    if (::fstat(file_.get(), &result) != 0) { fail_errno("cannot be examined"); }
    return result;
  }

  void map_all(std::uint64_t size) {
    void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file_.get(), 0);
    if (address == MAP_FAILED) { fail_errno("cannot be mapped"); }
    data_ = {static_cast<std::byte*>(address), Release{size, true}};
  }

  void read_all(std::uint64_t size) {
    data_ = {new std::byte[size], Release{size, false}};
    std::uint64_t done = 0;
    while (done < size) {
      const ::ssize_t got = ::pread(file_.get(), data_.get() + done, size - done, static_cast<::off_t>(done));
      if (got < 0 && errno == EINTR) { continue; }
      if (got < 0) { fail_errno("cannot be read"); }
      if (got == 0) { raise(FileError(path_, done, "ended early: it was truncated while it was read")); }
      done += static_cast<std::uint64_t>(got);
    }
  }

  std::string path_;
  Descriptor file_;
  Stat status_{};
  std::unique_ptr<std::byte[], Release> data_;
};

}  // namespace nvl::inline NVL_ABI
