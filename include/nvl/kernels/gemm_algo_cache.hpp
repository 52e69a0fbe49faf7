#pragma once
/// What the search for the fastest GEMMs found, in a text file, so that the next start does not search again.
///
/// The file belongs to one GPU, one cuBLASLt and one nvl: algorithms are numbers that mean nothing elsewhere. A file of another
/// kind, a truncated one or a damaged one is not an error: reading it says why it was not used and returns nothing.
///
///   nvl gemm cache 1
///   device <name, architecture, multiprocessors>
///   library <versions>
///   <input> <output> <bias|-> <token bucket> <n> <k> <own variant|-1> <workspace bytes> <microseconds> <8 x 16 hex digits>
///   ...
///   end <number of records> <XXH64 of all lines before, 16 hex digits>

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/xxhash.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// The number of tokens that a call with `num_rows` (>= 1) is tuned for: not below it; four steps an octave, none smaller
/// than 8 tokens (the least a tensor-core tile has), except that 1, 2 and 4 stand alone. Finer steps gain nothing, and each kernel
/// of cuBLASLt's that is used for the first time takes milliseconds to load.
constexpr std::int32_t gemm_token_bucket(std::int32_t num_rows) noexcept {
  const auto m = static_cast<std::uint32_t>(num_rows);
  if (m <= 8) { return static_cast<std::int32_t>(std::bit_ceil(m)); }
  const std::uint32_t step = std::max(8u, std::bit_floor(m - 1) / 4);
  return static_cast<std::int32_t>((m + step - 1) / step * step);
}

/// Everything that the choice of an algorithm depends on.
struct GemmKey {
  DType in = DType::float32;   // of x and of the weight
  DType out = DType::float32;  // of the result and of the bias
  bool has_bias = false;
  std::int32_t num_rows = 0;      // tokens: a bucket
  std::int32_t out_features = 0;  // N
  std::int32_t in_features = 0;   // K

  bool operator==(const GemmKey&) const = default;
};

/// How one GEMM is computed.
struct GemmAlgo {
  static constexpr std::int32_t cublaslt = -1;

  std::int32_t own_variant = cublaslt;   // >= 0: a kernel of nvl's, numbered by kernels/linear.cuh
  std::uint64_t workspace_bytes = 0;     // that cuBLASLt needs
  std::array<std::uint64_t, 8> words{};  // cublasLtMatmulAlgo_t, which its library lets one store

  bool operator==(const GemmAlgo&) const = default;
};

struct GemmRecord {
  GemmKey key;
  GemmAlgo algo;
  float time_us = 0.0f;  // measured with weights that no cache holds

  bool operator==(const GemmRecord&) const = default;
};

/// What the records of a file are valid for. Compared as text; one line each.
struct GemmCacheIdentity {
  std::string device;   // "NVIDIA H200, sm_90, 132 multiprocessors"
  std::string library;  // "cuBLASLt 130002, nvl 0.1.0"
};

enum class GemmCacheStatus : std::uint8_t {
  loaded,
  missing,        // there is no file
  unreadable,     // the system does not let it be read
  other_format,   // not a cache of GEMMs, or of another version of the format
  other_device,   // made on another GPU
  other_library,  // made with another cuBLASLt or nvl
  damaged,        // truncated or changed
};

struct GemmCacheContents {
  GemmCacheStatus status = GemmCacheStatus::missing;
  std::string reason;  // one line for people, unless loaded
  std::vector<GemmRecord> records;
};

namespace detail {

inline constexpr std::string_view gemm_cache_title = "nvl gemm cache 1";

inline std::string hex16(std::uint64_t word) {
  std::string text(16, '0');
  for (std::size_t i = 16; i-- > 0; word >>= 4) { text[i] = "0123456789abcdef"[word & 15]; }
  return text;
}

/// Takes words off one line; `failed` stays set after the first that is not there or not what it has to be.
class GemmCacheLine {
 public:
  explicit GemmCacheLine(std::string_view line) noexcept : rest_(line) {}

  std::string_view word() noexcept {
    const std::size_t end = std::min(rest_.find(' '), rest_.size());
    const std::string_view result = rest_.substr(0, end);
    failed_ |= result.empty();
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return result;
  }
  template <class T>
  T number(T lowest, T highest) noexcept {
    return parse(lowest, highest,
                 [](std::string_view text, T& value) { return std::from_chars(text.data(), text.data() + text.size(), value); });
  }
  std::uint64_t hex() noexcept {
    return parse(std::uint64_t{0}, ~std::uint64_t{0}, [](std::string_view text, std::uint64_t& value) {
      return std::from_chars(text.data(), text.data() + text.size(), value, 16);
    });
  }
  DType dtype() noexcept {
    const std::optional<DType> type = dtype_from_name(word());
    failed_ |= type != DType::float32 && type != DType::float16 && type != DType::bfloat16;
    return type.value_or(DType::float32);
  }
  bool flag(std::string_view yes, std::string_view no) noexcept {
    const std::string_view text = word();
    failed_ |= text != yes && text != no;
    return text == yes;
  }
  /// Nothing was wrong and nothing is left.
  bool complete() const noexcept { return !failed_ && rest_.empty(); }

