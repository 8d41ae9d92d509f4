// The configuration of a run: every key of the YAML file, bound to the structure that uses it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/configuration.h"
#include "model/model_config.h"
#include "model/parameter_store.h"
#include "parallel/layout.h"
#include "train/train_config.h"
#include "train/trainer.h"

namespace fulmen {

struct PrecisionConfig {
  std::string parameters = "auto";
  std::string master = "auto";
  std::string gradients = "auto";
};

struct RunConfiguration {
  std::shared_ptr<const ModelConfig> model;
  LayoutConfig parallel;
  std::string transport = "auto";  // parallel.transport
  PrecisionConfig precision;
  DataConfig data;
  TrainConfig train;
  CheckpointConfig checkpoint;
  RunConfig run;

  std::string resolved;                     // every key, as nested YAML
  std::map<std::string, std::string> flat;  // every key, dotted

  // The dtypes of the precision keys on a device. On the CPU fp32 (auto) or fp64 throughout; on a GPU bf16 with an fp32
  // master and fp32 gradients (auto), fp32 or fp64 throughout. Throws UserError.
  Precision precision_on(Device device) const;
  // The settings of a run on that device, without the checkpoint to resume from.
  TrainerOptions trainer_options(Device device) const;
};

// The precision that a --precision flag (auto, bf16, fp32, fp64) comes to on a device. Throws UserError.
Precision parse_precision(const std::string& name, Device device);
// "bf16, master fp32, gradients fp32" or "fp64".
std::string describe_precision(const Precision& precision);

// Reads a configuration file and the --set overrides. Throws UserError for everything that is wrong with it by itself.
RunConfiguration read_run_configuration(const std::string& path, const std::vector<std::string>& overrides);
// The same from text; `source` names it in messages.
RunConfiguration parse_run_configuration(const std::string& text, const std::string& source,
                                         const std::vector<std::string>& overrides);

// A file with the section `model` alone. Throws UserError for everything that is wrong with it.
std::shared_ptr<const ModelConfig> read_model_section(const std::filesystem::path& path);

// The value of one key, as text without quotes. Throws UserError, naming the nearest key, for an unknown key.
std::string value_of(const RunConfiguration& configuration, const std::string& key);

// docs/configuration.md, generated from the schema.
std::string configuration_reference();

// Compares a run's configuration with the configuration of the checkpoint that it resumes. Returns the differences, a
// line each; throws UserError when a difference would silently change the training and is not in `allowed`.
std::vector<std::string> compare_with_checkpoint(const RunConfiguration& run,
                                                 const std::string& checkpoint_configuration,
                                                 const std::vector<std::string>& allowed);

}  // namespace fulmen
