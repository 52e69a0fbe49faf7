#include <nvl/kernels/gemm_algo_cache.hpp>

#include "support/expect_error.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace gemm_algo_cache_test {

namespace {

using namespace nvl::kernels;
using Catch::Matchers::ContainsSubstring;
using nvl::DType;

const GemmCacheIdentity here{"NVIDIA H200, sm_90, 132 multiprocessors", "cuBLASLt 130002, nvl 0.1.0"};

std::vector<GemmRecord> some_records() {
  GemmRecord a{{DType::bfloat16, DType::bfloat16, false, 64, 4096, 1024}, {}, 5.25f};
  a.algo.workspace_bytes = 1u << 20;
  for (std::size_t i = 0; i < a.algo.words.size(); ++i) { a.algo.words[i] = 0x0123456789abcdefull * (i + 1); }
  GemmRecord b{{DType::bfloat16, DType::float32, true, 1, 151936, 1024}, {}, 0.1f};
  b.algo.own_variant = 3;
  return {a, b};
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("A token bucket holds its own number and wastes less than a quarter above 32 tokens", "[kernels][host]") {
  CHECK(gemm_token_bucket(1) == 1);
  CHECK(gemm_token_bucket(2) == 2);
  CHECK(gemm_token_bucket(3) == 4);
  CHECK(gemm_token_bucket(5) == 8);
  CHECK(gemm_token_bucket(9) == 16);
  CHECK(gemm_token_bucket(128) == 128);
  CHECK(gemm_token_bucket(129) == 160);
  CHECK(gemm_token_bucket(16384) == 16384);
  for (int m = 1; m < 40000; ++m) {
    const int bucket = gemm_token_bucket(m);
    REQUIRE(bucket >= m);
    REQUIRE(gemm_token_bucket(bucket) == bucket);
    if (m > 32) { REQUIRE((bucket - m) * 4 < m); }
  }
  CHECK(gemm_token_bucket(1 << 30) == 1 << 30);
}

TEST_CASE("A cache of GEMMs that is written is read back", "[kernels][host]") {
  const nvl_test::TempDir folder;
  const auto path = folder.path() / "gemm.cache";
  for (const std::vector<GemmRecord>& records : {some_records(), std::vector<GemmRecord>{}}) {
    write_gemm_cache(path, here, records);
    const GemmCacheContents contents = read_gemm_cache(path, here);
    CHECK(contents.reason.empty());
    REQUIRE(contents.status == GemmCacheStatus::loaded);
    CHECK(contents.records == records);
  }
  // The draft has taken the name: nothing else is left in the folder.
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()) == 1);
}

TEST_CASE("A cache of GEMMs of another GPU, library or format is refused with its reason", "[kernels][host]") {
  const std::string text = format_gemm_cache(here, some_records());
  const auto check = [](const GemmCacheContents& contents, GemmCacheStatus status, const std::string& words) {
    CHECK(contents.status == status);
    CHECK(contents.records.empty());
    CAPTURE(contents.reason);
    CHECK(contents.reason.find(words) != std::string::npos);
    CHECK(contents.reason.find('\n') == std::string::npos);
  };
  check(parse_gemm_cache(text, {"NVIDIA A100", here.library}), GemmCacheStatus::other_device, "NVIDIA H200");
  check(parse_gemm_cache(text, {here.device, "cuBLASLt 120000"}), GemmCacheStatus::other_library, "cuBLASLt 130002");
  std::string next = text;
  next.replace(next.find("cache 1"), 7, "cache 2");
  check(parse_gemm_cache(next, here), GemmCacheStatus::other_format, "nvl gemm cache 1");
  check(parse_gemm_cache("", here), GemmCacheStatus::other_format, "nvl gemm cache 1");
  check(parse_gemm_cache(std::string(1000, '\0'), here), GemmCacheStatus::other_format, "nvl gemm cache 1");
}