 private:
  template <class T, class Parse>
  T parse(T lowest, T highest, Parse&& from_chars) noexcept {
    const std::string_view text = word();
    T value{};
    const auto [end, error] = from_chars(text, value);
    failed_ |= error != std::errc() || end != text.data() + text.size() || !(value >= lowest && value <= highest);
    return value;
  }

  std::string_view rest_;
  bool failed_ = false;
};

inline std::string gemm_record_line(const GemmRecord& record) {
  const GemmKey& key = record.key;
  std::string line;
  const auto add = [&](std::string_view word) { line.append(word).push_back(' '); };
  add(info(key.in).name);
  add(info(key.out).name);
  add(key.has_bias ? "bias" : "-");
  for (const std::int32_t number : {key.num_rows, key.out_features, key.in_features, record.algo.own_variant}) {
    add(std::to_string(number));
  }
  add(std::to_string(record.algo.workspace_bytes));
  char time[32];
  const auto [end, error] = std::to_chars(time, time + sizeof(time), record.time_us);
  add(std::string_view(time, error == std::errc() ? static_cast<std::size_t>(end - time) : 0));
  for (const std::uint64_t word : record.algo.words) { add(hex16(word)); }
  line.back() = '\n';
  return line;
}

inline bool parse_gemm_record(std::string_view text, GemmRecord& record) noexcept {
  constexpr std::int32_t max_extent = 1 << 30;
  GemmCacheLine line(text);
  record.key.in = line.dtype();
  record.key.out = line.dtype();
  record.key.has_bias = line.flag("bias", "-");
  record.key.num_rows = line.number(1, max_extent);
  record.key.out_features = line.number(1, max_extent);
  record.key.in_features = line.number(1, max_extent);
  record.algo.own_variant = line.number(GemmAlgo::cublaslt, 1 << 16);
  record.algo.workspace_bytes = line.number(std::uint64_t{0}, std::uint64_t{1} << 40);
  record.time_us = line.number(0.0f, 1e9f);
  for (std::uint64_t& word : record.algo.words) { word = line.hex(); }
  return line.complete();
}

/// The next line of `text` without its end, which it takes off; nothing if no whole line is left.
inline std::optional<std::string_view> take_line(std::string_view& text) noexcept {
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos) { return std::nullopt; }
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end + 1);
  return line;
}

}  // namespace detail

/// The text of a cache file.
inline std::string format_gemm_cache(const GemmCacheIdentity& identity, std::span<const GemmRecord> records) {
  std::string text(detail::gemm_cache_title);
  text += "\ndevice " + identity.device + "\nlibrary " + identity.library + "\n";
  for (const GemmRecord& record : records) { text += detail::gemm_record_line(record); }
  const std::uint64_t hash = XXH64(text.data(), text.size(), 0);
  text += "end " + std::to_string(records.size()) + " " + detail::hex16(hash) + "\n";
  return text;
}

/// Reads what format_gemm_cache wrote. Never throws for what the text holds.
inline GemmCacheContents parse_gemm_cache(std::string_view text, const GemmCacheIdentity& identity) {
  const auto refused = [](GemmCacheStatus status, std::string reason) {
    return GemmCacheContents{status, std::move(reason), {}};
  };
  const std::string_view whole = text;
  if (detail::take_line(text) != detail::gemm_cache_title) {
    return refused(GemmCacheStatus::other_format, "is not \"" + std::string(detail::gemm_cache_title) + "\"");
  }
  const auto take_header = [&](std::string_view field) -> std::optional<std::string_view> {
    std::optional<std::string_view> line = detail::take_line(text);
    if (!line || !line->starts_with(field)) { return std::nullopt; }
    line->remove_prefix(field.size());
    return line;
  };
  const std::optional<std::string_view> device = take_header("device ");
  const std::optional<std::string_view> library = take_header("library ");
  if (!device || !library) { return refused(GemmCacheStatus::damaged, "has no header"); }

  // The last line first: nothing of a damaged file is believed, not even its header.
  constexpr std::size_t max_last_line = 64;
  const std::size_t from = whole.size() - std::min(whole.size(), max_last_line);
  const std::size_t last = whole.substr(from).rfind("\nend ");
  if (last == std::string_view::npos || !whole.ends_with('\n')) {
    return refused(GemmCacheStatus::damaged, "is truncated: it has no last line");
  }
  const std::string_view hashed = whole.substr(0, from + last + 1);
  detail::GemmCacheLine end_line(whole.substr(hashed.size(), whole.size() - hashed.size() - 1));
  end_line.word();
  const auto num_records = end_line.number(std::uint64_t{0}, std::uint64_t{1} << 20);
  const std::uint64_t hash = end_line.hex();
  if (!end_line.complete() || hash != XXH64(hashed.data(), hashed.size(), 0)) {
    return refused(GemmCacheStatus::damaged, "is damaged: its checksum is wrong");
  }
  if (*device != identity.device) {
    return refused(GemmCacheStatus::other_device, "was made on " + std::string(*device) + ", this is " + identity.device);
  }
  if (*library != identity.library) {
    return refused(GemmCacheStatus::other_library, "was made with " + std::string(*library) + ", this is " + identity.library);
  }

  GemmCacheContents contents{GemmCacheStatus::loaded, {}, {}};
  text.remove_suffix(whole.size() - hashed.size());
  while (const std::optional<std::string_view> line = detail::take_line(text)) {
    if (!detail::parse_gemm_record(*line, contents.records.emplace_back())) {
      return refused(GemmCacheStatus::damaged,
                     "is damaged: record " + std::to_string(contents.records.size()) + " makes no sense");
    }
  }
  if (contents.records.size() != num_records) {
    return refused(GemmCacheStatus::damaged,
                   "holds " + std::to_string(contents.records.size()) + " records instead of " + std::to_string(num_records));
  }
  return contents;
}

