// Weights between the released layout and checkpoints.
#include "infer/hugging_face.h"

#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/parameters.h"
#include "data/tokenizer.h"
#include "framework/files.h"
#include "framework/log.h"
#include "framework/pending_output.h"
#include "infer/hugging_face/adapter.h"
#include "infer/safetensors_folder.h"
#include "model/stage.h"

namespace fulmen {

namespace {

constexpr const char* tokenizer_name = "tokenizer.model";
const std::string parameters_prefix = "parameters/";

// The files of an export.
bool is_hugging_face_file(const std::string& name) {
  return name == "config.json" || name == tokenizer_name || is_safetensors_model_file(name);
}

// Some rows of a block of a tensor at a time, so that memory stays flat: calls f(offset, memory) for each.
template <class F>
void for_each_rows(const TensorBlock& block, DType dtype, F&& f) {
  constexpr std::int64_t bytes_at_once = std::int64_t{32} << 20;
  std::size_t cut = 0;  // the first dimension that can be cut
  while (cut + 1 < block.extent.size() && block.extent[cut] == 1) ++cut;
  const std::int64_t all = block.extent.empty() ? 1 : block.extent[cut];
  const std::int64_t row =
      std::max<std::int64_t>(1, elements_of(block.extent) / all) * static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t rows = std::clamp<std::int64_t>(bytes_at_once / row, 1, all);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row));
  for (std::int64_t begin = 0; begin < all; begin += rows) {
    Shape extent = block.extent;
    std::vector<std::int64_t> offset = block.offset;
    if (!extent.empty()) {
      extent[cut] = std::min(rows, all - begin);
      offset[cut] += begin;
    }
    f(offset, Tensor(bytes.data(), dtype, extent));
  }
}

void check_tensor(const SafetensorsFolder& source, const std::string& name, const Shape& wanted) {
  if (!source.has(name))
    throw UserError(source.folder().string(), "has no tensor " + name,
                    "the model's description and the weights do not belong together");
  const Shape& shape = source.tensor(name).shape;
  if (shape != wanted)
    throw UserError(source.folder().string(), fmt::format("{} has the shape {}, the model's description makes it {}",
                                                          name, to_string(shape), to_string(wanted)));
}

// Before anything is allocated: what config.json says is the size of what the files hold.
void check_tensors(const SafetensorsFolder& source, const TensorMap& map) {
  std::set<std::string> repeats;
  for (const TensorRepeat& repeat : map.repeats()) repeats.insert(repeat.released);
  for (const std::string& name : map.released()) check_tensor(source, name, map.released_shape(name));
  std::map<std::string, int> passed_over;
  for (const std::string& name : source.names()) {
    if (map.has_released(name) || repeats.contains(name)) continue;
    const std::string* const kind = map.passed_over(name);
    if (kind == nullptr)
      throw UserError(source.folder().string(), "holds a tensor that this model does not have: " + name,
                      "the model's description and the weights do not belong together");
    ++passed_over[*kind];
  }
  for (const auto& [kind, count] : passed_over)
    log_info("{}: passed over {} tensors *{}, which hold no parameters", source.folder().string(), count, kind);
}

// A head that is not the embedding, say, would be another model.
void check_repeats(const SafetensorsFolder& source, const TensorMap& map) {
  for (const auto& [name, original, written] : map.repeats()) {
    if (!source.has(name)) continue;
    const Shape& shape = map.released_shape(original);
    check_tensor(source, name, shape);
    std::vector<double> other;
    for_each_rows({name, std::vector<std::int64_t>(shape.size(), 0), shape}, DType::fp64,
                  [&](const std::vector<std::int64_t>& offset, const Tensor& rows) {
                    other.resize(static_cast<std::size_t>(rows.elements()));
                    source.read(name, offset, Tensor(other.data(), DType::fp64, rows.shape()));
                    source.read(original, offset, rows);
                    if (!std::equal(other.begin(), other.end(), rows.as<double>()))
                      throw UserError(source.folder().string(), fmt::format("{} differs from {}", name, original),
                                      "the model's description makes them the same tensor");
                  });
  }
}

// fp64 where parameters are given so that need not be.
DType imported_type(const SafetensorsFolder& source, const TensorMap& map) {
  const bool fp64 = std::ranges::any_of(map.released(), [&](const std::string& name) {
    return source.tensor(name).dtype == "F64" && map.narrowest(name) != DType::fp64;
  });
  return fp64 ? DType::fp64 : DType::fp32;
}

// The record of a checkpoint; for an older checkpoint, or an import, the content of its tokeniser's file.
TokenizerRecord tokenizer_of(const CheckpointReader& checkpoint, std::int64_t vocabulary) {
  TokenizerRecord tokenizer = checkpoint.description().tokenizer;
  const auto file = checkpoint.tokenizer_file();
  if (!tokenizer.kind.empty() || !file) return tokenizer;
  return {"sentencepiece", make_tokenizer(TokenizerKind::sentencepiece, *file, vocabulary)->end_of_document()};
}

std::string written_dtype(const CheckpointReader& source, const TensorMap& map, const std::string& released,
                          const std::string& wanted) {
  const DType narrowest = map.narrowest(released);
  if (wanted == "fp32" || (wanted == "bf16" && narrowest != DType::bf16)) return "F32";
  if (wanted == "bf16") return "BF16";
  DType stored = DType::bf16;
  for (const TensorPart& part : map.parts_of_released(released)) {
    const DType dtype = source.dtype(parameters_prefix + part.logical.tensor);
    if (size_of(dtype) > size_of(stored)) stored = dtype;
  }
  return safetensors_dtype(stored);
}

