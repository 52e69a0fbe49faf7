#include <nvl/ops/cpu_linear.hpp>

#include <nvl/core/aligned_buffer.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/linear.hpp>
#include <nvl/ops/cpu_weight.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>
#include <support/random_tensor.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace cpu_linear_test {

using namespace nvl;
using nvl_test::random_values;
using nvl_test::RandomTensor;

namespace {

constexpr std::array plain_types{DType::float32, DType::float16, DType::bfloat16};
constexpr std::array block_types{DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0};
constexpr std::array packed_types{DType::q4_0, DType::q4_1, DType::q8_0};
constexpr std::array k_types{DType::q4_k, DType::q5_k, DType::q6_k};

bool stays_quantized(DType type) { return type == DType::q4_0 || type == DType::q4_1 || type == DType::q8_0; }

template <class T>
CpuWeight<T> pack(const RandomTensor& tensor) {
  const HostTensor* const part = &tensor.tensor();
  BufferArena arena(0);
  return CpuWeight<T>(std::span(&part, 1), {}, arena);
}

/// The weights that the kernels see: those of plain types and K-quants are rounded to T at load.
template <class T>
std::vector<float> as_loaded(const RandomTensor& tensor) {
  std::vector<float> values = tensor.floats();
  if (!stays_quantized(tensor.tensor().dtype)) {
    for (float& v : values) { v = static_cast<float>(static_cast<T>(v)); }
  }
  return values;
}

/// Compares `linear` with the oracle, with float output so that only the sums are judged.
template <class T>
void check_against_oracle(DType type, std::int64_t out_features, std::int64_t in_features, std::int32_t rows, ThreadPool& pool) {
  CAPTURE(std::string(info(type).name), out_features, in_features, rows);
  const RandomTensor tensor(type, {out_features, in_features}, 7);
  const CpuWeight<T> w = pack<T>(tensor);
  const std::vector<T> x = random_values<T>(static_cast<std::size_t>(rows * in_features), 11);
  std::vector<float> out(static_cast<std::size_t>(rows * out_features));
  CpuLinear<T> linear(pool);
  linear(out.data(), x.data(), w, rows);
  const std::vector<double> expected =
      reference::linear<T>(x, as_loaded<T>(tensor), {}, static_cast<std::size_t>(rows), static_cast<std::size_t>(in_features),
                           static_cast<std::size_t>(out_features));
  const double of_floats = out.size() < 100 ? reference::max_nmse_of_few<float> : reference::max_nmse<float>;
  CHECK(reference::nmse(out, expected) <= (stays_quantized(type) ? reference::max_nmse_quantized : of_floats));
}

}  // namespace

TEMPLATE_TEST_CASE("linear equals the oracle for every weight type and odd sizes", "[ops][linear][host]", float, bf16) {
  ThreadPool pool(2);
  for (const DType type : plain_types) {
    for (const std::int64_t in : {1, 7, 16, 255, 256, 257, 576}) { check_against_oracle<TestType>(type, 33, in, 5, pool); }
    check_against_oracle<TestType>(type, 1, 64, 1, pool);
    check_against_oracle<TestType>(type, 100, 1536, 13, pool);
  }
  for (const DType type : block_types) {
    for (const std::int64_t out : {1, 15, 16, 17, 100}) { check_against_oracle<TestType>(type, out, 96, 3, pool); }
    check_against_oracle<TestType>(type, 70, 32, 1, pool);
    check_against_oracle<TestType>(type, 100, 1536, 19, pool);
  }
  for (const DType type : k_types) { check_against_oracle<TestType>(type, 20, 512, 3, pool); }
}

TEMPLATE_TEST_CASE("a row's result does not depend on the other rows, their number or the threads, bit for bit",
                   "[ops][linear][host]", float, bf16) {
  constexpr std::int64_t in = 544, out = 200;
  ThreadPool one(1);
  ThreadPool three(3);
  for (const DType type : {DType::float32, DType::bfloat16, DType::q4_0, DType::q4_1, DType::q8_0}) {
    CAPTURE(std::string(info(type).name));
    const RandomTensor tensor(type, {out, in}, 3);
    const CpuWeight<TestType> w = pack<TestType>(tensor);
    constexpr std::int32_t max_rows = 300;  // more than are converted at once
    const std::vector<TestType> x = random_values<TestType>(max_rows * in, 5);
    CpuLinear<TestType> alone(one);
    std::vector<float> expected(max_rows * out);
    for (std::int64_t r = 0; r < max_rows; ++r) { alone(expected.data() + r * out, x.data() + r * in, w, 1); }
    CpuLinear<TestType> batched(three);
    std::vector<std::int32_t> sizes(41);
    std::iota(sizes.begin(), sizes.end(), 0);
    sizes.insert(sizes.end(), {64, 65, 255, 256, 257, 300});
    for (const std::int32_t rows : sizes) {
      CAPTURE(rows);
      std::vector<float> actual(static_cast<std::size_t>(rows * out));
      batched(actual.data(), x.data(), w, rows);
      REQUIRE((rows == 0 || std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)) == 0));
    }
  }
}

