#include <nvl/io/check_tensors.hpp>

#include "support/checkpoint_builder.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

namespace check_tensors_test {

using namespace nvl;
using nvl_test::gguf_llama;
using nvl_test::GgufBuilder;
using nvl_test::raw;
using nvl_test::TempDir;

TEST_CASE("NaN and infinity in weights are found and named", "[io][host]") {
  const TempDir dir;
  GgufBuilder file = gguf_llama();
  CHECK(find_non_finite(Checkpoint::open(dir.write("m.gguf", file.build()))).empty());

  // The second row of K of layer 1, elements 9 and 10; the last weight of the final norm.
  file.tensor("blk.1.attn_k.weight").data.replace(9 * 4, 4, raw(std::numeric_limits<float>::quiet_NaN()));
  file.tensor("blk.1.attn_k.weight").data.replace(10 * 4, 4, raw(-std::numeric_limits<float>::infinity()));
  file.tensor("output_norm.weight").data.replace(7 * 4, 4, raw(std::numeric_limits<float>::infinity()));
  const auto found = find_non_finite(Checkpoint::open(dir.write("m.gguf", file.build())));
  REQUIRE(found.size() == 2);
  CHECK(found[0].name == "layers.1.k_proj");
  CHECK(found[0].first == 9);
  CHECK(found[0].count == 2);
  CHECK(found[1].name == "final_norm");
  CHECK(found[1].first == 7);
  CHECK(found[1].count == 1);
}

TEST_CASE("a scale that is not finite makes its whole block not finite", "[io][host]") {
  // Q8_0 needs rows of 32: hidden 32, two heads of 16.
  const TempDir dir;
  ModelConfig config = nvl_test::small_llama();
  config.hidden_size = 32;
  config.head_dim = 16;
  GgufBuilder file = gguf_llama();
  file.set("llama.embedding_length", std::uint32_t{32}).set("llama.rope.dimension_count", std::uint32_t{16});
  file.tensors.clear();
  for (const WeightSpec& spec : expected_weights(config)) {
    const std::vector<std::uint64_t> dims(spec.shape.rbegin(), spec.shape.rend());
    const std::string name = detail::weight_alias(spec.name, &detail::WeightAlias::gguf, "blk.");
    if (spec.name == "layers.0.k_proj") {
      std::string blocks;
      for (int row = 0; row < 16; ++row) {
        blocks += raw(fp16(row == 3 ? std::numeric_limits<float>::infinity() : 0.5f).bits) + std::string(32, '\1');
      }
      file.add_tensor(name, dims, 8, blocks);
    } else {
      file.add_tensor(name, dims, 0, nvl_test::float_data(spec.shape, 1));
    }
  }
  const auto found = find_non_finite(Checkpoint::open(dir.write("m.gguf", file.build())));
  REQUIRE(found.size() == 1);
  CHECK(found[0].name == "layers.0.k_proj");
  CHECK(found[0].first == 3 * 32);
  CHECK(found[0].count == 32);
}

TEST_CASE("the real SmolLM2 has finite weights only", "[io][host]") {
  const auto path = std::filesystem::path(NVL_FETCHED_DATA_DIR) / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) { SKIP("the model file has not been fetched"); }
  CHECK(find_non_finite(Checkpoint::open(path)).empty());
}

}  // namespace check_tensors_test
