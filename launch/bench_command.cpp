// fulmen bench: measurements, as a table and as JSON.
#include <cstdio>

#include "launch/bench.h"

namespace fulmen {

ExitCode run_bench(const std::vector<std::string>& arguments, World& world) {
  if (arguments.empty() || arguments[0] == "--help") {
    std::printf(
        "usage: fulmen bench step|kernels|decode|io [options]\n\n"
        "  step      tokens/s of a training step, each part's share and its ratio to its floor\n"
        "  kernels   each kernel by itself against its floor\n"
        "  decode    tokens/s of recurrent decoding against reading the weights\n"
        "  io        reading samples; writing and reading a checkpoint\n\n"
        "example:\n  fulmen bench step --micro-batch 4 --sequence-length 512\n");
    return arguments.empty() ? ExitCode::user : ExitCode::done;
  }
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (arguments[0] == "step") return bench_step(rest, world);
  if (arguments[0] == "kernels") return bench_kernels(rest, world);
  if (arguments[0] == "decode") return bench_decode(rest, world);
  if (arguments[0] == "io") return bench_io(rest, world);
  throw UserError("bench", "'" + arguments[0] + "' is not a benchmark", "use step, kernels, decode or io");
}

}  // namespace fulmen
