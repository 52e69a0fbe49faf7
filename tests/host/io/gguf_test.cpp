#include <nvl/io/gguf.hpp>

#include "support/expect_error.hpp"
#include "support/gguf_builder.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace gguf_test {

using namespace nvl;
using nvl_test::expect_error;
using nvl_test::gguf_string;
using nvl_test::GgufBuilder;
using nvl_test::raw;

namespace {

constexpr std::uint64_t huge = std::uint64_t{1} << 63;
constexpr std::uint64_t all_ones = ~std::uint64_t{0};

GgufFile parse(const std::string& bytes, const std::string& name = "model.gguf") {
  return GgufFile(MappedFile::from_bytes(std::as_bytes(std::span(bytes)), name));
}

/// A file with one of everything: about 600 bytes.
GgufBuilder small_file() {
  GgufBuilder file;
  file.set_string("general.architecture", "llama");
  file.set("general.alignment", std::uint32_t{32});
  file.set("answer", std::uint64_t{42});
  file.set("flag", true);
  file.set_array<bool>("flags", {true, false});
  file.set_string_array("tokenizer.ggml.tokens", {"a", "bc", ""});
  file.set_array<float>("tokenizer.ggml.scores", {0.5f, -1.0f, 2.0f});
  file.set_array<std::int32_t>("tokenizer.ggml.token_type", {1, 3, 6});
  file.add_tensor("a", {4, 2}, 0, std::string(32, 'a'));
  file.add_tensor("b", {32, 1}, 2, std::string(18, 'b'));
  file.add_tensor("c", {3}, 1, std::string(6, 'c'));
  return file;
}

struct BrokenFile {
  const char* name;
  std::function<void(GgufBuilder&)> mutate;
  std::vector<std::string> words;  // of the message
};

std::string nested_arrays(int depth) {
  std::string payload;
  for (int i = 0; i < depth; ++i) { payload += raw(std::uint32_t{9}) + raw(std::uint64_t{1}); }
  return payload + raw(std::uint32_t{0}) + raw(std::uint64_t{1}) + "x";
}

std::string array_header(std::uint32_t type, std::uint64_t count) { return raw(type) + raw(count); }

const std::vector<BrokenFile>& broken_files() {
  static const std::vector<BrokenFile> rows{
      // F2: magic and version
      {"magic of another format", [](auto& f) { f.magic = "GGML"; }, {"offset 0", "not a GGUF file"}},
      {"magic in lower case", [](auto& f) { f.magic = "gguf"; }, {"not a GGUF file"}},
      {"magic reversed", [](auto& f) { f.magic = "FUGG"; }, {"not a GGUF file"}},
      {"version 0", [](auto& f) { f.version = 0; }, {"version is 0", "2 or 3"}},
      {"version 1", [](auto& f) { f.version = 1; }, {"version is 1", "2 or 3"}},
      {"version 4", [](auto& f) { f.version = 4; }, {"version is 4", "2 or 3"}},
      {"version of a big-endian file", [](auto& f) { f.version = 0x03000000; }, {"version is 50331648", "big-endian"}},
      {"version of all ones", [](auto& f) { f.version = ~0u; }, {"version is 4294967295"}},
      // F3: counts
      {"2^63 tensors", [](auto& f) { f.num_tensors = huge; }, {"number of tensors is 9223372036854775808"}},
      {"-1 tensors", [](auto& f) { f.num_tensors = all_ones; }, {"number of tensors is 18446744073709551615"}},
      {"more tensors than the file has room for",
       [](auto& f) { f.num_tensors = 1000; },
       {"number of tensors is 1000", "all that this file"}},
      {"one tensor too many", [](auto& f) { f.num_tensors = 4; }, {"model.gguf"}},
      {"2^63 keys", [](auto& f) { f.num_entries = huge; }, {"number of metadata entries is 9223372036854775808"}},
      {"-1 keys", [](auto& f) { f.num_entries = all_ones; }, {"number of metadata entries is 18446744073709551615"}},
      {"more keys than the file has room for", [](auto& f) { f.num_entries = 2000; }, {"number of metadata entries is 2000"}},
      {"one key too many", [](auto& f) { f.num_entries = 9; }, {"model.gguf"}},
      {"one key too few", [](auto& f) { f.num_entries = 7; }, {"model.gguf"}},
      // F4: keys
      {"empty key", [](auto& f) { f.entries[2].key = ""; }, {"length of a key is 0", "1 to 65535"}},
      {"key of 65536 bytes", [](auto& f) { f.entries[2].key = std::string(65'536, 'k'); }, {"length of a key is 65536"}},
      {"key length 2^64 - 1", [](auto& f) { f.entries[2].key_bytes = all_ones; }, {"length of a key is 18446744073709551615"}},
      {"key length past the end", [](auto& f) { f.entries[2].key_bytes = 60'000; }, {"a key needs 60000 bytes"}},
      {"key with a byte above 127", [](auto& f) { f.entries[2].key = "caf\xc3\xa9"; }, {"not printable ASCII"}},
      {"key with a NUL", [](auto& f) { f.entries[2].key = std::string("a\0b", 3); }, {"not printable ASCII"}},
      {"key with a newline", [](auto& f) { f.entries[2].key = "a\nb"; }, {"not printable ASCII"}},
      // F5: duplicates
      {"duplicate key", [](auto& f) { f.entries[3].key = "answer"; }, {"duplicate key \"answer\""}},
      {"duplicate key of another type", [](auto& f) { f.entries[7].key = "general.architecture"; }, {"duplicate key"}},
      {"duplicate tensor name", [](auto& f) { f.tensors[1].name = "a"; }, {"duplicate tensor name \"a\""}},
      // F6: value types
      {"value type 13", [](auto& f) { f.entries[2].type = 13; }, {"value type of answer is 13", "0 to 12"}},
      {"value type 2^32 - 1", [](auto& f) { f.entries[2].type = ~0u; }, {"value type of answer is 4294967295"}},
      {"element type 13", [](auto& f) { f.set_raw("answer", 9, array_header(13, 1) + "x"); }, {"value type of answer is 13"}},
      {"bool 2", [](auto& f) { f.set_raw("flag", 7, "\x02"); }, {"flag holds the bool 2", "0 or 1"}},
      {"bool 255", [](auto& f) { f.set_raw("flag", 7, "\xff"); }, {"flag holds the bool 255"}},
      {"bool 2 in an array", [](auto& f) { f.set_raw("flags", 9, array_header(7, 2) + "\x01\x02"); }, {"flags holds the bool 2"}},
      {"array of arrays", [](auto& f) { f.set_raw("answer", 9, nested_arrays(1)); }, {"answer is an array of arrays"}},
      {"arrays 10 deep", [](auto& f) { f.set_raw("answer", 9, nested_arrays(10)); }, {"array of arrays"}},
      {"arrays 1000000 deep", [](auto& f) { f.set_raw("answer", 9, nested_arrays(1'000'000)); }, {"array of arrays"}},
      // F7: array and string extents
      {"array length times size wraps",
       [](auto& f) { f.set_raw("answer", 9, array_header(10, (huge >> 2) + 1)); },
       {"length of array answer"}},
      {"array length 2^63 of bytes",
       [](auto& f) { f.set_raw("answer", 9, array_header(0, huge)); },
       {"length of array answer is 9223372036854775808"}},
      {"array length 2^64 - 1 of strings",
       [](auto& f) { f.set_raw("answer", 9, array_header(8, all_ones)); },
       {"length of array answer"}},
      {"array past the end", [](auto& f) { f.set_raw("answer", 9, array_header(4, 5000)); }, {"length of array answer is 5000"}},
      {"bool array past the end", [](auto& f) { f.set_raw("answer", 9, array_header(7, 100'000)); }, {"length of array answer"}},
      {"string past the end",
       [](auto& f) { f.set_raw("answer", 8, raw(std::uint64_t{100'000})); },
       {"answer needs 100000 bytes"}},
      {"string length 2^64 - 1",
       [](auto& f) { f.set_raw("answer", 8, raw(all_ones)); },
       {"answer needs 18446744073709551615 bytes"}},
      {"string length 2^63", [](auto& f) { f.set_raw("answer", 8, raw(huge)); }, {"answer needs"}},
      {"string of an array past the end",
       [](auto& f) { f.set_raw("answer", 9, array_header(8, 2) + gguf_string("x") + raw(huge)); },
       {"answer needs"}},
      // F9: alignment
      {"alignment 0", [](auto& f) { f.set("general.alignment", std::uint32_t{0}); }, {"general.alignment is 0", "power of two"}},
      {"alignment 13", [](auto& f) { f.set("general.alignment", std::uint32_t{13}); }, {"general.alignment is 13"}},
      {"alignment 2^31",
       [](auto& f) { f.set("general.alignment", std::uint32_t{1} << 31); },
       {"general.alignment is 2147483648", "65536"}},
      {"alignment 2^17", [](auto& f) { f.set("general.alignment", std::uint32_t{1} << 17); }, {"general.alignment is 131072"}},
      {"alignment as uint64",
       [](auto& f) { f.set("general.alignment", std::uint64_t{32}); },
       {"general.alignment is a uint64", "a uint32"}},
      {"alignment as string", [](auto& f) { f.set_string("general.alignment", "32"); }, {"general.alignment is a string"}},
      {"alignment as float", [](auto& f) { f.set("general.alignment", 32.0f); }, {"general.alignment is a float32"}},
      {"alignment as array",
       [](auto& f) { f.template set_array<std::uint32_t>("general.alignment", {32}); },
       {"an array of uint32"}},
      // F10: dimensions
      {"0 dimensions", [](auto& f) { f.tensors[0].dims = {}; }, {"tensor \"a\"", "number of dimensions is 0", "1 to 4"}},
      {"5 dimensions",
       [](auto& f) {
         f.tensors[0].dims = {1, 1, 1, 1, 1};
       },
       {"number of dimensions is 5"}},
      {"2^32 - 1 dimensions", [](auto& f) { f.tensors[0].num_dims = ~0u; }, {"number of dimensions is 4294967295"}},
      {"dimension 0",
       [](auto& f) {
         f.tensors[0].dims = {4, 0};
       },
       {"dimension 1 is 0"}},
      {"dimension -1",
       [](auto& f) {
         f.tensors[0].dims = {all_ones, 2};
       },
       {"dimension 0 is 18446744073709551615"}},
      {"dimension 2^63",
       [](auto& f) {
         f.tensors[0].dims = {4, huge};
       },
       {"dimension 1 is 9223372036854775808"}},
      {"product of dimensions passes 2^63",
       [](auto& f) {
         f.tensors[0].dims = {std::uint64_t{1} << 40, std::uint64_t{1} << 40};
       },
       {"passes 2^63"}},
      {"product of dimensions wraps to 8",
       [](auto& f) {
         f.tensors[0].dims = {8, std::uint64_t{1} << 61, 8};
       },
       {"passes 2^63"}},
      {"bytes pass 2^63",
       [](auto& f) {
         f.tensors[0].dims = {std::uint64_t{1} << 61, 1, 1, 2};
       },
       {"passes 2^63"}},
      {"quantised elements pass 2^63",
       [](auto& f) {
         f.tensors[1].dims = {32, std::uint64_t{1} << 60};
       },
       {"passes 2^63"}},
      // F11: tensor types
      {"removed tensor type 4", [](auto& f) { f.tensors[0].type = 4; }, {"tensor \"a\"", "type is 4"}},
      {"tensor type 100", [](auto& f) { f.tensors[0].type = 100; }, {"type is 100"}},
      {"tensor type 2^32 - 1", [](auto& f) { f.tensors[0].type = ~0u; }, {"type is 4294967295"}},
      {"row not divisible by the block",
       [](auto& f) {
         f.tensors[1].dims = {16, 2};
       },
       {"rows have 16 elements", "multiple of 32", "Q4_0"}},
      {"row not divisible by a K block",
       [](auto& f) {
         f.tensors[1] = {"b", {32, 1}, 12, std::string(18, 'b')};
       },
       {"multiple of 256", "Q4_K"}},
      // F12: extents
      {"unaligned offset", [](auto& f) { f.tensors[1].offset = 33; }, {"tensor \"b\"", "offset is 33", "alignment 32"}},
      {"overlapping tensors", [](auto& f) { f.tensors[1].offset = 0; }, {"\"a\"", "\"b\"", "overlap"}},
      {"one tensor inside another",
       [](auto& f) {
         f.tensors[0].dims = {4, 3};
       },
       {"overlap"}},
      {"offset past the end", [](auto& f) { f.tensors[2].offset = 1 << 20; }, {"tensor \"c\"", "passes the end"}},
      {"offset that would reach the metadata by wrapping",
       [](auto& f) { f.tensors[2].offset = all_ones - 31; },
       {"passes the end"}},
      {"offset 2^63", [](auto& f) { f.tensors[2].offset = huge; }, {"passes the end"}},
      {"offset plus size wraps",
       [](auto& f) {
         f.tensors[2].offset = all_ones - 63;
         f.tensors[2].dims = {64};
       },
       {"passes the end"}},
      {"tensor longer than its data", [](auto& f) { f.tensors[2].dims = {300}; }, {"tensor \"c\"", "600 bytes"}},
      // tensor names
      {"empty tensor name", [](auto& f) { f.tensors[0].name = ""; }, {"length of a tensor name is 0"}},
      {"tensor name of 65 bytes",
       [](auto& f) { f.tensors[0].name = std::string(65, 'n'); },
       {"length of a tensor name is 65", "1 to 64"}},
      {"tensor name of 2^64 - 1 bytes",
       [](auto& f) { f.tensors[0].name_bytes = all_ones; },
       {"length of a tensor name is 18446744073709551615"}},
  };
  return rows;
}

}  // namespace

TEST_CASE("every kind of broken GGUF is refused with its file and its reason", "[io][host]") {
  const auto& rows = broken_files();
  REQUIRE(rows.size() >= 60);
  REQUIRE_NOTHROW(parse(small_file().build()));
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    GgufBuilder file = small_file();
    rows[i].mutate(file);
    auto words = rows[i].words;
    words.emplace_back("model.gguf");
    expect_error<FileError>([&] { parse(file.build()); }, words);
  }
}

TEST_CASE("a GGUF file cut anywhere is refused", "[io][host]") {
  const std::string whole = small_file().build();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size, whole.size());
    CHECK_THROWS_AS(parse(whole.substr(0, size)), FileError);
  }
  CHECK_NOTHROW(parse(whole));
}

TEST_CASE("errors in a GGUF file carry its path and the offset", "[io][host]") {
  GgufBuilder file = small_file();
  file.version = 9;
  try {
    parse(file.build(), "dir/x.gguf");
    FAIL("not refused");
  } catch (const FileError& error) {
    CHECK(error.path() == "dir/x.gguf");
    CHECK(error.offset() == 4);
  }
}

TEST_CASE("tensor types that nvl does not read are named, with those that it reads", "[io][host]") {
  GgufBuilder file = small_file();
  file.tensors[0].type = 10;
  expect_error<Unsupported>([&] { parse(file.build()); }, {"model.gguf", "\"a\"", "Q2_K", "Q4_1", "BF16"});
}

TEST_CASE("GGUF values and tensors are read back as they were written", "[io][host]") {
  const std::uint32_t version = GENERATE(2u, 3u);
  GgufBuilder builder = small_file();
  builder.version = version;
  builder.set("int8", std::int8_t{-8})
      .set("uint8", std::uint8_t{200})
      .set("int16", std::int16_t{-300})
      .set("uint16", std::uint16_t{60'000});
  builder.set("int32", std::int32_t{-70'000})
      .set("uint32", std::uint32_t{4'000'000'000u})
      .set("int64", std::int64_t{-5'000'000'000});
  builder.set("big", ~std::uint64_t{0}).set("float64", 1.5).set("float32", 0.25f);
  builder.set_array<std::uint8_t>("small numbers", {1, 2, 255});
  builder.set_array<double>("doubles", {0.5, -2.0});
  const GgufFile file = parse(builder.build());
  CHECK(file.version() == version);
  CHECK(file.find_string("general.architecture") == "llama");
  CHECK(file.find_uint("answer") == 42u);
  CHECK(file.find_bool("flag") == true);
  CHECK(file.find_int("int8") == -8);
  CHECK(file.find_uint("uint8") == 200u);
  CHECK(file.find_int("int16") == -300);
  CHECK(file.find_int("uint16") == 60'000);
  CHECK(file.find_int("int32") == -70'000);
  CHECK(file.find_uint("uint32") == 4'000'000'000u);
  CHECK(file.find_int("int64") == -5'000'000'000);
  CHECK(file.find_uint("big") == ~std::uint64_t{0});
  CHECK(file.find_float("float64") == 1.5);
  CHECK(file.find_float("float32") == 0.25);
  CHECK(file.find_string_array("tokenizer.ggml.tokens") == std::vector<std::string_view>{"a", "bc", ""});
  CHECK(file.find_float_array("tokenizer.ggml.scores") == std::vector<float>{0.5f, -1.0f, 2.0f});
  CHECK(file.find_float_array("doubles") == std::vector<float>{0.5f, -2.0f});
  CHECK(file.find_int_array("tokenizer.ggml.token_type") == std::vector<std::int32_t>{1, 3, 6});
  CHECK(file.find_int_array("small numbers") == std::vector<std::int32_t>{1, 2, 255});
  CHECK_FALSE(file.find_string("no such key"));
  CHECK_FALSE(file.find_int_array("no such key"));

  REQUIRE(file.tensors().size() == 3);
  const GgufTensor* const a = file.find_tensor("a");
  REQUIRE(a != nullptr);
  CHECK(a->dtype == DType::float32);
  CHECK(std::vector(a->shape().begin(), a->shape().end()) == std::vector<std::int64_t>{2, 4});  // outermost first
  REQUIRE(a->data.size() == 32);
  CHECK(a->data[31] == std::byte{'a'});
  CHECK(a->offset == file.data_offset());
  CHECK(a->data.data() == file.file().bytes().data() + a->offset);
  const GgufTensor* const b = file.find_tensor("b");
  REQUIRE(b != nullptr);
  CHECK(b->data.size() == 18);
  CHECK(b->offset % 32 == 0);
  CHECK(file.find_tensor("d") == nullptr);
}

TEST_CASE("a GGUF value of another type is refused by name, with both types", "[io][host]") {
  GgufBuilder builder = small_file();
  builder.set("negative", std::int32_t{-1}).set("big", ~std::uint64_t{0});
  builder.set_array<std::int64_t>("large", {1, std::int64_t{1} << 40});
  const GgufFile file = parse(builder.build());
  expect_error<FileError>([&] { file.find_uint("general.architecture"); },
                          {"model.gguf", "offset", "general.architecture is a string", "an integer"});
  expect_error<FileError>([&] { file.find_string("answer"); }, {"answer is a uint64", "a string"});
  expect_error<FileError>([&] { file.find_bool("answer"); }, {"answer is a uint64", "a bool"});
  expect_error<FileError>([&] { file.find_float("answer"); }, {"answer is a uint64", "float32"});
  expect_error<FileError>([&] { file.find_int("flag"); }, {"flag is a bool", "an integer"});
  expect_error<FileError>([&] { file.find_uint("negative"); }, {"negative is -1", "not negative"});
  expect_error<FileError>([&] { file.find_int("big"); }, {"big is 18446744073709551615"});
  expect_error<FileError>([&] { file.find_int_array("large"); }, {"large is element 1 = 1099511627776", "int32"});
  expect_error<FileError>([&] { file.find_int("flags"); }, {"flags is an array of bool"});
  // F8: what tokenizers read
  expect_error<FileError>([&] { file.find_float_array("tokenizer.ggml.token_type"); },
                          {"tokenizer.ggml.token_type is an array of int32", "float32"});
  expect_error<FileError>([&] { file.find_int_array("tokenizer.ggml.scores"); },
                          {"tokenizer.ggml.scores is an array of float32", "integers"});
  expect_error<FileError>([&] { file.find_int_array("tokenizer.ggml.tokens"); }, {"tokenizer.ggml.tokens is an array of string"});
  expect_error<FileError>([&] { file.find_string_array("tokenizer.ggml.scores"); }, {"array of float32", "array of string"});
  expect_error<FileError>([&] { file.find_string_array("answer"); }, {"answer is a uint64", "an array of string"});
  expect_error<FileError>([&] { file.find_int_array("answer"); }, {"answer is a uint64"});
}

TEST_CASE("GGUF corners that are allowed", "[io][host]") {
  SECTION("nothing in it") {
    const GgufFile file = parse(GgufBuilder{}.build());
    CHECK(file.tensors().empty());
    CHECK(file.values().empty());
    CHECK(file.find("x") == nullptr);
  }
  SECTION("metadata only, as vocabulary files are, without padding at the end") {
    GgufBuilder builder = small_file();
    builder.tensors.clear();
    CHECK(parse(builder.build()).tensors().empty());
  }
  SECTION("empty arrays") {
    GgufBuilder builder = small_file();
    builder.set_string_array("none", {}).set_array<std::int32_t>("zero", {});
    CHECK(parse(builder.build()).find_string_array("none")->empty());
    CHECK(parse(builder.build()).find_int_array("zero")->empty());
  }
  SECTION("strings that are not UTF-8 are kept as bytes") {
    GgufBuilder builder = small_file();
    builder.set_string("bytes", std::string("\xff\0\xfe", 3));
    CHECK(parse(builder.build()).find_string("bytes") == std::string_view("\xff\0\xfe", 3));
  }
  SECTION("alignments 1 and 65536") {
    for (const std::uint32_t alignment : {1u, 65'536u}) {
      GgufBuilder builder = small_file();
      builder.alignment = alignment;
      builder.set("general.alignment", alignment);
      CHECK(parse(builder.build()).find_tensor("c")->data[5] == std::byte{'c'});
    }
  }
  SECTION("bytes behind the last tensor") {
    GgufBuilder builder = small_file();
    builder.tail = "padding";
    CHECK_NOTHROW(parse(builder.build()));
  }
  SECTION("holes between tensors") {
    GgufBuilder builder = small_file();
    builder.tensors[2].offset = 128;
    builder.tail = std::string(128, 'x');
    CHECK_NOTHROW(parse(builder.build()));
  }
}

TEST_CASE("a moved GGUF file keeps its tensors", "[io][host]") {
  const nvl_test::TempDir dir;
  GgufFile first(dir.write("model.gguf", small_file().build()));
  const std::byte* const data = first.find_tensor("a")->data.data();
  const GgufFile second = std::move(first);
  CHECK(second.find_tensor("a")->data.data() == data);
  CHECK(second.find_string("general.architecture") == "llama");
}

TEST_CASE("a vocabulary of 150000 tokens and 2000 tensors parse in less than 300 ms", "[io][host]") {
  GgufBuilder builder;
  std::vector<std::string> tokens, merges;
  for (int i = 0; i < 150'000; ++i) {
    tokens.push_back("token" + std::to_string(i));
    merges.push_back("to ken" + std::to_string(i));
  }
  builder.set_string_array("tokenizer.ggml.tokens", tokens).set_string_array("tokenizer.ggml.merges", merges);
  for (int i = 0; i < 2000; ++i) {
    builder.add_tensor("blk." + std::to_string(i) + ".attn_q.weight", {32}, 0, std::string(128, 'w'));
  }
  const std::string bytes = builder.build();
  const std::clock_t start = std::clock();  // processor time: the machine may be busy with other tests
  const GgufFile file = parse(bytes);
  const auto merged = file.find_string_array("tokenizer.ggml.merges");
  const double took_ms = 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  CHECK(merged->size() == 150'000);
  CHECK(file.tensors().size() == 2000);
  CHECK(took_ms < 300);
}

TEST_CASE("the real SmolLM2 file has the facts that its publisher lists", "[io][host]") {
  const std::filesystem::path path = std::filesystem::path(NVL_FETCHED_DATA_DIR) / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) { SKIP("the model file has not been fetched"); }
  const GgufFile file(path);
  CHECK(file.version() == 3);
  CHECK(file.file().bytes().size() == 98'362'432);
  CHECK(file.alignment() == 32);
  CHECK(file.data_offset() == 1'785'664);
  CHECK(file.values().size() == 33);
  CHECK(file.tensors().size() == 272);
  CHECK(file.find_string("general.architecture") == "llama");
  CHECK(file.find_string("general.type") == "model");
  CHECK(file.find_string("general.name") == "Smollm2 135M 8k Lc100K Mix1 Ep2");
  CHECK(file.find_string("general.organization") == "HuggingFaceTB");
  CHECK(file.find_string("general.size_label") == "135M");
  CHECK(file.find_string_array("general.languages") == std::vector<std::string_view>{"en"});
  CHECK(file.find_uint("general.file_type") == 3u);
  CHECK(file.find_uint("general.quantization_version") == 2u);
  CHECK(file.find_uint("llama.block_count") == 30u);
  CHECK(file.find_uint("llama.context_length") == 8192u);
  CHECK(file.find_uint("llama.embedding_length") == 576u);
  CHECK(file.find_uint("llama.feed_forward_length") == 1536u);
  CHECK(file.find_uint("llama.attention.head_count") == 9u);
  CHECK(file.find_uint("llama.attention.head_count_kv") == 3u);
  CHECK(file.find_float("llama.rope.freq_base") == 100'000.0);
  CHECK(file.find_uint("llama.rope.dimension_count") == 64u);
  CHECK(file.find_float("llama.attention.layer_norm_rms_epsilon") == static_cast<double>(1e-5f));
  CHECK(file.find_uint("llama.vocab_size") == 49'152u);
  CHECK(file.find("llama.rope.scaling.type") == nullptr);
  CHECK(file.find_string("tokenizer.ggml.model") == "gpt2");
  CHECK(file.find_string("tokenizer.ggml.pre") == "smollm");
  CHECK(file.find_string_array("tokenizer.ggml.tokens")->size() == 49'152);
  CHECK(file.find_string_array("tokenizer.ggml.tokens")->at(2) == "<|im_end|>");
  CHECK(file.find_string_array("tokenizer.ggml.merges")->size() == 48'900);
  const auto types = *file.find_int_array("tokenizer.ggml.token_type");
  CHECK(std::count(types.begin(), types.end(), 3) == 17);
  CHECK(std::count(types.begin(), types.end(), 1) == 49'152 - 17);
  CHECK(file.find_bool("tokenizer.ggml.add_space_prefix") == false);
  CHECK(file.find_bool("tokenizer.ggml.add_bos_token") == false);
  CHECK(file.find_uint("tokenizer.ggml.bos_token_id") == 1u);
  CHECK(file.find_uint("tokenizer.ggml.eos_token_id") == 2u);
  CHECK(file.find_uint("tokenizer.ggml.unknown_token_id") == 0u);
  CHECK(file.find_uint("tokenizer.ggml.padding_token_id") == 2u);
  CHECK(file.find_string("tokenizer.chat_template")->size() == 368);
  std::map<DType, int> types_count;
  for (const GgufTensor& tensor : file.tensors()) { ++types_count[tensor.dtype]; }
  CHECK(types_count == std::map<DType, int>{{DType::q4_1, 210}, {DType::float32, 61}, {DType::q8_0, 1}});
  const GgufTensor* const embed = file.find_tensor("token_embd.weight");
  REQUIRE(embed != nullptr);
  CHECK(embed->dtype == DType::q8_0);
  CHECK(std::vector(embed->shape().begin(), embed->shape().end()) == std::vector<std::int64_t>{49'152, 576});
  CHECK(file.tensors().back().name == "output_norm.weight");
  CHECK(file.find_tensor("output.weight") == nullptr);
}

}  // namespace gguf_test
