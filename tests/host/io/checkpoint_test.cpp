#include <nvl/io/checkpoint.hpp>

#include "support/checkpoint_builder.hpp"
#include "support/expect_error.hpp"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <sys/stat.h>

namespace checkpoint_test {

using namespace nvl;
using nlohmann::json;
using nvl_test::expect_error;
using nvl_test::gguf_llama;
using nvl_test::GgufBuilder;
using nvl_test::hf_config_json;
using nvl_test::hf_weights;
using nvl_test::SafetensorsBuilder;
using nvl_test::small_llama;
using nvl_test::TempDir;

namespace {

float first_value(const HostTensor& tensor) {
  float value = 0;
  std::memcpy(&value, tensor.data.data(), sizeof(value));
  return value;
}

/// The helpers number the weights in the order of expected_weights().
void check_small_llama(const Checkpoint& checkpoint) {
  const std::vector<WeightSpec> specs = expected_weights(small_llama());
  REQUIRE(checkpoint.tensors().size() == specs.size());
  for (std::size_t i = 0; i < specs.size(); ++i) {
    CAPTURE(specs[i].name);
    const HostTensor* const tensor = checkpoint.find(specs[i].name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor == &checkpoint.tensors()[i]);
    CHECK(tensor->name == specs[i].name);
    CHECK(tensor->shape == specs[i].shape);
    CHECK(tensor->dtype == DType::float32);
    CHECK(first_value(*tensor) == static_cast<float>(i));
  }
  CHECK(checkpoint.find("layers.2.q_proj") == nullptr);
  CHECK(checkpoint.find("") == nullptr);
  CHECK(checkpoint.config().num_layers == 2);
  CHECK(checkpoint.config().dtype == DType::float32);
  CHECK(checkpoint.generation_defaults().eos_token_ids == std::vector<TokenId>{2});
  CHECK(checkpoint.generation_defaults().bos_token_id == 1);
}

struct HfDirectory {
  TempDir dir;
  json config = hf_config_json();
  SafetensorsBuilder weights = hf_weights(small_llama());

