#pragma once
/// Recognises the chat format that a model's Jinja template writes, without running Jinja. A template is recognised only if
/// its outputs are known ones; nothing that it could do besides is guessed at.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace nvl::inline NVL_ABI {

enum class ChatFamily : std::uint8_t {
  chatml,   // <|im_start|>role\ncontent<|im_end|>\n
  qwen3,    // ChatML; the reasoning of earlier answers is left out
  llama3,   // <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>, content trimmed
  llama31,  // Llama 3 with a system header that names two dates
};

/// What a template says, as far as the formats differ.
struct ChatFormat {
  ChatFamily family = ChatFamily::chatml;
  std::optional<std::string> default_system;  // chatml: put in front if the first message is not from `system`
  std::string date;                           // llama31: "Today Date" where the renderer has no clock
  bool uses_clock = false;                    // llama31: "Today Date" is the day of rendering
};

namespace detail {

/// The tags of a Jinja template in a form that can be compared: white space outside string literals is dropped, literals are in
/// single quotes with line ends as \n, `message.role` and `message["role"]` read message['role'].
class TemplateScanner {
 public:
  explicit TemplateScanner(std::string_view text) : in_(text) {}

  /// Nothing if the template writes text outside its expressions.
  std::optional<std::string> scan() {
    bool dash_before = true;  // white space here is taken away by a "-" of the tag before, or the template begins
    bool block_before = false;
    while (pos_ < in_.size()) {
      std::size_t tag = in_.find('{', pos_);
      while (tag != std::string_view::npos &&
             (tag + 1 >= in_.size() || std::string_view("{%#").find(in_[tag + 1]) == std::string_view::npos)) {
        tag = in_.find('{', tag + 1);
      }
      const std::string_view outside = in_.substr(pos_, tag == std::string_view::npos ? tag : tag - pos_);
      const bool dash_after = tag != std::string_view::npos && tag + 2 < in_.size() && in_[tag + 2] == '-';
      const bool blank = outside.find_first_not_of(" \t\r\n") == std::string_view::npos;
      const bool last_line_end = tag == std::string_view::npos && outside == "\n";  // Jinja drops it
      // Hugging Face renders with trim_blocks and lstrip_blocks: one line end after a block tag goes, and so do blanks before one.
      const bool trimmed = block_before && (outside == "\n" ||
                                            (tag != std::string_view::npos && in_[tag + 1] == '%' && outside.starts_with('\n') &&
                                             outside.find_first_not_of(" \t", 1) == std::string_view::npos));
      if (!outside.empty() && !(blank && (dash_before || dash_after || last_line_end || trimmed))) { return std::nullopt; }
      if (tag == std::string_view::npos) { break; }
      pos_ = tag;
      const char kind = in_[pos_ + 1];
      if (!(kind == '#' ? skip_comment() : scan_tag(kind))) { return std::nullopt; }
      dash_before = in_[pos_ - 3] == '-';
      block_before = kind != '{';
    }
    return std::move(out_);
  }

 private:
  bool skip_comment() {
    const std::size_t end = in_.find("#}", pos_ + 2);
    if (end == std::string_view::npos) { return false; }
    pos_ = end + 2;
    return true;
  }

  bool scan_tag(char kind) {
    const std::string_view close = kind == '{' ? "}}" : "%}";
    out_ += kind == '{' ? "{{" : "{%";
    pos_ += 2;
    if (pos_ < in_.size() && in_[pos_] == '-') { ++pos_; }
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (in_.substr(pos_).starts_with(close)) {
        if (out_.ends_with('-')) { out_.pop_back(); }
        out_ += close;
        pos_ += 2;
        return true;
      }
      if (c == '\'' || c == '"') {
        if (!scan_literal(c)) { return false; }
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        ++pos_;
      } else if (c == '.' && member("role")) {
        out_ += "['role']";
      } else if (c == '.' && member("content")) {
        out_ += "['content']";
      } else {
        out_ += c;
        ++pos_;
      }
    }
    return false;
  }

  bool member(std::string_view name) {
    const std::string_view rest = in_.substr(pos_ + 1);
    if (!rest.starts_with(name)) { return false; }
    const char after = rest.size() > name.size() ? rest[name.size()] : ' ';
    if (after == '_' || (after >= 'a' && after <= 'z') || (after >= 'A' && after <= 'Z') || (after >= '0' && after <= '9') ||
        after == '(') {
      return false;
    }
    pos_ += 1 + name.size();
    return true;
  }

  bool scan_literal(char quote) {
    out_ += '\'';
    for (++pos_; pos_ < in_.size() && in_[pos_] != quote; ++pos_) {
      const char c = in_[pos_];
      if (c == '\\' && pos_ + 1 < in_.size()) {
        out_ += c;
        out_ += in_[++pos_];
      } else if (c == '\n') {
        out_ += "\\n";
      } else if (c == '\'') {
        out_ += "\\'";
      } else {
        out_ += c;
      }
    }
    out_ += '\'';
    return pos_++ < in_.size();
  }

