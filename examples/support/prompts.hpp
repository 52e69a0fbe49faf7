#pragma once
/// Prompts from the command line or from files, and their token ids.

#include "support/files.hpp"
#include "support/options.hpp"

#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/io/chat_format.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/tokenizer.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nvl_examples {

struct Prompt {
  std::variant<std::string, std::vector<nvl::ChatMessage>, std::vector<nvl::TokenId>> content;
  std::string where;  // for messages: "prompts.jsonl line 3", or empty
};

struct PromptOptions {
  std::optional<std::string> prompt, prompt_ids;
  std::optional<std::filesystem::path> prompt_file, prompts_file;
  std::optional<std::string> system;
  bool chat = false;
  bool no_special = false;

  /// \param many whether the program takes several prompts and conversations
  void add_to(OptionParser& parser, bool many) {
    parser.group("Prompt (one of the first " + std::string(many ? "four" : "three") + ")");
    parser.option("-p,--prompt", prompt, "TEXT", "The text itself.");
    parser.option("-f,--prompt-file", prompt_file, "FILE", "All bytes of a file; - is standard input.");
    if (many) {
      parser.option("--prompts-file", prompts_file, "FILE",
                    "Many prompts, computed together: a line each, which is a JSON string or an object with \"prompt\" (text), "
                    "\"messages\" ([{\"role\", \"content\"}]) or \"prompt_ids\"; - is standard input.");
    }
    parser.option("--prompt-ids", prompt_ids, "IDS", "Token ids: \"1 2 3\".");
    if (many) {
      parser.flag("--chat", chat, "The prompt is a user's message: put it into the model's chat format.");
      parser.option("--system", system, "TEXT", "With --chat: the system message.");
    }
    parser.flag("--no-special", no_special, "Text that spells a special token, such as <|im_end|>, is text and not that token.");
  }

  /// Reads files, but needs no model yet. \throws UsageError or nvl::FileError
  std::vector<Prompt> read() const {
    const int given = prompt.has_value() + prompt_ids.has_value() + prompt_file.has_value() + prompts_file.has_value();
    if (given == 0) { throw UsageError("no prompt was given: --prompt TEXT and --prompt-file FILE are two ways (see --help)"); }
    if (given > 1) {
      throw UsageError("more than one prompt was given: use one of --prompt, --prompt-file, --prompts-file, --prompt-ids");
    }
    if (system && !chat) { throw UsageError("--system needs --chat"); }
    if (chat && prompt_ids) { throw UsageError("--chat needs text: --prompt-ids is not"); }
    if (prompts_file) { return read_lines(); }
    std::vector<Prompt> prompts(1);
    if (prompt_ids) {
      prompts[0].content = parse_ids(*prompt_ids, "--prompt-ids");
    } else {
      prompts[0].content = from_text(prompt ? *prompt : read_text(*prompt_file));
    }
    return prompts;
  }

  /// \throws UsageError that says which prompt it was
  std::vector<nvl::TokenId> encode(const nvl::Tokenizer& tokenizer, const Prompt& item) const {
    try {
      if (const auto* ids = std::get_if<std::vector<nvl::TokenId>>(&item.content)) { return *ids; }
      if (const auto* messages = std::get_if<std::vector<nvl::ChatMessage>>(&item.content)) {
        return nvl::format_chat(tokenizer, *messages, true);
      }
      const auto special = no_special ? nvl::Tokenizer::SpecialText::as_text : nvl::Tokenizer::SpecialText::parse;
      std::vector<nvl::TokenId> ids = tokenizer.encode(std::get<std::string>(item.content), special);
      if (ids.empty()) { throw UsageError("the prompt is empty"); }
      return ids;
    } catch (const std::exception& error) { throw UsageError(at(item, error.what())); }
  }

  /// `what` with the place of the prompt before it.
  static std::string at(const Prompt& item, std::string_view what) {
    return (item.where.empty() ? "" : item.where + ": ") + std::string(what);
  }

 private:
  std::variant<std::string, std::vector<nvl::ChatMessage>, std::vector<nvl::TokenId>> from_text(std::string text) const {
    if (!chat) { return text; }
    std::vector<nvl::ChatMessage> messages;
    if (system) { messages.push_back({.role = "system", .content = *system}); }
    messages.push_back({.role = "user", .content = std::move(text)});
    return messages;
  }

  std::vector<Prompt> read_lines() const {
    const std::string text = read_text(*prompts_file);
    const std::string file = *prompts_file == "-" ? "standard input" : prompts_file->string();
    std::vector<Prompt> prompts;
    std::size_t number = 0;
    for (const std::string_view line : lines_of(text)) {
      ++number;
      if (line.find_first_not_of(" \t") == std::string_view::npos) { continue; }
      const std::string where = file + " line " + std::to_string(number);
      prompts.push_back({from_json(nvl::parse_json(line, where), where), where});
    }
    if (prompts.empty()) { throw UsageError(file + ": holds no prompt"); }
    return prompts;
  }

  std::variant<std::string, std::vector<nvl::ChatMessage>, std::vector<nvl::TokenId>> from_json(const nlohmann::json& line,
                                                                                                const std::string& where) const {
    if (line.is_string()) { return from_text(line.get<std::string>()); }
    if (!line.is_object() || line.contains("prompt") + line.contains("messages") + line.contains("prompt_ids") != 1) {
      throw UsageError(where + ": must be a string, or an object with one of \"prompt\", \"messages\" and \"prompt_ids\"");
    }
    if (line.contains("prompt")) { return from_text(nvl::json_string(line, "prompt", where)); }
    if (line.contains("messages")) {
      std::vector<nvl::ChatMessage> messages;
      for (const nlohmann::json& message : nvl::json_array(line, "messages", where)) {
        if (!message.is_object()) { throw UsageError(where + ": a message must be an object with \"role\" and \"content\""); }
        messages.push_back(
            {.role = nvl::json_string(message, "role", where), .content = nvl::json_string(message, "content", where)});
      }
      return messages;
    }
    std::vector<nvl::TokenId> ids;
    for (const nlohmann::json& id : nvl::json_array(line, "prompt_ids", where)) {
      ids.push_back(static_cast<nvl::TokenId>(nvl::json_to_int(id, "prompt_ids[" + std::to_string(ids.size()) + "]", 0,
                                                               std::numeric_limits<nvl::TokenId>::max(), where)));
    }
    return ids;
  }
};

}  // namespace nvl_examples
