// fulmen import and fulmen export: Hugging Face weights to a checkpoint and back.
#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "framework/pending_output.h"
#include "framework/text.h"
#include "infer/hugging_face.h"
#include "launch/command.h"
#include "launch/command_line.h"

namespace fulmen {

namespace {

// These commands do little arithmetic and no communication.
void require_one_process(const char* command, const World& world) {
  if (world.size() > 1) throw UserError(command, "runs as one process", "start it without mpirun");
}

}  // namespace

ExitCode run_import(const std::vector<std::string>& arguments, World& world) {
  CommandLine line("import --hf DIR --output CHECKPOINT [--overwrite]",
                   "Turns a folder with config.json and safetensors, as a family's released models are named, into a\n"
                   "checkpoint of step 0.",
                   "fulmen import --hf runs/exported --output runs/imported");
  line.option("hf", "the folder", true);
  line.option("output", "the checkpoint to write", true);
  line.flag("overwrite", overwrite_help);
  if (!line.parse(arguments)) return ExitCode::done;
  require_one_process("import", world);
  import_hugging_face(line.path("hf"), line.path("output"), line.has("overwrite"));
  std::printf("%s: imported from %s\n", printable(line.path("output")).c_str(), printable(line.path("hf")).c_str());
  return ExitCode::done;
}

ExitCode run_export(const std::vector<std::string>& arguments, World& world) {
  CommandLine line(
      "export --checkpoint DIR --hf DIR [options]",
      "Writes a checkpoint's parameters as config.json and safetensors, as its family's released models are\n"
      "named, with the tokeniser's model.",
      "fulmen export --checkpoint runs/demo/checkpoints --hf exported");
  line.option("checkpoint", "a checkpoint, a folder of them or a run (then the newest)", true);
  line.option("hf", "the folder to write", true);
  line.option("dtype", "stored (default), fp32 or bf16");
  line.option("shard-bytes", "bytes above which the weights go into several files with an index (5368709120)");
  line.flag("overwrite", overwrite_help);
  if (!line.parse(arguments)) return ExitCode::done;
  require_one_process("export", world);
  ExportOptions options;
  options.overwrite = line.has("overwrite");
  options.dtype = line.text("dtype", options.dtype);
  if (options.dtype != "stored" && options.dtype != "fp32" && options.dtype != "bf16")
    throw UserError("--dtype", "'" + options.dtype + "' is unknown", "use stored, fp32 or bf16");
  options.shard_bytes = line.integer("shard-bytes", options.shard_bytes, 1, std::int64_t{1} << 50);
  const std::filesystem::path checkpoint = find_checkpoint(line.path("checkpoint"));
  export_hugging_face(checkpoint, line.path("hf"), options);
  std::printf("%s: exported from %s\n", printable(line.path("hf")).c_str(), printable(checkpoint.string()).c_str());
  return ExitCode::done;
}

}  // namespace fulmen