  std::string_view in_;
  std::size_t pos_ = 0;
  std::string out_;
};

/// The value of the inside of a Jinja string literal.
inline std::string unescape_literal(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char c = text[++i];
    out += c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
  }
  return out;
}

/// What stands between `before` and `after` in `text`, if it holds no quote; nothing if there is no such place.
inline std::optional<std::string> literal_between(std::string_view text, std::string_view before, std::string_view after) {
  for (std::size_t at = text.find(before); at != std::string_view::npos; at = text.find(before, at + 1)) {
    const std::string_view rest = text.substr(at + before.size());
    const std::size_t end = rest.find(after);
    if (end == std::string_view::npos) { return std::nullopt; }
    std::size_t quote = rest.find('\'');
    while (quote != std::string_view::npos && quote > 0 && rest[quote - 1] == '\\') { quote = rest.find('\'', quote + 1); }
    if (end <= quote) { return unescape_literal(rest.substr(0, end)); }
  }
  return std::nullopt;
}

inline bool contains_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(),
                     [&](std::string_view word) { return text.find(word) != std::string_view::npos; });
}

inline bool contains_all(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::all_of(words.begin(), words.end(),
                     [&](std::string_view word) { return text.find(word) != std::string_view::npos; });
}

inline std::optional<ChatFormat> match_chat_template(std::string_view t) {
  constexpr std::string_view chatml_turn = R"('<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>)";
  const bool chatml = contains_all(t, {chatml_turn, R"({{'<|im_start|>assistant\n'}})"}) &&
                      (contains_any(t, {R"(message['content']+'<|im_end|>'+'\n'}})", R"(message['content']+'<|im_end|>\n'}})"}));
  ChatFormat format;
  if (chatml &&
      contains_all(t, {R"(message['content'].split('</think>')[-1].lstrip('\n'))", "loop.index0>ns.last_query_index",
                       R"({%ifloop.lastor(notloop.lastandreasoning_content)%})",
                       R"('\n<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n'))"}) &&
      !contains_any(t, {"trim", "strftime", "bos_token", "eos_token", "raise_exception", "macro", "replace("})) {
    format.family = ChatFamily::qwen3;
    return format;
  }
  if (chatml && !contains_any(t, {"trim", "strip(", "split(", "namespace", "strftime", "bos_token", "eos_token", "think",
                                  "raise_exception", "macro", "replace(", "upper", "lower", "capitalize", "title", "setcontent",
                                  "setmessages", "messages[1:]"})) {
    format.default_system = literal_between(t, R"('<|im_start|>system\n)", "<|im_end|>\\n'}}");
    if (!contains_any(t, {"messages[0]['role']!='system'", "messages[0]['role']=='system'"})) { format.default_system.reset(); }
    return format;
  }
  constexpr std::string_view llama_turn =
      R"('<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+'<|eot_id|>')";
  if (contains_all(t, {llama_turn, R"({{'<|start_header_id|>assistant<|end_header_id|>\n\n'}})"}) &&
      !contains_any(t, {"raise_exception('Only", "macro", "namespace"})) {
    if (contains_all(t, {"bos_token+content", "{%setloop_messages=messages%}"}) && !contains_any(t, {"system", "tools"})) {
      format.family = ChatFamily::llama3;
      return format;
    }
    if (contains_all(t, {"{{bos_token}}", R"({{'<|start_header_id|>system<|end_header_id|>\n\n'}})",
                         R"({{'Cutting Knowledge Date: December 2023\n'}})", R"({{'Today Date: '+date_string+'\n\n'}})",
                         "{{system_message}}{{'<|eot_id|>'}}"})) {
      format.family = ChatFamily::llama31;
      format.date = literal_between(t, "setdate_string='", "'%}").value_or("");
      format.uses_clock = t.find("strftime_now('%d %b %Y')") != std::string_view::npos;
      if (!format.date.empty()) { return format; }
    }
  }
  return std::nullopt;
}

}  // namespace detail

/// \throws Unsupported for a template that is none of the known formats.
inline ChatFormat recognise_chat_template(std::string_view text, const std::string& path) {
  if (text.empty()) { raise(Unsupported(path + ": the model carries no chat template, so it takes plain prompts only")); }
  const auto scanned = detail::TemplateScanner(text).scan();
  if (const auto format = scanned ? detail::match_chat_template(*scanned) : std::nullopt) { return *format; }
  raise(Unsupported(
      path + ": the chat template is none that nvl knows: ChatML (SmolLM2, Qwen2, Qwen2.5), Qwen3, Llama 3, Llama 3.1 to 3.3"));
}

}  // namespace nvl::inline NVL_ABI