TEST_CASE("without integer dot products, quantised weights are multiplied as floats", "[ops][linear][host]") {
  // The path of targets without AVX2, here on any target.
  constexpr std::int64_t in = 544, out = 40, rows = 14;
  const std::vector<float> x = random_values<float>(rows * in, 5);
  const auto check = [&]<PanelFormat kFormat>(DType type) {
    CAPTURE(std::string(info(type).name));
    const RandomTensor tensor(type, {out, in}, 3);
    const CpuWeight<float> w = pack<float>(tensor);
    const PanelMatrix& matrix = w.matrices().front();
    std::vector<float> actual(rows * out), alone(rows * out);
    for (std::int64_t panel = 0; panel < matrix.num_panels(); panel += detail::float_tile_panels) {
      const auto output_to = [&](std::vector<float>& to) {
        return detail::LinearOutput{.out = to.data(), .is_bf16 = false, .stride = out, .bias = nullptr, .num_features = out};
      };
      detail::float_rows<kFormat>(output_to(actual), matrix, panel, x.data(), 0, rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        detail::float_rows<kFormat>(output_to(alone), matrix, panel, x.data(), r, r + 1);
      }
    }
    CHECK(reference::nmse(actual, reference::linear<float>(x, tensor.floats(), {}, rows, in, out)) <= reference::max_nmse<float>);
    CHECK(actual == alone);
  };
  check.operator()<PanelFormat::q4_0>(DType::q4_0);
  check.operator()<PanelFormat::q4_1>(DType::q4_1);
  check.operator()<PanelFormat::q8_0>(DType::q8_0);
}

TEST_CASE("the output in the element type is the float output, rounded", "[ops][linear][host]") {
  ThreadPool pool(2);
  const RandomTensor tensor(DType::q4_1, {50, 64}, 3);
  const CpuWeight<bf16> w = pack<bf16>(tensor);
  const std::vector<bf16> x = random_values<bf16>(3 * 64, 5);
  CpuLinear<bf16> linear(pool);
  std::vector<float> wide(3 * 50);
  std::vector<bf16> narrow(3 * 50);
  linear(wide.data(), x.data(), w, 3);
  linear(narrow.data(), x.data(), w, 3);
  for (std::size_t i = 0; i < wide.size(); ++i) { CHECK(narrow[i].bits == bf16(wide[i]).bits); }
}

TEST_CASE("stacked parts of different types and their biases land in their columns", "[ops][linear][host]") {
  ThreadPool pool(2);
  const RandomTensor a(DType::q4_1, {17, 256}, 1), b(DType::q4_1, {5, 256}, 2), c(DType::q6_k, {9, 256}, 3),
      d(DType::float32, {3, 256}, 4);
  const RandomTensor bias_a(DType::float32, {17}, 5), bias_b(DType::float32, {5}, 6), bias_c(DType::bfloat16, {9}, 7),
      bias_d(DType::float32, {3}, 8);
  const std::vector<const HostTensor*> parts{&a.tensor(), &b.tensor(), &c.tensor(), &d.tensor()};
  const std::vector<const HostTensor*> biases{&bias_a.tensor(), &bias_b.tensor(), &bias_c.tensor(), &bias_d.tensor()};
  BufferArena arena;
  const CpuWeight<float> w(parts, biases, arena);
  REQUIRE(w.out_features() == 34);
  CHECK(w.matrices().size() == 2);  // two formats: the last two parts are both stored as float

  std::vector<float> weights, bias;
  for (const RandomTensor* part : {&a, &b, &c, &d}) {
    weights.insert(weights.end(), part->floats().begin(), part->floats().end());
  }
  for (const RandomTensor* part : {&bias_a, &bias_b, &bias_c, &bias_d}) {
    bias.insert(bias.end(), part->floats().begin(), part->floats().end());
  }
  const std::vector<float> x = random_values<float>(7 * 256, 9);
  std::vector<float> out(7 * 34);
  CpuLinear<float> linear(pool);
  linear(out.data(), x.data(), w, 7);
  CHECK(reference::nmse(out, reference::linear<float>(x, weights, bias, 7, 256, 34)) <= reference::max_nmse_quantized);

  std::vector<float> row(256);
  for (const std::size_t feature : {std::size_t{0}, std::size_t{16}, std::size_t{17}, std::size_t{21}, std::size_t{22},
                                    std::size_t{30}, std::size_t{31}, std::size_t{33}}) {
    CAPTURE(feature);
    w.unpack_row(static_cast<std::int64_t>(feature), row.data());
    CHECK(std::equal(row.begin(), row.end(), weights.begin() + static_cast<std::ptrdiff_t>(feature * 256)));
  }
}

