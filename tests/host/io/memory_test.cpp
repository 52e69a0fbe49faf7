/// What bad files cost: never more memory than the file and 64 MiB, never more than a second.

#include <nvl/io/checkpoint.hpp>

#include "support/checkpoint_builder.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace memory_test {

using namespace nvl;
using nvl_test::gguf_string;
using nvl_test::GgufBuilder;
using nvl_test::raw;
using nvl_test::safetensors_bytes;
using nvl_test::TempDir;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NVL_TEST_MEMORY_IS_SHADOWED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define NVL_TEST_MEMORY_IS_SHADOWED 1
#endif
#endif

namespace {

/// [bytes] of a line like "VmHWM:   1234 kB" of this process.
std::int64_t status_bytes(const std::string& field) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(field + ":")) { return std::stoll(line.substr(field.size() + 1)) * 1024; }
  }
  return 0;
}

/// [bytes] by which the peak of resident memory grows while a child process runs `action`; -1 if the child died.
template <class Action>
std::int64_t peak_growth(Action&& action) {
  int channel[2];
  if (::pipe(channel) != 0) { return -1; }
  const pid_t child = ::fork();
  if (child == 0) {  // its own address space: the peak starts at what the parent has now
    const std::int64_t before = status_bytes("VmRSS");
    action();
    const std::int64_t growth = status_bytes("VmHWM") - before;
    const bool written = ::write(channel[1], &growth, sizeof(growth)) == sizeof(growth);
    ::_exit(written ? 0 : 1);
  }
  ::close(channel[1]);
  std::int64_t growth = -1;
  if (::read(channel[0], &growth, sizeof(growth)) != sizeof(growth)) { growth = -1; }
  ::close(channel[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? growth : -1;
}

struct CostlyFile {
  const char* name;
  const char* file_name;
  std::function<std::string()> bytes;
};

std::string gguf_with(std::uint64_t num_tensors, std::uint64_t num_entries, const std::string& rest) {
  return "GGUF" + raw(std::uint32_t{3}) + raw(num_tensors) + raw(num_entries) + rest;
}

const std::vector<CostlyFile>& costly_files() {
  static const std::vector<CostlyFile> rows{
      {"as many tensors as allowed", "m.gguf",
       [] {
         std::string rest;
         for (std::uint32_t i = 0; i < GgufLimits::max_tensors; ++i) {
           rest += raw(std::uint64_t{4}) + raw(0x21212121u + i) + raw(std::uint32_t{1}) + raw(std::uint64_t{1}) +
                   raw(std::uint32_t{0}) + raw(std::uint64_t{32} * i);
         }
         rest.append((32 - (rest.size() + 24) % 32) % 32, '\0');
         return gguf_with(GgufLimits::max_tensors, 0, rest + std::string(32 * GgufLimits::max_tensors, '\0'));
       }},
      {"more tensors than allowed", "m.gguf",
       [] { return gguf_with(GgufLimits::max_tensors + 1, 0, std::string(40'000'000, 'x')); }},
      {"as many keys as allowed", "m.gguf",
       [] {
         std::string rest;
         for (int i = 0; i < 65'536; ++i) {
           const std::string key = std::to_string(i);
           rest += gguf_string(key) + raw(std::uint32_t{0}) + "x";
         }
         return gguf_with(0, 65'536, rest);
       }},
      {"an array that claims 2^60 strings", "m.gguf",
       [] {
         return gguf_with(0, 1, gguf_string("k") + raw(std::uint32_t{9}) + raw(std::uint32_t{8}) + raw(std::uint64_t{1} << 60));
       }},
      {"ten million empty tokens", "m.gguf",
       [] {
         GgufBuilder builder = nvl_test::gguf_llama();
         builder.set_raw("tokenizer.ggml.tokens", 9,
                         raw(std::uint32_t{8}) + raw(std::uint64_t{10'000'000}) + std::string(80'000'000, '\0'));
         return builder.build();
       }},
      {"a safetensors header of small numbers", "m.safetensors",
       [] {
         std::string header = "{\"t\":{\"shape\":[1";
         for (int i = 0; i < 20'000'000; ++i) { header += ",1"; }
         return safetensors_bytes(header + "]}}", "");
       }},
      {"a safetensors header of small tensors", "m.safetensors",
       [] {
         std::string header = "{\"t\":{}";
         for (int i = 0; i < 1'000'000; ++i) { header += ",\"" + std::to_string(i) + "\":{}"; }
         return safetensors_bytes(header + "}", "");
       }},
      {"a safetensors header that is one string", "m.safetensors",
       [] { return safetensors_bytes("{\"" + std::string(50'000'000, 'k') + "\":1}", ""); }},
      {"a safetensors header of brackets", "m.safetensors",
       [] { return safetensors_bytes("{\"a\":" + std::string(50'000'000, '['), ""); }},
  };
  return rows;
}

}  // namespace

TEST_CASE("no bad file costs more memory than itself and 64 MiB", "[io][host]") {
#if defined(NVL_TEST_MEMORY_IS_SHADOWED)
  SKIP("the sanitizer's own memory would be counted");
#endif
  const auto& rows = costly_files();
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    const TempDir dir;
    dir.write("config.json", nvl_test::hf_config_json().dump());
    const auto path = dir.write(rows[i].file_name, rows[i].bytes());
    const auto file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
    bool refused = false;
    const std::int64_t growth = peak_growth([&] {
      try {
        Checkpoint::open(path);
      } catch (const Error&) { refused = true; }
      if (!refused) { ::_exit(2); }
    });
    CAPTURE(growth, file_bytes);
    REQUIRE(growth >= 0);
    CHECK(growth <= file_bytes + (std::int64_t{64} << 20));
    const std::clock_t start = std::clock();
    CHECK_THROWS_AS(Checkpoint::open(path), Error);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    CHECK(seconds < 1.0 + static_cast<double>(file_bytes) * 1e-7);  // a second for small files, 10 MB/s for large ones
  }
}

TEST_CASE("opening the real SmolLM2 costs a fraction of its size", "[io][host]") {
#if defined(NVL_TEST_MEMORY_IS_SHADOWED)
  SKIP("the sanitizer's own memory would be counted");
#endif
  const auto path = std::filesystem::path(NVL_FETCHED_DATA_DIR) / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) { SKIP("the model file has not been fetched"); }
  const std::int64_t growth = peak_growth([&] { Checkpoint::open(path); });
  REQUIRE(growth >= 0);
  CHECK(growth < std::int64_t{16} << 20);
}

}  // namespace memory_test
