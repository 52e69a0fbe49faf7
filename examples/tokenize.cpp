/// nvl-tokenize: text on standard input becomes token ids on standard output, or the other way with --decode.

#include "support/files.hpp"
#include "support/model_options.hpp"

#include <nvl/core/ids.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/tokenizer.hpp>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace nvl_examples;

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

/// Calls `use(line, where)` for each line of standard input as it comes, so that a program can hold a dialogue.
template <class Use>
void for_each_line(Use&& use) {
  std::string line;
  std::size_t number = 1;
  const auto finish_line = [&] {
    if (line.ends_with('\r')) { line.pop_back(); }
    use(line, "standard input line " + std::to_string(number++));
    line.clear();
  };
  for (int c = std::getc(stdin); c != EOF; c = std::getc(stdin)) {
    if (c == '\n') {
      finish_line();
    } else {
      line += static_cast<char>(c);
    }
  }
  if (!line.empty()) { finish_line(); }
}

int tokenize(int argc, char** argv) {
  OptionParser parser("nvl-tokenize", "Turns the text on standard input, byte for byte, into the model's token ids on one line.");
  ModelOptions model;
  bool decode = false, jsonl = false, no_special = false;
  model.add_model_to(parser);
  parser.group("Options");
  parser.flag("-d,--decode", decode, "The other way: ids on standard input become text.");
  parser.flag("--jsonl", jsonl, "A text a line: JSON strings in, a line of ids out for each; with --decode, the other way.");
  parser.flag("--no-special", no_special,
              "Text that spells a special token, such as <|im_end|>, is text and not that token. With --decode: leave special "
              "tokens out.");
  parser.footer(
      "Examples:\n"
      "  printf 'Hello world' | nvl-tokenize -m model.gguf\n"
      "  echo '1 2 3' | nvl-tokenize -m model.gguf --decode");
  if (!parser.parse(argc, argv)) { return 0; }
  model.validate();
  const nvl::Tokenizer tokenizer = nvl::Tokenizer::open(model.model);
  const auto special = no_special ? nvl::Tokenizer::SpecialText::as_text : nvl::Tokenizer::SpecialText::parse;

  const auto text_of = [&](std::string_view ids, const std::string& where) {
    const std::vector<nvl::TokenId> parsed = parse_ids(ids, where);
    for (const nvl::TokenId id : parsed) {
      if (id >= tokenizer.vocab_size()) {
        throw UsageError(where + ": token id " + std::to_string(id) + " is not below the vocabulary size (" +
                         std::to_string(tokenizer.vocab_size()) + ")");
      }
    }
    return tokenizer.decode(parsed, no_special);
  };
  if (!jsonl) {
    const std::string input = read_text("-");
    print(decode ? text_of(input, "standard input") : ids_text(tokenizer.encode(input, special)) + "\n");
    return 0;
  }
  for_each_line([&](const std::string& line, const std::string& where) {
    if (decode) {
      print(nlohmann::json(text_of(line, where)).dump() + "\n");
    } else {
      const nlohmann::json text = nvl::parse_json(line, where);
      if (!text.is_string()) { throw UsageError(where + ": must be a JSON string"); }
      print(ids_text(tokenizer.encode(text.get_ref<const std::string&>(), special)) + "\n");
    }
  });
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program("nvl-tokenize", [&] { return tokenize(argc, argv); });
}
