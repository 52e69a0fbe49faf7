// Which rank this process is: the variables of each launcher, alone, together, half given and wrong.

#include <nvl/net/launch_env.hpp>

#include "support/expect_error.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace launch_env_test {

using namespace nvl;
using nvl_test::expect_error;

namespace {

using Variables = std::map<std::string, std::string>;

LaunchEnv read(const Variables& variables) {
  return read_launch_env([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

struct Expected {
  std::uint32_t rank, size;
  std::optional<std::uint32_t> local_rank, local_size;
  std::string address;
  std::uint16_t port;
  std::string launcher;
};

void check(const Variables& variables, const Expected& expected) {
  const LaunchEnv env = read(variables);
  CAPTURE(expected.launcher);
  CHECK(index_of(env.rank) == expected.rank);
  CHECK(env.world_size == expected.size);
  CHECK(env.local_rank == expected.local_rank);
  CHECK(env.local_size == expected.local_size);
  CHECK(env.master_address == expected.address);
  CHECK(env.master_port == expected.port);
  CHECK(env.launcher == expected.launcher);
}

const Variables torchrun{
    {"RANK", "5"},          {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}, {"MASTER_ADDR", "10.0.0.1"},
    {"MASTER_PORT", "1234"}};
const Variables open_mpi{{"OMPI_COMM_WORLD_RANK", "1"},
                         {"OMPI_COMM_WORLD_SIZE", "2"},
                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                         {"PMIX_RANK", "1"}};
const Variables slurm{{"SLURM_PROCID", "3"},
                      {"SLURM_NTASKS", "16"},
                      {"SLURM_LOCALID", "3"},
                      {"SLURM_JOB_NODELIST", "gpu[03-06,9],login1"},
                      {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.250"}};

Variables operator+(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) { variables[name] = value; }
  return variables;
}

}  // namespace

TEST_CASE("each launcher's variables say which rank this is", "[parallel]") {
  check({}, {0, 1, {}, {}, "127.0.0.1", 29500, "one process"});
  check({{"WORLD_SIZE", "1"}}, {0, 1, {}, {}, "127.0.0.1", 29500, "one process"});
  check(torchrun, {5, 8, 1, 4, "10.0.0.1", 1234, "torchrun"});
  check({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "host0"}}, {1, 2, {}, {}, "host0", 29500, "torchrun"});
  check(open_mpi, {1, 2, 1, 2, "127.0.0.1", 29500, "Open MPI"});
  check({{"PMI_RANK", "0"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "2"}, {"MASTER_ADDR", "a"}},
        {0, 4, 0, 2, "a", 29500, "PMI"});
  check({{"PMIX_RANK", "3"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "a"}}, {3, 4, {}, {}, "a", 29500, "PMIx"});
  check(slurm, {3, 16, 3, {}, "gpu03", 29500, "Slurm"});
  check({{"LWS_WORKER_INDEX", "2"}, {"LWS_GROUP_SIZE", "4"}, {"LWS_LEADER_ADDRESS", "vllm-0.vllm.default"}},
        {2, 4, {}, {}, "vllm-0.vllm.default", 29500, "LeaderWorkerSet"});
}

TEST_CASE("an inner launcher's variables count before those of the one around it", "[parallel]") {
  // srun starts torchrun or mpirun's daemons once a host: Slurm's rank is the host's.
  check(slurm + torchrun + Variables{{"TORCHELASTIC_RUN_ID", "1"}}, {5, 8, 1, 4, "10.0.0.1", 1234, "torchrun"});
  check(slurm + open_mpi, {1, 2, 1, 2, "127.0.0.1", 29500, "Open MPI"});
  check(slurm + Variables{{"PMIX_RANK", "3"}}, {3, 16, 3, {}, "gpu03", 29500, "Slurm"});
  check({{"LWS_WORKER_INDEX", "1"},
         {"LWS_GROUP_SIZE", "2"},
         {"LWS_LEADER_ADDRESS", "leader"},
         {"RANK", "9"},
         {"WORLD_SIZE", "16"},
         {"MASTER_ADDR", "leader"}},
        {9, 16, {}, {}, "leader", 29500, "torchrun"});
  // The shell of an allocation, where no step runs.
  check({{"SLURM_NTASKS", "16"}, {"SLURM_JOB_NODELIST", "a,b"}}, {0, 1, {}, {}, "127.0.0.1", 29500, "one process"});
  // torchrun may number its ranks in another order than Slurm.
  check(Variables{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}} + torchrun + Variables{{"TORCHELASTIC_RUN_ID", "1"}},
        {5, 8, 1, 4, "10.0.0.1", 1234, "torchrun"});
}

TEST_CASE("MASTER_ADDR and MASTER_PORT count under every launcher", "[parallel]") {
  CHECK(read(slurm + Variables{{"MASTER_ADDR", "ib0-gpu03"}}).master_address == "ib0-gpu03");
  CHECK(read(open_mpi + Variables{{"MASTER_PORT", "77"}}).master_port == 77);
  // torchrun itself listens on MASTER_PORT then.
  const Variables agent{{"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RUN_ID", "1"}};
  CHECK(read(torchrun + agent).master_port == 1235);
  CHECK(read(torchrun + agent + Variables{{"MASTER_PORT", "65535"}}).master_port == 65534);
  CHECK(read(torchrun + Variables{{"TORCHELASTIC_USE_AGENT_STORE", "False"}}).master_port == 1234);
  CHECK(read(open_mpi + Variables{{"MASTER_ADDR", ""}}).master_address == "127.0.0.1");  // empty is not set
}

TEST_CASE("the first host of Slurm's lists", "[parallel]") {
  const auto first = [](const std::string& list) {
    return read(slurm + Variables{{"SLURM_STEP_NODELIST", list}}).master_address;
  };
  CHECK(first("gpu7") == "gpu7");
  CHECK(first("gpu7,gpu8") == "gpu7");
  CHECK(first("gpu[007-012]") == "gpu007");
  CHECK(first("gpu[7]-ib,other") == "gpu7-ib");
  CHECK(first("gpu[3,5-9].cluster") == "gpu3.cluster");
  for (const char* bad : {"gpu[", "gpu[]", "gpu[3", "gpu[,3]", "rack[1-2]n[3-4]", ",", "[-]"}) {
    CAPTURE(bad);
    expect_error<InvalidArgument>([&] { first(bad); }, {"SLURM_STEP_NODELIST", bad, "MASTER_ADDR"});
  }
  Variables no_list = slurm;
  no_list.erase("SLURM_JOB_NODELIST");
  CHECK(read(no_list).master_address == "10.0.0.250");
}

TEST_CASE("half a set of variables is refused by the name of the missing one", "[parallel]") {
  const auto missing = [](const Variables& variables, const std::string& name, const std::string& beside) {
    CAPTURE(name, beside);
    expect_error<InvalidArgument>([&] { read(variables); }, {name + " is \"not set\"", beside});
  };
  missing({{"RANK", "0"}}, "WORLD_SIZE", "RANK");
  missing({{"WORLD_SIZE", "2"}}, "RANK", "WORLD_SIZE");
  missing({{"MASTER_ADDR", "a"}}, "RANK", "MASTER_ADDR");
  missing({{"LOCAL_RANK", "0"}}, "RANK", "LOCAL_RANK");
  missing({{"OMPI_COMM_WORLD_RANK", "0"}}, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK");
  missing({{"OMPI_COMM_WORLD_SIZE", "2"}}, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
  missing({{"PMI_SIZE", "2"}}, "PMI_RANK", "PMI_SIZE");
  missing({{"PMIX_RANK", "0"}}, "WORLD_SIZE", "PMIX_RANK");
  missing({{"SLURM_PROCID", "0"}}, "SLURM_NTASKS", "SLURM_PROCID");
  missing({{"LWS_GROUP_SIZE", "2"}}, "LWS_WORKER_INDEX", "LWS_GROUP_SIZE");
  missing({{"RANK", "0"}, {"WORLD_SIZE", "2"}}, "MASTER_ADDR", "torchrun");
  missing({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}, "MASTER_ADDR",
          "Open MPI");
  missing({{"LWS_WORKER_INDEX", "0"}, {"LWS_GROUP_SIZE", "2"}}, "MASTER_ADDR", "LeaderWorkerSet");
}

TEST_CASE("a value out of its range is refused by name, value and rule", "[parallel]") {
  const auto bad = [](const Variables& variables, const std::vector<std::string>& words) {
    expect_error<InvalidArgument>([&] { read(torchrun + variables); }, words);
  };
  bad({{"RANK", "8"}}, {"RANK is 8", "below WORLD_SIZE, which is 8"});
  bad({{"RANK", "-1"}}, {"RANK is \"-1\"", "whole number"});
  bad({{"RANK", "1x"}}, {"RANK is \"1x\"", "whole number"});
  bad({{"RANK", "4294967296"}}, {"RANK is \"4294967296\"", "whole number"});
  bad({{"WORLD_SIZE", "0"}}, {"WORLD_SIZE is \"0\"", "from 1"});
  bad({{"WORLD_SIZE", "1048577"}}, {"WORLD_SIZE", "to 1048576"});
  bad({{"LOCAL_RANK", "4"}}, {"LOCAL_RANK is 4", "below LOCAL_WORLD_SIZE, which is 4"});
  bad({{"LOCAL_WORLD_SIZE", "9"}}, {"LOCAL_WORLD_SIZE is 9", "at most WORLD_SIZE, which is 8"});
  bad({{"MASTER_PORT", "65536"}}, {"MASTER_PORT", "65535"});
  bad({{"MASTER_PORT", "0"}}, {"MASTER_PORT", "from 1"});
  // Kubernetes sets this for a service called "master".
  bad({{"MASTER_PORT", "tcp://10.0.0.1:29500"}}, {"MASTER_PORT is \"tcp://10.0.0.1:29500\"", "whole number"});
}

TEST_CASE("variables that contradict each other are refused by both names", "[parallel]") {
  const auto bad = [](const Variables& variables, const std::vector<std::string>& words) {
    expect_error<InvalidArgument>([&] { read(variables); }, words);
  };
  // Set by hand for all processes: each would be rank 0.
  bad(open_mpi + Variables{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}},
      {"OMPI_COMM_WORLD_RANK is 1", "torchrun's RANK and WORLD_SIZE (0 of 2)"});
  bad(slurm + Variables{{"RANK", "0"}, {"WORLD_SIZE", "16"}, {"MASTER_ADDR", "a"}}, {"SLURM_PROCID is 3", "(0 of 16)"});
  bad(open_mpi + Variables{{"WORLD_SIZE", "4"}}, {"WORLD_SIZE is 4", "Open MPI's", "(1 of 2)"});
  bad(open_mpi + Variables{{"PMIX_RANK", "0"}}, {"PMIX_RANK is 0", "Open MPI's", "(1 of 2)"});
  bad(open_mpi + Variables{{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}, {"PMI_RANK is 0", "Open MPI's"});
}

TEST_CASE("the process's own environment is read", "[parallel]") {
  if (std::getenv("RANK") != nullptr || std::getenv("SLURM_PROCID") != nullptr) { SKIP("this is a rank of something already"); }
  REQUIRE(setenv("PMI_RANK", "1", 1) == 0);
  REQUIRE(setenv("PMI_SIZE", "3", 1) == 0);
  REQUIRE(setenv("MASTER_ADDR", "here", 1) == 0);
  const LaunchEnv env = read_launch_env();
  for (const char* name : {"PMI_RANK", "PMI_SIZE", "MASTER_ADDR"}) { unsetenv(name); }
  CHECK(index_of(env.rank) == 1);
  CHECK(env.world_size == 3);
  CHECK(env.master_address == "here");
}

}  // namespace launch_env_test
