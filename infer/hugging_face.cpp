// Weights between the released layout and checkpoints.
#include "infer/hugging_face.h"

#include <algorithm>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/parameters.h"
#include "data/tokenizer.h"
#include "framework/files.h"
#include "framework/pending_output.h"
#include "infer/safetensors_folder.h"
#include "model/stage.h"

namespace fulmen {

namespace {

constexpr const char* embedding_name = "model.embed_tokens.weight";
constexpr const char* head_name = "lm_head.weight";
constexpr const char* tokenizer_name = "tokenizer.model";

// What an export writes.
bool is_hugging_face_file(const std::string& name) {
  return name == "config.json" || name == tokenizer_name || is_safetensors_model_file(name);
}

// A block of rows of a tensor at a time, so that memory stays flat: calls f(offset, memory) for each.
template <class F>
void for_each_block(const Shape& shape, DType dtype, F&& f) {
  constexpr std::int64_t block_bytes = std::int64_t{32} << 20;
  const std::int64_t row =
      std::max<std::int64_t>(1, elements_of(shape) / shape[0]) * static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t rows = std::clamp<std::int64_t>(block_bytes / row, 1, shape[0]);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row));
  for (std::int64_t begin = 0; begin < shape[0]; begin += rows) {
    Shape block = shape;
    block[0] = std::min(rows, shape[0] - begin);
    std::vector<std::int64_t> offset(shape.size(), 0);
    offset[0] = begin;
    f(offset, Tensor(bytes.data(), dtype, block));
  }
}

// Before anything is allocated: what config.json says is the size of what the files hold.
void check_tensors(const SafetensorsFolder& source, const std::vector<ParameterDeclaration>& declarations) {
  std::set<std::string> known = {head_name};
  for (const ParameterDeclaration& declaration : declarations)
    for (const LogicalTensor& tensor : declaration.tensors) {
      known.insert(tensor.name);
      if (!source.has(tensor.name))
        throw UserError(source.folder().string(), "has no tensor " + tensor.name,
                        "config.json and the weights do not belong together");
      const Shape& shape = source.tensor(tensor.name).shape;
      if (shape != tensor.shape)
        throw UserError(source.folder().string(), fmt::format("{} has the shape {}, config.json makes it {}",
                                                              tensor.name, to_string(shape), to_string(tensor.shape)));
    }
  for (const std::string& name : source.names())
    if (!known.contains(name))
      throw UserError(source.folder().string(), "holds a tensor that this model does not have: " + name,
                      "config.json and the weights do not belong together");
}

// A head of its own would be another model.
void check_tied_head(const SafetensorsFolder& source) {
  if (!source.has(head_name)) return;
  const Shape shape = source.tensor(embedding_name).shape;
  const auto untied = [&] {
    return UserError(source.folder().string(), "lm_head.weight differs from model.embed_tokens.weight",
                     "only tied heads are supported");
  };
  if (source.tensor(head_name).shape != shape) throw untied();
  std::vector<double> head;
  for_each_block(shape, DType::fp64, [&](const std::vector<std::int64_t>& offset, const Tensor& block) {
    head.resize(static_cast<std::size_t>(block.elements()));
    source.read(head_name, offset, Tensor(head.data(), DType::fp64, block.shape()));
    source.read(embedding_name, offset, block);
    if (!std::equal(head.begin(), head.end(), block.as<double>())) throw untied();
  });
}

// The record of a checkpoint; of an older one, or an import, what the file of its tokeniser says.
TokenizerRecord tokenizer_of(const CheckpointReader& checkpoint, std::int64_t vocabulary) {
  TokenizerRecord tokenizer = checkpoint.description().tokenizer;
  const auto file = checkpoint.tokenizer_file();
  if (!tokenizer.kind.empty() || !file) return tokenizer;
  return {"sentencepiece", make_tokenizer(TokenizerKind::sentencepiece, *file, vocabulary)->end_of_document()};
}

