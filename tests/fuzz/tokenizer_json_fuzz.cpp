/// Any bytes as tokenizer.json, as a SentencePiece model and as a chat template: either a typed error, or a tokenizer whose
/// encoding and decoding hold what they promise.

#include <nvl/core/error.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/chat_template.hpp>
#include <nvl/io/sentencepiece_model.hpp>
#include <nvl/io/tokenizer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

void require(bool condition) {
  if (!condition) { std::abort(); }
}

template <class Action>
void allow_error(Action&& action) {
  try {
    action();
  } catch (const nvl::Error&) {}
}

void use(const nvl::Tokenizer& tokenizer) {
  using nvl::Tokenizer;
  const std::string text = "Hello  w\xC3\xB6rld\n 12\xE4\xB8\xAD\xF0\x9F\x98\x80<s></s><|im_start|>\xFF";
  for (const auto special : {Tokenizer::SpecialText::parse, Tokenizer::SpecialText::as_text}) {
    const std::vector<nvl::TokenId> ids = tokenizer.encode(text, special);
    for (const nvl::TokenId id : ids) { require(id >= 0 && id < tokenizer.vocab_size()); }
    require(nvl::is_valid_utf8(tokenizer.decode(ids)));
    require(nvl::is_valid_utf8(tokenizer.decode(ids, false)));
  }
  for (nvl::TokenId id = -1; id <= tokenizer.vocab_size(); ++id) {
    static_cast<void>(tokenizer.bytes(id).size());
    static_cast<void>(tokenizer.is_special(id));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  allow_error([&] { use(nvl::Tokenizer(nvl::parse_tokenizer_json(text, "fuzz.json"))); });
  allow_error([&] { use(nvl::Tokenizer(nvl::parse_sentencepiece_model(text, "fuzz.model"))); });
  allow_error([&] { nvl::recognise_chat_template(text, "fuzz.jinja"); });
  return 0;
}
