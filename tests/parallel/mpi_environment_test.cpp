// Facts from the environments of mpirun, Hydra and srun before MPI starts.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "parallel/mpi_communicator.h"

namespace fulmen {
namespace {

// The process's environment without a launcher's variables but those given, for the life of this object.
class LauncherEnvironment {
 public:
  explicit LauncherEnvironment(const std::map<std::string, std::string>& variables) {
    for (const char* name :
         {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE",
          "PMIX_RANK", "MPI_LOCALNRANKS", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODEID", "SLURM_STEP_ID",
          "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_MPI_TYPE", "SLURM_TASKS_PER_NODE",
          "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "SLURM_CPUS_ON_NODE"}) {
      if (const char* value = std::getenv(name)) saved_[name] = value;
      unsetenv(name);
      names_.emplace_back(name);
    }
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  }
  ~LauncherEnvironment() {
    for (const std::string& name : names_) unsetenv(name.c_str());
    for (const auto& [name, value] : saved_) setenv(name.c_str(), value.c_str(), 1);
  }

 private:
  std::vector<std::string> names_;
  std::map<std::string, std::string> saved_;
};

void expect_place(bool launched, int rank, int size, int local_size) {
  EXPECT_EQ(MpiSession::launched(), launched);
  EXPECT_EQ(MpiSession::environment_rank(), rank);
  EXPECT_EQ(MpiSession::environment_size(), size);
  EXPECT_EQ(MpiSession::environment_local_size(), local_size);
}

TEST(LauncherEnvironment, WithoutALauncher) {
  const LauncherEnvironment environment({});
  expect_place(false, 0, 1, 1);
}

TEST(LauncherEnvironment, OpenMpi) {
  const LauncherEnvironment environment(
      {{"OMPI_COMM_WORLD_RANK", "5"}, {"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}});
  expect_place(true, 5, 8, 4);
}

TEST(LauncherEnvironment, OpenMpiInsideASlurmStepWins) {
  const LauncherEnvironment environment({{"OMPI_COMM_WORLD_RANK", "5"},
                                         {"OMPI_COMM_WORLD_SIZE", "8"},
                                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                         {"SLURM_PROCID", "1"},
                                         {"SLURM_STEP_ID", "0"},
                                         {"SLURM_STEP_NUM_TASKS", "2"}});
  expect_place(true, 5, 8, 4);
}

TEST(LauncherEnvironment, MpichHydra) {
  const LauncherEnvironment environment({{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}, {"MPI_LOCALNRANKS", "3"}});
  expect_place(true, 2, 3, 3);
}

TEST(LauncherEnvironment, SlurmStepWithPmix) {
  const LauncherEnvironment environment({{"PMIX_RANK", "9"},
                                         {"SLURM_PROCID", "9"},
                                         {"SLURM_STEP_ID", "0"},
                                         {"SLURM_NTASKS", "11"},
                                         {"SLURM_NODEID", "2"},
                                         {"SLURM_TASKS_PER_NODE", "4(x2),3"}});
  expect_place(true, 9, 11, 3);
}

TEST(LauncherEnvironment, SlurmStepIsSmallerThanItsJob) {
  const LauncherEnvironment environment({{"SLURM_PROCID", "1"},
                                         {"SLURM_STEP_ID", "3"},
                                         {"SLURM_NTASKS", "64"},
                                         {"SLURM_TASKS_PER_NODE", "32(x2)"},
                                         {"SLURM_STEP_NUM_TASKS", "2"},
                                         {"SLURM_STEP_TASKS_PER_NODE", "2"}});
  expect_place(true, 1, 2, 2);
}

TEST(LauncherEnvironment, BatchScriptIsNoStep) {
  const std::map<std::string, std::string> job = {
      {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_TASKS_PER_NODE", "8"}};
  {
    const LauncherEnvironment environment(job);
    expect_place(false, 0, 1, 1);
  }
  auto interactive = job;
  interactive["SLURM_STEP_ID"] = "4294967290";
  interactive["SLURM_MPI_TYPE"] = "pmix";
  const LauncherEnvironment environment(interactive);
  expect_place(false, 0, 1, 1);
}

TEST(LauncherEnvironment, LocalRankAndCores) {
  {
    const LauncherEnvironment environment({{"OMPI_COMM_WORLD_LOCAL_RANK", "3"}, {"SLURM_LOCALID", "1"}});
    EXPECT_EQ(MpiSession::environment_local_rank(), 3);
    EXPECT_EQ(MpiSession::environment_cores(), std::nullopt);
  }
  {
    const LauncherEnvironment environment({{"MPI_LOCALRANKID", "2"}, {"SLURM_LOCALID", "1"}});
    EXPECT_EQ(MpiSession::environment_local_rank(), 2);
  }
  std::map<std::string, std::string> slurm = {
      {"SLURM_PROCID", "9"}, {"SLURM_LOCALID", "1"}, {"SLURM_CPUS_ON_NODE", "48"}};
  {
    const LauncherEnvironment batch_script(slurm);
    EXPECT_EQ(MpiSession::environment_local_rank(), 0);
    EXPECT_EQ(MpiSession::environment_cores(), 48);
  }
  slurm["SLURM_STEP_ID"] = "0";
  const LauncherEnvironment step(slurm);
  EXPECT_EQ(MpiSession::environment_local_rank(), 1);
}

TEST(LauncherEnvironment, RefusesWhatIsNoNumber) {
  const LauncherEnvironment environment({{"OMPI_COMM_WORLD_RANK", "first"}, {"OMPI_COMM_WORLD_SIZE", "-2"}});
  EXPECT_THROW(MpiSession::environment_rank(), UserError);
  EXPECT_THROW(MpiSession::environment_size(), UserError);
  const LauncherEnvironment others({{"OMPI_COMM_WORLD_LOCAL_RANK", "0x1"}, {"SLURM_CPUS_ON_NODE", "many"}});
  EXPECT_THROW(MpiSession::environment_local_rank(), UserError);
  EXPECT_THROW(MpiSession::environment_cores(), UserError);
}

}  // namespace
}  // namespace fulmen
