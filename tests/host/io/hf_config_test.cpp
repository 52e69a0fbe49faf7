#include <nvl/io/hf_config.hpp>

#include "support/checkpoint_builder.hpp"
#include "support/expect_error.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace hf_config_test {

using namespace nvl;
using nlohmann::json;
using nvl_test::expect_error;
using nvl_test::hf_config_json;

namespace {

ModelConfig map(const json& root) { return parse_hf_config(root, "config.json"); }

ModelConfig tiny_model(const std::string& name) {
  return read_hf_config(std::filesystem::path(NVL_TEST_DATA_DIR) / "tiny_models" / name / "config.json");
}

struct BadConfig {
  const char* name;
  std::function<void(json&)> mutate;
  std::vector<std::string> words;
};

const std::vector<BadConfig>& bad_configs() {
  static const std::vector<BadConfig> rows{
      {"hidden_size 0", [](json& c) { c["hidden_size"] = 0; }, {"hidden_size is 0"}},
      {"hidden_size -8", [](json& c) { c["hidden_size"] = -8; }, {"hidden_size is -8"}},
      {"hidden_size 2^31", [](json& c) { c["hidden_size"] = 2147483648; }, {"hidden_size is 2147483648"}},
      {"hidden_size 2^30", [](json& c) { c["hidden_size"] = 1 << 30; }, {"hidden_size is 1073741824", "2^20"}},
      {"hidden_size missing", [](json& c) { c.erase("hidden_size"); }, {"hidden_size is missing"}},
      {"hidden_size null", [](json& c) { c["hidden_size"] = nullptr; }, {"hidden_size is missing"}},
      {"hidden_size a string", [](json& c) { c["hidden_size"] = "8"; }, {"hidden_size is \"8\"", "an integer"}},
      {"hidden_size a float", [](json& c) { c["hidden_size"] = 8.5; }, {"hidden_size is 8.5"}},
      {"hidden_size not divisible",
       [](json& c) { c["hidden_size"] = 9; },
       {"hidden_size is 9", "multiple of num_attention_heads (2)"}},
      {"odd head_dim", [](json& c) { c["head_dim"] = 5; }, {"head_dim is 5", "even"}},
      {"head_dim 0", [](json& c) { c["head_dim"] = 0; }, {"head_dim is 0"}},
      {"head_dim 2048", [](json& c) { c["head_dim"] = 2048; }, {"head_dim is 2048"}},
      {"heads 0", [](json& c) { c["num_attention_heads"] = 0; }, {"num_attention_heads is 0"}},
      {"heads 10^6",
       [](json& c) {
         c["num_attention_heads"] = 1'000'000;
         c["head_dim"] = 4;
       },
       {"num_attention_heads is 1000000"}},
      {"kv heads 0", [](json& c) { c["num_key_value_heads"] = 0; }, {"num_key_value_heads is 0"}},
      {"kv heads do not divide",
       [](json& c) {
         c["num_attention_heads"] = 4;
         c["num_key_value_heads"] = 3;
       },
       {"num_key_value_heads is 3", "divisor of num_attention_heads (4)"}},
      {"more kv heads than heads", [](json& c) { c["num_key_value_heads"] = 4; }, {"num_key_value_heads is 4"}},
      {"layers 0", [](json& c) { c["num_hidden_layers"] = 0; }, {"num_hidden_layers is 0"}},
      {"layers 10^9", [](json& c) { c["num_hidden_layers"] = 1'000'000'000; }, {"num_hidden_layers is 1000000000", "1024"}},
      {"vocab 0", [](json& c) { c["vocab_size"] = 0; }, {"vocab_size is 0"}},
      {"vocab 2^30", [](json& c) { c["vocab_size"] = 1 << 30; }, {"vocab_size is 1073741824"}},
      {"intermediate 0", [](json& c) { c["intermediate_size"] = 0; }, {"intermediate_size is 0"}},
      {"positions 0", [](json& c) { c["max_position_embeddings"] = 0; }, {"max_position_embeddings is 0"}},
      {"positions 2^30", [](json& c) { c["max_position_embeddings"] = 1 << 30; }, {"max_position_embeddings is 1073741824"}},
      {"epsilon negative", [](json& c) { c["rms_norm_eps"] = -1e-5; }, {"rms_norm_eps is -1e-05"}},
      {"epsilon 1", [](json& c) { c["rms_norm_eps"] = 1; }, {"rms_norm_eps is 1"}},
      {"epsilon a string", [](json& c) { c["rms_norm_eps"] = "1e-5"; }, {"rms_norm_eps is \"1e-5\"", "a number"}},
      {"theta 0", [](json& c) { c["rope_theta"] = 0; }, {"rope_theta is 0"}},
      {"theta 1", [](json& c) { c["rope_theta"] = 1; }, {"rope_theta is 1", "above 1"}},
      {"theta 1e300", [](json& c) { c["rope_theta"] = 1e300; }, {"rope_theta is 1e+300"}},
      {"theta a string", [](json& c) { c["rope_theta"] = "NaN"; }, {"rope_theta is \"NaN\""}},
      {"tie a number", [](json& c) { c["tie_word_embeddings"] = 1; }, {"tie_word_embeddings is 1", "true or false"}},
      {"bias a string", [](json& c) { c["attention_bias"] = "yes"; }, {"attention_bias is \"yes\""}},
      {"eos out of range", [](json& c) { c["eos_token_id"] = 10; }, {"eos_token_id is 10", "0 to 9"}},
      {"eos negative", [](json& c) { c["eos_token_id"] = -1; }, {"eos_token_id is -1"}},
      {"eos list out of range",
       [](json& c) {
         c["eos_token_id"] = {2, 11};
       },
       {"eos_token_id is 11"}},
      {"eos list of lists", [](json& c) { c["eos_token_id"] = json::array({json::array({2})}); }, {"eos_token_id is an array"}},
      {"eos list of 2000", [](json& c) { c["eos_token_id"] = std::vector<int>(2000, 1); }, {"eos_token_id is 2000 ids"}},
      {"eos a string", [](json& c) { c["eos_token_id"] = "</s>"; }, {"eos_token_id is \"</s>\""}},
      {"bos out of range", [](json& c) { c["bos_token_id"] = 100; }, {"bos_token_id is 100"}},
      {"no architectures", [](json& c) { c["architectures"] = json::array(); }, {"architectures is 0 names"}},
      {"two architectures",
       [](json& c) {
         c["architectures"] = {"LlamaForCausalLM", "LlamaModel"};
       },
       {"architectures is 2 names"}},
      {"architectures a string",
       [](json& c) { c["architectures"] = "LlamaForCausalLM"; },
       {"architectures is \"LlamaForCausalLM\"", "an array"}},
      {"nothing names the model",
       [](json& c) {
         c.erase("architectures");
         c.erase("model_type");
       },
       {"model_type is missing"}},
      {"scaling a string", [](json& c) { c["rope_scaling"] = "linear"; }, {"rope_scaling is \"linear\"", "an object"}},
      {"scaling type a number",
       [](json& c) {
         c["rope_scaling"] = {{"type", 1}};
       },
       {"type is 1"}},
      {"linear without factor",
       [](json& c) {
         c["rope_scaling"] = {{"type", "linear"}};
       },
       {"factor is missing"}},
      {"linear factor 0",
       [](json& c) {
         c["rope_scaling"] = {{"type", "linear"}, {"factor", 0}};
       },
       {"factor is 0"}},
      {"linear factor 0.5",
       [](json& c) {
         c["rope_scaling"] = {{"type", "linear"}, {"factor", 0.5}};
       },
       {"factor is 0.5"}},
      {"llama3 without low_freq_factor",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8.0}, {"high_freq_factor", 4.0}};
       },
       {"low_freq_factor is missing"}},
      {"llama3 with equal factors",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}};
       },
       {"high_freq_factor is 4", "above low_freq_factor"}},
      {"llama3 with context 0",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8.0}, {"original_max_position_embeddings", 0}};
       },
       {"original_max_position_embeddings is 0"}},
      {"yarn with beta_fast below beta_slow",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 2.0}, {"beta_fast", 0.5}};
       },
       {"beta_fast is 0.5"}},
      {"yarn with attention_factor 0",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 2.0}, {"attention_factor", 0}};
       },
       {"attention_factor is 0", "positive"}},
      {"yarn with truncate a number",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 2.0}, {"truncate", 1}};
       },
       {"truncate is 1"}},
  };
  return rows;
}

