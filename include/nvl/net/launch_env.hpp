#pragma once
/// Which rank of how many this process is, from the environment that mpirun, torchrun, srun or a LeaderWorkerSet gave it.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>

#include <array>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

/// This process among those that were started together.
struct LaunchEnv {
  Rank rank{0};
  std::uint32_t world_size = 1;               // processes in all
  std::optional<std::uint32_t> local_rank;    // among the processes of this host; none: the launcher does not say
  std::optional<std::uint32_t> local_size;    // processes of this host
  std::string master_address = "127.0.0.1";   // where rank 0 is: a name or an address
  std::uint16_t master_port = 0;              // default_port unless MASTER_PORT is set
  std::string_view launcher = "one process";  // whose variables these are

  static constexpr std::uint16_t default_port = 29500;  // torch's
};

namespace detail::launch_env {

/// The variables of one launcher. Empty: it has no such variable.
struct Launcher {
  std::string_view name, rank, size, local_rank, local_size;
};

/// Innermost first: mpirun inside of sbatch leaves Slurm's variables of the outer job step in place.
inline constexpr std::array<Launcher, 5> launchers{{
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""},
    {"LeaderWorkerSet", "LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "", ""},
}};

template <class Lookup>
class Reader {
 public:
  explicit Reader(Lookup& lookup) : lookup_(lookup) {}

  /// A variable without a value counts as not set.
  std::optional<std::string> text(std::string_view name) {
    if (name.empty()) { return std::nullopt; }
    std::optional<std::string> value = lookup_(std::string(name));
    if (value && value->empty()) { value.reset(); }
    return value;
  }

  std::optional<std::uint32_t> number(std::string_view name, std::uint32_t min = 0, std::uint32_t max = max_world_size) {
    const std::optional<std::string> value = text(name);
    if (!value) { return std::nullopt; }
    std::uint32_t parsed = 0;
    const char* const end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, parsed);
    NVL_EXPECTS(error == std::errc() && stop == end && parsed >= min && parsed <= max, std::string(name), *value,
                "a whole number from " + std::to_string(min) + " to " + std::to_string(max));
    return parsed;
  }

 private:
  static constexpr std::uint32_t max_world_size = 1u << 20;
  Lookup& lookup_;
};

inline void expect_below(std::string_view name, std::uint32_t value, std::string_view limit_name, std::uint32_t limit) {
  NVL_EXPECTS(value < limit, std::string(name), value,
              "below " + std::string(limit_name) + ", which is " + std::to_string(limit));
}

/// Of a Slurm list of hosts the first: "gpu[03-06,9],login1" -> "gpu03"; nullopt if it is not such a list.
inline std::optional<std::string> first_host(std::string_view list) {
  const std::size_t end = list.find_first_of("[,");
  std::string host(list.substr(0, end));
  if (end != std::string_view::npos && list[end] == '[') {
    const std::string_view range = list.substr(end + 1);
    const std::size_t first = range.find_first_of("-,]");
    const std::size_t close = range.find(']');
    if (first == 0 || first == std::string_view::npos || close == std::string_view::npos) { return std::nullopt; }
    host += range.substr(0, first);
    const std::string_view suffix = range.substr(close + 1);
    if (suffix.substr(0, suffix.find(',')).find('[') != std::string_view::npos) { return std::nullopt; }  // of two dimensions
    host += suffix.substr(0, suffix.find(','));
  }
  return host.empty() ? std::nullopt : std::optional(std::move(host));
}

/// Where rank 0 is, from what the launchers say themselves.
template <class Lookup>
std::optional<std::string> master_of(const Launcher& launcher, Reader<Lookup>& env) {
  if (launcher.name == "LeaderWorkerSet") { return env.text("LWS_LEADER_ADDRESS"); }
  if (launcher.name != "Slurm") { return std::nullopt; }
  // Rank 0 runs on the first host of the step; srun itself may run somewhere else (a login node).
  for (const std::string_view name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"}) {
    if (const std::optional<std::string> list = env.text(name)) {
      std::optional<std::string> host = first_host(*list);
      NVL_EXPECTS(host.has_value(), std::string(name), *list, "a list of hosts such as gpu[03-06]; or set MASTER_ADDR");
      return host;
    }
  }
  return env.text("SLURM_LAUNCH_NODE_IPADDR");
}

/// The innermost launcher that gave this process a rank.
template <class Lookup>
const Launcher* find_launcher(Reader<Lookup>& env) {
  for (const Launcher& launcher : launchers) {
    if (env.text(launcher.rank)) {
      NVL_EXPECTS(env.text(launcher.size).has_value(), std::string(launcher.size), "not set",
                  "set where " + std::string(launcher.rank) + " is");
      return &launcher;
    }
    // Slurm sets the size in the shell of an allocation as well, where no rank runs; WORLD_SIZE is compared below.
    const bool size_says_nothing = launcher.name == "Slurm" || launcher.name == "torchrun";
    NVL_EXPECTS(size_says_nothing || !env.text(launcher.size), std::string(launcher.rank), "not set",
                "set where " + std::string(launcher.size) + " is");
  }
  return nullptr;
}

