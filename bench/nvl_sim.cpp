/// nvl-sim: what a scheduler and a cache do with a load, on a virtual clock. No GPU and no model is needed.

#include "bench/sim/sim_command.hpp"
#include "support/options.hpp"

#include <string>
#include <vector>

int main(int argc, char** argv) {
  return nvl_examples::run_program("nvl-sim", [&] {
    nvl_examples::OptionParser parser("nvl-sim", "Simulates schedulers and caches on loads, with a cost model of a device.");
    nvl_bench::SimCommand command;
    command.add_to(parser);
    if (!parser.parse(argc, argv)) { return 0; }
    std::vector<std::string> words{"nvl-sim"};
    words.insert(words.end(), argv + 1, argv + argc);
    return command.run(words);
  });
}
