// One feature of tokenizer.json at a time, against Hugging Face's tokenizers: tests/golden/make_tokenizer_feature_goldens.py.
#include <nvl/io/tokenizer.hpp>

#include <support/expect_error.hpp>
#include <support/temp_dir.hpp>
#include <support/tokenizer_golden.hpp>

#include <catch2/catch_test_macros.hpp>

#include <array>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace tokenizer_feature_test {

using namespace nvl;
using nlohmann::json;
using nvl_test::expect_error;

namespace {

constexpr auto no_template = Tokenizer::AddSpecial::no;

const json& features() {
  static const json data = nvl_test::read_tokenizer_golden("features");
  return data;
}

json feature(const std::string& name) {
  for (const json& entry : features()) {
    if (entry.at("name") == name) { return entry.at("tokenizer"); }
  }
  FAIL("no feature named " << name);
  return {};
}

Tokenizer load(const json& tokenizer) { return Tokenizer(parse_tokenizer_json(tokenizer.dump(), "tokenizer.json")); }

}  // namespace

TEST_CASE("each feature of tokenizer.json does what Hugging Face's tokenizers does", "[io][host]") {
  CHECK(features().size() >= 40);
  for (const json& entry : features()) {
    DYNAMIC_SECTION(entry.at("name").get<std::string>()) {
      const Tokenizer tokenizer = load(entry.at("tokenizer"));
      for (const json& item : entry.at("cases")) {
        const auto text = item.at("text").get<std::string>();
        CAPTURE(text);
        const auto ids = tokenizer.encode(text);
        CHECK(ids == item.at("ids").get<std::vector<TokenId>>());
        CHECK(tokenizer.encode(text, Tokenizer::SpecialText::as_text, no_template) ==
              item.at("ids_as_text").get<std::vector<TokenId>>());
        CHECK(tokenizer.decode(ids) == item.at("decoded").get<std::string>());
        CHECK(tokenizer.decode(ids, false) == item.at("decoded_special").get<std::string>());
      }
      for (const json& item : entry.at("decode")) {
        const auto ids = item.at("ids").get<std::vector<TokenId>>();
        CAPTURE(ids);
        CHECK(tokenizer.decode(ids) == item.at("decoded").get<std::string>());
        CHECK(tokenizer.decode(ids, false) == item.at("decoded_special").get<std::string>());
      }
    }
  }
}

TEST_CASE("merges written as strings and as pairs are the same", "[io][host]") {
  json old_style = feature("byte level");
  for (json& merge : old_style.at("model").at("merges")) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  old_style.at("model").erase("type");
  CHECK(load(old_style).encode("hello world") == load(feature("byte level")).encode("hello world"));
  CHECK(load(feature("byte level")).encode("hello").size() == 1);
}

TEST_CASE("bytes that are not UTF-8 are encoded as U+FFFD", "[io][host]") {
  const Tokenizer tokenizer = load(feature("byte level"));
  CHECK(tokenizer.encode("a\xFFz\xE4\xB8") == tokenizer.encode("a\xEF\xBF\xBDz\xEF\xBF\xBD"));
  CHECK(tokenizer.decode(tokenizer.encode("\xC3")) == "\xEF\xBF\xBD");
  CHECK(tokenizer.decode(tokenizer.encode(std::string_view("a\0b", 3))) == std::string_view("a\0b", 3));
}

TEST_CASE("a tokenizer answers questions about its tokens", "[io][host]") {
  const Tokenizer tokenizer = load(feature("template"));
  const auto hello = tokenizer.find("hello");
  REQUIRE(hello);
  CHECK(tokenizer.bytes(*hello) == "hello");
  CHECK_FALSE(tokenizer.is_special(*hello));
  const auto begin = tokenizer.find("<s>");
  REQUIRE(begin);
  CHECK(tokenizer.is_special(*begin));
  CHECK(tokenizer.find(" hello").has_value());
  CHECK_FALSE(tokenizer.find("no such token").has_value());
  CHECK(tokenizer.bytes(-1).empty());
  CHECK(tokenizer.bytes(tokenizer.vocab_size()).empty());
  CHECK_FALSE(tokenizer.is_special(tokenizer.vocab_size()));
  CHECK_FALSE(tokenizer.is_special(-1));
  CHECK(tokenizer.decode(std::array<TokenId, 3>{-5, *hello, 1 << 30}) == "hello");
}