const std::vector<BadConfig>& unsupported_configs() {
  static const std::vector<BadConfig> rows{
      {"another architecture",
       [](json& c) { c["architectures"] = {"GPT2LMHeadModel"}; },
       {"GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}},
      {"another model type",
       [](json& c) {
         c.erase("architectures");
         c["model_type"] = "gpt2";
       },
       {"gpt2", "LlamaForCausalLM"}},
      {"code of its own",
       [](json& c) {
         c["architectures"] = {"MyModel"};
         c["auto_map"] = {{"AutoModel", "evil.py"}};
       },
       {"MyModel", "auto_map", "never runs"}},
      {"quantised weights",
       [](json& c) {
         c["quantization_config"] = {{"quant_method", "gptq"}};
       },
       {"quantization_config"}},
      {"another activation", [](json& c) { c["hidden_act"] = "relu"; }, {"hidden_act is \"relu\"", "silu"}},
      {"dynamic NTK",
       [](json& c) {
         c["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
       },
       {"\"dynamic\"", "final length", "linear, llama3 and yarn"}},
      {"longrope",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "longrope"}};
       },
       {"\"longrope\"", "linear, llama3 and yarn"}},
      {"a RoPE type from the future",
       [](json& c) {
         c["rope_parameters"] = {{"rope_type", "new"}};
       },
       {"\"new\"", "rope_parameters"}},
      {"partial rotary", [](json& c) { c["partial_rotary_factor"] = 0.5; }, {"partial_rotary_factor"}},
      {"partial rotary inside",
       [](json& c) {
         c["rope_parameters"] = {{"partial_rotary_factor", 0.25}};
       },
       {"partial_rotary_factor"}},
      {"RoPE per kind of layer",
       [](json& c) {
         c["rope_parameters"] = {{"full_attention", {{"rope_type", "default"}}}};
       },
       {"full_attention", "one for all layers"}},
  };
  return rows;
}

}  // namespace

