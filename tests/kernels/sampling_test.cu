#include <nvl/kernels/sampling.cuh>

#include "sampling_cases.hpp"
#include "support/device.cuh"

#include <nvl/core/dtype.hpp>
#include <nvl/core/philox.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/reference/sampling.hpp>
#include <nvl/ops/cpu_sampler.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

using namespace nvl;
using nvl_test::DeviceVector;
using nvl_test::SamplingExtras;
using nvl_test::SamplingSetting;

namespace {

/// A batch of rows and their logits on the host, rounded to T.
template <class T>
struct Batch {
  int vocab = 1;
  std::int64_t row_stride = 1;  // [elements]
  std::vector<T> logits{};      // [rows, row_stride]; NaN between the rows
  std::vector<SamplingRow> rows{};
  std::vector<LogitBias> bias{};
  std::vector<TokenId> banned{};
  std::vector<TokenId> history{};

  explicit Batch(int vocab_size, int padding = 0) : vocab(vocab_size), row_stride(vocab_size + padding) {}

  void add(const std::vector<float>& row_logits, SamplingRow row, const SamplingExtras& extras = {}) {
    const auto append = [](auto& to, const auto& from) {
      const auto begin = static_cast<std::uint32_t>(to.size());
      to.insert(to.end(), from.begin(), from.end());
      return IndexRange{begin, static_cast<std::uint32_t>(to.size())};
    };
    row.bias = append(bias, extras.bias);
    row.banned = append(banned, extras.banned);
    row.history = append(history, extras.history);
    rows.push_back(row);
    for (const float l : row_logits) { logits.push_back(T(l)); }
    logits.resize(rows.size() * static_cast<std::size_t>(row_stride), T(std::numeric_limits<float>::quiet_NaN()));
  }

  std::vector<float> host_logits(std::size_t row) const {
    std::vector<float> out;
    for (int i = 0; i < vocab; ++i) {
      out.push_back(static_cast<float>(logits[row * static_cast<std::size_t>(row_stride) + static_cast<std::size_t>(i)]));
    }
    return out;
  }

  StepInput input() const {
    auto& self = const_cast<Batch&>(*this);
    StepInput in;
    in.sampling = self.rows;
    in.logit_bias = self.bias;
    in.banned = self.banned;
    in.history = self.history;
    return in;
  }

