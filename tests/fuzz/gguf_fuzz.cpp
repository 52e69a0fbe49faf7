/// Any bytes as a GGUF file: either a typed error, or a file whose every value and tensor can be read and lies inside it.

#include <nvl/core/error.hpp>
#include <nvl/io/generation_config.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/gguf_config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

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

void read_everything(const nvl::GgufFile& file) {
  for (const nvl::GgufValue& value : file.values()) {
    require(file.find(value.key) == &value);
    allow_error([&] { file.find_string(value.key); });
    allow_error([&] { file.find_bool(value.key); });
    allow_error([&] { file.find_int(value.key); });
    allow_error([&] { file.find_uint(value.key); });
    allow_error([&] { file.find_float(value.key); });
    allow_error([&] { file.find_string_array(value.key); });
    allow_error([&] { file.find_int_array(value.key); });
    allow_error([&] { file.find_float_array(value.key); });
  }
  const auto bytes = file.file().bytes();
  for (const nvl::GgufTensor& tensor : file.tensors()) {
    require(file.find_tensor(tensor.name) == &tensor);
    require(tensor.data.data() >= bytes.data() + file.data_offset());
    require(tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size());
    std::uint64_t elements = 1;
    for (const std::int64_t extent : tensor.shape()) { elements *= static_cast<std::uint64_t>(extent); }
    const nvl::DTypeInfo& type = nvl::info(tensor.dtype);
    require(elements / type.block_elements * type.block_bytes == tensor.data.size());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  allow_error([&] {
    const nvl::GgufFile file(nvl::MappedFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz.gguf"));
    read_everything(file);
    allow_error([&] { nvl::gguf_generation_defaults(file); });
    nvl::gguf_model_config(file);
  });
  return 0;
}
