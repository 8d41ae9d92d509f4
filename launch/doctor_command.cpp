// fulmen doctor: what this machine and this build can do.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "framework/files.h"
#include "framework/gpu.h"
#include "framework/text.h"
#include "framework/threads.h"
#include "kernels/softmax_attention.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"
#include "launch/shared_files.h"
#include "launch/version.h"

namespace fulmen {

namespace {

std::string line_after(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key)) {
      const std::size_t value = line.find_first_not_of(" \t:", key.size());
      return value == std::string::npos ? "" : line.substr(value);
    }
  return "unknown";
}

std::string vector_instructions() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#else
  return "of this architecture's baseline";
#endif
}

// CUDA's way of numbering: 13000 is 13.0.
std::string cuda_version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

// Whether this build's kernels for Hopper run on this GPU, or what does.
std::string fast_kernels(const gpu::Properties& gpu) {
#ifdef FULMEN_HOPPER
  constexpr bool built = true;
#else
  constexpr bool built = false;
#endif
  if (gpu.major != 9 || gpu.minor != 0) return "no: they need compute capability 9.0; the plain kernels run";
  return built ? "yes" : "no: not in this build (CMAKE_CUDA_ARCHITECTURES=90a has them); the plain kernels run";
}

nlohmann::ordered_json describe_gpus() {
  nlohmann::ordered_json gpus = nlohmann::ordered_json::array();
  for (int device = 0; device < gpu::device_count(); ++device) {
    const gpu::Properties gpu = gpu::properties(device);
    gpus.push_back({{"name", gpu.name},
                    {"memory", human_bytes(static_cast<double>(gpu.memory_bytes))},
                    {"compute_capability", fmt::format("{}.{}", gpu.major, gpu.minor)},
                    {"multiprocessors", gpu.multiprocessors},
                    {"fast_kernels", fast_kernels(gpu)}});
  }
  return gpus;
}

// The versions of CUDA, or why there is no GPU.
std::string describe_cuda() {
  std::string missing = gpu::unavailable_reason();
  if (!missing.empty()) return missing;
  const gpu::Properties gpu = gpu::properties(0);
  return fmt::format("runtime {}, driver for {}", cuda_version(gpu.runtime_version), cuda_version(gpu.driver_version));
}

std::string describe_shared_files() {
  const auto folder = shared_folder();
  return folder ? folder->string() : "none: neither an installation nor a source tree is around the program";
}

nlohmann::ordered_json describe_machine(Communicator& ranks) {
  return {{"version", version()},
          {"cpu", line_after("/proc/cpuinfo", "model name")},
          {"vector_instructions", vector_instructions()},
          {"host_cores", host_cores()},
          {"available_cores", available_cores()},
          {"memory_total", line_after("/proc/meminfo", "MemTotal")},
          {"memory_available", line_after("/proc/meminfo", "MemAvailable")},
          {"free_disk_here", human_bytes(static_cast<double>(free_bytes(std::filesystem::current_path())))},
          {"ranks", ranks.size()},
          {"ranks_on_this_host", MpiSession::environment_local_size()},
          {"mpi", MpiSession::launched() ? "started by a launcher" : "not started: one rank needs no launcher"},
          {"shared_files", describe_shared_files()},
          {"cuda", describe_cuda()},
          {"gpu_attention", softmax_attention_paths()},
          {"gpus", describe_gpus()}};
}

}  // namespace

ExitCode run_doctor(const std::vector<std::string>& arguments, World& world) {
  CommandLine line("doctor [--json] [--configuration]",
                   "Says what this machine and this build can do. Under mpirun it also checks that the ranks can talk.",
                   "mpirun -n 2 fulmen doctor");
  line.flag("json", "print one JSON object");
  line.flag("configuration", "print the reference of configuration keys, docs/configuration.md");
  if (!line.parse(arguments)) return ExitCode::done;
  if (line.has("configuration")) {
    std::fputs(configuration_reference().c_str(), stdout);
    return ExitCode::done;
  }
  Communicator& ranks = world.communicator();
  const std::int64_t sum = ranks.all_reduce(static_cast<std::int64_t>(ranks.rank()), ReduceOp::sum);
  if (sum != static_cast<std::int64_t>(ranks.size()) * (ranks.size() - 1) / 2)
    throw InternalError("the ranks' sum over MPI is wrong\n  -> check the MPI installation");
  if (ranks.rank() != 0) return ExitCode::done;
  const nlohmann::ordered_json machine = describe_machine(ranks);
  if (line.has("json")) {
    std::printf("%s\n", machine.dump().c_str());
    return ExitCode::done;
  }
  for (const auto& [key, value] : machine.items()) {
    if (value.is_array()) continue;
    std::printf("%-20s %s\n", key.c_str(), value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  }
  int device = 0;
  for (const auto& gpu : machine["gpus"]) {
    std::printf("%-20s %s, %s, compute capability %s, %d multiprocessors\n", fmt::format("gpu_{}", device++).c_str(),
                gpu["name"].get<std::string>().c_str(), gpu["memory"].get<std::string>().c_str(),
                gpu["compute_capability"].get<std::string>().c_str(), gpu["multiprocessors"].get<int>());
    std::printf("%-20s %s\n", "  fast_kernels", gpu["fast_kernels"].get<std::string>().c_str());
  }
  return ExitCode::done;
}

}  // namespace fulmen
