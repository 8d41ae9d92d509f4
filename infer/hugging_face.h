// The released TransNormerLLM checkpoints' layout: `config.json` and safetensors with the state dict's names.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "model/model_config.h"

namespace fulmen {

// The model that a `config.json` describes. Throws UserError naming the key: missing, malformed, or asking for
// something else than these models (another norm or activation, biases, an untied or unscaled embedding).
ModelConfig read_hugging_face_config(const std::filesystem::path& path);
// The text of a `config.json`; torch_dtype such as "bfloat16".
std::string hugging_face_config(const ModelConfig& config, const std::string& torch_dtype);

// Turns a folder with config.json and model.safetensors (or shards with an index), and perhaps tokenizer.model, into a
// checkpoint of step 0 at exactly `checkpoint`. lm_head.weight may be absent; where it is present it must equal the
// embedding. Throws UserError for tensors that are missing, of another shape, or unknown.
void import_hugging_face(const std::filesystem::path& folder, const std::filesystem::path& checkpoint);

struct ExportOptions {
  std::string dtype = "stored";                      // stored, fp32 or bf16 (LRPE's theta then fp32)
  std::int64_t shard_bytes = std::int64_t{5} << 30;  // a new file above this
};
// The reverse: parameters only, lm_head.weight written beside the embedding as the released files have it, and the
// tokeniser.
void export_hugging_face(const std::filesystem::path& checkpoint, const std::filesystem::path& folder,
                         const ExportOptions& options);

}  // namespace fulmen