/// Reads a cache file. Never throws for what is or is not there; `reason` names the file.
inline GemmCacheContents read_gemm_cache(const std::filesystem::path& path, const GemmCacheIdentity& identity) {
  constexpr ::off_t max_bytes = 64 << 20;
  const auto refused = [&](GemmCacheStatus status, const std::string& reason) {
    return GemmCacheContents{status, path.string() + " " + reason, {}};
  };
  // O_NONBLOCK: opening a FIFO must not wait for somebody who writes to it.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    const int error = errno;
    return error == ENOENT ? refused(GemmCacheStatus::missing, "is not there")
                           : refused(GemmCacheStatus::unreadable, "cannot be read: " + std::generic_category().message(error));
  }
  struct ::stat status {};
  std::string text;
  std::string problem;
  if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size > max_bytes) {
    problem = "cannot be read: it is not a file of at most 64 MiB";
  } else {
    text.resize(static_cast<std::size_t>(status.st_size));
    std::size_t done = 0;
    while (done < text.size()) {
      const ::ssize_t got = ::read(file, text.data() + done, text.size() - done);
      if (got < 0 && errno == EINTR) { continue; }
      if (got < 0) { problem = "cannot be read: " + std::generic_category().message(errno); }
      if (got <= 0) { break; }
      done += static_cast<std::size_t>(got);
    }
    text.resize(done);
  }
  ::close(file);
  if (!problem.empty()) { return refused(GemmCacheStatus::unreadable, problem); }
  GemmCacheContents contents = parse_gemm_cache(text, identity);
  if (contents.status != GemmCacheStatus::loaded) { contents.reason = path.string() + " " + contents.reason; }
  return contents;
}

/// Why a cache file that was asked for is of no use, in one line for people; empty if it is of use.
/// \param num_known of the products that are computed, those that the file had an algorithm for
/// \param is_written the file will be written after a search, so that it may be missing now
inline std::string gemm_cache_warning(const std::filesystem::path& path, const GemmCacheContents& contents,
                                      std::int32_t num_known, bool is_written) {
  if (contents.status == GemmCacheStatus::loaded) {
    if (num_known > 0) { return {}; }
    return path.string() + " is not used: none of its " + std::to_string(contents.records.size()) +
           " records is of a matrix product of this model that this device can compute so";
  }
  if (contents.status == GemmCacheStatus::missing && is_written) { return {}; }
  return contents.reason + "; the cache of matrix product algorithms is not used";
}

/// Writes a cache file: into a new file beside it, which then takes its name, so that a reader sees the old one or the new one.
/// \throws FileError if that cannot be done; the old file is then as it was.
inline void write_gemm_cache(const std::filesystem::path& path, const GemmCacheIdentity& identity,
                             std::span<const GemmRecord> records) {
  const std::string text = format_gemm_cache(identity, records);
  std::string draft = path.string() + ".XXXXXX";
  const int file = ::mkstemp(draft.data());
  if (file < 0) { raise(FileError(path.string(), "cannot be written: " + std::generic_category().message(errno))); }
  int error = 0;
  for (std::size_t done = 0; error == 0 && done < text.size();) {
    const ::ssize_t put = ::write(file, text.data() + done, text.size() - done);
    if (put >= 0) {
      done += static_cast<std::size_t>(put);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && ::fchmod(file, 0644) != 0) { error = errno; }
  if (::close(file) != 0 && error == 0) { error = errno; }
  if (error == 0 && std::rename(draft.c_str(), path.c_str()) != 0) { error = errno; }
  if (error != 0) {
    ::unlink(draft.c_str());
    raise(FileError(path.string(), "cannot be written: " + std::generic_category().message(error)));
  }
}

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