TEST_CASE("every bad number in config.json is refused by name", "[io][host]") {
  const auto& rows = bad_configs();
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    json config = hf_config_json();
    REQUIRE_NOTHROW(map(config));
    rows[i].mutate(config);
    auto words = rows[i].words;
    words.emplace_back("config.json");
    expect_error<FileError>([&] { map(config); }, words);
  }
}

TEST_CASE("what nvl does not compute is refused with a list of what it does", "[io][host]") {
  const auto& rows = unsupported_configs();
  const std::size_t i = GENERATE_REF(range(std::size_t{0}, rows.size()));
  DYNAMIC_SECTION(rows[i].name) {
    json config = hf_config_json();
    rows[i].mutate(config);
    auto words = rows[i].words;
    words.emplace_back("config.json");
    expect_error<Unsupported>([&] { map(config); }, words);
  }
}

TEST_CASE("config.json files that are no object are refused", "[io][host]") {
  const nvl_test::TempDir dir;
  for (const char* const text : {"", "[]", "1", "{", "{}"}) {
    CAPTURE(text);
    const auto path = dir.write("config.json", text);
    expect_error<FileError>([&] { read_hf_config(path); }, {path.string()});
  }
  const auto path = dir.write("config.json", "{\"a\": \"" + std::string(5 << 20, 'x') + "\"}");
  expect_error<FileError>([&] { read_hf_config(path); }, {path.string(), "at most"});
}

