// Real vocabularies against the tokenizers that their publishers use: tests/golden/make_tokenizer_goldens.py.
#include <nvl/io/sentencepiece_model.hpp>
#include <nvl/io/tiktoken_vocab.hpp>
#include <nvl/io/tokenizer.hpp>

#include <support/tokenizer_golden.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace tokenizer_golden_test {

using namespace nvl;
using nvl_test::code_point_text;
using nvl_test::IdChecksum;
using nvl_test::RandomTexts;

namespace {

const std::filesystem::path fetched = NVL_FETCHED_DATA_DIR;
const std::filesystem::path llama_cpp = fetched / "vocab" / "llama.cpp";
const std::filesystem::path mistral = fetched / "vocab" / "mistral_common";

struct RealVocabulary {
  std::string name;
  std::filesystem::path path;
  std::function<TokenizerParts(const std::filesystem::path&)> read;
  bool special_as_text = false;  // SentencePiece itself never parses control tokens
};

std::vector<RealVocabulary> real_vocabularies() {
  const auto gguf = [](const std::filesystem::path& path) { return read_tokenizer_gguf(GgufFile(path)); };
  const auto qwen = [](const std::filesystem::path& path) {
    RankedVocabularyOptions options;
    options.pattern = std::string(split_patterns::qwen2);
    options.added = {{.id = 151643, .content = "<|endoftext|>", .special = true},
                     {.id = 151644, .content = "<|im_start|>", .special = true},
                     {.id = 151645, .content = "<|im_end|>", .special = true}};
    return read_tiktoken(path, options);
  };
  return {
      {"smollm2", fetched / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf", gguf},
      {"llama3", llama_cpp / "ggml-vocab-llama-bpe.gguf", gguf},
      {"qwen2", llama_cpp / "ggml-vocab-qwen2.gguf", gguf},
      {"llama2", llama_cpp / "ggml-vocab-llama-spm.gguf", gguf},
      {"qwen_tiktoken", fetched / "vocab" / "qwen" / "qwen.tiktoken", qwen},
      {"tekken_240718", mistral / "tekken_240718.json", read_tekken},
      {"tekken_240911", mistral / "tekken_240911.json", read_tekken},
      {"mistral_v1", mistral / "tokenizer.model.v1", read_sentencepiece_model, true},
      {"mistral_v2", mistral / "mistral_instruct_tokenizer_240216.model.v2", read_sentencepiece_model, true},
      {"mistral_v3", mistral / "mistral_instruct_tokenizer_240323.model.v3", read_sentencepiece_model, true},
      {"mistral_v7", mistral / "mistral_instruct_tokenizer_241114.model.v7", read_sentencepiece_model, true},
  };
}

/// Runs `check(tokenizer, golden, special)` on every vocabulary that is there.
template <class Check>
void for_each_vocabulary(Check&& check) {
  for (const RealVocabulary& vocabulary : real_vocabularies()) {
    DYNAMIC_SECTION(vocabulary.name) {
      if (!std::filesystem::exists(vocabulary.path)) { SKIP("fetch it with scripts/fetch_vocabularies and scripts/fetch_model"); }
      const Tokenizer tokenizer(vocabulary.read(vocabulary.path));
      check(tokenizer, nvl_test::read_tokenizer_golden(vocabulary.name),
            vocabulary.special_as_text ? Tokenizer::SpecialText::as_text : Tokenizer::SpecialText::parse);
    }
  }
}

constexpr auto no_template = Tokenizer::AddSpecial::no;

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("real vocabularies give the reference's ids and texts for every text of the table", "[io][host]") {
  for_each_vocabulary([](const Tokenizer& tokenizer, const nlohmann::json& golden, Tokenizer::SpecialText special) {
    REQUIRE(golden.at("cases").size() > 200);
    for (const auto& entry : golden.at("cases")) {
      const auto text = entry.at("text").get<std::string>();
      const auto want = entry.at("ids").get<std::vector<TokenId>>();
      CAPTURE(text);
      const auto ids = tokenizer.encode(text, special, no_template);
      CHECK(ids == want);
      if (entry.contains("decoded")) {
        const auto decoded = entry.at("decoded").get<std::string>();
        CHECK(tokenizer.decode(ids) == decoded);
        CHECK(tokenizer.decode(ids, false) == entry.value("decoded_special", decoded));
        const auto as_text = tokenizer.encode(text, Tokenizer::SpecialText::as_text, no_template);
        CHECK(as_text == entry.value("ids_as_text", want));
        CHECK(std::none_of(as_text.begin(), as_text.end(), [&](TokenId id) { return tokenizer.is_special(id); }));
      }
    }
  });
}

TEST_CASE("real vocabularies give the reference's ids for random texts", "[io][host][slow]") {
  for_each_vocabulary([](const Tokenizer& tokenizer, const nlohmann::json& golden, Tokenizer::SpecialText special) {
    RandomTexts texts(12345);
    const auto block = golden.at("random_block").get<int>();
    const auto want = golden.at("random").get<std::vector<std::uint32_t>>();
    std::vector<std::uint32_t> got;
    for (std::size_t i = 0; i < want.size(); ++i) {
      IdChecksum checksum;
      for (int k = 0; k < block; ++k) { checksum.add(tokenizer.encode(texts.next(), special, no_template)); }
      got.push_back(checksum.value());
    }
    CHECK(got == want);
  });
}

TEST_CASE("real vocabularies give the reference's ids for every assigned code point", "[io][host][slow]") {
  for_each_vocabulary([](const Tokenizer& tokenizer, const nlohmann::json& golden, Tokenizer::SpecialText special) {
    const auto block = golden.at("code_point_block").get<int>();
    const auto want = golden.at("code_points").get<std::vector<std::uint32_t>>();
    std::vector<std::uint32_t> got;
    IdChecksum checksum;
    int in_block = 0;
    constexpr char32_t last = 0xE01EF;
    for (char32_t c = 0; c <= last; ++c) {
      if ((c >= 0xD800 && c <= 0xF8FF) || (c >= 0x323B0 && c < 0xE0000)) { continue; }
      checksum.add(tokenizer.encode(code_point_text(c), special, no_template));
      if (++in_block == block || c == last) {
        got.push_back(checksum.value());
        checksum = {};
        in_block = 0;
      }
    }
    CHECK(got == want);
  });
}

TEST_CASE("text that a vocabulary can spell survives encoding and decoding, in one piece or streamed", "[io][host]") {
  for_each_vocabulary([](const Tokenizer& tokenizer, const nlohmann::json& golden, Tokenizer::SpecialText) {
    for (const auto& entry : golden.at("cases")) {
      const auto ids = tokenizer.encode(entry.at("text").get<std::string>(), Tokenizer::SpecialText::as_text, no_template);
      StreamDecoder stream(tokenizer);
      std::string streamed;
      for (const TokenId id : ids) {
        const std::string piece = stream.push(id);
        CHECK(is_valid_utf8(piece));
        streamed += piece;
      }
      CHECK(streamed + stream.finish() == tokenizer.decode(ids));
    }
    const std::string plain =
        "Hello, world!\n\tif (x == 42) { return \"na\xC3\xAFve \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x98\x80\"; }  ";
    CHECK(tokenizer.decode(tokenizer.encode(plain)) == plain);
  });
}

TEST_CASE("every ggml vocabulary gives llama.cpp's ids on its texts or is refused by name", "[io][host]") {
  if (!std::filesystem::exists(llama_cpp)) { SKIP("fetch them with scripts/fetch_vocabularies"); }
  // What is refused, and the word in the message that says why. All others must match.
  const std::map<std::string, std::string> refused{
      {"aquila", "tokenizer.ggml.pre is missing"},
      {"bert-bge", "\"bert\""},
      {"falcon", "\"falcon\""},
      {"gemma-4", "\"gemma4\""},
      {"gpt-neox", "tokenizer.ggml.pre is missing"},
      {"nomic-bert-moe", "\"t5\""},
      {"qwen35", "\"qwen35\""},
  };
  int matched = 0;
  int num_refused = 0;
  for (const auto& file : std::filesystem::directory_iterator(llama_cpp)) {
    if (file.path().extension() != ".gguf") { continue; }
    const std::string name = file.path().stem().string().substr(std::string("ggml-vocab-").size());
    CAPTURE(name);
    const auto known = refused.find(name);
    try {
      const Tokenizer tokenizer = Tokenizer::open(file.path());
      CHECK(known == refused.end());
      std::filesystem::path texts = file.path(), ids = file.path();
      texts += ".inp";
      ids += ".out";
      if (!std::filesystem::exists(texts)) { continue; }  // baichuan: the package has no texts for it
      const std::string all = read_file(texts);
      std::istringstream lines(read_file(ids));
      const std::string separator = "\n__ggml_vocab_test__\n";
      int count = 0;
      for (std::size_t begin = 0; begin != std::string::npos; ++count) {
        const std::size_t end = all.find(separator, begin);
        const std::string text = all.substr(begin, end == std::string::npos ? end : end - begin);
        begin = end == std::string::npos ? end : end + separator.size();
        std::string line;
        if (!std::getline(lines, line)) { break; }
        std::istringstream numbers(line);
        const std::vector<TokenId> want{std::istream_iterator<TokenId>(numbers), {}};
        CAPTURE(text);
        CHECK(tokenizer.encode(text, Tokenizer::SpecialText::as_text, no_template) == want);
      }
      CHECK(count > 40);
      ++matched;
    } catch (const Unsupported& error) {
      REQUIRE(known != refused.end());
      CHECK(std::string(error.what()).find(known->second) != std::string::npos);
      ++num_refused;
    }
  }
  CHECK(matched == 11);
  CHECK(num_refused == static_cast<int>(refused.size()));
}

TEST_CASE("one megabyte of one kind of character is tokenized in under a second", "[io][host][slow]") {
  const auto repeat = [](std::string_view unit) {
    std::string text;
    while (text.size() + unit.size() <= (1u << 20)) { text += unit; }
    return text;
  };
  for_each_vocabulary([&](const Tokenizer& tokenizer, const nlohmann::json&, Tokenizer::SpecialText special) {
    for (const std::string_view unit : {"a",
                                        "A",
                                        " ",
                                        "_",
                                        "9",
                                        "\n",
                                        "\r",
                                        "^",
                                        "<",
                                        "<|",
                                        "'",
                                        "aA",
                                        " \t",
                                        "\xE4\xB8\xAD",
                                        "\xF0\x9F\x91\xA9\xE2\x80\x8D",
                                        "\xCC\x81",
                                        "e\xCC\x81\xCC\xA3",
                                        "\xCC\xA3\xCC\x81",
                                        "\xEF\xBF\xBD",
                                        "\xFF",
                                        "\xEA\xB0\x80",
                                        "<|im_start|>"}) {
      const std::string text = repeat(unit);
      const std::clock_t start = std::clock();  // of the processor: other programs do not count
      const auto ids = tokenizer.encode(text, special);
      const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      CAPTURE(unit, ids.size());
      CHECK(!ids.empty());
      CHECK(seconds < 1.0);
    }
  });
}

}  // namespace tokenizer_golden_test
