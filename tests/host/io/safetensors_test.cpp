#include <nvl/io/safetensors.hpp>

#include "support/expect_error.hpp"
#include "support/safetensors_builder.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace safetensors_test {

using namespace nvl;
using nvl_test::expect_error;
using nvl_test::safetensors_bytes;
using nvl_test::SafetensorsBuilder;
using nvl_test::TempDir;

namespace {

SafetensorsFile parse(const std::string& bytes) {
  return SafetensorsFile(MappedFile::from_bytes(std::as_bytes(std::span(bytes)), "w.safetensors"));
}

SafetensorsBuilder small_file() {
  SafetensorsBuilder file;
  file.add("a", "F32", {2, 4}, std::string(32, 'a'));
  file.add("b", "BF16", {3}, std::string(6, 'b'));
  file.add("scalar", "I64", {}, std::string(8, 's'));
  return file;
}

/// A header with one tensor "t" of these fields, and 16 bytes of data.
std::string one_tensor(const std::string& fields) { return safetensors_bytes("{\"t\":{" + fields + "}}", std::string(16, 'x')); }

std::string two_tensors(const std::string& first, const std::string& second) {
  return safetensors_bytes("{\"s\":{\"dtype\":\"I8\",\"shape\":[8],\"data_offsets\":" + first +
                               "},\"t\":{\"dtype\":\"I8\",\"shape\":[8],\"data_offsets\":" + second + "}}",
                           std::string(16, 'x'));
}

struct BrokenFile {
  const char* name;
  std::string bytes;
  std::vector<std::string> words;
};

const std::vector<BrokenFile>& broken_files() {
  static const std::string good = R"({"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})";
  static const std::string data(16, 'x');
  static const std::vector<BrokenFile> rows{
      {"empty", "", {"header length needs 8 bytes"}},
      {"seven bytes", "1234567", {"header length needs 8 bytes"}},
      {"length only", std::string(8, '\0'), {"header length is 0"}},
      {"header length 1", safetensors_bytes("{", "", 1), {"header length is 1"}},
      {"header longer than the file", safetensors_bytes(good, data, 1000), {"header length is 1000", "2 to"}},
      {"header one byte longer than the file", safetensors_bytes(good, data, good.size() + 17), {"header length is"}},
      {"header of 2^64 - 1 bytes", safetensors_bytes(good, data, ~std::uint64_t{0}), {"header length is 18446744073709551615"}},
      {"header of 2^63 bytes", safetensors_bytes(good, data, std::uint64_t{1} << 63), {"header length is 9223372036854775808"}},
      {"header cut by one byte", safetensors_bytes(good, data, good.size() - 1), {"invalid JSON"}},
      {"header with one byte of data", safetensors_bytes(good, data, good.size() + 1), {"invalid JSON"}},
      {"header is an array", safetensors_bytes("[]", ""), {"does not begin with '{'"}},
      {"header begins with a blank", safetensors_bytes(" {}", ""), {"does not begin with '{'"}},
      {"header is text", safetensors_bytes("hello world", ""), {"does not begin with '{'"}},
      {"header is not UTF-8", safetensors_bytes("{\"\xff\":1}", ""), {"invalid JSON"}},
      {"header is 100000 levels deep", safetensors_bytes("{\"a\":" + std::string(100'000, '['), ""), {"deeper than 4"}},
      {"header is 5 levels deep", safetensors_bytes(R"({"a":{"b":{"c":{"d":{}}}}})", ""), {"deeper than 4"}},
      {"duplicate tensor",
       safetensors_bytes("{\"t\":{\"dtype\":\"I8\",\"shape\":[8],\"data_offsets\":[0,8]},"
                         "\"t\":{\"dtype\":\"I8\",\"shape\":[8],\"data_offsets\":[8,16]}}",
                         data),
       {"duplicate key \"t\""}},
      {"duplicate field",
       one_tensor(R"("dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16])"),
       {"duplicate key \"dtype\""}},
      {"metadata is a list", safetensors_bytes(R"({"__metadata__":[]})", ""), {"__metadata__ is an array"}},
      {"metadata holds a number", safetensors_bytes(R"({"__metadata__":{"a":1}})", ""), {"__metadata__.a is 1", "a string"}},
      {"tensor is a list", safetensors_bytes(R"({"t":[1]})", data), {"tensor \"t\" is an array"}},
      {"dtype missing", one_tensor(R"("shape":[4],"data_offsets":[0,16])"), {"dtype of tensor \"t\" is missing"}},
      {"dtype unknown",
       one_tensor(R"("dtype":"F33","shape":[4],"data_offsets":[0,16])"),
       {"dtype of tensor \"t\" is \"F33\"", "BF16"}},
      {"dtype in lower case", one_tensor(R"("dtype":"f32","shape":[4],"data_offsets":[0,16])"), {"\"f32\""}},
      {"dtype is a number",
       one_tensor(R"("dtype":4,"shape":[4],"data_offsets":[0,16])"),
       {"dtype of tensor \"t\" is 4", "a string"}},
      {"shape missing", one_tensor(R"("dtype":"F32","data_offsets":[0,16])"), {"shape of tensor \"t\" is missing"}},
      {"shape is a number",
       one_tensor(R"("dtype":"F32","shape":4,"data_offsets":[0,16])"),
       {"shape of tensor \"t\" is 4", "an array"}},
      {"shape holds a float",
       one_tensor(R"("dtype":"F32","shape":[4.0],"data_offsets":[0,16])"),
       {"shape of tensor \"t\" is 4.0"}},
      {"shape holds a string", one_tensor(R"("dtype":"F32","shape":["4"],"data_offsets":[0,16])"), {"shape of tensor \"t\""}},
      {"shape holds -1", one_tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,16])"), {"shape of tensor \"t\" is -1"}},
      {"shape holds 2^63",
       one_tensor(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,16])"),
       {"is 9223372036854775808"}},
      {"shape has 9 dimensions",
       one_tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16])"),
       {"number of dimensions", "9", "at most 8"}},
      {"product of the shape wraps",
       one_tensor(R"("dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,16])"),
       {"below 2^63"}},
      {"bytes of the shape wrap to 16",
       one_tensor(R"("dtype":"F32","shape":[4611686018427387908],"data_offsets":[0,16])"),
       {"below 2^63"}},
      {"zero hides a product that wraps",
       one_tensor(R"("dtype":"F32","shape":[0,4611686018427387904,16],"data_offsets":[0,0])"),
       {"below 2^63"}},
      {"shape smaller than the extent", one_tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,16])"), {"12 bytes apart"}},
      {"shape larger than the extent", one_tensor(R"("dtype":"F32","shape":[5],"data_offsets":[0,16])"), {"20 bytes apart"}},
      {"offsets missing", one_tensor(R"("dtype":"F32","shape":[4])"), {"data_offsets of tensor \"t\" is missing"}},
      {"one offset", one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0])"), {"1 values", "2 values"}},
      {"three offsets", one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,8,16])"), {"3 values"}},
      {"float offsets",
       one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0.0,16.0])"),
       {"data_offsets of tensor \"t\" is 0.0", "integer"}},
      {"string offsets",
       one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":["0","16"])"),
       {"data_offsets of tensor \"t\" is \"0\""}},
      {"negative offset",
       one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[-16,0])"),
       {"data_offsets of tensor \"t\" is -16"}},
      {"end before begin", one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])"), {"[16,0]", "begin <= end"}},
      {"end past the file",
       one_tensor(R"("dtype":"F32","shape":[5],"data_offsets":[0,20])"),
       {"data_offsets of tensor \"t\" is 20", "0 to 16"}},
      {"end of 2^64 - 1",
       one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615])"),
       {"18446744073709551615"}},
      {"hole at the start", two_tensors("[8,16]", "[8,16]"), {"hole"}},
      {"tensors overlap", two_tensors("[0,8]", "[4,12]"), {"\"t\"", "overlaps"}},
      {"same extent twice", two_tensors("[0,8]", "[0,8]"), {"overlaps"}},
      {"hole in the middle",
       safetensors_bytes(
           R"({"s":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"I8","shape":[8],"data_offsets":[8,16]}})", data),
       {"\"t\"", "hole", "begin at"}},
      {"bytes behind the last tensor",
       safetensors_bytes(R"({"t":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}})", data),
       {"8 bytes follow the last tensor"}},
      {"data without tensors", safetensors_bytes("{}", data), {"16 bytes follow"}},
  };
  return rows;
}

}  // namespace

