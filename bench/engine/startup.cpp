#include "bench/engine/commands.hpp"
#include "bench/engine/rounds.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

extern char** environ;

namespace nvl_bench {

using nvl_examples::OptionParser;
using nvl_examples::Progress;
using nvl_examples::UsageError;

namespace {

/// What a process went through, in order: the name of the phase in reports, and the key of the time when it ended.
struct Phase {
  const char* key;
  const char* title;
};
constexpr std::array<Phase, 6> phases{{{"main", "process, up to main"},
                                       {"opened", "configuration and file header"},
                                       {"first_layer", "device, embedding and first layer"},
                                       {"weights", "weights of the other layers"},
                                       {"engine", "KV cache and graphs"},
                                       {"first_token", "first token of the prompt"}}};

/// A fresh folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "nvl-bench-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) { throw std::runtime_error(name + ": cannot be made: " + std::strerror(errno)); }
    path_ = name;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Reads all of a model's files, so that they lie in the page cache, and has what was just written reach the disk, so that
/// nothing writes while the time runs. Returns their bytes.
std::int64_t settle_in_page_cache(const std::filesystem::path& model) {
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_directory(model)) {
    for (const auto& entry : std::filesystem::directory_iterator(model)) {
      if (entry.is_regular_file()) { files.push_back(entry.path()); }
    }
  } else {
    files.push_back(model);
  }
  std::vector<char> buffer(std::size_t{1} << 20);
  std::int64_t total = 0;
  for (const std::filesystem::path& file : files) {
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) { throw std::runtime_error(file.string() + ": " + std::strerror(errno)); }
    ::fsync(descriptor);
    for (::ssize_t count = 0; (count = ::read(descriptor, buffer.data(), buffer.size())) > 0;) { total += count; }
    ::close(descriptor);
  }
  return total;
}

/// Standard output of a process that runs this program again with `words`, and when it was started.
struct ChildRun {
  std::string output;
  double started = 0, ended = 0;  // [seconds] monotonic_seconds()
};

ChildRun run_child(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) { argv.push_back(const_cast<char*>(word.c_str())); }
  argv.push_back(nullptr);
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) { throw std::runtime_error(std::string("pipe: ") + std::strerror(errno)); }
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  ChildRun run;
  ::pid_t child = 0;
  run.started = monotonic_seconds();
  const int error = ::posix_spawn(&child, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (error == 0) {
    std::array<char, 4096> buffer{};
    for (::ssize_t count = 0; (count = ::read(ends[0], buffer.data(), buffer.size())) > 0;) {
      run.output.append(buffer.data(), static_cast<std::size_t>(count));
    }
  }
  ::close(ends[0]);
  if (error != 0) { throw std::runtime_error(std::string("this program cannot be started again: ") + std::strerror(error)); }
  int status = 0;
  ::waitpid(child, &status, 0);
  run.ended = monotonic_seconds();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw std::runtime_error("the process that was to load the model failed (its message is above)");
  }
  return run;
}