TEST_CASE("a Llama configuration is mapped in full", "[io][host]") {
  json config = hf_config_json();
  const ModelConfig c = map(config);
  CHECK(c.architecture == "llama");
  CHECK(c.vocab_size == 10);
  CHECK(c.hidden_size == 8);
  CHECK(c.intermediate_size == 12);
  CHECK(c.num_layers == 2);
  CHECK(c.num_q_heads == 2);
  CHECK(c.num_kv_heads == 1);
  CHECK(c.head_dim == 4);
  CHECK(c.max_position_embeddings == 64);
  CHECK(c.rms_norm_eps == 1e-5);
  CHECK(c.rope.theta == 10000.0);
  CHECK(c.rope.layout == RotaryLayout::half);
  CHECK(c.rope.scaling == RopeScaling::none);
  CHECK(c.activation == Activation::silu);
  CHECK(c.sliding_window == 0);
  CHECK_FALSE(c.tie_word_embeddings);
  CHECK_FALSE(c.qkv_bias);
  CHECK_FALSE(c.o_bias);
  CHECK_FALSE(c.mlp_bias);
  CHECK_FALSE(c.qk_norm);
  CHECK(c.dtype == DType::float32);
  CHECK(c.eos_token_ids == std::vector<TokenId>{2});
  CHECK(c.bos_token_id == 1);

  config["head_dim"] = 16;
  config["eos_token_id"] = {2, 3};
  config["attention_bias"] = config["mlp_bias"] = config["tie_word_embeddings"] = true;
  config["torch_dtype"] = "bfloat16";
  config["hidden_act"] = "gelu_pytorch_tanh";
  const ModelConfig d = map(config);
  CHECK(d.head_dim == 16);
  CHECK(d.eos_token_ids == std::vector<TokenId>{2, 3});
  CHECK(d.qkv_bias);
  CHECK(d.o_bias);
  CHECK(d.mlp_bias);
  CHECK(d.tie_word_embeddings);
  CHECK(d.dtype == DType::bfloat16);
  CHECK(d.activation == Activation::gelu_tanh);
  config["dtype"] = "float16";  // the new spelling wins
  CHECK(map(config).dtype == DType::float16);
}

TEST_CASE("keys that config.json leaves out get the defaults of the family's class", "[io][host]") {
  json config = hf_config_json();
  for (const char* const key : {"num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta",
                                "tie_word_embeddings", "torch_dtype", "bos_token_id", "eos_token_id"}) {
    config.erase(key);
  }
  config["num_attention_heads"] = 32;
  config["hidden_size"] = 128;
  SECTION("llama") {
    const ModelConfig c = map(config);
    CHECK(c.num_kv_heads == 32);
    CHECK(c.head_dim == 4);
    CHECK(c.max_position_embeddings == 2048);
    CHECK(c.rms_norm_eps == 1e-6);
    CHECK(c.rope.theta == 10000.0);
    CHECK_FALSE(c.tie_word_embeddings);
    CHECK(c.eos_token_ids.empty());
    CHECK(c.bos_token_id == -1);
  }
  SECTION("mistral") {
    config["architectures"] = {"MistralForCausalLM"};
    CHECK(map(config).num_kv_heads == 8);
    CHECK(map(config).sliding_window == 4096);
    CHECK(map(config).max_position_embeddings == 131072);
    config["num_key_value_heads"] = nullptr;
    CHECK(map(config).num_kv_heads == 32);
  }
  SECTION("qwen2") {
    config["architectures"] = {"Qwen2ForCausalLM"};
    CHECK(map(config).num_kv_heads == 32);
    CHECK(map(config).max_position_embeddings == 32768);
    CHECK(map(config).qkv_bias);
    CHECK_FALSE(map(config).o_bias);
    CHECK(map(config).sliding_window == 0);
    CHECK_FALSE(map(config).qk_norm);
  }
  SECTION("qwen3") {
    config["architectures"] = {"Qwen3ForCausalLM"};
    CHECK(map(config).head_dim == 128);
    CHECK(map(config).qk_norm);
    CHECK_FALSE(map(config).qkv_bias);
    config["attention_bias"] = true;
    CHECK(map(config).qkv_bias);
    CHECK(map(config).o_bias);
  }
  SECTION("model_type names the family where architectures is missing") {
    config.erase("architectures");
    config["model_type"] = "qwen2";
    CHECK(map(config).architecture == "qwen2");
  }
}

