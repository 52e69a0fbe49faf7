#include <nvl/core/dequantize.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

namespace dequantize_test {

using namespace nvl;

namespace {

std::vector<char> read_golden(const std::string& name) {
  std::ifstream in(std::string(NVL_TEST_DATA_DIR) + "/quant/" + name + ".bin", std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("block-quantised rows become what the reference implementation makes of them", "[core][host]") {
  const DType type =
      GENERATE(DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0, DType::q4_k, DType::q5_k, DType::q6_k);
  const DTypeInfo& row = info(type);
  CAPTURE(row.name);
  const std::vector<char> golden = read_golden(std::string(row.name));
  const std::size_t num_blocks = 4;
  const std::size_t n = num_blocks * row.block_elements;
  REQUIRE(golden.size() == num_blocks * row.block_bytes + n * sizeof(float));

  std::vector<float> expected(n);
  std::memcpy(expected.data(), golden.data() + num_blocks * row.block_bytes, n * sizeof(float));

  // Weights in a file need not be aligned: read from an odd address.
  std::vector<std::byte> source(num_blocks * row.block_bytes + 1);
  std::memcpy(source.data() + 1, golden.data(), num_blocks * row.block_bytes);
  std::vector<float> found(n, std::numeric_limits<float>::quiet_NaN());
  dequantize_row(type, source.data() + 1, found.data(), static_cast<std::int64_t>(n));

  float largest = 0;
  for (const float v : expected) { largest = std::max(largest, std::abs(v)); }
  REQUIRE(largest > 0.1f);
  for (std::size_t i = 0; i < n; ++i) {
    CAPTURE(i);
    REQUIRE_THAT(found[i], Catch::Matchers::WithinAbs(expected[i], 1e-6 * largest));
  }
}

TEST_CASE("plain rows widen to float exactly", "[core][host]") {
  const std::vector<float> values{0.0f, -1.5f, 0.125f, 96.0f, -0.0f};
  std::vector<float> found(values.size());
  dequantize_row(DType::float32, reinterpret_cast<const std::byte*>(values.data()), found.data(), 5);
  CHECK(found == values);

  std::vector<fp16> halves;
  std::vector<bf16> brains;
  for (const float v : values) {
    halves.emplace_back(v);
    brains.emplace_back(v);
  }
  dequantize_row(DType::float16, reinterpret_cast<const std::byte*>(halves.data()), found.data(), 5);
  CHECK(found == values);
  dequantize_row(DType::bfloat16, reinterpret_cast<const std::byte*>(brains.data()), found.data(), 5);
  CHECK(found == values);
}

TEST_CASE("rows that do not divide into blocks and integer types are refused", "[core][host]") {
  std::vector<std::byte> source(64);
  std::vector<float> out(64);
  CHECK_THROWS_AS(dequantize_row(DType::q4_0, source.data(), out.data(), 31), InvalidArgument);
  CHECK_THROWS_AS(dequantize_row(DType::q4_k, source.data(), out.data(), 32), InvalidArgument);
  CHECK_THROWS_AS(dequantize_row(DType::float32, source.data(), out.data(), -1), InvalidArgument);
  CHECK_THROWS_AS(dequantize_row(DType::int32, source.data(), out.data(), 4), InvalidArgument);
  CHECK_NOTHROW(dequantize_row(DType::q4_0, source.data(), out.data(), 0));
}

}  // namespace dequantize_test
