#pragma once
/// Writes safetensors files out of named arrays, or out of a header that the test gives as text.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl_test {

/// A file of this header and these data; `length` replaces the header's true length.
inline std::string safetensors_bytes(std::string_view header, std::string_view data, std::uint64_t length) {
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + std::string(header) + std::string(data);
}
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return safetensors_bytes(header, data, header.size());
}

struct SafetensorsBuilder {
  struct Tensor {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
    std::string data;
  };
  std::vector<Tensor> tensors;

  SafetensorsBuilder& add(std::string name, std::string dtype, std::vector<std::int64_t> shape, std::string data) {
    tensors.push_back({std::move(name), std::move(dtype), std::move(shape), std::move(data)});
    return *this;
  }

  std::string build() const {
    std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
    std::string data;
    for (const Tensor& t : tensors) {
      header += ",\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":[";
      for (std::size_t i = 0; i < t.shape.size(); ++i) { header += (i == 0 ? "" : ",") + std::to_string(t.shape[i]); }
      header += "],\"data_offsets\":[" + std::to_string(data.size()) + "," + std::to_string(data.size() + t.data.size()) + "]}";
      data += t.data;
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    return safetensors_bytes(header, data);
  }
};

}  // namespace nvl_test
