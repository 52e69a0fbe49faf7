#include "bench/support/device_report.hpp"

#include <catch2/catch_test_macros.hpp>

namespace device_report_test {

using namespace nvl_bench;

TEST_CASE("the line of nvidia-smi becomes a device report", "[bench][host]") {
  const DeviceReport report = parse_nvidia_smi("580.159.03, 1980, 3201\n");
  CHECK(report.kind == "cuda");
  CHECK(report.driver == "580.159.03");
  CHECK(report.sm_clock_mhz == 1980);
  CHECK(report.mem_clock_mhz == 3201);
  CHECK(parse_nvidia_smi("1, [N/A], [N/A]").sm_clock_mhz == 0);
  for (const char* const line : {"", "command not found\n", "a, b"}) {
    CHECK(parse_nvidia_smi(line).kind == "cuda");
    CHECK(parse_nvidia_smi(line).driver.empty());
    CHECK(parse_nvidia_smi(line).mem_clock_mhz == 0);
  }
}

TEST_CASE("the CPU needs no report", "[bench][host]") {
  CHECK(DeviceReport().kind == "cpu");
  CHECK(DeviceReport().name.empty());
}

}  // namespace device_report_test