/// RANK and WORLD_SIZE that are set by hand for all processes, while a launcher gives each its own, would make them all one rank.
/// torchrun numbers its ranks in an order of its own, so its variables (it sets TORCHELASTIC_RUN_ID) are not compared.
template <class Lookup>
void expect_no_contradiction(const Launcher& chosen, Rank rank, std::uint32_t size, Reader<Lookup>& env) {
  if (env.text("TORCHELASTIC_RUN_ID")) { return; }
  const std::string names = std::string(chosen.rank) + " and " + std::string(chosen.size);
  const std::string is_chosen =
      std::string(chosen.name) + "'s " + names + " (" + std::to_string(index_of(rank)) + " of " + std::to_string(size) + ")";
  for (const Launcher& other : launchers) {
    // mpirun starts its daemons with srun, one a host: Slurm then counts hosts and not ranks.
    if (&other == &chosen || (other.name == "Slurm" && chosen.name != "torchrun")) { continue; }
    const std::optional<std::uint32_t> other_rank = env.number(other.rank), other_size = env.number(other.size);
    if (other.name == "torchrun") {
      NVL_EXPECTS(!other_size || *other_size == size, std::string(other.size), *other_size, "as in " + is_chosen);
    } else if (other_rank && other_size == size) {
      NVL_EXPECTS(*other_rank == index_of(rank), std::string(other.rank), *other_rank, "as in " + is_chosen);
    }
  }
  const bool is_of_pmix = chosen.name == "Open MPI" || chosen.name == "PMI";
  const std::optional<std::uint32_t> pmix = env.number("PMIX_RANK");
  NVL_EXPECTS(!is_of_pmix || !pmix || *pmix == index_of(rank), "PMIX_RANK", *pmix, "as in " + is_chosen);
}

}  // namespace detail::launch_env

/// Reads the environment through `lookup(name)`, which gives a std::optional<std::string>.
///
/// Whose variables count, in this order: RANK and WORLD_SIZE (torchrun, or set by hand), Open MPI's, PMI's (MPICH, Intel MPI),
/// PMIX_RANK with WORLD_SIZE, Slurm's, LeaderWorkerSet's. No rank anywhere: one process. MASTER_ADDR and MASTER_PORT say where
/// rank 0 is, under every launcher; without them Slurm's list of hosts or the LeaderWorkerSet's leader does, and the loopback
/// if all ranks are on this host. Where torchrun itself listens on MASTER_PORT, the port is the next one.
/// \throws InvalidArgument that names the variable, its value and the rule: out of range, half of a set, or two that contradict
template <class Lookup>
  requires std::is_invocable_r_v<std::optional<std::string>, Lookup&, const std::string&>
LaunchEnv read_launch_env(Lookup&& lookup) {
  namespace from = detail::launch_env;
  from::Reader<std::remove_reference_t<Lookup>> env(lookup);

  // PMIx has no variable for the size, so its rank counts where WORLD_SIZE gives one.
  static constexpr from::Launcher pmix{"PMIx", "PMIX_RANK", "WORLD_SIZE", "", ""};
  const from::Launcher* launcher = from::find_launcher(env);
  if (env.text(pmix.rank) && (launcher == nullptr || (launcher->name == "Slurm" && env.text(pmix.size)))) { launcher = &pmix; }

  const std::optional<std::string> master = env.text("MASTER_ADDR");
  LaunchEnv found;
  found.master_port =
      static_cast<std::uint16_t>(env.number("MASTER_PORT", 1, 65535).value_or(std::uint32_t{LaunchEnv::default_port}));
  // torchrun's agent serves a store of its own on that port of rank 0's host, so the next one is taken.
  if (env.text("TORCHELASTIC_USE_AGENT_STORE") == "True") {
    found.master_port = static_cast<std::uint16_t>(found.master_port == 65535 ? 65534 : found.master_port + 1);
  }
  if (launcher == nullptr) {
    for (const std::string_view name : {"WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"}) {
      const bool is_alone = name == "WORLD_SIZE" && env.number(name) == 1u;
      NVL_EXPECTS(is_alone || !env.text(name), "RANK", "not set", "set where " + std::string(name) + " is");
    }
    return found;
  }

  NVL_EXPECTS(env.text(launcher->size).has_value(), std::string(launcher->size), "not set",
              "set where " + std::string(launcher->rank) + " is");
  found.launcher = launcher->name;
  found.world_size = *env.number(launcher->size, 1);
  found.rank = Rank{*env.number(launcher->rank)};
  from::expect_below(launcher->rank, index_of(found.rank), launcher->size, found.world_size);

  found.local_rank = env.number(launcher->local_rank);
  found.local_size = env.number(launcher->local_size, 1);
  NVL_EXPECTS(!found.local_size || *found.local_size <= found.world_size, std::string(launcher->local_size), *found.local_size,
              "at most " + std::string(launcher->size) + ", which is " + std::to_string(found.world_size));
  if (found.local_rank) {
    const bool has_size = found.local_size.has_value();
    from::expect_below(launcher->local_rank, *found.local_rank, has_size ? launcher->local_size : launcher->size,
                       has_size ? *found.local_size : found.world_size);
  }
  from::expect_no_contradiction(*launcher, found.rank, found.world_size, env);

  if (master) {
    found.master_address = *master;
  } else if (const std::optional<std::string> own = from::master_of(*launcher, env)) {
    found.master_address = *own;
  } else {
    const bool is_one_host = found.world_size == 1 || found.local_size == found.world_size;
    NVL_EXPECTS(is_one_host, "MASTER_ADDR", "not set",
                "the address of rank 0's host, which " + std::string(launcher->name) + " does not tell");
  }
  return found;
}

/// The same from this process's environment.
inline LaunchEnv read_launch_env() {
  return read_launch_env([](const std::string& name) -> std::optional<std::string> {
    const char* const value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  });
}

}  // namespace nvl::inline NVL_ABI
