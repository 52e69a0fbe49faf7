#include <nvl/io/generation_config.hpp>

#include "support/expect_error.hpp"
#include "support/gguf_builder.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <span>
#include <string>
#include <vector>

namespace generation_config_test {

using namespace nvl;
using nvl_test::expect_error;

namespace {

GenerationDefaults map(const std::string& text) {
  return parse_generation_config(parse_json(text, "generation_config.json"), 100, "generation_config.json");
}

struct BadText {
  std::string text;
  std::vector<std::string> words;
};

const std::vector<BadText>& bad_texts() {
  static const std::vector<BadText> rows{
      {R"({"temperature": -1})", {"temperature is -1", "0 to 100"}},
      {R"({"temperature": 101})", {"temperature is 101"}},
      {R"({"temperature": "hot"})", {"temperature is \"hot\""}},
      {R"({"top_k": -2})", {"top_k is -2"}},
      {R"({"top_k": 1.5})", {"top_k is 1.5"}},
      {R"({"top_k": 4294967296})", {"top_k is 4294967296"}},
      {R"({"top_p": 0})", {"top_p is 0"}},
      {R"({"top_p": 1.5})", {"top_p is 1.5"}},
      {R"({"min_p": -0.1})", {"min_p is -0.1"}},
      {R"({"min_p": 2})", {"min_p is 2"}},
      {R"({"repetition_penalty": 0})", {"repetition_penalty is 0"}},
      {R"({"repetition_penalty": 1000})", {"repetition_penalty is 1000"}},
      {R"({"do_sample": 1})", {"do_sample is 1"}},
      {R"({"eos_token_id": 100})", {"eos_token_id is 100", "0 to 99"}},
      {R"({"eos_token_id": -1})", {"eos_token_id is -1"}},
      {R"({"eos_token_id": [1, 100]})", {"eos_token_id is 100"}},
      {R"({"eos_token_id": "x"})", {"eos_token_id is \"x\""}},
      {R"({"bos_token_id": 1000})", {"bos_token_id is 1000"}},
      {R"([])", {"an array", "an object"}},
  };
  return rows;
}

}  // namespace

TEST_CASE("every value of generation_config.json out of its range is refused by name", "[io][host]") {
  const auto& rows = bad_texts();
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].text) {
    auto words = rows[i].words;
    words.emplace_back("generation_config.json");
    expect_error<FileError>([&] { map(rows[i].text); }, words);
  }
}

TEST_CASE("generation_config.json is mapped in full", "[io][host]") {
  const GenerationDefaults d = map(R"({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1,
                                       "do_sample": true, "eos_token_id": [2, 7], "bos_token_id": 1, "max_new_tokens": 5})");
  CHECK(d.temperature == 0.6f);
  CHECK(d.top_k == 20);
  CHECK(d.top_p == 0.95f);
  CHECK(d.min_p == 0.05f);
  CHECK(d.repetition_penalty == 1.1f);
  CHECK(d.do_sample == true);
  CHECK(d.eos_token_ids == std::vector<TokenId>{2, 7});
  CHECK(d.bos_token_id == 1);
  const GenerationDefaults none = map("{\"temperature\": null}");
  CHECK_FALSE(none.temperature);
  CHECK_FALSE(none.top_k);
  CHECK_FALSE(none.do_sample);
  CHECK(none.eos_token_ids.empty());
  CHECK_FALSE(none.bos_token_id);
}

TEST_CASE("defaults change only the parameters that the file names", "[io][host]") {
  SamplingParams params;
  params.top_k = 5;
  map("{}").apply_to(params);
  CHECK(params.temperature == 1.0f);
  CHECK(params.top_k == 5);
  map(R"({"temperature": 0.6, "top_p": 0.9})").apply_to(params);
  CHECK(params.temperature == 0.6f);
  CHECK(params.top_p == 0.9f);
  CHECK(params.top_k == 5);
  map(R"({"temperature": 0.6, "do_sample": false})").apply_to(params);
  CHECK(params.temperature == 0.0f);  // greedy
}

TEST_CASE("generation_config.json is read from a file of bounded size", "[io][host]") {
  const nvl_test::TempDir dir;
  CHECK(read_generation_config(dir.write("g.json", R"({"top_k": 3})"), 10).top_k == 3);
  const auto path = dir.write("g.json", "[" + std::string(5 << 20, ' ') + "]");
  expect_error<FileError>([&] { read_generation_config(path, 10); }, {path.string(), "at most"});
}

TEST_CASE("a GGUF file's sampling keys become defaults", "[io][host]") {
  nvl_test::GgufBuilder builder;
  builder.set("general.sampling.temp", 0.5f).set("general.sampling.top_k", std::int32_t{30}).set("general.sampling.top_p", 0.75f);
  builder.set("general.sampling.min_p", 0.25f).set("general.sampling.penalty_repeat", 1.5f);
  const auto parse = [&] {
    const std::string bytes = builder.build();
    return gguf_generation_defaults(GgufFile(MappedFile::from_bytes(std::as_bytes(std::span(bytes)), "m.gguf")));
  };
  const GenerationDefaults d = parse();
  CHECK(d.temperature == 0.5f);
  CHECK(d.top_k == 30);
  CHECK(d.top_p == 0.75f);
  CHECK(d.min_p == 0.25f);
  CHECK(d.repetition_penalty == 1.5f);
  builder.set("general.sampling.temp", -0.5f);
  expect_error<FileError>([&] { parse(); }, {"m.gguf", "general.sampling.temp is -0.5"});
}

}  // namespace generation_config_test