TEST_CASE("bytes without a token are dropped, as Hugging Face drops them", "[io][host]") {
  json tokenizer = feature("byte level");
  tokenizer.at("model").at("vocab").erase("z");
  CHECK(load(tokenizer).decode(load(tokenizer).encode("hezllo wzorld")) == "hello world");
  CHECK(load(tokenizer).encode("hezllo").size() == 1);  // dropped before merging, so its neighbours meet
}

TEST_CASE("ids with gaps between them are read, and the gaps are empty", "[io][host]") {
  json tokenizer = feature("byte level");
  tokenizer.at("added_tokens") = json::array({{{"id", 400}, {"content", "<far>"}, {"special", true}}});
  const Tokenizer loaded = load(tokenizer);
  CHECK(loaded.vocab_size() == 401);
  CHECK(loaded.encode("<far>") == std::vector<TokenId>{400});
  CHECK(loaded.bytes(399).empty());
}

TEST_CASE("a directory gives tokenizer.json with the template and the end of sequence from the files beside it", "[io][host]") {
  const nvl_test::TempDir dir;
  dir.write("tokenizer.json", feature("template").dump());
  CHECK(Tokenizer::open(dir.path()).chat_template().empty());
  CHECK(Tokenizer::open(dir.path()).eos_ids().empty());
  dir.write(
      "tokenizer_config.json",
      R"({"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}]})");
  const Tokenizer tokenizer = Tokenizer::open(dir.path() / "tokenizer.json");
  CHECK(tokenizer.chat_template() == "y");
  REQUIRE(tokenizer.eos_ids().size() == 1);
  CHECK(tokenizer.eos_ids()[0] == tokenizer.find("</s>"));
  CHECK(tokenizer.bos_id() == tokenizer.find("<s>"));
  dir.write("chat_template.jinja", "z");
  CHECK(Tokenizer::open(dir.path()).chat_template() == "z");
  dir.write("tokenizer_config.json", R"({"chat_template": 5})");
  expect_error<FileError>([&] { Tokenizer::open(dir.path()); }, {"tokenizer_config.json", "chat_template", "5"});
}