/// A device may have said something before.
std::string last_line(std::string text) {
  while (text.ends_with('\n')) { text.pop_back(); }
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace

double monotonic_seconds() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

void StartupCommand::add_to(OptionParser& parser) {
  common.add_model_to(parser);
  parser.option("--checkpoint-dir", checkpoint_dir, "DIR",
                "Where random weights are written as a checkpoint, and kept. Default: a temporary folder.");
  parser.group("Load");
  parser.option("--input-len", input_len, "N", "Prompt tokens. Default: 512.");
  parser.option("--num-iters", num_iters, "N", "Processes that are started, one after the other. Default: 5.");
  common.add_rest_to(parser);
}

void StartupCommand::validate() {
  common.validate();
  require_at_least_one("--input-len", input_len);
  require_at_least_one("--num-iters", num_iters);
  if (checkpoint_dir && !common.random_weights) { throw UsageError("--checkpoint-dir is where --random-weights are written"); }
  if (common.verify_control) { throw UsageError("--verify-control belongs to latency and throughput"); }
}

int StartupCommand::run(const std::vector<std::string>& command) {
  validate();
  std::optional<TempFolder> temporary;
  std::filesystem::path model_path = common.model.model;
  const std::string model_name = common.model_name();
  if (common.random_weights) {
    if (!checkpoint_dir) { temporary.emplace(); }
    model_path = checkpoint_dir ? *checkpoint_dir : temporary->path();
    Progress bar("writing " + model_path.string());
    bar.update(0);
    BenchModel(common).write_checkpoint_to(model_path);
  }
  const std::int64_t model_bytes = settle_in_page_cache(model_path);

  std::vector<std::string> words{command.front(), std::string(startup_child)};
  words.insert(words.end(), command.begin() + 2, command.end());
  words.insert(words.end(), {"--child-model", std::filesystem::absolute(model_path).string()});
  std::vector<std::vector<double>> times(phases.size());
  std::vector<double> totals, ends;
  std::vector<nvl::TokenId> tokens;
  {
    Progress bar("start-up");
    for (std::int32_t i = 0; i < num_iters; ++i) {
      bar.update(static_cast<double>(i) / num_iters);
      const ChildRun run = run_child(words);
      const Json child = Json::parse(last_line(run.output));
      double last = run.started;
      for (std::size_t p = 0; p < phases.size(); ++p) {
        times[p].push_back(child.at(phases[p].key).get<double>() - last);
        last = child.at(phases[p].key).get<double>();
      }
      totals.push_back(last - run.started);
      ends.push_back(run.ended - last);
      tokens.push_back(child.at("token").get<nvl::TokenId>());
    }
  }
  const DeviceReport device = describe_device(common);

  // What the processes loaded is judged as any other engine: here, and by the tokens that they gave.
  common.random_weights.reset();
  common.model.model = model_path;
  BenchModel model(common);
  std::optional<Verdict> verdict;
  if (common.verify.num_requests > 0) {
    RandomIds random(model.config().vocab_size, common.seed);
    Workload load =
        random_workload(common.verify.num_requests, {input_len, common.verify.output_len}, 0, model.config().vocab_size, random);
    std::vector<Answer> answers;
    for (const nvl::TokenId token : tokens) { answers.push_back({load.prompts.front(), {token}}); }
    nvl::EngineOptions options;
    options.max_model_len = load.max_total_len();
    const OpenedEngine opened = open_engine(model, common, options);
    verdict = verify_engine(*opened.engine, model, common, load, load.size(), std::move(answers));
  }

  common.model.model = model_name;
  Json json = report_head(command, model, common, device);
  json["model_bytes"] = model_bytes;
  json["input_len"] = input_len;
  json["num_iters"] = num_iters;
  add_verdict(json, verdict);
  const Samples total(totals), end(ends);
  json["time_to_first_token_s"] = total.median();
  json["all_time_to_first_token_s"] = totals;
  TableRows rows{distribution_head};
  for (std::size_t p = 0; p < phases.size(); ++p) {
    const Samples samples(times[p]);
    json["phases_ms"][phases[p].key] = 1e3 * samples.median();
    rows.push_back(distribution_row(std::string(phases[p].title) + " [ms]", samples, 1e3, 2));
  }
  rows.push_back(distribution_row("process start to first token [ms]", total, 1e3, 2));
  rows.push_back(distribution_row("from there to the end of the process [ms]", end, 1e3, 2));
  json["exit_ms"] = 1e3 * end.median();
  const std::string tables = std::to_string(num_iters) + " processes, one after the other; the model's " +
                             fixed(static_cast<double>(model_bytes) / 1e9, 3) + " GB lie in the page cache; a prompt of " +
                             std::to_string(input_len) + " tokens.\n\n" + verdict_text(verdict) + markdown_table(rows);
  finish_report(common, "startup", json, tables);
  return 0;
}

int run_startup_child(int argc, const char* const* argv, double main_seconds) {
  Json json;
  json["main"] = main_seconds;
  OptionParser parser("nvl-bench startup-child", "Loads a model, generates a token and prints when it did what.");
  StartupCommand startup;
  std::filesystem::path child_model;
  startup.add_to(parser);
  parser.option("--child-model", child_model, "PATH", "The model, whatever the other options say.");
  if (!parser.parse(argc, argv)) { return 0; }
  CommonOptions& common = startup.common;
  common.random_weights.reset();
  common.output_json.reset();
  common.model.model = child_model;
  common.validate();

  const BenchModel model(common);
  json["opened"] = monotonic_seconds();
  nvl::EngineOptions options;
  options.max_model_len = startup.input_len + std::max(1, common.verify.output_len);
  const auto engine = model.make_engine(common, options, [&](double fraction) {
    if (!json.contains("first_layer")) { json["first_layer"] = monotonic_seconds(); }
    if (fraction == 1.0) { json["weights"] = monotonic_seconds(); }
  });
  json["engine"] = monotonic_seconds();
  print_warnings(*engine);
  RandomIds random(model.config().vocab_size, common.seed);
  const Workload load = random_workload(1, {startup.input_len, 1}, 0, model.config().vocab_size, random);
  nvl::TokenId token = -1;
  engine->submit(std::move(load.requests().front()), {.on_token =
                                                          [&](const nvl::TokenEvent& event) {
                                                            json["first_token"] = monotonic_seconds();
                                                            token = event.token;
                                                          },
                                                      .on_finish = {}});
  while (engine->has_work()) { engine->step(); }
  if (token < 0) { throw std::runtime_error("the engine gave no token: " + engine->failure()); }
  json["token"] = token;
  std::printf("%s\n", json.dump().c_str());
  return 0;
}

}  // namespace nvl_bench
