// Hugging Face folders, as models are released: `config.json` and safetensors with the state dict's names.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "model/model_config.h"

namespace fulmen {

// The model that a `config.json` describes; its model_type (or else its architectures) says of which family. Throws
// UserError for a kind that no family has. Also, naming the key, where a key is missing, malformed or unknown. So is a
// norm, activation, bias or quantisation refused that the family does not have.
std::shared_ptr<const ModelConfig> read_hugging_face_config(const std::filesystem::path& path);
// The tokeniser's end of a document that a `config.json` names, if it does. Throws UserError for an id that is no
// token.
std::optional<std::int64_t> read_hugging_face_eos(const std::filesystem::path& path, std::int64_t vocabulary);
// The text of a `config.json`; torch_dtype such as "bfloat16". Tokens that the tokeniser does not have, or that are not
// known, are null. Throws UserError for a model that cannot be said in it.
std::string hugging_face_config(const ModelConfig& config, const std::string& torch_dtype,
                                const TokenizerRecord& tokenizer = {});

// Turns a folder with config.json, model.safetensors (or shards with an index), and perhaps tokenizer.model, into a
// checkpoint of step 0. It lies at exactly `checkpoint`, whole or not at all (PendingOutput). A tensor that repeats
// another (the head of a tied model) may be absent; where it is present it must be equal. Tensors that hold no
// parameter are passed over, by the family's list, with a line in the log. Throws UserError for tensors that are
// missing, of another shape, or unknown, and for what stands there unless it is a checkpoint to be overwritten.
void import_hugging_face(const std::filesystem::path& folder, const std::filesystem::path& checkpoint,
                         bool overwrite = false);

// The same for weights under the family's own names, as checkpoints have them, of the model that `config` describes.
// `path` is a safetensors file or a folder as above.
void import_safetensors(const std::filesystem::path& path, const ModelConfig& config,
                        const std::filesystem::path& checkpoint, bool overwrite = false);

struct ExportOptions {
  std::string dtype = "stored";                      // stored, fp32 or bf16 (fp32 for parameters that are never bf16)
  std::int64_t shard_bytes = std::int64_t{5} << 30;  // a new file above this
  bool overwrite = false;                            // a model that stands there is replaced as a whole
};
// The reverse: parameters only, as the family's modelling code in transformers names them, and the tokeniser.
void export_hugging_face(const std::filesystem::path& checkpoint, const std::filesystem::path& folder,
                         const ExportOptions& options);

}  // namespace fulmen
