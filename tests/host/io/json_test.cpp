#include <nvl/io/json.hpp>

#include "support/expect_error.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <cstdint>
#include <ctime>
#include <limits>
#include <string>
#include <vector>

namespace json_test {

using namespace nvl;
using nvl_test::expect_error;

namespace {

nlohmann::json parse(const std::string& text) { return parse_json(text, "some.json"); }

struct BadText {
  const char* name;
  std::string text;
  std::vector<std::string> words;
};

std::string repeated(const std::string& part, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) { text += part; }
  return text;
}

const std::vector<BadText>& bad_texts() {
  static const std::vector<BadText> rows{
      {"empty", "", {"unexpected end of input"}},
      {"blanks only", " \n\t", {"unexpected end of input"}},
      {"unclosed array", "[1, 2", {"unexpected end of input"}},
      {"unclosed string", "\"abc", {"missing closing quote"}},
      {"two values", "1 2", {"expected end of input"}},
      {"text behind the value", "{}x", {"invalid literal"}},
      {"comma at the end", "[1,]", {"syntax error"}},
      {"comment", "[1] // one", {"invalid literal"}},
      {"single quotes", "{'a': 1}", {"syntax error"}},
      {"key without quotes", "{a: 1}", {"syntax error"}},
      {"NaN", "[NaN]", {"invalid literal"}},
      {"Infinity", "[-Infinity]", {"invalid number"}},
      {"leading zero", "[01]", {"syntax error"}},
      {"leading plus", "[+1]", {"invalid literal"}},
      {"hexadecimal", "[0x10]", {"syntax error"}},
      {"float overflow", "[1e999]", {"number overflow"}},
      {"integer above 2^64", "[18446744073709551616]", {"integer 18446744073709551616 does not fit 64 bits"}},
      {"integer below -2^63", "[-9223372036854775809]", {"does not fit 64 bits"}},
      {"integer of 1000 digits", "[" + std::string(1000, '7') + "]", {"some.json"}},
      {"duplicate key", "{\"a\": 1, \"a\": 2}", {"offset 12", "duplicate key \"a\""}},
      {"duplicate key by escape", "{\"a\": 1, \"\\u0061\": 2}", {"duplicate key \"a\""}},
      {"duplicate key deep inside", "[{\"x\": {\"k\": 1, \"k\": 1}}]", {"duplicate key \"k\""}},
      {"duplicate key with a newline", "{\"a\\nb\": 1, \"a\\nb\": 2}", {"duplicate key \"a?b\""}},
      {"invalid UTF-8", "\"\xff\"", {"ill-formed UTF-8"}},
      {"cut UTF-8", "\"\xe2\x82\"", {"ill-formed UTF-8"}},
      {"overlong UTF-8", "\"\xc0\xaf\"", {"ill-formed UTF-8"}},
      {"surrogate in UTF-8", "\"\xed\xa0\x80\"", {"ill-formed UTF-8"}},
      {"lone high surrogate", "\"\\ud800\"", {"surrogate"}},
      {"lone low surrogate", "\"\\udc00\"", {"surrogate"}},
      {"control character", std::string("\"a\0b\"", 5), {"control character"}},
      {"bad escape", "\"\\x\"", {"forbidden character after backslash"}},
      {"65 arrays deep", std::string(65, '[') + std::string(65, ']'), {"offset 65", "deeper than 64"}},
      {"100000 arrays deep", std::string(100'000, '['), {"offset 65", "deeper than 64"}},
      {"100000 objects deep", repeated("{\"a\":", 100'000), {"deeper than 64"}},
  };
  return rows;
}

}  // namespace

TEST_CASE("text that is not strict JSON is refused with its file and its reason", "[io][host]") {
  const auto& rows = bad_texts();
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    auto words = rows[i].words;
    words.insert(words.end(), {"some.json", "offset"});
    expect_error<FileError>([&] { parse(rows[i].text); }, words);
  }
}

TEST_CASE("JSON values come out as they were written", "[io][host]") {
  CHECK(parse(" null ").is_null());
  CHECK(parse("18446744073709551615") == ~std::uint64_t{0});
  CHECK(parse("-9223372036854775808") == std::numeric_limits<std::int64_t>::min());
  CHECK(parse("1e-400") == 0.0);
  CHECK(parse("\"\\u00e9\\ud83d\\ude00\\u0000\"") == std::string("\xc3\xa9\xf0\x9f\x98\x80\0", 7));
  const nlohmann::json value = parse(R"({"a": [1, -2, 3.5, [], {}], "b": {"c": [[1], [2, 3]], "d": null}, "e": true})");
  CHECK(value == nlohmann::json::parse(R"({"a": [1, -2, 3.5, [], {}], "b": {"c": [[1], [2, 3]], "d": null}, "e": true})"));
  CHECK_NOTHROW(parse(std::string(64, '[') + std::string(64, ']')));
  CHECK_NOTHROW(parse_json("[[1]]", "x", 2));
  CHECK_THROWS_AS(parse_json("[[1]]", "x", 1), FileError);
}

TEST_CASE("a document whose values would fill the memory is refused while it is parsed", "[io][host]") {
  std::string text = "[0";
  for (int i = 0; i < 3'000'000; ++i) { text += ",0"; }
  text += "]";
  expect_error<FileError>([&] { parse(text); }, {"some.json", "memory"});
  CHECK(parse_json(text, "x", 64, std::size_t{1} << 30).size() == 3'000'001);
  expect_error<FileError>([&] { parse_json(R"({"key": "value"})", "x", 64, 100); }, {"100 bytes of memory"});
}

TEST_CASE("a token that would fill the memory is refused before it is read", "[io][host]") {
  const std::string megabytes(5 << 20, 'x');
  expect_error<FileError>([&] { parse("[1, \"" + megabytes + "\"]"); }, {"some.json", "offset 4", "4194304 bytes"});
  expect_error<FileError>([&] { parse("{\"" + megabytes + "\": 1}"); }, {"offset 1", "4194304 bytes"});
  expect_error<FileError>([&] { parse("[\"a\\\"" + megabytes); }, {"offset 1", "4194304 bytes"});
  expect_error<FileError>([&] { parse("[" + std::string(5 << 20, '1') + "]"); }, {"offset 1", "4194304 bytes"});
  CHECK(parse_json("\"" + megabytes + "\"", "x", 64, std::size_t{64} << 20).get_ref<const std::string&>() == megabytes);
  CHECK(parse("\"" + megabytes.substr(0, 4 << 20).substr(2) + "\"").get_ref<const std::string&>().size() == (4 << 20) - 2);
  // Many short tokens, quotes inside strings, and blanks add up to nothing.
  std::string many = "[\"\\\\\"";
  for (int i = 0; i < 200'000; ++i) { many += ", \"\\\"abcdefghijklmnopqrst\""; }
  CHECK(parse(many + std::string(5 << 20, ' ') + "]").size() == 200'001);
}

TEST_CASE("parsing takes time in proportion to the text", "[io][host]") {
  // Processor time, as the machine may be busy with other tests; ten times the text may take forty times as long, not a hundred.
  const auto clocks = [](int megabytes) {
    std::string text = "[0";
    for (int i = 0; i < megabytes; ++i) { text += ",\"" + std::string(1'000'000, 'x') + "\""; }
    text += "]";
    const std::clock_t start = std::clock();
    CHECK(parse(text).size() == static_cast<std::size_t>(megabytes) + 1);
    return std::clock() - start;
  };
  const std::clock_t small = clocks(2);
  CHECK(clocks(20) < 40 * small);
}

TEST_CASE("typed access to JSON names the key, the value and the rule", "[io][host]") {
  const nlohmann::json object =
      parse(R"({"i": 7, "neg": -1, "big": 18446744073709551615, "f": 0.5, "b": true, "s": "text", "o": {}, "l": [], "n": null})");
  const std::string path = "some.json";
  CHECK(json_int(object, "i", 0, 10, path) == 7);
  CHECK(json_int(object, "neg", -5, 10, path) == -1);
  CHECK(json_float(object, "f", 0, 1, path) == 0.5);
  CHECK(json_float(object, "i", 0, 10, path) == 7.0);
  CHECK(json_bool(object, "b", path));
  CHECK(json_string(object, "s", path) == "text");
  CHECK(json_object(object, "o", path).empty());
  CHECK(json_array(object, "l", path).empty());
  CHECK(json_optional_int(object, "i", 0, 10, path) == 7);
  CHECK(json_optional_float(object, "f", 0, 1, path) == 0.5);
  CHECK(json_optional_bool(object, "b", path) == true);
  CHECK(json_optional_string(object, "s", path) == "text");
  CHECK_FALSE(json_optional_int(object, "absent", 0, 10, path));
  CHECK_FALSE(json_optional_int(object, "n", 0, 10, path));
  CHECK_FALSE(json_optional_string(object, "n", path));
  CHECK(json_find(object, "n") == nullptr);
  CHECK(json_find(parse("[1]"), "n") == nullptr);

  expect_error<FileError>([&] { json_int(object, "i", 8, 10, path); }, {path, "i is 7", "from 8 to 10"});
  expect_error<FileError>([&] { json_int(object, "i", 0, 6, path); }, {"i is 7", "from 0 to 6"});
  expect_error<FileError>([&] { json_int(object, "neg", 0, 6, path); }, {"neg is -1"});
  expect_error<FileError>([&] { json_int(object, "big", 0, std::numeric_limits<std::int64_t>::max(), path); },
                          {"big is 18446744073709551615"});
  expect_error<FileError>([&] { json_int(object, "f", 0, 6, path); }, {"f is 0.5", "an integer"});
  expect_error<FileError>([&] { json_int(object, "s", 0, 6, path); }, {"s is \"text\"", "an integer"});
  expect_error<FileError>([&] { json_int(object, "absent", 0, 6, path); }, {"absent is missing"});
  expect_error<FileError>([&] { json_int(object, "n", 0, 6, path); }, {"n is missing"});
  expect_error<FileError>([&] { json_float(object, "f", 1, 2, path); }, {"f is 0.5", "from 1 to 2"});
  expect_error<FileError>([&] { json_float(object, "o", 1, 2, path); }, {"o is an object", "a number"});
  expect_error<FileError>([&] { json_bool(object, "i", path); }, {"i is 7", "true or false"});
  expect_error<FileError>([&] { json_string(object, "l", path); }, {"l is an array", "a string"});
  expect_error<FileError>([&] { json_object(object, "l", path); }, {"l is an array", "an object"});
  expect_error<FileError>([&] { json_array(object, "o", path); }, {"o is an object", "an array"});
  expect_error<FileError>([&] { json_optional_bool(object, "s", path); }, {"s is \"text\""});
}

TEST_CASE("long values are cut in messages", "[io][host]") {
  const nlohmann::json object = parse("{\"s\": \"" + std::string(5000, 'x') + "\\n\"}");
  expect_error<FileError>([&] { json_int(object, "s", 0, 1, "p"); }, {"xxx..."});
}

}  // namespace json_test