  SampledToken on_cpu(std::size_t row) const {
    SamplerScratch scratch;
    SampledToken out;
    sample_row(host_logits(row), input(), rows[row], scratch, out);
    return out;
  }
};

constexpr int max_top = 24;

/// Samples the batch on the device. `offset`: [elements] that the logits are moved by, so that rows lose their alignment.
template <class T>
std::vector<SampledToken> on_device(const Batch<T>& batch, bool general, std::size_t offset = 0) {
  const auto num_rows = static_cast<int>(batch.rows.size());
  std::vector<T> moved(offset, T(std::numeric_limits<float>::quiet_NaN()));
  moved.insert(moved.end(), batch.logits.begin(), batch.logits.end());
  const DeviceVector<T> logits(moved);
  const DeviceVector<SamplingRow> rows(batch.rows);
  const DeviceVector<LogitBias> bias(batch.bias);
  const DeviceVector<TokenId> banned(batch.banned), history(batch.history);
  const kernels::SamplingResultLayout layout{.max_rows = num_rows + 1, .max_top_logprobs = max_top};
  DeviceVector<std::byte> results(layout.bytes());
  DeviceVector<TokenId> tokens(batch.rows.size());
  DeviceVector<std::byte> workspace(kernels::sampling_workspace_bytes(num_rows, batch.vocab));
  kernels::SampleParams<T> p;
  p.logits = logits.data() + offset;
  p.row_stride = batch.row_stride;
  p.rows = rows.data();
  p.logit_bias = bias.data();
  p.banned = banned.data();
  p.history = history.data();
  p.tokens = tokens.data();
  p.results = layout.rows(results.data());
  p.top_logprobs = layout.top_logprobs(results.data());
  p.workspace = workspace.data();
  p.max_top_logprobs = max_top;
  p.num_rows = num_rows;
  p.vocab = batch.vocab;
  if (general) {
    kernels::launch_sample_general<kernels::SampleGeneralTraits<T>>(p, nullptr);
  } else {
    kernels::launch_sample_plain<kernels::SamplePlainTraits<T>>(p, nullptr);
  }
  std::vector<SampledToken> out(batch.rows.size());
  layout.read(results.to_host().data(), out);
  const std::vector<TokenId> ids = tokens.to_host();
  for (std::size_t r = 0; r < out.size(); ++r) { REQUIRE(ids[r] == out[r].token); }
  return out;
}

/// Whether `token` is where the cumulated probability passes the row's random number, up to rounding.
bool is_right_draw(std::span<const float> logits, const StepInput& in, const SamplingRow& row, TokenId token) {
  constexpr double rounding = 2e-5;
  const reference::SamplingDistribution d = reference::sampling_distribution(logits, in, row);
  if (d.top_p_margin < rounding) { return true; }
  const double u = uniform(row.seed, row.choice, row.output_index);
  double before = 0;
  for (TokenId i = 0; i < token; ++i) { before += d.probabilities[static_cast<std::size_t>(i)]; }
  const double own = d.probabilities[static_cast<std::size_t>(token)];
  return own > 0 && before - rounding <= u && u <= before + own + rounding;
}

/// Checks every row against the CPU sampler and, where the tokens differ, the oracle. Returns how many differ.
template <class T>
int check_batch(const Batch<T>& batch, bool general, const std::vector<std::string>& names, std::size_t offset = 0) {
  const std::vector<SampledToken> got = on_device(batch, general, offset);
  int num_different = 0;
  for (std::size_t r = 0; r < got.size(); ++r) {
    const SampledToken want = batch.on_cpu(r);
    INFO("row " << r << ", " << names[r % names.size()] << ", vocab " << batch.vocab << (general ? ", general" : ", plain"));
    REQUIRE(got[r].finite == want.finite);
    if (!want.finite) { continue; }
    REQUIRE(got[r].token >= 0);
    REQUIRE(got[r].token < batch.vocab);
    const SamplingRow& row = batch.rows[r];
    if (got[r].token != want.token) {
      ++num_different;
      CHECK(row.temperature != 0.0f);
      CAPTURE(got[r].token, want.token);
      CHECK(is_right_draw(batch.host_logits(r), batch.input(), row, got[r].token));
    } else {
      CHECK(std::abs(got[r].logprob - want.logprob) <= 2e-5f * std::max(1.0f, std::abs(want.logprob)));
    }
    REQUIRE(got[r].top_logprobs.size() == want.top_logprobs.size());
    for (std::size_t i = 0; i < want.top_logprobs.size(); ++i) {
      CHECK(got[r].top_logprobs[i].token == want.top_logprobs[i].token);
      const float wanted = want.top_logprobs[i].logprob;
      CHECK(std::abs(got[r].top_logprobs[i].logprob - wanted) <= 2e-5f * std::max(1.0f, std::abs(wanted)));
    }
  }
  return num_different;
}

template <class T>
void check_all_settings(std::span<const int> vocabs = nvl_test::sampling_vocabs, int num_kinds = nvl_test::num_logit_kinds) {
  nvl_test::require_device();
  const std::vector<SamplingSetting> settings = nvl_test::sampling_settings();
  int num_different = 0, num_checked = 0;
  for (const int vocab : vocabs) {
    for (int kind = 0; kind < num_kinds; ++kind) {
      if (vocab > 2000 && kind % 2 == 1 && kind != 1 && kind != 3) { continue; }
      Batch<T> general(vocab), plain(vocab);
      std::vector<std::string> names, plain_names;
      for (std::size_t s = 0; s < settings.size(); ++s) {
        const SamplingSetting& setting = settings[s];
        const auto seed = static_cast<unsigned>(s + 100 * static_cast<std::size_t>(kind));
        const std::vector<float> logits = nvl_test::sampling_logits(vocab, kind, seed);
        general.add(logits, setting.row, setting.extras(vocab, seed));
        names.push_back(setting.name + ", logits of kind " + std::to_string(kind));
        if (!setting.is_general()) {
          plain.add(logits, setting.row);
          plain_names.push_back(names.back());
        }
      }
      num_different += check_batch(general, true, names);
      num_different += check_batch(plain, false, plain_names);
      num_checked += static_cast<int>(settings.size() + plain.rows.size());
    }
  }
  INFO(num_different << " of " << num_checked << " tokens are not the CPU's");
  CHECK(num_different <= num_checked / 100);
}

SamplingRow drawn_row(std::uint32_t output_index = 0) {
  SamplingRow row;
  row.temperature = 1.0f;
  row.seed = 11;
  row.output_index = output_index;
  return row;
}

/// Upper quantile of a chi-square distribution at which a right sampler fails with probability 1e-6 (Wilson & Hilferty 1931).
double chi_square_limit(double freedom) {
  const double a = 2.0 / (9.0 * freedom);
  const double root = 1 - a + 4.7534 * std::sqrt(a);
  return freedom * root * root * root;
}

}  // namespace

