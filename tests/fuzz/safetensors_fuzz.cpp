/// Any bytes as a safetensors file: either a typed error, or tensors that cover the data without hole or overlap.

#include <nvl/core/error.hpp>
#include <nvl/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const nvl::SafetensorsFile file(nvl::MappedFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz.safetensors"));
    const auto bytes = file.file().bytes();
    std::uint64_t covered = 0;
    for (const nvl::SafetensorsTensor& tensor : file.tensors()) {
      if (tensor.data.data() != bytes.data() + tensor.offset || tensor.offset + tensor.data.size() > bytes.size()) {
        std::abort();
      }
      std::uint64_t expected = nvl::info(tensor.dtype).block_bytes;
      for (const std::int64_t extent : tensor.shape) { expected *= static_cast<std::uint64_t>(extent); }
      if (expected != tensor.data.size()) { std::abort(); }
      covered += tensor.data.size();
    }
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, data, sizeof(header_bytes));
    if (covered + 8 + header_bytes != size) { std::abort(); }
  } catch (const nvl::Error&) {}
  return 0;
}