  const std::filesystem::path& write() const {
    dir.write("config.json", config.dump());
    dir.write("model.safetensors", weights.build());
    return dir.path();
  }
  SafetensorsBuilder::Tensor& tensor(const std::string& name) {
    for (auto& t : weights.tensors) {
      if (t.name == name) { return t; }
    }
    throw std::runtime_error("no tensor " + name);
  }
};

}  // namespace

TEST_CASE("a Hugging Face directory opens with canonical names", "[io][host]") {
  const HfDirectory model;
  const Checkpoint checkpoint = Checkpoint::open(model.write());
  CHECK(checkpoint.kind() == CheckpointKind::safetensors);
  CHECK(checkpoint.gguf() == nullptr);
  CHECK(checkpoint.path() == model.dir.path());
  CHECK(checkpoint.warnings().empty());
  CHECK_NOTHROW(checkpoint.check_unchanged());
  check_small_llama(checkpoint);
}

TEST_CASE("a safetensors file opens with the configuration beside it", "[io][host]") {
  const HfDirectory model;
  check_small_llama(Checkpoint::open(model.write() / "model.safetensors"));
  std::filesystem::remove(model.dir.path() / "config.json");
  expect_error<FileError>([&] { Checkpoint::open(model.dir.path() / "model.safetensors"); }, {"config.json", "No such file"});
}

TEST_CASE("a GGUF file opens with canonical names", "[io][host]") {
  const TempDir dir;
  const auto path = dir.write("model.gguf", gguf_llama().build());
  const Checkpoint checkpoint = Checkpoint::open(path, GENERATE(MapMode::map, MapMode::read));
  CHECK(checkpoint.kind() == CheckpointKind::gguf);
  REQUIRE(checkpoint.gguf() != nullptr);
  CHECK(checkpoint.gguf()->find_string("general.architecture") == "llama");
  CHECK(checkpoint.warnings().empty());
  check_small_llama(checkpoint);
  check_small_llama(Checkpoint::open(dir.write("no extension", gguf_llama().build())));
}

TEST_CASE("a moved checkpoint keeps its tensors", "[io][host]") {
  const TempDir dir;
  Checkpoint first = Checkpoint::open(dir.write("model.gguf", gguf_llama().build()));
  const GgufFile* const gguf = first.gguf();
  const Checkpoint second = std::move(first);
  CHECK(second.gguf() == gguf);
  check_small_llama(second);
}

TEST_CASE("an index of shards opens like one file", "[io][host]") {
  HfDirectory model;
  model.write();
  std::filesystem::remove(model.dir.path() / "model.safetensors");
  SafetensorsBuilder shards[2];
  json weight_map;
  for (std::size_t i = 0; i < model.weights.tensors.size(); ++i) {
    shards[i % 2].tensors.push_back(model.weights.tensors[i]);
    weight_map[model.weights.tensors[i].name] = i % 2 == 0 ? "m-1.safetensors" : "m-2.safetensors";
  }
  model.dir.write("m-1.safetensors", shards[0].build());
  model.dir.write("m-2.safetensors", shards[1].build());
  model.dir.write("model.safetensors.index.json", json{{"weight_map", weight_map}}.dump());
  check_small_llama(Checkpoint::open(model.dir.path()));
  // One shard alone is not the model.
  expect_error<FileError>([&] { Checkpoint::open(model.dir.path() / "m-2.safetensors"); }, {"m-2.safetensors", "missing"});
}

TEST_CASE("weights without the prefix model. are found", "[io][host]") {
  HfDirectory model;
  for (auto& tensor : model.weights.tensors) {
    if (tensor.name.starts_with("model.")) { tensor.name = tensor.name.substr(6); }
  }
  check_small_llama(Checkpoint::open(model.write()));
}

TEST_CASE("missing and wrong weights are listed", "[io][host]") {
  HfDirectory model;
  SECTION("missing") {
    std::erase_if(model.weights.tensors,
                  [](const auto& t) { return t.name == "model.layers.1.mlp.up_proj.weight" || t.name == "model.norm.weight"; });
    expect_error<FileError>(
        [&] { Checkpoint::open(model.write()); },
        {model.dir.path().string(), "missing", "\"model.layers.1.mlp.up_proj.weight\"", "\"model.norm.weight\""});
  }
  SECTION("all missing: a few are named and the rest counted") {
    model.weights.tensors.clear();
    expect_error<FileError>([&] { Checkpoint::open(model.write()); }, {"\"embed_tokens.weight\"", "and 13 more"});
  }
  SECTION("wrong shape") {
    model.tensor("model.layers.0.self_attn.k_proj.weight").shape = {8, 4};
    model.tensor("model.norm.weight").shape = {1, 8};
    expect_error<FileError>(
        [&] { Checkpoint::open(model.write()); },
        {"wrong shape", "k_proj.weight\" is [8, 4] instead of [4, 8]", "\"model.norm.weight\" is [1, 8] instead of [8]"});
  }
  SECTION("integers where weights are expected") {
    auto& tensor = model.tensor("model.norm.weight");
    tensor.dtype = "I32";
    expect_error<FileError>([&] { Checkpoint::open(model.write()); }, {"\"model.norm.weight\" holds int32"});
  }
  SECTION("more layers than weights") {
    model.config["num_hidden_layers"] = 1024;
    expect_error<FileError>([&] { Checkpoint::open(model.write()); }, {"model.layers.2.input_layernorm.weight", "more"});
  }
  SECTION("a vocabulary that is not that of the weights") {
    model.config["vocab_size"] = 1 << 24;
    expect_error<FileError>([&] { Checkpoint::open(model.write()); }, {"is [10, 8] instead of [16777216, 8]"});
  }
  SECTION("the head of an untied model") {
    std::erase_if(model.weights.tensors, [](const auto& t) { return t.name == "lm_head.weight"; });
    expect_error<FileError>([&] { Checkpoint::open(model.write()); }, {"missing: \"lm_head.weight\""});
    model.config["tie_word_embeddings"] = true;
    CHECK(Checkpoint::open(model.write()).find("lm_head") == nullptr);
  }
  SECTION("of a GGUF file") {
    GgufBuilder gguf = gguf_llama();
    gguf.tensor("blk.1.ffn_down.weight").name = "blk.1.other.weight";
    gguf.tensor("blk.0.attn_k.weight").dims = {4, 8};
    const auto path = model.dir.write("m.gguf", gguf.build());
    expect_error<FileError>([&] { Checkpoint::open(path); }, {path.string(), "missing: \"blk.1.ffn_down.weight\"",
                                                              "\"blk.0.attn_k.weight\" is [8, 4] instead of [4, 8]"});
  }
}

TEST_CASE("weights that a model does not use give a warning", "[io][host]") {
  HfDirectory model;
  model.weights.add("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {2}, std::string(8, '\0'));
  CHECK(Checkpoint::open(model.write()).warnings().empty());
  model.weights.add("model.extra", "F32", {2}, std::string(8, '\0')).add("bias\\n", "F32", {1}, std::string(4, '\0'));
  const Checkpoint checkpoint = Checkpoint::open(model.write());
  REQUIRE(checkpoint.warnings().size() == 1);
  CHECK(checkpoint.warnings()[0].find("2 tensors are not used") == 0);
  CHECK(checkpoint.warnings()[0].find("\"model.extra\"") != std::string::npos);
  CHECK(checkpoint.warnings()[0].find('\n') == std::string::npos);
  CHECK(checkpoint.find("model.extra") == nullptr);

  model.config["tie_word_embeddings"] = true;  // a copy of the embedding under lm_head is usual
  CHECK(Checkpoint::open(model.write()).warnings()[0].find("lm_head") == std::string::npos);

  GgufBuilder gguf = gguf_llama();
  gguf.add_tensor("rope_freqs.weight", {2}, 0, nvl_test::raw(1.0f) + nvl_test::raw(1.0f));
  CHECK(Checkpoint::open(model.dir.write("m.gguf", gguf.build())).warnings().empty());
  gguf.add_tensor("blk.99.attn_q.weight", {2}, 0, std::string(8, '\0'));
  CHECK(Checkpoint::open(model.dir.write("m.gguf", gguf.build())).warnings().size() == 1);
}

TEST_CASE("the type that holds most weights is the checkpoint's type", "[io][host]") {
  HfDirectory model;
  for (auto& tensor : model.weights.tensors) {
    if (tensor.shape.size() < 2 || tensor.name == "lm_head.weight") { continue; }  // norms and head stay in float32
    tensor.dtype = "BF16";
    tensor.data.resize(tensor.data.size() / 2);
  }
  const Checkpoint checkpoint = Checkpoint::open(model.write());
  CHECK(checkpoint.config().dtype == DType::bfloat16);
  CHECK(checkpoint.find("lm_head")->dtype == DType::float32);
}

TEST_CASE("end-of-sequence ids come from generation_config.json, config.json, tokenizer_config.json", "[io][host]") {
  HfDirectory model;
  model.config["eos_token_id"] = 3;
  model.dir.write(
      "tokenizer_config.json",
      R"({"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"5": {"content": "</s>"}, "6": {"content": "x"}}})");
  const auto eos = [&] {
    const Checkpoint checkpoint = Checkpoint::open(model.write());
    CHECK(checkpoint.config().eos_token_ids == checkpoint.generation_defaults().eos_token_ids);
    return checkpoint.config().eos_token_ids;
  };
  CHECK(eos() == std::vector<TokenId>{3});
  model.dir.write("generation_config.json", R"({"eos_token_id": [4, 7], "temperature": 0.5, "bos_token_id": 8})");
  CHECK(eos() == std::vector<TokenId>{4, 7});
  CHECK(Checkpoint::open(model.dir.path()).config().bos_token_id == 8);
  CHECK(Checkpoint::open(model.dir.path()).generation_defaults().temperature == 0.5f);
  model.dir.write("generation_config.json", R"({"eos_token_id": 10})");
  expect_error<FileError>([&] { eos(); }, {"generation_config.json", "eos_token_id is 10", "0 to 9"});
  model.dir.write("generation_config.json", R"({"temperature": -1})");
  expect_error<FileError>([&] { eos(); }, {"generation_config.json", "temperature is -1"});