TEST_CASE("tokens and log-probabilities are those of the CPU, bf16", "[kernel][sampling]") { check_all_settings<bf16>(); }
TEST_CASE("tokens and log-probabilities are those of the CPU, fp16", "[kernel][sampling]") { check_all_settings<fp16>(); }
TEST_CASE("tokens and log-probabilities are those of the CPU, float", "[kernel][sampling]") { check_all_settings<float>(); }

TEST_CASE("tokens and log-probabilities of small vocabularies are those of the CPU", "[kernel][sampling][sanitize]") {
  constexpr int vocabs[] = {7, 1025, 20000};
  check_all_settings<bf16>(vocabs, 2);
  check_all_settings<float>(vocabs, 2);
}

TEST_CASE("rows that no vector access fits", "[kernel][sampling]") {
  nvl_test::require_device();
  const std::vector<SamplingSetting> settings = nvl_test::sampling_settings();
  for (const int vocab : {1023, 5001}) {
    Batch<bf16> batch(vocab, 2), plain(vocab, 2);
    std::vector<std::string> names;
    for (std::size_t s = 0; s < settings.size(); ++s) {
      const std::vector<float> logits = nvl_test::sampling_logits(vocab, 1, static_cast<unsigned>(s));
      batch.add(logits, settings[s].row, settings[s].extras(vocab, static_cast<unsigned>(s)));
      plain.add(logits, drawn_row(static_cast<std::uint32_t>(s)));
      names.push_back(settings[s].name);
    }
    check_batch(batch, true, names, 1);
    check_batch(plain, false, {"plain"}, 3);
  }
}

