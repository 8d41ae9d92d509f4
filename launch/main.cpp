// The `fulmen` program: picks a command, and turns what goes wrong into one message and an exit code.
#include <cstdio>
#include <exception>

#include "framework/as_error.h"
#include "framework/log.h"
#include "framework/standard_streams.h"
#include "framework/text.h"
#include "launch/command.h"
#include "launch/version.h"

namespace fulmen {

const std::vector<Command>& commands() {
  static const std::vector<Command> list = {
      {"prepare", "text to a tokenised corpus", run_prepare},
      {"train", "trains a model", run_train},
      {"eval", "loss and perplexity on a corpus", run_eval},
      {"gradients", "loss and gradient of every parameter for one global batch", run_gradients},
      {"generate", "continues a text", run_generate},
      {"import", "Hugging Face weights to a checkpoint", run_import},
      {"export", "a checkpoint to Hugging Face weights", run_export},
      {"inspect", "what is in a checkpoint, a corpus or a run", run_inspect},
      {"bench", "measures a step, kernels, input and output", run_bench},
      {"doctor", "what this machine and this build can do", run_doctor},
  };
  return list;
}

namespace {

void print_help() {
  std::printf(
      "fulmen %s: trains language models with linear attention on CPU and GPU clusters\n\nusage: fulmen <command> "
      "[options]\n\n",
      version());
  for (const Command& command : commands()) std::printf("  %-10s %s\n", command.name, command.summary);
  std::printf(
      "\n`fulmen <command> --help` shows a command's options and an example. The README's two commands are\n"
      "scripts/demo.sh (train a small model on real text) and scripts/test.sh.\n");
}

int run(const std::vector<std::string>& arguments, World& world) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "help") {
    print_help();
    return static_cast<int>(arguments.empty() ? ExitCode::user : ExitCode::done);
  }
  if (arguments[0] == "--version") {
    std::printf("fulmen %s\n", version());
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (arguments[0] == command.name)
      return static_cast<int>(command.run({arguments.begin() + 1, arguments.end()}, world));
    names.emplace_back(command.name);
  }
  const std::string nearest = nearest_name(arguments[0], names);
  throw UserError(arguments[0], "is not a command",
                  nearest.empty() ? "fulmen --help lists them" : "did you mean " + nearest + "?");
}

int guarded_main(const std::vector<std::string>& arguments) {
  World world;
  try {
    settle_standard_streams();
    configure_logging(world.rank(), world.size());
    const int code = run(arguments, world);
    finish_standard_output();
    return code;
  } catch (const std::exception& exception) {
    return world.fail(as_error(exception));
  }
}

}  // namespace
}  // namespace fulmen

int main(int argc, char** argv) { return fulmen::guarded_main({argv + 1, argv + argc}); }