TEST_CASE("every kind of broken safetensors file is refused with its file and its reason", "[io][host]") {
  const auto& rows = broken_files();
  REQUIRE(rows.size() >= 30);
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    auto words = rows[i].words;
    words.emplace_back("w.safetensors");
    expect_error<FileError>([&] { parse(rows[i].bytes); }, words);
  }
}

TEST_CASE("a header above 100 MB is refused before it is parsed", "[io][host]") {
  const TempDir dir;
  const auto path = dir.write("w.safetensors", safetensors_bytes("{}", "", 100'000'001));
  std::filesystem::resize_file(path, 200'000'000);  // a hole: takes no space
  expect_error<FileError>([&] { SafetensorsFile{path}; }, {path.string(), "header length is 100000001", "2 to 100000000"});
}

TEST_CASE("a safetensors file cut anywhere is refused", "[io][host]") {
  const std::string whole = small_file().build();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size, whole.size());
    CHECK_THROWS_AS(parse(whole.substr(0, size)), FileError);
  }
  CHECK_NOTHROW(parse(whole));
}

TEST_CASE("element types that nvl does not read are named, with those that it reads", "[io][host]") {
  expect_error<Unsupported>([&] { parse(one_tensor(R"("dtype":"F8_E4M3","shape":[16],"data_offsets":[0,16])")); },
                            {"w.safetensors", "\"t\"", "F8_E4M3", "F32, F16, BF16"});
}

