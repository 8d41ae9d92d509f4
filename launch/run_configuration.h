// The configuration of a run: every key of the YAML file, bound to the structure that uses it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "framework/configuration.h"
#include "model/model_config.h"
#include "model/parameter_store.h"
#include "parallel/layout.h"
#include "train/train_config.h"

namespace fulmen {

struct PrecisionConfig {
  std::string parameters = "auto";
  std::string master = "auto";
  std::string gradients = "auto";
};

struct RunConfiguration {
  ModelConfig model;
  LayoutConfig parallel;
  PrecisionConfig precision;
  DataConfig data;
  TrainConfig train;
  CheckpointConfig checkpoint;
  RunConfig run;

  std::string resolved;                        // every key, as nested YAML
  std::map<std::string, std::string> flat;     // every key, dotted

  // What the precision keys come to on the CPU: fp32 or fp64 throughout. Throws UserError.
  Precision cpu_precision() const;
};

// Reads a configuration file and the --set overrides. Throws UserError for everything that is wrong with it by itself.
RunConfiguration read_run_configuration(const std::string& path, const std::vector<std::string>& overrides);
// The same from text; `source` names it in messages.
RunConfiguration parse_run_configuration(const std::string& text, const std::string& source,
                                         const std::vector<std::string>& overrides);

// docs/configuration.md, generated from the schema.
std::string configuration_reference();

// Compares a run's configuration with that of the checkpoint it resumes. Returns the differences, a line each; throws
// UserError when one would silently change the training and is not in `allowed`.
std::vector<std::string> compare_with_checkpoint(const RunConfiguration& run, const std::string& checkpoint_configuration,
                                                 const std::vector<std::string>& allowed);

}  // namespace fulmen
