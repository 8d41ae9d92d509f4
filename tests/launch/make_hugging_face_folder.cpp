// make_hugging_face_folder GOLDEN.h5 FOLDER [--with-head | --weights] Puts the weights of a golden file into a folder
// as the released models have it: config.json and model.safetensors, without a tokeniser. --with-head: with the tied
// lm_head.weight. --weights: no config.json, for any family.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/hdf5.h"
#include "infer/safetensors_folder.h"

namespace fulmen {
namespace {

constexpr const char* weights_group = "/weights/";
constexpr const char* embedding_name = "model.embed_tokens.weight";
constexpr const char* head_name = "lm_head.weight";

struct Weight {
  std::string name;     // in the safetensors file
  std::string dataset;  // in the golden file
  Shape shape;
};

std::vector<Weight> weights_of(const hdf5::File& golden, bool with_head) {
  std::vector<Weight> weights;
  for (const std::string& dataset : golden.dataset_names())
    if (dataset.starts_with(weights_group))
      weights.push_back({dataset.substr(std::string(weights_group).size()), dataset, golden.dataset(dataset).shape()});
  if (!with_head) return weights;
  const std::string embedding = std::string(weights_group) + embedding_name;
  weights.push_back({head_name, embedding, golden.dataset(embedding).shape()});
  return weights;
}

void write_weights(const hdf5::File& golden, const std::string& folder, bool with_head) {
  const std::vector<Weight> weights = weights_of(golden, with_head);
  std::vector<SafetensorsTensor> tensors;
  for (const Weight& weight : weights) tensors.push_back({weight.name, "F32", weight.shape});
  SafetensorsFolderWriter writer(folder, tensors, {{"format", "pt"}}, std::int64_t{1} << 30);
  for (const Weight& weight : weights) {
    const std::vector<std::int64_t> origin(weight.shape.size(), 0);
    std::vector<float> values(static_cast<std::size_t>(elements_of(weight.shape)));
    const Tensor tensor(values.data(), DType::fp32, weight.shape);
    golden.dataset(weight.dataset).read(origin, tensor);
    writer.write(weight.name, origin, tensor);
  }
  writer.close();
}

// As the released config.json: the keys that the modelling code reads.
std::string config_json(const hdf5::File& golden) {
  const auto integer = [&](const char* name) { return static_cast<std::int64_t>(golden.read_number_attribute(name)); };
  std::string marks = "1";  // layers with LRPE: the first alone
  for (std::int64_t layer = 1; layer < integer("layers"); ++layer) marks += ", 0";
  return fmt::format(R"({{
  "architectures": ["TransnormerForCausalLM"],
  "model_type": "transnormer",
  "vocab_size": {},
  "decoder_embed_dim": {},
  "decoder_layers": {},
  "decoder_attention_heads": {},
  "glu_dim": {},
  "hidden_dim": {},
  "linear_use_lrpe_list": [{}],
  "norm_type": "simplermsnorm",
  "linear_act_fun": "swish",
  "no_scale_embedding": false,
  "bias": false,
  "pad_token_id": 0,
  "torch_dtype": "float32"
}}
)",
                     integer("vocab"), integer("dim"), integer("layers"), integer("heads"), integer("glu"),
                     integer("dim"), marks);
}

int run(const std::vector<std::string>& arguments) {
  const bool with_head = arguments.size() == 3 && arguments[2] == "--with-head";
  const bool weights_alone = arguments.size() == 3 && arguments[2] == "--weights";
  if (arguments.size() != 2 && !with_head && !weights_alone)
    throw UserError("usage", "make_hugging_face_folder GOLDEN.h5 FOLDER [--with-head | --weights]");
  const hdf5::File golden = hdf5::File::open(arguments[0]);
  write_weights(golden, arguments[1], with_head);
  if (!weights_alone) write_text_atomically(arguments[1] + "/config.json", config_json(golden));
  return 0;
}

}  // namespace
}  // namespace fulmen

int main(int argc, char** argv) {
  try {
    return fulmen::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_hugging_face_folder: %s\n", error.what());
    return 2;
  }
}