TEST_CASE("sliding windows follow the rules of each family", "[io][host]") {
  json config = hf_config_json();
  config["num_hidden_layers"] = 4;
  config["sliding_window"] = 16;
  SECTION("llama has none") { CHECK(map(config).sliding_window == 0); }
  SECTION("mistral: on when set, off when null") {
    config["architectures"] = {"MistralForCausalLM"};
    CHECK(map(config).sliding_window == 16);
    CHECK(map(config).first_windowed_layer == 0);
    config["sliding_window"] = nullptr;
    CHECK(map(config).sliding_window == 0);
    config["sliding_window"] = 0;
    expect_error<FileError>([&] { map(config); }, {"sliding_window is 0"});
  }
  SECTION("qwen: only with use_sliding_window, from max_window_layers on") {
    config["architectures"] = {GENERATE("Qwen2ForCausalLM", "Qwen3ForCausalLM")};
    config["max_window_layers"] = 3;
    CHECK(map(config).sliding_window == 0);
    config["use_sliding_window"] = true;
    CHECK(map(config).sliding_window == 16);
    CHECK(map(config).window(2) == 0);
    CHECK(map(config).window(3) == 16);
    config["max_window_layers"] = 4;
    CHECK(map(config).sliding_window == 0);
    config["max_window_layers"] = -1;
    expect_error<FileError>([&] { map(config); }, {"max_window_layers is -1"});
    config.erase("max_window_layers");  // the class says 28, which is beyond these layers
    CHECK(map(config).sliding_window == 0);

    const char* const full = "full_attention";
    const char* const sliding = "sliding_attention";
    config["layer_types"] = {full, sliding, sliding, sliding};
    CHECK(map(config).sliding_window == 16);
    CHECK(map(config).first_windowed_layer == 1);
    config["layer_types"] = {sliding, sliding, sliding, sliding};
    CHECK(map(config).first_windowed_layer == 0);
    config["layer_types"] = {full, full, full, full};
    CHECK(map(config).sliding_window == 0);
    config["layer_types"] = {full, sliding, full, sliding};
    expect_error<Unsupported>([&] { map(config); }, {"layer_types mixes"});
    config["layer_types"] = {full, "linear_attention", full, full};
    expect_error<Unsupported>([&] { map(config); }, {"linear_attention"});
    config["layer_types"] = {full};
    expect_error<FileError>([&] { map(config); }, {"length of layer_types is 1", "num_hidden_layers (4)"});
  }
}

