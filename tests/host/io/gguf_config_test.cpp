#include <nvl/io/gguf_config.hpp>

#include "support/checkpoint_builder.hpp"
#include "support/expect_error.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace gguf_config_test {

using namespace nvl;
using nvl_test::expect_error;
using nvl_test::gguf_llama;
using nvl_test::GgufBuilder;
using u32 = std::uint32_t;

namespace {

ModelConfig map(const GgufBuilder& builder) {
  const std::string bytes = builder.build();
  return gguf_model_config(GgufFile(MappedFile::from_bytes(std::as_bytes(std::span(bytes)), "m.gguf")));
}

struct BadFile {
  const char* name;
  std::function<void(GgufBuilder&)> mutate;
  std::vector<std::string> words;
};

const std::vector<BadFile>& bad_files() {
  static const std::vector<BadFile> rows{
      {"no architecture", [](auto& f) { f.erase("general.architecture"); }, {"general.architecture is missing"}},
      {"architecture a number",
       [](auto& f) { f.set("general.architecture", u32{1}); },
       {"general.architecture is a uint32", "a string"}},
      {"no layers key", [](auto& f) { f.erase("llama.block_count"); }, {"llama.block_count is missing"}},
      {"no epsilon", [](auto& f) { f.erase("llama.attention.layer_norm_rms_epsilon"); }, {"layer_norm_rms_epsilon is missing"}},
      {"no context", [](auto& f) { f.erase("llama.context_length"); }, {"llama.context_length is missing"}},
      {"layers 0", [](auto& f) { f.set("llama.block_count", u32{0}); }, {"llama.block_count is 0"}},
      {"layers 10^9", [](auto& f) { f.set("llama.block_count", u32{1'000'000'000}); }, {"num_hidden_layers is 1000000000"}},
      {"layers 2^63",
       [](auto& f) { f.set("llama.block_count", std::uint64_t{1} << 63); },
       {"llama.block_count is 9223372036854775808"}},
      {"layers a float", [](auto& f) { f.set("llama.block_count", 2.0f); }, {"llama.block_count is a float32", "an integer"}},
      {"heads 0", [](auto& f) { f.set("llama.attention.head_count", u32{0}); }, {"head_count is 0"}},
      {"heads per layer",
       [](auto& f) {
         f.template set_array<u32>("llama.attention.head_count", {2, 2});
       },
       {"head_count is an array of uint32"}},
      {"kv heads do not divide", [](auto& f) { f.set("llama.attention.head_count_kv", u32{3}); }, {"num_key_value_heads is 3"}},
      {"hidden 0", [](auto& f) { f.set("llama.embedding_length", u32{0}); }, {"embedding_length is 0"}},
      {"hidden negative", [](auto& f) { f.set("llama.embedding_length", std::int32_t{-8}); }, {"embedding_length is -8"}},
      {"mlp 0", [](auto& f) { f.set("llama.feed_forward_length", u32{0}); }, {"feed_forward_length is 0"}},
      {"vocab 0", [](auto& f) { f.set("llama.vocab_size", u32{0}); }, {"vocab_size is 0"}},
      {"more tokens than the vocabulary",
       [](auto& f) { f.set_string_array("tokenizer.ggml.tokens", std::vector<std::string>(11, "t")); },
       {"tokenizer.ggml.tokens is 11 tokens", "at most the model's vocabulary, 10"}},
      {"epsilon NaN",
       [](auto& f) { f.set("llama.attention.layer_norm_rms_epsilon", std::numeric_limits<float>::quiet_NaN()); },
       {"layer_norm_rms_epsilon is nan"}},
      {"theta NaN",
       [](auto& f) { f.set("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN()); },
       {"llama.rope.freq_base is nan"}},
      {"theta infinite",
       [](auto& f) { f.set("llama.rope.freq_base", std::numeric_limits<float>::infinity()); },
       {"llama.rope.freq_base is inf"}},
      {"theta negative", [](auto& f) { f.set("llama.rope.freq_base", -1.0f); }, {"llama.rope.freq_base is -1"}},
      {"theta 1", [](auto& f) { f.set("llama.rope.freq_base", 1.0f); }, {"rope_theta is 1"}},
      {"context 0", [](auto& f) { f.set("llama.context_length", u32{0}); }, {"context_length is 0"}},
      {"eos out of range",
       [](auto& f) { f.set("tokenizer.ggml.eos_token_id", u32{10}); },
       {"tokenizer.ggml.eos_token_id is 10", "0 to 9"}},
      {"bos 2^32 - 1",
       [](auto& f) { f.set("tokenizer.ggml.bos_token_id", ~u32{0}); },
       {"tokenizer.ggml.bos_token_id is 4294967295"}},
      {"odd head_dim",
       [](auto& f) {
         f.set("llama.attention.key_length", u32{3})
             .set("llama.attention.value_length", u32{3})
             .erase("llama.rope.dimension_count");
       },
       {"head_dim is 3"}},
      {"linear scaling without factor",
       [](auto& f) { f.set_string("llama.rope.scaling.type", "linear"); },
       {"llama.rope.scaling.factor is missing"}},
      {"linear scaling with factor 0.5",
       [](auto& f) { f.set_string("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 0.5f); },
       {"llama.rope.scaling.factor is 0.5"}},
      {"scaling type a number",
       [](auto& f) { f.set("llama.rope.scaling.type", u32{1}); },
       {"llama.rope.scaling.type is a uint32"}},
      {"frequency factors of another length",
       [](auto& f) { f.add_tensor("rope_freqs.weight", {3}, 0, std::string(12, '\0')); },
       {"rope_freqs.weight", "[2]"}},
      {"frequency factors of another type",
       [](auto& f) { f.add_tensor("rope_freqs.weight", {2}, 1, std::string(4, '\0')); },
       {"rope_freqs.weight", "float32"}},
      {"frequency factors of zero",
       [](auto& f) { f.add_tensor("rope_freqs.weight", {2}, 0, std::string(8, '\0')); },
       {"rope frequency factor is 0"}},
      {"no vocabulary at all",
       [](auto& f) { f.erase("llama.vocab_size").tensor("token_embd.weight").name = "other"; },
       {"token_embd.weight", "one must be there"}},
  };
  return rows;
}

}  // namespace

TEST_CASE("every bad number in a GGUF file's metadata is refused by name", "[io][host]") {
  const auto& rows = bad_files();
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    GgufBuilder file = gguf_llama();
    REQUIRE_NOTHROW(map(file));
    rows[i].mutate(file);
    auto words = rows[i].words;
    words.emplace_back("m.gguf");
    expect_error<FileError>([&] { map(file); }, words);
  }
}

TEST_CASE("GGUF models that nvl does not compute are refused by name", "[io][host]") {
  GgufBuilder file = gguf_llama();
  SECTION("architecture") {
    file.set_string("general.architecture", "mamba");
    expect_error<Unsupported>([&] { map(file); }, {"m.gguf", "\"mamba\"", "llama, qwen2 and qwen3"});
  }
  SECTION("experts") {
    file.set("llama.expert_count", u32{8});
    expect_error<Unsupported>([&] { map(file); }, {"llama.expert_count"});
  }
  SECTION("partial rotation") {
    file.set("llama.rope.dimension_count", u32{2});
    expect_error<Unsupported>([&] { map(file); }, {"llama.rope.dimension_count is 2", "head_dim is 4"});
  }
  SECTION("unlike K and V") {
    file.set("llama.attention.value_length", u32{8});
    expect_error<Unsupported>([&] { map(file); }, {"value_length is 8"});
  }
  SECTION("longrope") {
    file.set_string("llama.rope.scaling.type", "longrope");
    expect_error<Unsupported>([&] { map(file); }, {"longrope", "none, linear and yarn"});
  }
}

TEST_CASE("GGUF metadata are mapped in full", "[io][host]") {
  GgufBuilder file = gguf_llama();
  const ModelConfig c = map(file);
  CHECK(c.architecture == "llama");
  CHECK(c.vocab_size == 10);
  CHECK(c.hidden_size == 8);
  CHECK(c.intermediate_size == 12);
  CHECK(c.num_layers == 2);
  CHECK(c.num_q_heads == 2);
  CHECK(c.num_kv_heads == 1);
  CHECK(c.head_dim == 4);
  CHECK(c.max_position_embeddings == 64);
  CHECK(c.rms_norm_eps == static_cast<double>(1e-5f));
  CHECK(c.rope.theta == 10000.0);
  CHECK(c.rope.layout == RotaryLayout::interleaved);
  CHECK(c.rope.scaling == RopeScaling::none);
  CHECK_FALSE(c.tie_word_embeddings);
  CHECK(c.eos_token_ids == std::vector<TokenId>{2});
  CHECK(c.bos_token_id == 1);

  file.erase("llama.vocab_size").erase("llama.attention.head_count_kv").erase("llama.rope.freq_base");
  file.erase("tokenizer.ggml.bos_token_id");
  file.set("tokenizer.ggml.eot_token_id", u32{5}).set("tokenizer.ggml.eom_token_id", u32{2});
  file.set("llama.attention.sliding_window", u32{32});
  file.tensor("output.weight").name = "unused";
  const ModelConfig d = map(file);
  CHECK(d.vocab_size == 10);  // rows of the embedding
  CHECK(d.num_kv_heads == 2);
  CHECK(d.rope.theta == 10000.0);
  CHECK(d.bos_token_id == -1);
  CHECK(d.eos_token_ids == std::vector<TokenId>{2, 5});
  CHECK(d.sliding_window == 32);
  CHECK(d.tie_word_embeddings);
}

TEST_CASE("biases and QK-norm are seen from the tensors of a GGUF file", "[io][host]") {
  GgufBuilder file = gguf_llama();
  CHECK_FALSE(map(file).qkv_bias);
  file.add_tensor("blk.0.attn_q.bias", {8}, 0, std::string(32, '\0'));
  CHECK(map(file).qkv_bias);
  CHECK_FALSE(map(file).o_bias);
  file.add_tensor("blk.0.attn_output.bias", {8}, 0, std::string(32, '\0'));
  CHECK(map(file).o_bias);
  file.add_tensor("blk.0.ffn_gate.bias", {12}, 0, std::string(48, '\0'));
  CHECK(map(file).mlp_bias);
  file.add_tensor("blk.0.attn_q_norm.weight", {4}, 0, std::string(16, '\0'));
  CHECK(map(file).qk_norm);
}

TEST_CASE("Qwen files rotate halves, Llama files neighbours", "[io][host]") {
  for (const std::string architecture : {"qwen2", "qwen3"}) {
    GgufBuilder file = gguf_llama();
    file.set_string("general.architecture", architecture);
    for (auto& entry : file.entries) {
      if (entry.key.starts_with("llama.")) { entry.key = architecture + entry.key.substr(5); }
    }
    CHECK(map(file).rope.layout == RotaryLayout::half);
    CHECK(map(file).architecture == architecture);
  }
}

TEST_CASE("RoPE scaling of GGUF files", "[io][host]") {
  GgufBuilder file = gguf_llama();
  SECTION("none, spelled out") {
    file.set_string("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", 1.0f);
    CHECK(map(file).rope.scaling == RopeScaling::none);
  }
  SECTION("linear") {
    file.set_string("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4.0f);
    CHECK(map(file).rope.scaling == RopeScaling::linear);
    CHECK(map(file).rope.factor == 4.0);
  }
  SECTION("linear, in the key of old files") {
    file.set("llama.rope.scale_linear", 2.0f);
    CHECK(map(file).rope.scaling == RopeScaling::linear);
    CHECK(map(file).rope.factor == 2.0);
    file.set("llama.rope.scale_linear", 1.0f);
    CHECK(map(file).rope.scaling == RopeScaling::none);
  }
  SECTION("yarn") {
    file.set_string("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", 4.0f);
    CHECK(map(file).rope.scaling == RopeScaling::yarn);
    CHECK(map(file).rope.original_max_positions == 64);
    CHECK_THAT(map(file).rope.attention_factor, Catch::Matchers::WithinRel(1 + 0.1 * std::log(4.0)));
    file.set("llama.rope.scaling.original_context_length", u32{16}).set("llama.rope.scaling.attn_factor", 0.5f);
    file.set("llama.rope.scaling.yarn_beta_fast", 16.0f).set("llama.rope.scaling.yarn_beta_slow", 2.0f);
    const RopeConfig rope = map(file).rope;
    CHECK(rope.original_max_positions == 16);
    CHECK(rope.beta_fast == 16.0);
    CHECK(rope.beta_slow == 2.0);
    CHECK_THAT(rope.attention_factor, Catch::Matchers::WithinRel(0.5 * (1 + 0.1 * std::log(4.0))));
  }
  SECTION("llama3, as factors per pair of dimensions") {
    file.add_tensor("rope_freqs.weight", {2}, 0, nvl_test::raw(1.0f) + nvl_test::raw(8.0f));
    CHECK(map(file).rope.freq_factors == std::vector<float>{1.0f, 8.0f});
    CHECK(map(file).rope.scaling == RopeScaling::none);
  }
}

}  // namespace gguf_config_test
