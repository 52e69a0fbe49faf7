#pragma once
/// Proof that somebody knows a secret without saying it: HMAC-SHA256 over fresh random numbers of both sides. Needs libcrypto
/// (component nvl::net).
///
/// Source: RFC 2104 (HMAC); ISO/IEC 9798-4, challenge and response with a keyed check function.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI::net {

using Digest = std::array<unsigned char, 32>;

/// Unpredictable, used once.
inline Digest random_nonce() {
  Digest nonce{};
  if (::RAND_bytes(nonce.data(), static_cast<int>(nonce.size())) != 1) { raise(Error("libcrypto has no random numbers")); }
  return nonce;
}

inline Digest sha256(std::string_view text) {
  Digest digest{};
  if (::EVP_Digest(text.data(), text.size(), digest.data(), nullptr, ::EVP_sha256(), nullptr) != 1) {
    raise(Error("libcrypto cannot compute SHA-256"));
  }
  return digest;
}

/// In a time that does not depend on where they differ.
inline bool are_equal(const Digest& a, const Digest& b) { return ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

template <class T>
std::string_view bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

class Secret {
 public:
  static constexpr std::size_t min_bytes = 16;

  Secret() = default;
  /// \throws InvalidArgument if it is too short; the message does not hold it
  explicit Secret(std::string bytes) : bytes_(std::move(bytes)) {
    NVL_EXPECTS(bytes_.size() >= min_bytes, "length of the secret", bytes_.size(), "16 bytes or more");
  }

  /// `purpose` keeps a proof of one kind from being used as one of another.
  Digest prove(std::string_view purpose, std::initializer_list<std::string_view> parts) const {
    std::string text(purpose);
    text += '\0';
    for (const std::string_view part : parts) { text += part; }  // all of fixed size but the last
    Digest proof{};
    unsigned size = 0;
    if (::HMAC(::EVP_sha256(), bytes_.data(), static_cast<int>(bytes_.size()),
               reinterpret_cast<const unsigned char*>(text.data()), text.size(), proof.data(), &size) == nullptr) {
      raise(Error("libcrypto cannot compute HMAC-SHA256"));
    }
    return proof;
  }

  /// A secret for one group only: connections of another run that has the same secret are not let in.
  Secret for_session(const Digest& session) const {
    const Digest key = prove("nvl session", {bytes_of(session)});
    return Secret(std::string(key.begin(), key.end()));
  }

 private:
  std::string bytes_;
};

}  // namespace nvl::inline NVL_ABI::net