std::string torch_dtype(const std::string& dtype) {
  if (dtype == "BF16") return "bfloat16";
  return dtype == "F64" ? "float64" : "float32";
}

// The released tensors with their dtypes, in the order in which they are written.
std::vector<SafetensorsTensor> tensors_to_write(const CheckpointReader& source, const TensorMap& map,
                                                const std::string& wanted) {
  std::vector<SafetensorsTensor> tensors;
  for (const std::string& name : map.released())
    tensors.push_back({name, written_dtype(source, map, name, wanted), map.released_shape(name)});
  for (const TensorRepeat& repeat : map.repeats())
    if (repeat.written)
      tensors.push_back(
          {repeat.released, written_dtype(source, map, repeat.original, wanted), map.released_shape(repeat.original)});
  return tensors;
}

// Writes the elements of `released` under a name: its own, or the name of a tensor that repeats it.
void write_tensor(const CheckpointReader& source, const TensorMap& map, const std::string& released,
                  const std::string& name, SafetensorsFolderWriter& writer) {
  for (const TensorPart& part : map.parts_of_released(released)) {
    const std::string stored = parameters_prefix + part.logical.tensor;
    for_each_rows(part.logical, source.dtype(stored), [&](const std::vector<std::int64_t>& offset, const Tensor& rows) {
      source.read({stored, map.logical_shape(part.logical.tensor), offset, rows});
      const ReleasedPiece piece = released_piece(part, offset, rows);
      writer.write(name, piece.offset, piece.memory);
    });
  }
}

}  // namespace

namespace {

// Writes the released tensors as a checkpoint of step 0.
void import_tensors(const SafetensorsFolder& source, const TensorMap& map, CheckpointDescription description,
                    const SaveOptions& options, const std::filesystem::path& checkpoint) {
  check_tensors(source, map);
  check_repeats(source, map);
  const DType type = imported_type(source, map);
  ExecutionResources resources(Device::cpu());
  const std::unique_ptr<Communicator> self = make_self_communicator();
  const Mesh mesh(MeshShape{}, *self);
  const ParameterStore parameters(map.declarations(), mesh, {type, type}, resources.execution());
  for (const ParameterPiece& piece : parameters.pieces(parameters.flat_weights()))
    for (const TensorPart& part : map.parts_of_logical(piece.tensor))
      if (const ReleasedPiece released = released_piece(part, piece.offset, piece.memory); released.memory)
        source.read(part.released.tensor, released.offset, released.memory);
  save_checkpoint(checkpoint, std::move(description),
                  pieces_to_save(parameters, parameters.flat_weights(), parameters_prefix, resources.execution()),
                  *self, options);
}

}  // namespace

void import_hugging_face(const std::filesystem::path& folder, const std::filesystem::path& checkpoint, bool overwrite) {
  PendingOutput output(checkpoint, PendingOutput::Kind::folder, overwrite, is_checkpoint_file);
  const std::shared_ptr<const ModelConfig> config = read_hugging_face_config(folder / "config.json");
  const SafetensorsFolder source(folder);
  const auto names = source.names();
  CheckpointDescription description;
  description.model = config->identity();
  SaveOptions options;
  options.exact_folder = true;
  if (std::filesystem::exists(folder / tokenizer_name)) {
    options.extra_files.push_back(folder / tokenizer_name);
    description.tokenizer = {"sentencepiece", read_hugging_face_eos(folder / "config.json", config->vocabulary)};
  }
  import_tensors(source, hugging_face_map(*config, {names.begin(), names.end()}), std::move(description), options,
                 output.place());
  output.complete();
}

void import_safetensors(const std::filesystem::path& path, const ModelConfig& config,
                        const std::filesystem::path& checkpoint, bool overwrite) {
  PendingOutput output(checkpoint, PendingOutput::Kind::folder, overwrite, is_checkpoint_file);
  TensorMap map(declare_stage(config, whole_model(config), 1));
  map.add_others();
  CheckpointDescription description;
  description.model = config.identity();
  SaveOptions options;
  options.exact_folder = true;
  import_tensors(SafetensorsFolder(path), map, std::move(description), options, output.place());
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

  hugging_face_config(*config, "float32", {});  // refuses a model that has no such form, before its tensors are sought
  const TensorMap map = hugging_face_map(*config, {});
  const std::vector<SafetensorsTensor> tensors = tensors_to_write(source, map, options.dtype);
  const std::string config_json =
      hugging_face_config(*config, torch_dtype(tensors.front().dtype), tokenizer_of(source, config->vocabulary));
  SafetensorsFolderWriter writer(output.place(), tensors, {{"format", "pt"}}, options.shard_bytes);
  for (const std::string& name : map.released()) write_tensor(source, map, name, name, writer);
  for (const TensorRepeat& repeat : map.repeats())
    if (repeat.written) write_tensor(source, map, repeat.original, repeat.released, writer);
  writer.close();
  write_text_atomically(output.place() / "config.json", config_json);
  if (const auto tokenizer = source.tokenizer_file())
    write_text_atomically(output.place() / tokenizer_name, read_text(*tokenizer));
  output.complete();
}

}  // namespace fulmen
