// The parts of `fulmen bench`.
#pragma once

#include "launch/command.h"

namespace fulmen {

ExitCode bench_step(const std::vector<std::string>& arguments, World& world);
ExitCode bench_kernels(const std::vector<std::string>& arguments, World& world);
ExitCode bench_decode(const std::vector<std::string>& arguments, World& world);
ExitCode bench_io(const std::vector<std::string>& arguments, World& world);

}  // namespace fulmen