TEST_CASE("RoPE scaling is read in its old and its new spelling", "[io][host]") {
  json config = hf_config_json();
  config["max_position_embeddings"] = 131072;
  const auto with = [&](const char* key, json value) {
    json copy = config;
    copy[key] = std::move(value);
    return map(copy).rope;
  };
  SECTION("default") {
    CHECK(with("rope_scaling", nullptr).scaling == RopeScaling::none);
    CHECK(with("rope_scaling", {{"rope_type", "default"}}).scaling == RopeScaling::none);
    CHECK(with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5e5}}).theta == 5e5);
  }
  SECTION("linear") {
    const RopeConfig rope = GENERATE_COPY(with("rope_scaling", {{"type", "linear"}, {"factor", 4.0}}),
                                          with("rope_parameters", {{"rope_type", "linear"}, {"factor", 4}}));
    CHECK(rope.scaling == RopeScaling::linear);
    CHECK(rope.factor == 4.0);
    CHECK(rope.theta == 10000.0);
  }
  SECTION("llama3") {
    const json values{{"rope_type", "llama3"},
                      {"factor", 8.0},
                      {"low_freq_factor", 1.0},
                      {"high_freq_factor", 4.0},
                      {"original_max_position_embeddings", 8192}};
    const RopeConfig rope = GENERATE_COPY(with("rope_scaling", values), with("rope_parameters", values));
    CHECK(rope.scaling == RopeScaling::llama3);
    CHECK(rope.factor == 8.0);
    CHECK(rope.low_freq_factor == 1.0);
    CHECK(rope.high_freq_factor == 4.0);
    CHECK(rope.original_max_positions == 8192);
  }
  SECTION("yarn with defaults") {
    const RopeConfig rope =
        with("rope_scaling", {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}});
    CHECK(rope.scaling == RopeScaling::yarn);
    CHECK(rope.original_max_positions == 32768);
    CHECK(rope.beta_fast == 32.0);
    CHECK(rope.beta_slow == 1.0);
    CHECK(rope.truncate);
    CHECK_THAT(rope.attention_factor, Catch::Matchers::WithinRel(0.1 * std::log(4.0) + 1.0));
  }
  SECTION("yarn with everything given") {
    const RopeConfig rope = with("rope_parameters", {{"rope_type", "yarn"},
                                                     {"factor", 2.0},
                                                     {"beta_fast", 16},
                                                     {"beta_slow", 2},
                                                     {"attention_factor", 1.25},
                                                     {"truncate", false},
                                                     {"rope_theta", 1e6}});
    CHECK(rope.theta == 1e6);
    CHECK(rope.beta_fast == 16.0);
    CHECK(rope.beta_slow == 2.0);
    CHECK(rope.attention_factor == 1.25);
    CHECK_FALSE(rope.truncate);
    CHECK(rope.original_max_positions == 131072);  // not given: max_position_embeddings
  }
  SECTION("yarn with mscale and mscale_all_dim") {
    const RopeConfig rope =
        with("rope_scaling", {{"type", "yarn"}, {"factor", 40.0}, {"mscale", 0.707}, {"mscale_all_dim", 1.0}});
    CHECK_THAT(rope.attention_factor,
               Catch::Matchers::WithinRel((0.1 * 0.707 * std::log(40.0) + 1.0) / (0.1 * std::log(40.0) + 1.0)));
  }
  SECTION("yarn without factor: the ratio of the contexts") {
    CHECK(with("rope_scaling", {{"type", "yarn"}, {"original_max_position_embeddings", 32768}}).factor == 4.0);
  }
  SECTION("original_max_position_embeddings outside of the dictionary wins") {
    config["original_max_position_embeddings"] = 4096;
    CHECK(with("rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 32768}})
              .original_max_positions == 4096);
  }
  SECTION("rope_theta inside the dictionary wins") { CHECK(with("rope_parameters", {{"rope_theta", 123.0}}).theta == 123.0); }
}

TEST_CASE("the configurations of the tiny models are mapped", "[io][host]") {
  const ModelConfig llama3 = tiny_model("llama3_scaled");
  CHECK(llama3.rope.scaling == RopeScaling::llama3);
  CHECK(llama3.rope.original_max_positions == 64);
  CHECK(llama3.tie_word_embeddings);
  CHECK(tiny_model("llama_linear").rope.scaling == RopeScaling::linear);
  CHECK(tiny_model("llama_mha").num_kv_heads == 3);
  CHECK(tiny_model("llama_bias").o_bias);
  const ModelConfig mistral = tiny_model("mistral");
  CHECK(mistral.sliding_window == 12);
  CHECK(mistral.head_dim == 64);
  CHECK(mistral.dtype == DType::bfloat16);
  CHECK(tiny_model("qwen2").sliding_window == 0);
  CHECK(tiny_model("qwen2").qkv_bias);
  const ModelConfig window = tiny_model("qwen2_window");
  CHECK(window.window(0) == 0);
  CHECK(window.window(1) == 12);
  const ModelConfig qwen3 = tiny_model("qwen3_yarn");
  CHECK(qwen3.qk_norm);
  CHECK(qwen3.rope.theta == 1e6);
  CHECK(qwen3.rope.attention_factor == 1.3);
  CHECK_FALSE(qwen3.rope.truncate);
}

}  // namespace hf_config_test
