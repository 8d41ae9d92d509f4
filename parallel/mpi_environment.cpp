// Facts about this process from a launcher's environment, before MPI starts.
#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string_view>

#include "framework/error.h"
#include "framework/text.h"
#include "parallel/mpi_communicator.h"

namespace fulmen {
namespace {

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::int64_t parse_count(const char* name, std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0)
    throw UserError(fmt::format("environment variable {}", name), fmt::format("'{}' is not a whole number", text),
                    "unset it, or start the program with mpirun or srun, which set it");
  return value;
}

std::optional<int> integer(const char* name) {
  const auto text = variable(name);
  if (!text) return std::nullopt;
  const std::int64_t value = parse_count(name, *text);
  if (value > std::numeric_limits<int>::max())
    throw UserError(fmt::format("environment variable {}", name), fmt::format("{} is too large", value));
  return static_cast<int>(value);
}

std::optional<int> first_of(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto value = integer(name)) return value;
  return std::nullopt;
}

// Whether srun started this process. In a batch script and in salloc's shell Slurm sets SLURM_PROCID as well, but gives
// no step number, or a reserved number from 0xfffffffa on.
bool in_slurm_step() {
  constexpr std::int64_t first_reserved_step = 0xfffffff0;
  if (!variable("SLURM_PROCID")) return false;
  if (const auto step = variable("SLURM_STEP_ID")) return parse_count("SLURM_STEP_ID", *step) < first_reserved_step;
  return variable("SLURM_MPI_TYPE").has_value();
}

// Slurm's list of tasks per node, "4(x2),3": the entry of this node.
std::optional<int> slurm_tasks_here() {
  const char* name = variable("SLURM_STEP_TASKS_PER_NODE") ? "SLURM_STEP_TASKS_PER_NODE" : "SLURM_TASKS_PER_NODE";
  const auto list = variable(name);
  if (!list) return std::nullopt;
  std::int64_t nodes_left = integer("SLURM_NODEID").value_or(0);
  for (const std::string& entry : split(*list, ',')) {
    const std::size_t bracket = entry.find("(x");
    const std::int64_t tasks = parse_count(name, std::string_view(entry).substr(0, bracket));
    std::int64_t repeats = 1;
    if (bracket != std::string::npos && entry.back() == ')')
      repeats = parse_count(name, std::string_view(entry).substr(bracket + 2, entry.size() - bracket - 3));
    if (nodes_left < repeats) return static_cast<int>(tasks);
    nodes_left -= repeats;
  }
  return std::nullopt;
}

}  // namespace

bool MpiSession::launched() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"})
    if (variable(name)) return true;
  return in_slurm_step();
}

int MpiSession::environment_rank() {
  if (const auto rank = first_of({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"})) return *rank;
  return in_slurm_step() ? integer("SLURM_PROCID").value_or(0) : 0;
}

int MpiSession::environment_size() {
  if (const auto size = first_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})) return *size;
  return in_slurm_step() ? first_of({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}).value_or(1) : 1;
}

int MpiSession::environment_local_size() {
  if (const auto size = first_of({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"})) return *size;
  return in_slurm_step() ? slurm_tasks_here().value_or(1) : 1;
}

int MpiSession::environment_local_rank() {
  if (const auto rank = first_of({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"})) return *rank;
  return in_slurm_step() ? integer("SLURM_LOCALID").value_or(0) : 0;
}

std::optional<int> MpiSession::environment_cores() { return integer("SLURM_CPUS_ON_NODE"); }

}  // namespace fulmen
