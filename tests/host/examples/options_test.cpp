/// The option parser that nvl's programs share.

#include "support/files.hpp"
#include "support/model_options.hpp"
#include "support/options.hpp"

#include <nvl/ops/cpu_device.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace options_test {

using namespace nvl_examples;

namespace {

/// The options of a small program, read from a command line.
struct Fixture {
  std::string text;
  std::optional<std::int32_t> count;
  std::optional<float> share;
  std::vector<std::string> stops;
  std::optional<ByteCount> bytes;
  bool loud = false;
  bool goes_on = false;
  std::string help;

  explicit Fixture(std::vector<const char*> words) {
    OptionParser parser("program", "Does a thing.");
    parser.group("First");
    parser.option("-t,--text", text, "TEXT", "Some text.");
    parser.option("--top-count,--count", count, "N", "A number.");
    parser.group("Second");
    parser.option("--share", share, "X", "A share.");
    parser.option("--stop", stops, "TEXT", "Several.");
    parser.option("--bytes", bytes, "BYTES", "A size.");
    parser.flag("--loud", loud, "A switch.");
    help = parser.help();
    words.insert(words.begin(), "program");
    goes_on = parser.parse(static_cast<int>(words.size()), words.data());
  }
};

std::string message_of(const std::vector<const char*>& words) {
  try {
    Fixture fixture(words);
  } catch (const UsageError& error) { return error.what(); }
  return "no error";
}

/// Sets a variable of the environment while it lives.
class Env {
 public:
  Env(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  Env(const Env&) = delete;
  Env& operator=(const Env&) = delete;
  ~Env() { ::unsetenv(name_); }

 private:
  const char* name_;
};

}  // namespace

TEST_CASE("options that are not given leave their values alone", "[examples][host]") {
  const Fixture f({});
  CHECK(f.goes_on);
  CHECK(f.text.empty());
  CHECK(!f.count);
  CHECK(f.stops.empty());
  CHECK(!f.loud);
}

TEST_CASE("options take values in every usual form", "[examples][host]") {
  const Fixture f({"-t", "hello", "--count=-7", "--share", "0.25", "--loud", "--bytes", "2k"});
  CHECK(f.text == "hello");
  CHECK(f.count == -7);
  CHECK(f.share == 0.25f);
  CHECK(f.loud);
  CHECK(f.bytes->value == 2048);
}

TEST_CASE("a value may be empty, start with a dash or look like a list", "[examples][host]") {
  CHECK(Fixture({"--text", ""}).text.empty());
  CHECK(Fixture({"--text", "--loud"}).text == "--loud");
  CHECK(Fixture({"--text", "[a, b]"}).text == "[a, b]");
  CHECK(Fixture({"--stop", "[1,2]", "--stop", "", "--stop", "c"}).stops == std::vector<std::string>{"[1,2]", "", "c"});
}

TEST_CASE("of an option that comes twice the last one counts", "[examples][host]") {
  CHECK(Fixture({"--count", "1", "--count", "2"}).count == 2);
}

TEST_CASE("a value of the wrong kind is an error that names option, value and rule", "[examples][host]") {
  CHECK(message_of({"--count", "many"}) == "--top-count is \"many\": must be an integer from -2147483648 to 2147483647");
  CHECK(message_of({"--count", "2147483648"}).find("must be an integer") != std::string::npos);
  CHECK(message_of({"--count", "1x"}).find("\"1x\"") != std::string::npos);
  CHECK(message_of({"--count", ""}).find("must be an integer") != std::string::npos);
  CHECK(message_of({"--share", "nan"}) == "--share is \"nan\": must be a number");
  CHECK(message_of({"--share", "1e999"}) == "--share is \"1e999\": must be a number");
  CHECK(message_of({"--loud=perhaps"}) == "--loud is \"perhaps\": must be true or false");
  for (const char* size : {"-1", "1Q", "1KB", "9999999999G", "M", "0x10"}) {
    CHECK(message_of({"--bytes", size}) ==
          "--bytes is \"" + std::string(size) + "\": must be a number of bytes such as 536870912, 512M or 4G");
  }
}

TEST_CASE("an unknown option is an error that says what may be meant", "[examples][host]") {
  CHECK(message_of({"--stopp", "x"}) == "unknown option --stopp: did you mean --stop?");
  CHECK(message_of({"--top_count=3"}) == "unknown option --top_count: did you mean --top-count?");
  CHECK(message_of({"--temperature", "1"}) == "unknown option --temperature (see --help)");
  CHECK(message_of({"word"}) == "\"word\" is no option (see --help)");
  CHECK(message_of({"--count"}).ends_with("needs a value"));
}

TEST_CASE("an option may have a name of one dash and several letters", "[examples][host]") {
  const auto parse = [](std::vector<const char*> words) {
    OptionParser parser("program", "Does a thing.");
    std::int32_t count = 1;
    std::string text = "none", prompt = "none";
    parser.option("-dp,--data-count", count, "N", "A number.");
    parser.option("-d,--text", text, "TEXT", "Some text.");
    parser.command("first", "One.").option("-wp,--words", prompt, "TEXT", "Words.");
    words.insert(words.begin(), "program");
    words.push_back("first");
    words.push_back("-wp=a b");
    parser.parse(static_cast<int>(words.size()), words.data());
    CHECK(prompt == "a b");
    CHECK(parser.help().find("-dp, --data-count N") != std::string::npos);
    return std::to_string(count) + " " + text;
  };
  CHECK(parse({}) == "1 none");
  CHECK(parse({"-dp", "4"}) == "4 none");
  CHECK(parse({"-dp=4", "-d", "x"}) == "4 x");
  CHECK(parse({"--data-count", "4", "-dp", "5"}) == "5 none");
  CHECK(parse({"--text", "-dp", "-dp", "3"}) == "3 -dp");  // a value is a value
  CHECK(parse({"-dx"}) == "1 x");
  CHECK_THROWS_AS(parse({"-dp", "many"}), UsageError);
}

TEST_CASE("the environment fills in what the command line does not say", "[examples][host]") {
  const Env count("NVL_TOP_COUNT", "5"), loud("NVL_LOUD", "1"), text("NVL_TEXT", "");
  CHECK(Fixture({}).count == 5);
  CHECK(Fixture({}).loud);
  CHECK(Fixture({"--count", "6"}).count == 6);
  CHECK(!Fixture({"--loud=false"}).loud);
  const Env share("NVL_SHARE", "half");
  CHECK(message_of({}) == "NVL_SHARE is \"half\": must be a number");
}

TEST_CASE("--help lists every option in its group, wrapped", "[examples][host]") {
  const std::string help = Fixture({}).help;
  for (const char* part : {"Does a thing.", "\nFirst:\n", "  -t, --text TEXT", "      --top-count N", "(also --count)",
                           "\nSecond:\n", "--loud", "NVL_TEXT", "--version"}) {
    CAPTURE(part);
    CHECK(help.find(part) != std::string::npos);
  }
  for (const std::string_view line : lines_of(help)) { CHECK(line.size() <= 110); }
}

TEST_CASE("a command has options of its own and one is needed", "[examples][host]") {
  const auto parse = [](std::vector<const char*> words) {
    OptionParser parser("program", "Two things.");
    std::int32_t size = 1;
    parser.command("first", "One.").option("--size", size, "N", "A size.");
    parser.command("second", "Another.");
    words.insert(words.begin(), "program");
    parser.parse(static_cast<int>(words.size()), words.data());
    return parser.chosen_command() + std::to_string(size);
  };
  CHECK(parse({"first", "--size", "3"}) == "first3");
  CHECK(parse({"second"}) == "second1");
  CHECK_THROWS_AS(parse({}), UsageError);
  CHECK_THROWS_AS(parse({"third"}), UsageError);
  CHECK_THROWS_AS(parse({"second", "--size", "3"}), UsageError);
}

TEST_CASE("sampling options change only what they name", "[examples][host]") {
  nvl::SamplingParams recommended;
  recommended.temperature = 0.6f;
  recommended.top_p = 0.9f;
  SamplingOptions options;
  CHECK(options.over(recommended).temperature == 0.6f);
  CHECK(options.over(recommended).max_tokens == SamplingOptions::default_max_tokens);
  options.temperature = 0.0f;
  options.seed = 7;
  options.stop = {"\n"};
  const nvl::SamplingParams merged = options.over(recommended);
  CHECK(merged.temperature == 0);
  CHECK(merged.top_p == 0.9f);
  CHECK(merged.seed == 7);
  CHECK(merged.stop == std::vector<std::string>{"\n"});
}

TEST_CASE("model options refuse what this version cannot do", "[examples][host]") {
  ModelOptions options;
  CHECK_THROWS_AS(options.validate(), UsageError);
  options.model = "m.gguf";
  CHECK_NOTHROW(options.validate());
  options.dtype = "int4";
  CHECK_THROWS_AS(options.validate(), UsageError);
  options.dtype = "bfloat16";
  CHECK(options.element_type() == nvl::DType::bfloat16);
  options.device = "cuda";
  CHECK_THROWS_AS(options.validate(), UsageError);
}

TEST_CASE("a model is split on the CPU, over a number of ranks, with the policies that were compiled for it",
          "[examples][host]") {
  const auto message_of = [](const std::function<void(ModelOptions&)>& change) -> std::string {
    ModelOptions options;
    options.model = "model.gguf";
    options.parallel.tensor_parallel_size = 2;
    change(options);
    try {
      options.validate();
    } catch (const UsageError& error) { return error.what(); }
    return "";
  };
  CHECK(message_of([](ModelOptions& o) { o.parallel.pipeline_parallel_size = 3; }).empty());
  CHECK(message_of([](ModelOptions& o) { o.parallel.tensor_parallel_size = 0; }) ==
        "--tensor-parallel-size is 0: must be 1 to 64");
  CHECK(message_of([](ModelOptions& o) { o.parallel.pipeline_parallel_size = 65; }) ==
        "--pipeline-parallel-size is 65: must be 1 to 64");
  CHECK(message_of([](ModelOptions& o) { o.policies.prefix_cache = "radix"; }) ==
        "--tensor-parallel-size 2 --pipeline-parallel-size 1 is compiled with --scheduler token-budget --preemption recompute "
        "--prefix-cache hash only");
}

TEST_CASE("replicas take shares of the CPU, or a GPU each", "[examples][host]") {
  const auto message_of_parallel = [](std::int32_t size, const std::optional<std::string>& router) -> std::string {
    try {
      ParallelOptions{.data_parallel_size = size, .router = router}.validate();
    } catch (const UsageError& error) { return error.what(); }
    return "";
  };
  CHECK(message_of_parallel(1, std::nullopt).empty());
  CHECK(message_of_parallel(64, "prefix-affinity").empty());
  CHECK(message_of_parallel(0, std::nullopt) == "--data-parallel-size is 0: must be 1 to 64");
  CHECK(message_of_parallel(65, std::nullopt) == "--data-parallel-size is 65: must be 1 to 64");
  CHECK(message_of_parallel(2, "any") == "--router is \"any\": must be round-robin, least-tokens or prefix-affinity");
  CHECK(message_of_parallel(1, "round-robin") == "--router is \"round-robin\": needs --data-parallel-size above 1");

  const ParallelOptions three{.data_parallel_size = 3, .router = std::nullopt};
  nvl::EngineOptions options;
  options.device.num_threads = 8;
  options.seed = 5;
  std::int64_t kv_cache_memory = 0;
  for (const std::int32_t i : {0, 1, 2}) {
    const nvl::EngineOptions on_cpu = three.of_replica(i, true, options);
    CHECK(on_cpu.device.num_threads == (i < 2 ? 3 : 2));
    CHECK(on_cpu.seed == 5 + static_cast<std::uint64_t>(i));
    kv_cache_memory += on_cpu.kv_cache_memory_bytes;
    const nvl::EngineOptions on_gpu = three.of_replica(i, false, options);
    CHECK(on_gpu.device.ordinal == i);
    CHECK(on_gpu.kv_cache_memory_bytes == 0);
  }
  const std::int64_t whole = nvl::CpuDevice::memory().budget_bytes;
  CHECK((kv_cache_memory <= whole && kv_cache_memory > whole - 3));
  options.device.num_threads = 2;
  options.num_blocks = 10;
  CHECK(three.of_replica(2, true, options).device.num_threads == 1);
  CHECK(three.of_replica(2, true, options).kv_cache_memory_bytes == 0);
  options.device.num_threads = -1;  // for the engine to refuse
  CHECK(three.of_replica(0, true, options).device.num_threads == -1);
}

TEST_CASE("OMP_NUM_THREADS counts where --threads is not given", "[examples][host]") {
  const Env omp("OMP_NUM_THREADS", "3,2");
  ModelOptions options;
  CHECK(options.device_options().num_threads == 3);
  options.threads = 1;
  CHECK(options.device_options().num_threads == 1);
}

TEST_CASE("token ids are read in the ways that people write them", "[examples][host]") {
  const std::vector<nvl::TokenId> ids{1, 20, 3};
  CHECK(parse_ids("1 20 3", "ids") == ids);
  CHECK(parse_ids(" [1, 20,3]\n", "ids") == ids);
  CHECK(parse_ids("", "ids").empty());
  for (const char* bad : {"1 x", "-1", "1.5", "99999999999", "0x1"}) { CHECK_THROWS_AS(parse_ids(bad, "ids"), UsageError); }
  CHECK(ids_text(ids) == "1 20 3");
}

TEST_CASE("lines end with LF or CRLF, the last one with or without", "[examples][host]") {
  using Lines = std::vector<std::string_view>;
  CHECK(lines_of("a\r\n\nb") == Lines{"a", "", "b"});
  CHECK(lines_of("a\n") == Lines{"a"});
  CHECK(lines_of("").empty());
}

}  // namespace options_test