TEST_CASE("safetensors are read back as they were written", "[io][host]") {
  const SafetensorsFile file = parse(small_file().build());
  REQUIRE(file.tensors().size() == 3);
  const SafetensorsTensor& a = file.tensors()[0];
  CHECK(a.name == "a");
  CHECK(a.dtype == DType::float32);
  CHECK(a.shape == std::vector<std::int64_t>{2, 4});
  CHECK(a.data.size() == 32);
  CHECK(a.data.data() == file.file().bytes().data() + a.offset);
  CHECK(file.tensors()[1].dtype == DType::bfloat16);
  CHECK(file.tensors()[1].data[5] == std::byte{'b'});
  CHECK(file.tensors()[2].shape.empty());
  CHECK(file.tensors()[2].data.size() == 8);
}

TEST_CASE("safetensors corners that the format allows", "[io][host]") {
  CHECK(parse(safetensors_bytes("{}", "")).tensors().empty());
  CHECK(parse(safetensors_bytes("{}      ", "")).tensors().empty());
  CHECK(parse(safetensors_bytes(R"({"z":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})", "")).tensors()[0].data.empty());
  CHECK(parse(two_tensors("[8,16]", "[0,8]")).tensors()[0].name == "t");  // the header's order is free
}

TEST_CASE("an index joins its shards", "[io][host]") {
  const TempDir dir;
  dir.write("m-1.safetensors", SafetensorsBuilder{}.add("a", "I8", {2}, "12").add("b", "I8", {1}, "3").build());
  dir.write("m-2.safetensors", SafetensorsBuilder{}.add("c", "I8", {1}, "4").build());
  const auto index = [&](const std::string& weight_map) {
    return dir.write("model.safetensors.index.json", "{\"metadata\": {\"total_size\": 4}, \"weight_map\": " + weight_map + "}");
  };
  const auto open = [&](const std::string& weight_map) { return SafetensorsModel::from_index(index(weight_map)); };
  const std::string good = R"({"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"})";

  SECTION("right") {
    const SafetensorsModel model = open(good);
    CHECK(model.files().size() == 2);
    REQUIRE(model.find("c") != nullptr);
    CHECK(model.find("c")->data[0] == std::byte{'4'});
    CHECK(model.find("b")->data[0] == std::byte{'3'});
    CHECK(model.find("d") == nullptr);
  }
  SECTION("shards may be symbolic links out of the directory, as in Hugging Face's cache") {
    const TempDir blobs;
    const auto blob = blobs.write("blob", SafetensorsBuilder{}.add("d", "I8", {1}, "5").build());
    std::filesystem::create_symlink(blob, dir.path() / "linked.safetensors");
    CHECK(open(R"({"d": "linked.safetensors"})").find("d") != nullptr);
  }
  SECTION("names that lead out of the directory") {
    for (const char* const name :
         {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\\\x.safetensors", "..safetensors", ".safetensors",
          "", "x.bin", "x..safetensors", "a\\u0000b.safetensors", "C:x.safetensors"}) {
      CAPTURE(name);
      expect_error<FileError>([&] { open("{\"a\": \"" + std::string(name) + "\"}"); },
                              {"model.safetensors.index.json", "weight_map of \"a\"", "same directory"});
    }
    expect_error<FileError>([&] { open("{\"a\": \"" + std::string(300, 'x') + ".safetensors\"}"); }, {"weight_map of \"a\""});
  }
  SECTION("missing shard") {
    expect_error<FileError>([&] { open(R"({"a": "m-9.safetensors"})"); }, {"m-9.safetensors", "No such file"});
  }
  SECTION("one tensor in two shards") {
    dir.write("m-3.safetensors", SafetensorsBuilder{}.add("a", "I8", {2}, "99").build());
    expect_error<FileError>([&] { open(R"({"a": "m-1.safetensors", "x": "m-3.safetensors"})"); },
                            {"tensor \"a\"", "m-1.safetensors", "m-3.safetensors", "one shard"});
  }
  SECTION("one shard under two names") {
    std::filesystem::create_symlink("m-1.safetensors", dir.path() / "again.safetensors");
    expect_error<FileError>([&] { open(R"({"a": "m-1.safetensors", "b": "again.safetensors"})"); }, {"one shard"});
  }
  SECTION("a tensor twice in the map") {
    expect_error<FileError>([&] { open(R"({"a": "m-1.safetensors", "a": "m-2.safetensors"})"); }, {"duplicate key \"a\""});
  }
  SECTION("a tensor that its shard does not hold") {
    expect_error<FileError>([&] { open(R"({"a": "m-1.safetensors", "c": "m-1.safetensors"})"); },
                            {"tensor \"c\"", "does not hold it"});
    expect_error<FileError>([&] { open(R"({"a": "m-2.safetensors", "b": "m-1.safetensors"})"); }, {"tensor \"a\""});
  }
  SECTION("maps of other shapes") {
    expect_error<FileError>([&] { open("{}"); }, {"weight_map is empty"});
    expect_error<FileError>([&] { open("[]"); }, {"weight_map is an array"});
    expect_error<FileError>([&] { open(R"({"a": 1})"); }, {"weight_map of \"a\" is 1"});
    expect_error<FileError>([&] { SafetensorsModel::from_index(dir.write("i.json", "{}")); }, {"weight_map is missing"});
    expect_error<FileError>([&] { SafetensorsModel::from_index(dir.write("i.json", "[]")); }, {"i.json"});
    expect_error<FileError>([&] { SafetensorsModel::from_index(dir.write("i.json", "x")); }, {"invalid JSON"});
  }
  SECTION("a broken shard is named") {
    dir.write("m-2.safetensors", "broken");
    expect_error<FileError>([&] { open(good); }, {"m-2.safetensors", "header length"});
  }
}

}  // namespace safetensors_test