  std::filesystem::remove(model.dir.path() / "generation_config.json");
  model.config.erase("eos_token_id");
  CHECK(eos() == std::vector<TokenId>{5});
  model.dir.write("tokenizer_config.json", R"({"eos_token": "x", "added_tokens_decoder": {"6": {"content": "x"}}})");
  CHECK(eos() == std::vector<TokenId>{6});
  model.dir.write("tokenizer_config.json", R"({"eos_token": "x", "added_tokens_decoder": {"6z": {"content": "x"}}})");
  expect_error<FileError>([&] { eos(); }, {"tokenizer_config.json", "\"6z\""});
  model.dir.write("tokenizer_config.json", R"({"eos_token": "x", "added_tokens_decoder": {"99999999999": {"content": "x"}}})");
  expect_error<FileError>([&] { eos(); }, {"tokenizer_config.json", "99999999999"});
  model.dir.write("tokenizer_config.json", R"({"eos_token": "y", "added_tokens_decoder": {"6": {"content": "x"}, "7": 1}})");
  CHECK(eos().empty());
  model.dir.write("tokenizer_config.json", R"({"eos_token": null})");
  CHECK(eos().empty());
}

TEST_CASE("pickled weights and unknown files are refused unread", "[io][host]") {
  const TempDir dir;
  for (const char* const name : {"pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"}) {
    // Not even opened: the file is not there.
    expect_error<Unsupported>([&] { Checkpoint::open(dir.path() / name); }, {name, "pickled", "safetensors"});
  }
  expect_error<Unsupported>([&] { Checkpoint::open(dir.write("model.onnx", "ONNX")); },
                            {"model.onnx", "neither GGUF nor safetensors"});
  expect_error<FileError>([&] { Checkpoint::open(dir.write("broken.gguf", "ONNX")); }, {"broken.gguf", "not a GGUF file"});
  expect_error<FileError>([&] { Checkpoint::open(dir.path()); }, {dir.path().string(), "config.json"});
  dir.write("config.json", hf_config_json().dump());
  expect_error<FileError>([&] { Checkpoint::open(dir.path()); }, {dir.path().string(), "model.safetensors"});
  dir.write("pytorch_model.bin", "");
  expect_error<Unsupported>([&] { Checkpoint::open(dir.path()); }, {"pytorch_model.bin", "pickled"});
}

