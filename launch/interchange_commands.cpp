// fulmen import and fulmen export: Hugging Face weights to a checkpoint and back.
#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "framework/pending_output.h"
#include "framework/text.h"
#include "infer/hugging_face.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"

namespace fulmen {

namespace {

// These commands do little arithmetic and no communication.
void require_one_process(const char* command, const World& world) {
  if (world.size() > 1) throw UserError(command, "runs as one process", "start it without mpirun");
}

}  // namespace

ExitCode run_import(const std::vector<std::string>& arguments, World& world) {
  CommandLine line(
      "import --hf DIR | --safetensors PATH --config FILE --output CHECKPOINT [--overwrite]",
      "Turns released weights into a checkpoint of step 0. --hf reads a folder with config.json and safetensors\n"
      "under the names of the family's released models. --safetensors reads weights under the names of Fulmen's\n"
      "checkpoints. "
      "Prints the model as a section of a configuration.",
      "fulmen import --hf runs/exported --output runs/imported");
  line.option("hf", "a folder with config.json");
  line.option("safetensors", "a safetensors file, or a folder of them");
  line.option("config", "with --safetensors: a file with the section `model` of a configuration");
  line.option("output", "the checkpoint to write", true);
  line.flag("overwrite", overwrite_help);
  if (!line.parse(arguments)) return ExitCode::done;
  require_one_process("import", world);
  if (line.has("hf") == line.has("safetensors"))
    throw UserError("import", "wants either --hf or --safetensors", "give one of the two");
  if (line.has("config") != line.has("safetensors"))
    throw UserError("import", line.has("config") ? "--config belongs to --safetensors" : "--safetensors needs --config",
                    "a folder for --hf has its own config.json");
  const std::filesystem::path output = line.path("output");
  const std::filesystem::path source = line.path(line.has("hf") ? "hf" : "safetensors");
  if (line.has("hf"))
    import_hugging_face(source, output, line.has("overwrite"));
  else
    import_safetensors(source, *read_model_section(line.path("config")), output, line.has("overwrite"));
  std::printf("%s: imported from %s\nmodel:\n", printable(output.string()).c_str(), printable(source.string()).c_str());
  const CheckpointReader checkpoint(output);
  for (const auto& [key, value] : checkpoint.description().model)
    std::printf("  %s: %s\n", printable(key).c_str(), printable(value).c_str());
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
