#include <nvl/io/safetensors_writer.hpp>

#include "support/expect_error.hpp"
#include "support/random_tensor.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace safetensors_writer_test {

using namespace nvl;
using nvl_test::expect_error;
using nvl_test::RandomTensor;
using nvl_test::TempDir;

namespace {

HostTensor named(std::string name, DType dtype, std::vector<std::int64_t> shape, std::string_view bytes) {
  return {std::move(name), dtype, std::move(shape), std::as_bytes(std::span(bytes))};
}

std::vector<std::string> files_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) { names.push_back(entry.path().filename()); }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("what the safetensors writer wrote the reader reads", "[io][host]") {
  const RandomTensor matrix(DType::bfloat16, {7, 5}, 1), vector(DType::float16, {3}, 2), floats(DType::float32, {2, 3, 4}, 3);
  std::vector<HostTensor> tensors{matrix.tensor(), vector.tensor(), floats.tensor()};
  tensors[0].name = "model.layers.0.q";
  tensors[1].name = "a \"quoted\" name, \xc3\xa4";
  tensors[2].name = "z";
  tensors.push_back(named("scalar", DType::int64, {}, "12345678"));
  tensors.push_back(named("nothing", DType::int8, {0, 4}, ""));
  tensors.push_back(named("last", DType::int32, {1, 1}, "abcd"));
  const TempDir folder;
  const auto path = folder.path() / "model.safetensors";
  write_safetensors(path, tensors);
  CHECK(files_in(folder.path()) == std::vector<std::string>{"model.safetensors"});

  const SafetensorsFile file(path);
  REQUIRE(file.tensors().size() == tensors.size());
  for (const HostTensor& expected : tensors) {
    const auto found = std::find_if(file.tensors().begin(), file.tensors().end(),
                                    [&](const SafetensorsTensor& tensor) { return tensor.name == expected.name; });
    REQUIRE(found != file.tensors().end());
    CHECK(found->dtype == expected.dtype);
    CHECK(found->shape == expected.shape);
    CHECK(std::equal(found->data.begin(), found->data.end(), expected.data.begin(), expected.data.end()));
  }
  CHECK(file.tensors().front().offset % 8 == 0);
}

TEST_CASE("a safetensors file without tensors is one too", "[io][host]") {
  const TempDir folder;
  write_safetensors(folder.path() / "empty.safetensors", {});
  CHECK(SafetensorsFile(folder.path() / "empty.safetensors").tensors().empty());
}

TEST_CASE("the safetensors writer refuses what would not be read", "[io][host]") {
  const TempDir folder;
  const auto path = folder.write("w.safetensors", "as it was");
  const auto refuses = [&](const std::vector<HostTensor>& tensors, const std::vector<std::string>& words) {
    expect_error<Error>([&] { write_safetensors(path, tensors); }, words);
    CHECK(std::filesystem::file_size(path) == 9);
    CHECK(files_in(folder.path()).size() == 1);
  };
  const HostTensor good = named("t", DType::float32, {2}, "12345678");
  refuses({good, good}, {"name of a tensor is \"t\""});
  refuses({named("", DType::int8, {1}, "x")}, {"name of a tensor"});
  refuses({named("__metadata__", DType::int8, {1}, "x")}, {"__metadata__"});
  refuses({named("short", DType::float32, {3}, "12345678")}, {"bytes of tensor \"short\" is 8"});
  refuses({named("huge", DType::float32, {std::int64_t{1} << 62, 8}, "12345678")}, {"bytes of tensor \"huge\""});
  refuses({named("minus", DType::float32, {-2}, "12345678")}, {"shape of tensor \"minus\" is -2"});
  refuses({named("deep", DType::int8, std::vector<std::int64_t>(9, 1), "x")}, {"number of dimensions"});
  refuses({RandomTensor(DType::q4_1, {1, 32}, 1).tensor()}, {"Q4_1", "plain element types only"});
}

TEST_CASE("the safetensors writer says which file it cannot write", "[io][host]") {
  const TempDir folder;
  expect_error<FileError>([&] { write_safetensors(folder.path() / "no" / "w.safetensors", {}); },
                          {"no/w.safetensors", "cannot be written"});
  std::filesystem::create_directory(folder.path() / "taken");
  expect_error<FileError>([&] { write_safetensors(folder.path() / "taken", {}); }, {"taken", "cannot be written"});
}

}  // namespace safetensors_writer_test
