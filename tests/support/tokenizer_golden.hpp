#pragma once
/// Texts and checksums of tests/data/tokenizer, as tests/golden/tokenizer_strings.py and make_tokenizer_goldens.py make them.

#include <nvl/core/ids.hpp>
#include <nvl/core/utf8.hpp>

#include <nlohmann/json.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nvl_test {

inline nlohmann::json read_tokenizer_golden(const std::string& name) {
  const std::filesystem::path path = std::filesystem::path(NVL_TEST_DATA_DIR) / "tokenizer" / (name + ".json");
  std::ifstream file(path);
  if (!file) { throw std::runtime_error("cannot open " + path.string()); }
  return nlohmann::json::parse(file);
}

/// CRC-32 (ISO 3309, as zlib has it) of ids as little-endian int32, each text's followed by -1.
class IdChecksum {
 public:
  void add(const std::vector<nvl::TokenId>& ids) {
    for (const nvl::TokenId id : ids) { add(id); }
    add(-1);
  }
  std::uint32_t value() const noexcept { return ~crc_; }

 private:
  void add(nvl::TokenId id) {
    for (int shift = 0; shift < 32; shift += 8) {
      crc_ = table()[(crc_ ^ (static_cast<std::uint32_t>(id) >> shift)) & 0xFF] ^ (crc_ >> 8);
    }
  }
  static const std::array<std::uint32_t, 256>& table() {
    static const auto table = [] {
      std::array<std::uint32_t, 256> result{};
      for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t c = i;
        for (int bit = 0; bit < 8; ++bit) { c = (c & 1) != 0 ? 0xEDB88320u ^ (c >> 1) : c >> 1; }
        result[i] = c;
      }
      return result;
    }();
    return table;
  }
  std::uint32_t crc_ = ~std::uint32_t{0};
};

/// tokenizer_strings.random_text, step by step.
class RandomTexts {
 public:
  explicit RandomTexts(std::uint64_t seed) : state_(seed) {
    const nlohmann::json data = read_tokenizer_golden("random_texts");
    data.at("fragments").get_to(fragments_);
    data.at("ranges").get_to(ranges_);
  }

  std::string next() {
    std::string text;
    const std::uint64_t parts = below(20);
    for (std::uint64_t i = 0; i < parts; ++i) {
      const std::uint64_t kind = below(8);
      if (kind < 3) {
        text += fragments_[below(fragments_.size())];
      } else if (kind < 5) {
        text += static_cast<char>(0x20 + below(0x5F));
      } else if (kind < 6) {
        nvl::append_utf8(text, character());
      } else if (kind < 7) {
        const char32_t c = character();
        for (std::uint64_t n = 1 + below(4); n > 0; --n) { nvl::append_utf8(text, c); }
      } else {
        text.append(1 + below(5), ' ');
      }
    }
    return text;
  }

 private:
  std::uint64_t below(std::uint64_t n) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return ((state_ * 0x2545F4914F6CDD1Du) >> 33) % n;
  }
  char32_t character() {
    const auto [low, high] = ranges_[below(ranges_.size())];
    return static_cast<char32_t>(low + below(high - low + 1));
  }

  std::uint64_t state_;
  std::vector<std::string> fragments_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges_;
};

/// tokenizer_strings.code_point_text.
inline std::string code_point_text(char32_t c) {
  std::string s;
  nvl::append_utf8(s, c);
  return s + " " + s + "a" + s + s + "1" + s + ".\xCC\x81" + s + "\n" + s;
}

}  // namespace nvl_test