TEST_CASE("draws follow the distribution", "[kernel][sampling]") {
  nvl_test::require_device();
  constexpr int vocab = 1000, rows = 4096, launches = 10;
  const std::vector<float> logits = nvl_test::sampling_logits(vocab, 1, 5);
  struct Setting {
    const char* name;
    bool general;
    SamplingRow row;
  };
  std::vector<Setting> settings{{"plain", false, drawn_row()}, {"general", true, drawn_row()}};
  settings.push_back({"top_k", true, drawn_row()});
  settings.back().row.top_k = 30;
  settings.push_back({"top_p", true, drawn_row()});
  settings.back().row.top_p = 0.95f;
  settings.back().row.temperature = 2.0f;
  for (const Setting& setting : settings) {
    std::vector<int> counts(vocab);
    Batch<float> batch(vocab);
    for (int i = 0; i < rows; ++i) { batch.add(logits, setting.row); }
    for (int launch = 0; launch < launches; ++launch) {
      for (int i = 0; i < rows; ++i) {
        batch.rows[static_cast<std::size_t>(i)].output_index = static_cast<std::uint32_t>(launch * rows + i);
      }
      for (const SampledToken& t : on_device(batch, setting.general)) { ++counts[static_cast<std::size_t>(t.token)]; }
    }
    const auto d = reference::sampling_distribution(batch.host_logits(0), batch.input(), batch.rows[0]);
    double statistic = 0, freedom = -1, rest_expected = 0, rest_count = 0;
    for (std::size_t i = 0; i < vocab; ++i) {
      const double expected = d.probabilities[i] * rows * launches;
      if (expected == 0) { REQUIRE(counts[i] == 0); }
      if (expected < 10) {
        rest_expected += expected;
        rest_count += counts[i];
        continue;
      }
      statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
      freedom += 1;
    }
    if (rest_expected > 0) {
      statistic += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
      freedom += 1;
    }
    INFO(setting.name << ": " << statistic << " of " << freedom);
    CHECK(statistic < chi_square_limit(freedom));
  }
}

TEST_CASE("a row gives the same bits anywhere in any batch, in both kernels", "[kernel][sampling]") {
  nvl_test::require_device();
  constexpr int vocab = 30001;
  const std::vector<SamplingSetting> settings = nvl_test::sampling_settings();
  for (const std::size_t s :
       {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{14}, std::size_t{20}, std::size_t{28}}) {
    const SamplingSetting& setting = settings[s];
    const std::vector<float> logits = nvl_test::sampling_logits(vocab, 1, 77);
    const SamplingExtras extras = setting.extras(vocab, 77);
    std::vector<SampledToken> results;
    for (const int num_rows : {1, 2, 9, 40, 133, 300}) {
      Batch<bf16> batch(vocab, 7);
      for (int r = 0; r < num_rows; ++r) {
        if (r == num_rows / 2) {
          batch.add(logits, setting.row, extras);
        } else {
          const SamplingSetting& other = settings[static_cast<std::size_t>(r) % (setting.is_general() ? settings.size() : 4)];
          batch.add(nvl_test::sampling_logits(vocab, r % 2, 1), other.row, other.extras(vocab, 1));
        }
      }
      results.push_back(on_device(batch, true)[static_cast<std::size_t>(num_rows / 2)]);
      if (!setting.is_general()) { results.push_back(on_device(batch, false)[static_cast<std::size_t>(num_rows / 2)]); }
    }
    for (const SampledToken& result : results) {
      INFO(setting.name);
      CHECK(result.token == results[0].token);
      CHECK(result.logprob == results[0].logprob);
      REQUIRE(result.top_logprobs.size() == results[0].top_logprobs.size());
      for (std::size_t i = 0; i < result.top_logprobs.size(); ++i) {
        CHECK(result.top_logprobs[i].token == results[0].top_logprobs[i].token);
        CHECK(result.top_logprobs[i].logprob == results[0].top_logprobs[i].logprob);
      }
    }
  }
}

