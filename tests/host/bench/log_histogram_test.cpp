#include "bench/sim/log_histogram.hpp"
#include "bench/support/report.hpp"
#include "bench/support/trace.hpp"

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <vector>

namespace log_histogram_test {

using namespace nvl_bench;
using Catch::Approx;

TEST_CASE("percentiles of a log histogram are within 0.8 % of the exact ones", "[bench][host]") {
  TraceRandom random(3);
  for (const double spread : {0.1, 1.0, 4.0}) {
    LogHistogram histogram;
    std::vector<double> values;
    for (int i = 0; i < 50'000; ++i) {
      values.push_back(1e-3 * std::exp(spread * random.normal()));
      histogram.add(values.back());
    }
    const Samples exact(values);
    CHECK(histogram.count() == values.size());
    CHECK(histogram.mean() == Approx(exact.mean()).epsilon(1e-9));
    CHECK(histogram.min() == exact.percentile(0));
    CHECK(histogram.max() == exact.percentile(100));
    for (const double p : {1.0, 10.0, 50.0, 90.0, 99.0}) {
      INFO("spread " << spread << ", percentile " << p);
      CHECK(histogram.percentile(p) == Approx(exact.percentile(p)).epsilon(0.0085));
    }
    CHECK(histogram.percentile(0) == exact.percentile(0));
    CHECK(histogram.percentile(100) == exact.percentile(100));
  }
}

TEST_CASE("a log histogram takes no values, equal ones, and those outside its range", "[bench][host]") {
  LogHistogram histogram;
  CHECK(histogram.count() == 0);
  CHECK(histogram.mean() == 0);
  CHECK(histogram.percentile(50) == 0);
  histogram.add(0.25, 3);
  histogram.add(7, 0);
  CHECK(histogram.count() == 3);
  CHECK(histogram.percentile(1) == 0.25);
  CHECK(histogram.percentile(99) == 0.25);
  histogram.add(0);
  CHECK(histogram.min() == 0);
  histogram.add(1e9);
  CHECK(histogram.max() == 1e9);
  CHECK(histogram.percentile(100) == 1e9);
  CHECK(histogram.percentile(50) == Approx(0.25).epsilon(0.01));
}

}  // namespace log_histogram_test
