#include "support/device.cuh"
#include "support/expect_error.hpp"
#include "support/random_tensor.hpp"

#include <nvl/core/dequantize.hpp>
#include <nvl/kernels/convert.cuh>
#include <nvl/kernels/reference/error_measure.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using nvl::bf16;
using nvl::DType;
using nvl::fp16;
using nvl_test::DeviceVector;
using nvl_test::RandomTensor;

constexpr DType all_types[] = {DType::float32, DType::float16, DType::bfloat16, DType::q4_0, DType::q4_1, DType::q5_0,
                               DType::q5_1,    DType::q8_0,    DType::q4_k,     DType::q5_k, DType::q6_k};

/// Converts on the device; what must not be written, behind the end, has to keep its bits.
template <class T>
std::vector<T> convert(const nvl::HostTensor& tensor, std::int64_t count) {
  constexpr std::size_t tail = 32;
  const DeviceVector<std::byte> source(std::span<const std::byte>(tensor.data));
  DeviceVector<T> out(static_cast<std::size_t>(count) + tail);
  nvl::kernels::launch_convert<T>({.out = out.data(), .source = source.data(), .type = tensor.dtype, .count = count}, nullptr);
  std::vector<T> values = out.to_host();
  const std::vector<std::uint8_t> untouched(tail * sizeof(T), 0xff);
  CHECK(std::memcmp(values.data() + count, untouched.data(), untouched.size()) == 0);
  values.resize(static_cast<std::size_t>(count));
  return values;
}

}  // namespace

TEMPLATE_TEST_CASE("Every stored type is converted as the host converts it", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const DType type : all_types) {
    const std::int64_t block = nvl::info(type).block_elements;
    for (const std::int64_t blocks : {std::int64_t{1}, std::int64_t{2}, std::int64_t{255}, 2000000 / block + 1}) {
      CAPTURE(nvl::info(type).name, blocks);
      const RandomTensor random(type, {blocks, block}, static_cast<std::uint32_t>(blocks));
      const std::vector<TestType> values = convert<TestType>(random.tensor(), blocks * block);
      const std::vector<double> expected(random.floats().begin(), random.floats().end());
      CHECK(nvl::reference::nmse(values, expected) <=
            (blocks * block < 1000 ? nvl::reference::max_nmse_of_few<TestType> : nvl::reference::max_nmse<TestType>));
      // Where one product is all that is computed, nothing may differ.
      if (type == DType::q4_0 || type == DType::q5_0 || type == DType::q8_0 || !nvl::is_quantized(type)) {
        std::size_t different = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
          const auto wanted = static_cast<TestType>(random.floats()[i]);
          different += std::memcmp(&values[i], &wanted, sizeof(wanted)) != 0 ? 1 : 0;
        }
        CHECK(different == 0);
      }
    }
  }
}

TEST_CASE("Conversion keeps infinities, zeros' signs and not-a-number, and rounds to even", "[kernel][gpu]") {
  nvl_test::require_device();
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {inf,       -inf,   -0.0f,    0x1.01p0f,
                                     0x1.03p0f, 1e-45f, 65520.0f, std::numeric_limits<float>::quiet_NaN()};
  const auto count = static_cast<std::int64_t>(values.size());
  const nvl::HostTensor tensor{
      .name = "t", .dtype = DType::float32, .shape = {count}, .data = std::as_bytes(std::span<const float>(values))};
  const std::vector<bf16> as_bf16 = convert<bf16>(tensor, count);
  const std::vector<fp16> as_fp16 = convert<fp16>(tensor, count);
  for (std::size_t i = 0; i + 1 < values.size(); ++i) {
    CAPTURE(i, values[i]);
    CHECK(as_bf16[i].bits == bf16(values[i]).bits);
    CHECK(as_fp16[i].bits == fp16(values[i]).bits);
  }
  CHECK((as_bf16.back().bits & 0x7fff) > 0x7f80);
  CHECK((as_fp16.back().bits & 0x7fff) > 0x7c00);
}

TEST_CASE("Conversion of nothing launches nothing; wrong arguments are refused by name", "[kernel][gpu]") {
  nvl_test::require_device();
  const DeviceVector<std::byte> source(64);
  DeviceVector<float> out(64);
  using nvl::kernels::ConvertParams;
  const ConvertParams<float> good{.out = out.data(), .source = source.data(), .type = DType::q4_0, .count = 32};
  const auto refused = [&](auto&& spoil, const char* field) {
    ConvertParams<float> p = good;
    spoil(p);
    nvl_test::expect_error<nvl::InvalidArgument>([&] { nvl::kernels::launch_convert<float>(p, nullptr); }, {field});
  };
  refused([](auto& p) { p.count = 31; }, "count");
  refused([](auto& p) { p.count = -32; }, "count");
  refused([](auto& p) { p.source += 1; }, "source");
  refused([](auto& p) { p.type = DType::int32; }, "type");
  nvl::kernels::launch_convert<float>({.type = DType::q4_0}, nullptr);
  CHECK(std::isnan(out.to_host().front()));
}