TEST_CASE("what is not a regular file is refused as a model", "[io][host]") {
  const TempDir dir;
  expect_error<FileError>([&] { Checkpoint::open(dir.path() / "absent.gguf"); }, {"absent.gguf", "No such file"});
  expect_error<FileError>([&] { Checkpoint::open(dir.path() / "absent"); }, {"absent", "No such file"});
  expect_error<FileError>([&] { Checkpoint::open("/dev/zero"); }, {"/dev/zero", "a device"});
  const auto fifo = dir.path() / "model.gguf";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  expect_error<FileError>([&] { Checkpoint::open(fifo); }, {"model.gguf", "a FIFO"});
  std::filesystem::create_directory(dir.path() / "sub");
  dir.write("config.json", hf_config_json().dump());
  std::filesystem::create_directory(dir.path() / "model.safetensors");
  expect_error<FileError>([&] { Checkpoint::open(dir.path()); }, {"model.safetensors", "a directory"});
}

TEST_CASE("a part of a split GGUF model is refused", "[io][host]") {
  const TempDir dir;
  GgufBuilder gguf = gguf_llama();
  gguf.set("split.count", std::uint16_t{3});
  expect_error<Unsupported>([&] { Checkpoint::open(dir.write("m-00001-of-00003.gguf", gguf.build())); }, {"one of 3 parts"});
  gguf.set("split.count", std::uint16_t{1});
  CHECK_NOTHROW(Checkpoint::open(dir.write("m.gguf", gguf.build())));
}