TEST_CASE("rows with a NaN or an infinity, or all banned, are not finite", "[kernel][sampling]") {
  nvl_test::require_device();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const int vocab : {1, 7, 1024, 40000}) {
    Batch<bf16> batch(vocab);
    std::vector<std::string> names;
    for (const float bad : {nan, infinity, -infinity, -nan}) {
      for (const int where : {0, vocab / 2, vocab - 1}) {
        for (const bool greedy : {false, true}) {
          std::vector<float> logits = nvl_test::sampling_logits(vocab, 1, 3);
          logits[static_cast<std::size_t>(where)] = bad;
          SamplingRow row = drawn_row();
          if (greedy) { row.temperature = 0.0f; }
          batch.add(logits, row);
          names.push_back("bad logit");
          batch.add(nvl_test::sampling_logits(vocab, 1, 4), row);  // its neighbour is not affected
          names.push_back("good row");
        }
      }
    }
    check_batch(batch, false, names);
    check_batch(batch, true, names);

    Batch<bf16> banned(vocab);
    SamplingExtras all, all_but_one;
    for (int i = 0; i < vocab; ++i) {
      all.banned.push_back(i);
      if (i != vocab / 3) { all_but_one.banned.push_back(i); }
    }
    for (const SamplingSetting& setting : nvl_test::sampling_settings()) {
      banned.add(nvl_test::sampling_logits(vocab, 1, 5), setting.row, all);
      banned.add(nvl_test::sampling_logits(vocab, 1, 5), setting.row, all_but_one);
    }
    const std::vector<SampledToken> got = on_device(banned, true);
    for (std::size_t r = 0; r < got.size(); ++r) {
      INFO(r);
      CHECK(got[r].finite == (r % 2 == 1));
      if (r % 2 == 1) { CHECK(got[r].token == vocab / 3); }
    }
  }
}

TEST_CASE("ids outside the vocabulary have no logit to change", "[kernel][sampling][sanitize]") {
  nvl_test::require_device();
  Batch<float> batch(100);
  SamplingRow row = drawn_row();
  row.frequency_penalty = 1.0f;
  batch.add(nvl_test::sampling_logits(100, 1, 1), row,
            {.bias = {{-1, 5.0f}, {100, 5.0f}, {7, 5.0f}, {7, -2.0f}}, .banned = {-5, 1 << 30}, .history = {-1, 3, 100, 3, 101}});
  check_batch(batch, true, {"ids outside"});
}

TEST_CASE("biases end where finite floats do", "[kernel][sampling]") {
  nvl_test::require_device();
  Batch<float> batch(1000);
  SamplingRow row;
  const float large = 3e38f;
  batch.add(nvl_test::sampling_logits(1000, 1, 1), row,
            {.bias = {{5, large}, {5, large}, {6, large}}, .banned = {}, .history = {}});
  batch.add(nvl_test::sampling_logits(1000, 1, 1), drawn_row(),
            {.bias = {{5, -large}, {5, -large}}, .banned = {}, .history = {}});
  check_batch(batch, true, {"large bias", "large negative bias"});
}

TEST_CASE("sampling parameters out of range are named", "[kernel][sampling]") {
  kernels::SampleParams<float> p;
  using Plain = kernels::SamplePlainTraits<float>;
  using General = kernels::SampleGeneralTraits<float>;
  CHECK_THROWS_AS(kernels::launch_sample_plain<Plain>(p, nullptr), InvalidArgument);
  p.vocab = p.row_stride = 10;
  kernels::launch_sample_plain<Plain>(p, nullptr);  // no rows: nothing is launched
  kernels::launch_sample_general<General>(p, nullptr);
  p.num_rows = 1;
  CHECK_THROWS_AS(kernels::launch_sample_general<General>(p, nullptr), InvalidArgument);  // no workspace
  p.row_stride = 9;
  CHECK_THROWS_AS(kernels::launch_sample_plain<Plain>(p, nullptr), InvalidArgument);
  p.row_stride = 10;
  p.max_top_logprobs = 5;
  CHECK_THROWS_AS(kernels::launch_sample_general<General>(p, nullptr), InvalidArgument);  // no memory for them
}

TEST_CASE("which rows need the general kernel", "[kernel][sampling]") {
  for (const SamplingSetting& setting : nvl_test::sampling_settings()) {
    SamplingRow row = setting.row;
    row.bias.end = static_cast<std::uint32_t>(setting.num_bias);
    row.banned.end = static_cast<std::uint32_t>(setting.num_banned);
    INFO(setting.name);
    CHECK(kernels::needs_general_sampling({&row, 1}) == setting.is_general());
  }
  SamplingRow greedy;
  greedy.top_k = 5;  // of no consequence
  CHECK_FALSE(kernels::needs_general_sampling({&greedy, 1}));
}
