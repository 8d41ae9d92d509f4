// The commands of the program.
#pragma once

#include <string>
#include <vector>

#include "framework/exit_code.h"
#include "launch/world.h"

namespace fulmen {

struct Command {
  const char* name;
  const char* summary;
  ExitCode (*run)(const std::vector<std::string>& arguments, World& world);
};

// In the order in which a user meets them.
const std::vector<Command>& commands();

ExitCode run_prepare(const std::vector<std::string>& arguments, World& world);
ExitCode run_train(const std::vector<std::string>& arguments, World& world);
ExitCode run_eval(const std::vector<std::string>& arguments, World& world);
ExitCode run_gradients(const std::vector<std::string>& arguments, World& world);
ExitCode run_generate(const std::vector<std::string>& arguments, World& world);
ExitCode run_import(const std::vector<std::string>& arguments, World& world);
ExitCode run_export(const std::vector<std::string>& arguments, World& world);
ExitCode run_inspect(const std::vector<std::string>& arguments, World& world);
ExitCode run_bench(const std::vector<std::string>& arguments, World& world);
ExitCode run_doctor(const std::vector<std::string>& arguments, World& world);

}  // namespace fulmen