TEST_CASE("a broken tokenizer.json is an error that names the file and what is wrong", "[io][host]") {
  struct Broken {
    std::function<void(json&)> change;
    std::vector<std::string> words;
  };
  const auto model = [](json& j) -> json& { return j.at("model"); };
  const std::vector<Broken> cases{
      {[](json& j) { j = json::array(); }, {"an array", "object"}},
      {[](json& j) { j.erase("model"); }, {"model", "missing"}},
      {[&](json& j) { model(j).erase("vocab"); }, {"vocab", "missing"}},
      {[&](json& j) { model(j).at("vocab") = 3; }, {"vocab", "3", "object"}},
      {[&](json& j) { model(j).erase("merges"); }, {"merges", "missing"}},
      {[&](json& j) { model(j).at("merges") = "x"; }, {"merges", "array"}},
      {[&](json& j) { model(j).at("merges").push_back("no_blank"); }, {"merge", "no_blank", "blank"}},
      {[&](json& j) { model(j).at("merges").push_back(" "); }, {"merge", "blank"}},
      {[&](json& j) { model(j).at("merges").push_back(json::array({"a"})); }, {"merges", "array"}},
      {[&](json& j) { model(j).at("merges").push_back(7); }, {"merges", "7"}},
      {[&](json& j) { model(j).at("merges").push_back("zzz a"); }, {"merge 13", "zzz", "not in the vocabulary"}},
      {[&](json& j) { model(j).at("merges").push_back("a zzz"); }, {"merge 13", "zzz", "not in the vocabulary"}},
      {[&](json& j) { model(j).at("merges").push_back("q q"); }, {"merge 13", "\"qq\"", "not in the vocabulary"}},
      {[&](json& j) { model(j).at("vocab")["new"] = 5; }, {"same id", "5", "new"}},
      {[&](json& j) { model(j).at("vocab")["new"] = -1; }, {"new", "-1"}},
      {[&](json& j) { model(j).at("vocab")["new"] = 1 << 30; }, {"new", "1073741824"}},
      {[&](json& j) { model(j).at("vocab")["new"] = "5"; }, {"new", "5"}},
      {[&](json& j) { model(j).at("vocab")["new"] = 1e300; }, {"new"}},
      {[&](json& j) { model(j).at("vocab")[""] = 300; }, {"length 0"}},
      {[&](json& j) { model(j)["unk_token"] = "<nothing>"; }, {"unk_token", "<nothing>"}},
      {[&](json& j) { model(j)["ignore_merges"] = "yes"; }, {"ignore_merges", "yes"}},
      {[](json& j) { j["added_tokens"] = 1; }, {"added_tokens"}},
      {[](json& j) { j["added_tokens"] = {1}; }, {"added_tokens", "1"}},
      {[](json& j) {
         j["added_tokens"] = {{{"id", 300}, {"content", ""}}};
       },
       {"added", "length 0"}},
      {[](json& j) {
         j["added_tokens"] = {{{"id", 300}, {"content", std::string(2000, 'x')}}};
       },
       {"2000 bytes"}},
      {[](json& j) {
         j["added_tokens"] = {{{"id", 3}, {"content", "new"}}};
       },
       {"same id 3", "new"}},
      {[](json& j) {
         j["added_tokens"] = {{{"id", 3}, {"content", "hello"}}};
       },
       {"hello", "3", "vocab"}},
      {[](json& j) {
         j["added_tokens"] = {{{"id", -3}, {"content", "new"}}};
       },
       {"id", "-3"}},
      {[](json& j) {
         j["added_tokens"] = {{{"content", "new"}}};
       },
       {"id", "missing"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}, {"invert", false}};
       },
       {"regular expression", "(a", "malformed"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", ""}}}, {"behavior", "Isolated"}};
       },
       {"empty pattern"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", "x"}, {"behavior", "Isolated"}};
       },
       {"pattern", "object"}},
      {[](json& j) { j["pre_tokenizer"] = "ByteLevel"; }, {"pre_tokenizer", "object"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"no", "type"}};
       },
       {"type", "missing"}},
      {[](json& j) {
         j["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}};
       },
       {"Replace", "empty pattern"}},
      {[](json& j) {
         j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", json::array()}, {"special_tokens", json::object()}};
       },
       {"0 sequences"}},
      {[](json& j) {
         j["post_processor"] = {{"type", "TemplateProcessing"},
                                {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                                {"special_tokens", {{"<s>", {{"ids", {99999}}}}}}};
       },
       {"token id", "99999"}},
      {[](json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}, {"sep", json::array({"x"})}, {"cls", json::array({"y", 1})}};
       },
       {"post_processor"}},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    DYNAMIC_SECTION("case " << i) {
      json broken = feature("byte level");
      cases[i].change(broken);
      std::vector<std::string> words = cases[i].words;
      words.push_back("tokenizer.json");
      expect_error<FileError>([&] { load(broken); }, words);
    }
  }
}