TEST_CASE("a checkpoint that changes before its weights are copied is noticed", "[io][host]") {
  SECTION("gguf") {
    const TempDir dir;
    const auto path = dir.write("m.gguf", gguf_llama().build());
    const Checkpoint checkpoint = Checkpoint::open(path);
    std::filesystem::resize_file(path, 50);
    expect_error<FileError>([&] { checkpoint.check_unchanged(); }, {path.string(), "changed"});
  }
  SECTION("safetensors") {
    const HfDirectory model;
    const Checkpoint checkpoint = Checkpoint::open(model.write());
    const auto file = model.dir.path() / "model.safetensors";
    std::filesystem::resize_file(file, 50);
    expect_error<FileError>([&] { checkpoint.check_unchanged(); }, {file.string(), "changed"});
  }
  SECTION("read into memory") {
    const HfDirectory model;
    const Checkpoint checkpoint = Checkpoint::open(model.write(), MapMode::read);
    std::filesystem::resize_file(model.dir.path() / "model.safetensors", 50);
    CHECK_NOTHROW(checkpoint.check_unchanged());
    check_small_llama(checkpoint);
  }
}

TEST_CASE("checkpoints that Python's safetensors and gguf packages wrote open", "[io][host]") {
  const auto models = std::filesystem::path(NVL_TEST_DATA_DIR) / "tiny_models";
  int opened = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(models)) {
    const bool is_model =
        (entry.is_directory() && std::filesystem::exists(entry.path() / "config.json")) || entry.path().extension() == ".gguf";
    if (!is_model) { continue; }
    CAPTURE(entry.path());
    const Checkpoint checkpoint = Checkpoint::open(entry.path());
    CHECK(checkpoint.tensors().size() == expected_weights(checkpoint.config()).size());
    CHECK(checkpoint.warnings().empty());
    CHECK_FALSE(checkpoint.config().eos_token_ids.empty());
    ++opened;
  }
  CHECK(opened >= 14);
  // llama3 scaling in a GGUF file is a tensor of factors
  const Checkpoint scaled = Checkpoint::open(models / "gguf/llama3_scaled.gguf");
  CHECK(scaled.config().rope.freq_factors.size() == 8);
  CHECK(scaled.config().rope.layout == RotaryLayout::interleaved);
  const Checkpoint mixed = Checkpoint::open(models / "gguf/llama_mixed.gguf");
  CHECK(mixed.find("layers.0.q_proj")->dtype == DType::q4_0);
  CHECK(mixed.find("layers.1.v_proj")->dtype == DType::q6_k);
}

TEST_CASE("the real SmolLM2 opens", "[io][host]") {
  const auto path = std::filesystem::path(NVL_FETCHED_DATA_DIR) / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) { SKIP("the model file has not been fetched"); }
  const Checkpoint checkpoint = Checkpoint::open(path);
  const ModelConfig& c = checkpoint.config();
  CHECK(c.architecture == "llama");
  CHECK(c.vocab_size == 49'152);
  CHECK(c.hidden_size == 576);
  CHECK(c.intermediate_size == 1536);
  CHECK(c.num_layers == 30);
  CHECK(c.num_q_heads == 9);
  CHECK(c.num_kv_heads == 3);
  CHECK(c.head_dim == 64);
  CHECK(c.max_position_embeddings == 8192);
  CHECK(c.rope.theta == 100'000.0);
  CHECK(c.rope.layout == RotaryLayout::interleaved);
  CHECK(c.tie_word_embeddings);
  CHECK(c.dtype == DType::q4_1);
  CHECK(c.eos_token_ids == std::vector<TokenId>{2});
  CHECK(c.bos_token_id == 1);
  CHECK(checkpoint.warnings().empty());
  CHECK(checkpoint.tensors().size() == 272);
  CHECK(checkpoint.find("layers.29.down_proj")->shape == std::vector<std::int64_t>{576, 1536});
  CHECK(checkpoint.find("layers.29.down_proj")->dtype == DType::q4_1);
  CHECK(checkpoint.find("embed")->dtype == DType::q8_0);
}

}  // namespace checkpoint_test
