#pragma once
/// Conversations to token ids, in the format that the model's chat template writes.
///
/// Markers become their ids and everything a message says is text: content that spells a marker stays text, so no message can
/// end its own turn or begin another's.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/chat_template.hpp>
#include <nvl/io/tokenizer.hpp>

#include <array>
#include <cstddef>
#include <ctime>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct ChatMessage {
  std::string role;     // system, user or assistant
  std::string content;  // UTF-8; bytes that are not become U+FFFD
};

namespace detail {

/// Collects text and markers; text between two markers is encoded as one, as it would be in the rendered conversation.
class ChatWriter {
 public:
  explicit ChatWriter(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void text(std::string_view text) { pending_ += text; }

  void marker(std::string_view name) {
    const auto id = tokenizer_.find(name);
    if (!id || !tokenizer_.is_special(*id)) {
      raise(Unsupported(tokenizer_.path() + ": the chat template needs " + std::string(name) +
                        ", which is no special token of the vocabulary"));
    }
    flush();
    ids_.push_back(*id);
  }

  std::vector<TokenId> finish() {
    flush();
    return std::move(ids_);
  }

 private:
  void flush() {
    if (pending_.empty()) { return; }
    const auto ids = tokenizer_.encode(pending_, Tokenizer::SpecialText::as_text, Tokenizer::AddSpecial::no);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    pending_.clear();
  }

  const Tokenizer& tokenizer_;
  std::string pending_;
  std::vector<TokenId> ids_;
};

/// Jinja's `trim`: Python's str.strip(), which takes U+001C to U+001F for white space too.
inline std::string_view trim_message(std::string_view text) {
  const auto blank = [](char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty()) {
    const Utf8Char c = read_utf8(text, 0);
    if (!c.valid || !blank(c.code_point)) { break; }
    text.remove_prefix(c.length);
  }
  while (!text.empty()) {
    std::size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) { --at; }
    const Utf8Char c = read_utf8(text, at);
    if (!c.valid || at + c.length != text.size() || !blank(c.code_point)) { break; }
    text = text.substr(0, at);
  }
  return text;
}

inline std::string_view strip_line_ends(std::string_view text, bool left, bool right) {
  while (left && text.starts_with('\n')) { text.remove_prefix(1); }
  while (right && text.ends_with('\n')) { text.remove_suffix(1); }
  return text;
}

inline void write_chatml_turn(ChatWriter& out, std::string_view role, std::string_view before, std::string_view content) {
  out.marker("<|im_start|>");
  out.text(role);
  out.text("\n");
  out.text(before);
  out.text(content);
  out.marker("<|im_end|>");
  out.text("\n");
}

/// Qwen3 keeps the reasoning of answers to the last question only. What follows that question is not earlier.
inline void write_qwen3(ChatWriter& out, std::span<const ChatMessage> messages) {
  constexpr std::string_view open = "<think>";
  constexpr std::string_view close = "</think>";
  std::size_t last_question = messages.size() - 1;
  for (std::size_t i = messages.size(); i-- > 0;) {
    const std::string_view content = messages[i].content;
    if (messages[i].role == "user" && !(content.starts_with("<tool_response>") && content.ends_with("</tool_response>"))) {
      last_question = i;
      break;
    }
  }
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role != "assistant") {
      write_chatml_turn(out, message.role, "", message.content);
      continue;
    }
    std::string_view content = message.content;
    std::string_view reasoning;
    if (const std::size_t first = content.find(close); first != std::string_view::npos) {
      reasoning = strip_line_ends(content.substr(0, first), false, true);
      if (const std::size_t begin = reasoning.rfind(open); begin != std::string_view::npos) {
        reasoning.remove_prefix(begin + open.size());
      }
      reasoning = strip_line_ends(reasoning, true, false);
      content = strip_line_ends(content.substr(content.rfind(close) + close.size()), true, false);
    }
    std::string before;
    if (i > last_question && (i + 1 == messages.size() || !reasoning.empty())) {
      before = "<think>\n" + std::string(strip_line_ends(reasoning, true, true)) + "\n</think>\n\n";
      content = strip_line_ends(content, true, false);
    }
    write_chatml_turn(out, message.role, before, content);
  }
}