TEST_CASE("what nvl could not reproduce exactly is refused by name", "[io][host]") {
  struct Refused {
    std::function<void(json&)> change;
    std::vector<std::string> words;
  };
  const auto regex = [](const char* pattern) {
    return [pattern](json& j) {
      j["pre_tokenizer"] = {{"type", "Sequence"},
                            {"pretokenizers",
                             {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
                              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    };
  };
  const std::vector<Refused> cases{
      {[](json& j) { j["model"]["type"] = "Unigram"; }, {"Unigram", "BPE"}},
      {[](json& j) { j["model"]["type"] = "WordPiece"; }, {"WordPiece", "BPE"}},
      {[](json& j) { j["model"]["dropout"] = 0.1; }, {"dropout"}},
      {[](json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, {"continuing_subword_prefix", "##"}},
      {[](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, {"end_of_word_suffix", "</w>"}},
      {[](json& j) { j["model"]["byte_fallback"] = true; }, {"byte_fallback"}},
      {[](json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       },
       {"normalizer", "Lowercase", "NFC"}},
      {[](json& j) {
         j["normalizer"] = {{"type", "NFKC"}};
       },
       {"NFKC"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Whitespace"}};
       },
       {"pre_tokenizer", "Whitespace", "ByteLevel"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}};
       },
       {"ByteLevel", "last"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}};
       },
       {"replacement", "U+2581"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"prepend_scheme", "second"}};
       },
       {"prepend_scheme", "second"}},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Eaten"}};
       },
       {"behavior", "Eaten"}},
      {[](json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       },
       {"decoder", "WordPiece"}},
      {[](json& j) { j.erase("decoder"); }, {"decoder", "missing"}},
      {[](json& j) { j["pre_tokenizer"] = nullptr; }, {"decoder", "ByteLevel"}},
      {[](json& j) {
         j["post_processor"] = {{"type", "Other"}};
       },
       {"post_processor", "Other"}},
      {regex(R"(\w+)"), {"regular expression", "\\w"}},
      {regex(R"(a\b)"), {"\\b"}},
      {regex(R"(\p{Han}+)"), {"\\p{Han}"}},
      {regex(R"(\P{L})"), {"\\P"}},
      {regex(R"([a&&b])"), {"&&"}},
      {regex(R"([a[bc]])"), {"class inside a class"}},
      {regex(R"([[:alpha:]])"), {"class inside a class"}},
      {regex(R"(a{2}+)"), {"}+"}},
      {regex(R"((?<=a)b)"), {"(?<="}},
      {regex(R"((?i)a)"), {"(?i)"}},
      {regex(R"((*ACCEPT)a)"), {"(*"}},
      {regex(R"([^\S])"), {"\\S inside a class"}},
      {regex("a\\"), {"at its end"}},
      {regex(R"([]a])"), {"]"}},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    DYNAMIC_SECTION("case " << i) {
      json refused = feature("byte level");
      cases[i].change(refused);
      expect_error<Unsupported>([&] { load(refused); }, cases[i].words);
    }
  }
}

TEST_CASE("every truncation of a tokenizer.json is an error", "[io][host]") {
  const std::string whole = feature("template").dump();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    bool thrown = false;
    try {
      parse_tokenizer_json(whole.substr(0, size), "t");
    } catch (const FileError&) { thrown = true; }
    if (!thrown) {
      CAPTURE(size);
      FAIL("accepted");
    }
  }
  CHECK_NOTHROW(parse_tokenizer_json(whole, "t"));
}

TEST_CASE("a pattern that hits its limits is an error of the text, not a crash", "[io][host]") {
  json tokenizer = feature("byte level");
  // Nested quantifiers: exponential in the length of the run.
  tokenizer["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "(?:a|aa|aaa)*(?:a|aa)*[bc]"}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const Tokenizer loaded = load(tokenizer);
  CHECK(loaded.encode("aaab").size() == 4);
  expect_error<InvalidArgument>([&] { loaded.encode(std::string(5000, 'a')); }, {"text", "5000 bytes", "limit"});
}

}  // namespace tokenizer_feature_test
