#pragma once
/// The bytes of every token, packed, and the way back from bytes to the id.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Immutable after its tokens are indexed. Ids run from 0 to size() - 1; an id without a token has no bytes.
class Vocabulary {
 public:
  Vocabulary() = default;

  /// `bytes_by_id[id]` is what token `id` adds to a text. Nothing is indexed yet.
  explicit Vocabulary(const std::vector<std::string>& bytes_by_id) {
    std::size_t total = 0;
    for (const std::string& bytes : bytes_by_id) { total += bytes.size(); }
    blob_.reserve(total);
    ends_.reserve(bytes_by_id.size());
    for (const std::string& bytes : bytes_by_id) {
      blob_ += bytes;
      ends_.push_back(blob_.size());
    }
    slots_.assign(std::bit_ceil(bytes_by_id.size() * 2 + 2), no_token);
  }

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(ends_.size()); }

  /// Empty for ids outside the vocabulary.
  std::string_view bytes(TokenId id) const noexcept {
    if (id < 0 || id >= size()) { return {}; }
    const auto at = static_cast<std::size_t>(id);
    const std::size_t begin = at == 0 ? 0 : ends_[at - 1];
    return std::string_view(blob_).substr(begin, ends_[at] - begin);
  }

  /// Makes `id` the answer of find() for its bytes, unless another token was indexed for them before; returns the answer.
  TokenId index(TokenId id) {
    TokenId& slot = slots_[locate(bytes(id))];
    if (slot == no_token) { slot = id; }
    return slot;
  }

  /// The indexed token with exactly these bytes.
  std::optional<TokenId> find(std::string_view bytes) const noexcept {
    if (slots_.empty()) { return std::nullopt; }
    const TokenId id = slots_[locate(bytes)];
    return id == no_token ? std::nullopt : std::optional<TokenId>(id);
  }

 private:
  static constexpr TokenId no_token = -1;

  std::size_t locate(std::string_view wanted) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = std::hash<std::string_view>{}(wanted)&mask;
    while (slots_[at] != no_token && bytes(slots_[at]) != wanted) { at = (at + 1) & mask; }
    return at;
  }

  std::string blob_;
  std::vector<std::size_t> ends_;  // [bytes] end of each token in blob_
  std::vector<TokenId> slots_;     // open addressing, a power of two, at most half full
};

}  // namespace nvl::inline NVL_ABI
