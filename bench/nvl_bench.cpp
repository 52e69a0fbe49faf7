/// nvl-bench: how fast a model runs. Every command first checks that the engine's answers are right.

#include "bench/engine/commands.hpp"
#include "support/options.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace {

int bench(int argc, char** argv) {
  nvl_examples::OptionParser parser("nvl-bench", "Measures how fast a model runs.");
  nvl_bench::LatencyCommand latency;
  nvl_bench::ThroughputCommand throughput;
  nvl_bench::StartupCommand startup;
  latency.add_to(parser.command("latency", "A batch of equal requests, again and again: how long it takes."));
  throughput.add_to(
      parser.command("throughput", "Many requests, all submitted at the start: how much work is done in a second."));
  startup.add_to(parser.command("startup", "From the start of a process to its first token."));
  if (!parser.parse(argc, argv)) { return 0; }
  std::vector<std::string> command{"nvl-bench"};
  command.insert(command.end(), argv + 1, argv + argc);
  if (parser.chosen_command() == "latency") { return latency.run(command); }
  if (parser.chosen_command() == "startup") { return startup.run(command); }
  return throughput.run(command);
}

}  // namespace

int main(int argc, char** argv) {
  const double started = nvl_bench::monotonic_seconds();
  return nvl_examples::run_program("nvl-bench", [&] {
    if (argc > 1 && argv[1] == nvl_bench::startup_child) { return nvl_bench::run_startup_child(argc - 1, argv + 1, started); }
    return bench(argc, argv);
  });
}