std::string safetensors_dtype_for(const std::string& name, DType stored, const std::string& wanted) {
  if (wanted == "stored") return safetensors_dtype(stored);
  if (wanted == "fp32" || name.ends_with("lrpe.theta")) return "F32";
  return "BF16";
}

}  // namespace

void import_hugging_face(const std::filesystem::path& folder, const std::filesystem::path& checkpoint, bool overwrite) {
  PendingOutput output(checkpoint, PendingOutput::Kind::folder, overwrite, is_checkpoint_file);
  const std::shared_ptr<const ModelConfig> config = read_hugging_face_config(folder / "config.json");
  const SafetensorsFolder source(folder);
  const auto names = source.names();
  const bool fp64 = std::ranges::any_of(names, [&](const std::string& name) {
    return source.tensor(name).dtype == "F64" && !name.ends_with("lrpe.theta");
  });
  const DType type = fp64 ? DType::fp64 : DType::fp32;

  const std::vector<ParameterDeclaration> declarations = declare_stage(*config, whole_model(*config), 1);
  check_tensors(source, declarations);
  check_tied_head(source);
  ExecutionResources resources(Device::cpu());
  const std::unique_ptr<Communicator> self = make_self_communicator();
  const Mesh mesh(MeshShape{}, *self);
  const ParameterStore parameters(declarations, mesh, {type, type}, resources.execution());
  for (const ParameterPiece& piece : parameters.pieces(parameters.flat_weights()))
    source.read(piece.tensor, piece.offset, piece.memory);

  CheckpointDescription description;
  description.model = config->identity();
  SaveOptions options;
  options.exact_folder = true;
  if (std::filesystem::exists(folder / tokenizer_name)) {
    options.extra_files.push_back(folder / tokenizer_name);
    description.tokenizer = {"sentencepiece", read_hugging_face_eos(folder / "config.json", config->vocabulary)};
  }
  save_checkpoint(output.place(), description,
                  pieces_to_save(parameters, parameters.flat_weights(), "parameters/", resources.execution()), *self,
                  options);
  output.complete();
}

void export_hugging_face(const std::filesystem::path& checkpoint, const std::filesystem::path& folder,
                         const ExportOptions& options) {
  PendingOutput output(folder, PendingOutput::Kind::folder, options.overwrite, is_hugging_face_file);
  const CheckpointReader source(checkpoint);
  const std::unique_ptr<Communicator> self = make_self_communicator();
  source.verify(*self);
  const std::shared_ptr<const ModelConfig> config =
      ModelConfig::from_identity(source.description().model, checkpoint.string());

  const std::string prefix = "parameters/";
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterDeclaration& declaration : declare_stage(*config, whole_model(*config), 1))
    for (const LogicalTensor& tensor : declaration.tensors)
      tensors.push_back({tensor.name,
                         safetensors_dtype_for(tensor.name, source.dtype(prefix + tensor.name), options.dtype),
                         tensor.shape});
  tensors.push_back({head_name, tensors.front().dtype, tensors.front().shape});

  const std::string dtype = tensors.front().dtype;
  const std::string config_json = hugging_face_config(*config,
                                                      dtype == "BF16"  ? "bfloat16"
                                                      : dtype == "F64" ? "float64"
                                                                       : "float32",
                                                      tokenizer_of(source, config->vocabulary));
  SafetensorsFolderWriter writer(output.place(), tensors, {{"format", "pt"}}, options.shard_bytes);
  for (const SafetensorsTensor& tensor : tensors) {
    const std::string stored = tensor.name == head_name ? embedding_name : tensor.name;
    for_each_block(tensor.shape, source.dtype(prefix + stored),
                   [&](const std::vector<std::int64_t>& offset, const Tensor& block) {
                     source.read({prefix + stored, tensor.shape, offset, block});
                     writer.write(tensor.name, offset, block);
                   });
  }
  writer.close();
  write_text_atomically(output.place() / "config.json", config_json);
  if (const auto tokenizer = source.tokenizer_file())
    write_text_atomically(output.place() / tokenizer_name, read_text(*tokenizer));
  output.complete();
}

}  // namespace fulmen