TEST_CASE("No truncated or changed cache of GEMMs is believed", "[kernels][host]") {
  const std::string text = format_gemm_cache(here, some_records());
  REQUIRE(parse_gemm_cache(text, here).status == GemmCacheStatus::loaded);
  for (std::size_t size = 0; size < text.size(); ++size) {
    CAPTURE(size);
    const GemmCacheContents contents = parse_gemm_cache(std::string_view(text).substr(0, size), here);
    REQUIRE((contents.status == GemmCacheStatus::damaged || contents.status == GemmCacheStatus::other_format));
    REQUIRE(contents.records.empty());
    REQUIRE(!contents.reason.empty());
  }
  for (std::size_t at = 0; at < text.size(); ++at) {
    for (const unsigned flip : {1u, 0x20u, 0x80u}) {
      std::string changed = text;
      changed[at] = static_cast<char>(static_cast<unsigned char>(changed[at]) ^ flip);
      // The case of the checksum's own digits does not matter.
      if (flip == 0x20u && at + 17 >= text.size() && changed[at] >= 'A' && changed[at] <= 'F') { continue; }
      CAPTURE(at, flip);
      REQUIRE(parse_gemm_cache(changed, here).status != GemmCacheStatus::loaded);
    }
  }
  CHECK(parse_gemm_cache(text + "x\n", here).status == GemmCacheStatus::damaged);
  CHECK(parse_gemm_cache(text + text, here).status == GemmCacheStatus::damaged);
}

TEST_CASE("Records that make no sense are refused even if the checksum is right", "[kernels][host]") {
  for (auto spoil : {+[](GemmRecord& r) { r.key.num_rows = 0; }, +[](GemmRecord& r) { r.key.out_features = -5; },
                     +[](GemmRecord& r) { r.algo.own_variant = -2; }, +[](GemmRecord& r) { r.time_us = -1.0f; },
                     +[](GemmRecord& r) { r.algo.workspace_bytes = ~0ull; }}) {
    std::vector<GemmRecord> records = some_records();
    spoil(records.back());
    const GemmCacheContents contents = parse_gemm_cache(format_gemm_cache(here, records), here);
    CHECK(contents.status == GemmCacheStatus::damaged);
    CHECK(contents.reason.find("record 2") != std::string::npos);
    CHECK(contents.records.empty());
  }
}

TEST_CASE("A cache file that is not there or not a file is not an error", "[kernels][host]") {
  const nvl_test::TempDir folder;
  const auto missing = folder.path() / "none";
  CHECK(read_gemm_cache(missing, here).status == GemmCacheStatus::missing);
  CHECK(read_gemm_cache(missing, here).reason.find(missing.string()) != std::string::npos);
  CHECK(read_gemm_cache(folder.path(), here).status == GemmCacheStatus::unreadable);
  CHECK(read_gemm_cache(folder.write("other", "{\"json\": 1}\n"), here).status == GemmCacheStatus::other_format);
}

TEST_CASE("A cache file that is of no use is warned of by name and reason, and no other", "[kernels][host]") {
  const nvl_test::TempDir folder;
  const auto warning = [&](const std::filesystem::path& path, std::int32_t num_known, bool is_written = false) {
    return gemm_cache_warning(path, read_gemm_cache(path, here), num_known, is_written);
  };
  const auto good = folder.path() / "good";
  write_gemm_cache(good, here, some_records());
  CHECK(warning(good, 1).empty());
  CHECK_THAT(warning(good, 0), ContainsSubstring(good.string() + " is not used") && ContainsSubstring("none of its "));
  const auto missing = folder.path() / "missing";
  CHECK_THAT(warning(missing, 0), ContainsSubstring(missing.string()) && ContainsSubstring("is not there"));
  CHECK(warning(missing, 0, true).empty());
  const auto foreign = folder.path() / "foreign";
  write_gemm_cache(foreign, {"another GPU", here.library}, some_records());
  CHECK_THAT(warning(foreign, 0, true), ContainsSubstring(foreign.string()) && ContainsSubstring("another GPU"));
  const auto garbage = folder.write("garbage", "hello\n");
  CHECK_THAT(warning(garbage, 0, true), ContainsSubstring(garbage.string()) && ContainsSubstring("is not used"));
}

TEST_CASE("A cache file that cannot be written leaves the old one as it was", "[kernels][host]") {
  const nvl_test::TempDir folder;
  const auto path = folder.path() / "no-such-folder" / "gemm.cache";
  nvl_test::expect_error<nvl::FileError>([&] { write_gemm_cache(path, here, some_records()); },
                                         {"gemm.cache", "cannot be written"});
  // A folder cannot be replaced by a file; the draft is taken away again.
  const auto taken = folder.path() / "taken";
  std::filesystem::create_directory(taken);
  folder.write("taken/inside", "x");
  nvl_test::expect_error<nvl::FileError>([&] { write_gemm_cache(taken, here, some_records()); }, {"taken"});
  CHECK(read_file(taken / "inside") == "x");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()) == 1);
}

}  // namespace gemm_algo_cache_test