TEST_CASE("quantised weights stay quantised in memory", "[ops][linear][host]") {
  for (const DType type : packed_types) {
    const RandomTensor tensor(type, {64, 256}, 1);
    CHECK(pack<float>(tensor).size_bytes() == tensor.tensor().data.size());
    CHECK(pack<bf16>(tensor).size_bytes() == tensor.tensor().data.size());
  }
  CHECK(pack<bf16>(RandomTensor(DType::q6_k, {64, 256}, 1)).size_bytes() == 64 * 256 * 2);
}

TEST_CASE("zero, tiny and huge activations keep their meaning, and what is not finite stays visible", "[ops][linear][host]") {
  ThreadPool pool(1);
  for (const DType type : {DType::q4_0, DType::q4_1, DType::q8_0, DType::float32}) {
    CAPTURE(std::string(info(type).name));
    const RandomTensor tensor(type, {20, 64}, 3);
    const CpuWeight<float> w = pack<float>(tensor);
    CpuLinear<float> linear(pool);
    std::vector<float> out(20);
    for (const float scale : {0.0f, 1e-45f, 1e-37f, 1e-30f, 1e30f}) {
      CAPTURE(scale);
      std::vector<float> x = random_values<float>(64, 5);
      for (float& v : x) { v *= scale; }
      linear(out.data(), x.data(), w, 1);
      const std::vector<double> expected = reference::linear<float>(x, tensor.floats(), {}, 1, 64, 20);
      for (std::size_t i = 0; i < out.size(); ++i) {
        // Below 1e-33 the scales of the blocks would be denormal: such activations count as zero.
        CHECK(std::abs(static_cast<double>(out[i]) - expected[i]) <= 1e-3 * static_cast<double>(scale) + 1e-31);
      }
    }
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x = random_values<float>(64, 5);
      x[40] = bad;
      linear(out.data(), x.data(), w, 1);
      for (const float o : out) { CHECK(!std::isfinite(o)); }
    }
  }
}

TEST_CASE("weights whose shapes do not stack are refused by name", "[ops][linear][host]") {
  const RandomTensor a(DType::float32, {4, 64}, 1), narrow(DType::float32, {4, 32}, 1), vector(DType::float32, {64}, 1);
  const auto load = [](std::vector<const HostTensor*> parts, std::vector<const HostTensor*> biases) {
    BufferArena arena;
    CpuWeight<float> w(parts, biases, arena);
  };
  nvl_test::expect_error<InvalidArgument>([&] { load({}, {}); }, {"parts", "at least one"});
  nvl_test::expect_error<InvalidArgument>([&] { load({&a.tensor(), &narrow.tensor()}, {}); }, {"random", "32", "64"});
  nvl_test::expect_error<InvalidArgument>([&] { load({&vector.tensor()}, {}); }, {"[out_features, in_features]"});
  nvl_test::expect_error<InvalidArgument>([&] { load({&a.tensor()}, {&vector.tensor()}); }, {"bias", "64", "4"});
  nvl_test::expect_error<InvalidArgument>(
      [&] {
        load({&a.tensor(), &a.tensor()}, {&vector.tensor()});
      },
      {"biases", "one per part"});
  HostTensor odd = a.tensor();
  odd.dtype = DType::q4_0;
  odd.shape = {4, 33};
  nvl_test::expect_error<InvalidArgument>([&] { load({&odd}, {}); }, {"33", "Q4_0"});
  HostTensor cut = a.tensor();
  cut.data = cut.data.first(100);
  nvl_test::expect_error<InvalidArgument>([&] { load({&cut}, {}); }, {"bytes", "100", "1024"});
  const CpuWeight<float> w = pack<float>(a);
  std::vector<float> row(64);
  nvl_test::expect_error<InvalidArgument>([&] { w.unpack_row(4, row.data()); }, {"row", "4", "0 to 3"});
}

}  // namespace cpu_linear_test
