#include "bench/support/python_random.hpp"
#include "bench/support/workload.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

namespace workload_test {

using namespace nvl_bench;

namespace {

/// One number for a list; the expected ones come from Python: s = 0; for x in list: s = (s * 31 + x) % 2**64
template <class T>
std::uint64_t hash(const std::vector<T>& values, std::uint64_t start = 0) {
  for (const T value : values) { start = start * 31 + static_cast<std::uint64_t>(value); }
  return start;
}

}  // namespace

TEST_CASE("PythonRandom gives the integers of Python's random", "[bench][host]") {
  PythonRandom known(5489);  // random.Random(5489)
  for (const std::uint32_t expected : {3382763572u, 956215839u, 417760592u, 166104981u, 4181578304u}) {
    CHECK(known.getrandbits(32) == expected);
  }
  PythonRandom long_seed((std::uint64_t{1} << 40) + 7);  // two digits
  for (const std::uint32_t expected : {2635837658u, 3209733218u, 3500038837u}) { CHECK(long_seed.getrandbits(32) == expected); }
  PythonRandom one(1);
  for (const std::int64_t expected : {144272509, 611178002, 909925047}) { CHECK(one.randint(0, 1'000'000'000) == expected); }
  CHECK(one.getrandbits(1) == 1);
  CHECK(one.getrandbits(5) == 24);
  CHECK(one.getrandbits(31) == 135520872);
  CHECK(one.randint(7, 7) == 7);
  CHECK_THROWS_AS(one.randint(1, 0), std::invalid_argument);
  CHECK_THROWS_AS(one.randint(0, std::int64_t{1} << 32), std::invalid_argument);
}

TEST_CASE("the nano-vllm load is that of its script", "[bench][host]") {
  const Workload load = nano_vllm_workload();
  REQUIRE(load.size() == 256);
  CHECK(load.input_tokens() == 142827);
  CHECK(load.output_tokens() == 133966);
  CHECK(load.max_total_len() <= 2048);
  CHECK(load.temperature == 0.6f);
  CHECK(std::vector(load.prompts[0].begin(), load.prompts[0].begin() + 5) ==
        std::vector<nvl::TokenId>{6311, 6890, 663, 4242, 8376});
  CHECK(load.prompts[0].size() == 964);
  CHECK(load.prompts[1].size() == 724);
  CHECK(load.prompts[255].size() == 251);
  CHECK(load.output_lens[0] == 845);
  CHECK(load.output_lens[255] == 312);
  std::uint64_t ids = 0;
  for (const auto& prompt : load.prompts) { ids = hash(prompt, ids); }
  CHECK(ids == 12250650715439666248u);
  CHECK(hash(load.output_lens) == 16798551311378998112u);
}

TEST_CASE("requests of a load carry its lengths and ignore the end of sequence", "[bench][host]") {
  const Workload load = nano_vllm_workload();
  const std::vector<nvl::Request> requests = load.requests();
  REQUIRE(requests.size() == 256);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(requests[i].prompt_ids == load.prompts[i]);
    CHECK(requests[i].sampling.max_tokens == load.output_lens[i]);
    CHECK(requests[i].sampling.ignore_eos);
    CHECK(requests[i].sampling.temperature == 0.6f);
  }
}

TEST_CASE("fresh ids keep the lengths and share no beginning", "[bench][host]") {
  const Workload load = nano_vllm_workload();
  RandomIds random(load.num_ids, 1);
  const Workload first = load.with_fresh_ids(random), second = load.with_fresh_ids(random);
  RandomIds same(load.num_ids, 1);
  CHECK(load.with_fresh_ids(same).prompts == first.prompts);
  CHECK(first.output_lens == load.output_lens);
  std::vector<std::vector<nvl::TokenId>> beginnings;
  for (const Workload* const one : {&load, &first, &second}) {
    for (std::size_t i = 0; i < load.size(); ++i) {
      REQUIRE(one->prompts[i].size() == load.prompts[i].size());
      CHECK(std::all_of(one->prompts[i].begin(), one->prompts[i].end(), [](nvl::TokenId id) { return id >= 0 && id <= 10000; }));
      beginnings.emplace_back(one->prompts[i].begin(), one->prompts[i].begin() + 16);
    }
  }
  std::sort(beginnings.begin(), beginnings.end());
  CHECK(std::adjacent_find(beginnings.begin(), beginnings.end()) == beginnings.end());
}

TEST_CASE("random loads stay within their range", "[bench][host]") {
  RandomIds random(50, 3);
  const Workload load = random_workload(200, {40, 10}, 0.5, 50, random);
  REQUIRE(load.size() == 200);
  std::int32_t shortest = 1000, longest = 0;
  for (const RequestLengths& one : load.lengths()) {
    shortest = std::min(shortest, one.input);
    longest = std::max(longest, one.input);
    CHECK((one.output >= 5 && one.output <= 15));
  }
  CHECK(shortest >= 20);
  CHECK(shortest < 25);
  CHECK(longest <= 60);
  CHECK(longest > 55);
  const Workload equal = random_workload(3, {512, 512}, 0, 50, random);
  CHECK(equal.input_tokens() == 3 * 512);
  CHECK(equal.output_tokens() == 3 * 512);
}

}  // namespace workload_test