inline void write_chatml(ChatWriter& out, const ChatFormat& format, std::span<const ChatMessage> messages) {
  if (format.default_system && messages.front().role != "system") {
    write_chatml_turn(out, "system", "", *format.default_system);
  }
  for (const ChatMessage& message : messages) { write_chatml_turn(out, message.role, "", message.content); }
}

inline void write_llama3_header(ChatWriter& out, std::string_view role) {
  out.marker("<|start_header_id|>");
  out.text(role);
  out.marker("<|end_header_id|>");
  out.text("\n\n");
}

/// "26 Jul 2024", in English whatever the locale, in local time as Python's strftime.
inline std::string today() {
  constexpr std::array<const char*, 12> months{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                               "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  return (parts.tm_mday < 10 ? "0" : "") + std::to_string(parts.tm_mday) + " " +
         months.at(static_cast<std::size_t>(parts.tm_mon)) + " " + std::to_string(1900 + parts.tm_year);
}

inline void write_llama3(ChatWriter& out, const ChatFormat& format, std::span<const ChatMessage> messages,
                         std::string_view date) {
  out.marker("<|begin_of_text|>");
  if (format.family == ChatFamily::llama31) {
    write_llama3_header(out, "system");
    out.text("Cutting Knowledge Date: December 2023\nToday Date: ");
    out.text(!date.empty() ? std::string(date) : format.uses_clock ? today() : format.date);
    out.text("\n\n");
    if (messages.front().role == "system") {
      out.text(trim_message(messages.front().content));
      messages = messages.subspan(1);
    }
    out.marker("<|eot_id|>");
  }
  for (const ChatMessage& message : messages) {
    write_llama3_header(out, message.role);
    out.text(trim_message(message.content));
    out.marker("<|eot_id|>");
  }
}

}  // namespace detail

/// The ids of a conversation. With `add_generation_prompt` the assistant's next turn is opened at the end.
/// `date` ("26 Jul 2024") replaces the day that Llama 3.1 to 3.3 templates write; empty: what the template says.
/// \throws InvalidArgument for no messages or an unknown role; Unsupported if the vocabulary lacks a marker.
inline std::vector<TokenId> format_chat(const Tokenizer& tokenizer, const ChatFormat& format,
                                        std::span<const ChatMessage> messages, bool add_generation_prompt,
                                        std::string_view date = {}) {
  NVL_EXPECTS(!messages.empty(), "number of messages", messages.size(), "at least 1");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    NVL_EXPECTS(role == "system" || role == "user" || role == "assistant", "messages[" + std::to_string(i) + "].role", role,
                "system, user or assistant");
  }
  detail::ChatWriter out(tokenizer);
  const bool llama = format.family == ChatFamily::llama3 || format.family == ChatFamily::llama31;
  if (llama) {
    detail::write_llama3(out, format, messages, date);
  } else if (format.family == ChatFamily::qwen3) {
    detail::write_qwen3(out, messages);
  } else {
    detail::write_chatml(out, format, messages);
  }
  if (add_generation_prompt) {
    if (llama) {
      detail::write_llama3_header(out, "assistant");
    } else {
      out.marker("<|im_start|>");
      out.text("assistant\n");
    }
  }
  return out.finish();
}

/// The same in the format of the tokenizer's own template.
/// \throws Unsupported, too, if there is no template or it is not a known one.
inline std::vector<TokenId> format_chat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                        bool add_generation_prompt) {
  return format_chat(tokenizer, recognise_chat_template(tokenizer.chat_template(), tokenizer.path()), messages,
                     add_generation_prompt);
}

}  // namespace nvl::inline NVL_ABI
