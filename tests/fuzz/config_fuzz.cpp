/// Any text as config.json and generation_config.json: either a typed error, or a value that survives being written and read
/// again, and a configuration that passes its own checks.

#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/io/generation_config.hpp>
#include <nvl/io/hf_config.hpp>
#include <nvl/io/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  nlohmann::json value;
  try {
    value = nvl::parse_json(text, "fuzz.json");
  } catch (const nvl::FileError&) { return 0; }
  // Its own serialisation is JSON again, and the same value.
  if (nvl::parse_json(value.dump(), "fuzz.json", 64, std::size_t{1} << 30) != value) { std::abort(); }
  try {
    nvl::validate(nvl::parse_hf_config(value, "config.json"));
  } catch (const nvl::FileError&) {
  } catch (const nvl::Unsupported&) {}
  try {
    nvl::parse_generation_config(value, 1000, "generation_config.json");
  } catch (const nvl::FileError&) {}
  return 0;
}
