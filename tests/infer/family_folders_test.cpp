// Folders that transformers itself wrote, through import and export. The checkpoint holds the weights of the same
// model's golden file, and the folder that comes out has the same tensors.
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "framework/files.h"
#include "infer/hugging_face.h"
#include "infer/safetensors_folder.h"
#include "tests/framework/temporary_folder.h"
#include "tests/golden.h"

namespace fulmen {
namespace {

std::vector<double> values_of(const SafetensorsFolder& folder, const std::string& name) {
  const Shape& shape = folder.tensor(name).shape;
  std::vector<double> values(static_cast<std::size_t>(elements_of(shape)), NAN);
  folder.read(name, std::vector<std::int64_t>(shape.size(), 0), Tensor(values.data(), DType::fp64, shape));
  return values;
}

class FamilyFolders : public ::testing::TestWithParam<const char*> {};

TEST_P(FamilyFolders, ComeInAndGoOut) {
  const std::string name = std::string("siblings/") + GetParam();
  const std::filesystem::path released = test_data_folder() + "/golden/" + name + "-hf";
  const testing_support::TemporaryFolder folder;
  const std::filesystem::path checkpoint = folder.path() / "checkpoint", exported = folder.path() / "exported";
  import_hugging_face(released, checkpoint);
  const CheckpointReader reader(checkpoint);
  const Golden golden(name);
  const auto names = golden.names("/weights/");
  ASSERT_FALSE(names.empty());
  for (const std::string& tensor : names) {
    const std::vector<double> expected = golden.values("/weights/" + tensor);
    const Shape shape = golden.shape("/weights/" + tensor);
    std::vector<double> held(expected.size(), NAN);
    reader.read({"parameters/" + tensor, shape, std::vector<std::int64_t>(shape.size(), 0),
                 Tensor(held.data(), DType::fp64, shape)});
    EXPECT_EQ(held, expected) << tensor;
  }

  export_hugging_face(checkpoint, exported, {});
  EXPECT_EQ(read_hugging_face_config(exported / "config.json")->identity(),
            read_hugging_face_config(released / "config.json")->identity());
  const SafetensorsFolder before(released), after(exported);
  for (const std::string& tensor : after.names())
    EXPECT_EQ(values_of(after, tensor), values_of(before, tensor)) << tensor;
  for (const std::string& tensor : before.names()) {
    const bool buffer = tensor.ends_with("_decay") || tensor.ends_with("slope_rate");
    EXPECT_TRUE(after.has(tensor) || buffer) << tensor;
  }
}

// flash-linear-attention's names of a RetNet and ours, with their shapes: hidden 32, 2 heads, values of 64, glu 256.
struct NamePair {
  std::string released, own;
  Shape shape;
};
std::vector<NamePair> retention_names() {
  std::vector<NamePair> names = {{"model.embeddings.weight", "embed_tokens.weight", {64, 32}},
                                 {"model.norm.weight", "layer_norm.weight", {32}},
                                 {"lm_head.weight", "output_projection.weight", {64, 32}}};
  for (const std::string layer : {"layers.0.", "layers.1."}) {
    const std::string released = "model." + layer;
    names.insert(names.end(), {{released + "attn_norm.weight", layer + "retention_layer_norm.weight", {32}},
                               {released + "attn.q_proj.weight", layer + "retention.q_proj.weight", {32, 32}},
                               {released + "attn.k_proj.weight", layer + "retention.k_proj.weight", {32, 32}},
                               {released + "attn.v_proj.weight", layer + "retention.v_proj.weight", {64, 32}},
                               {released + "attn.g_proj.weight", layer + "retention.g_proj.weight", {64, 32}},
                               {released + "attn.o_proj.weight", layer + "retention.out_proj.weight", {32, 64}},
                               {released + "attn.g_norm_swish_gate.weight", layer + "retention.g_norm.weight", {32}},
                               {released + "mlp_norm.weight", layer + "final_layer_norm.weight", {32}},
                               {released + "mlp.gate_proj.weight", layer + "ffn.fc1.weight", {256, 32}},
                               {released + "mlp.up_proj.weight", layer + "ffn.gate.weight", {256, 32}},
                               {released + "mlp.down_proj.weight", layer + "ffn.fc2.weight", {32, 256}}});
  }
  return names;
}

// Element i of the k-th tensor; all are different, and floats hold them.
double element_of(std::size_t k, std::int64_t i) { return static_cast<double>(k) + static_cast<double>(i) / 8192.0; }

TEST(RetentionFolder, FlashLinearAttentionsNamesComeInAndGoOut) {
  const testing_support::TemporaryFolder folder;
  const std::filesystem::path released = folder.path() / "released", checkpoint = folder.path() / "checkpoint";
  std::filesystem::create_directory(released);
  write_text_atomically(released / "config.json",
                        R"({"model_type": "retnet", "architectures": ["RetNetForCausalLM"], "vocab_size": 64,
                            "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "expand_k": 1, "expand_v": 2,
                            "hidden_ratio": 2, "intermediate_size": null, "norm_eps": 1e-6})");
  const std::vector<NamePair> names = retention_names();
  std::vector<SafetensorsTensor> tensors;
  for (const NamePair& name : names) tensors.push_back({name.released, "F32", name.shape});
  SafetensorsFolderWriter writer(released, tensors, {}, 1 << 20);
  for (std::size_t k = 0; k < names.size(); ++k) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < elements_of(names[k].shape); ++i)
      values.push_back(static_cast<float>(element_of(k, i)));
    writer.write(names[k].released, std::vector<std::int64_t>(names[k].shape.size(), 0),
                 Tensor(values.data(), DType::fp32, names[k].shape));
  }
  writer.close();

  import_hugging_face(released, checkpoint);
  const CheckpointReader reader(checkpoint);
  export_hugging_face(checkpoint, folder.path() / "exported", {});
  const SafetensorsFolder exported(folder.path() / "exported");
  EXPECT_EQ(exported.names().size(), names.size());
  for (std::size_t k = 0; k < names.size(); ++k) {
    SCOPED_TRACE(names[k].released);
    std::vector<double> expected;
    for (std::int64_t i = 0; i < elements_of(names[k].shape); ++i) expected.push_back(element_of(k, i));
    std::vector<double> held(expected.size(), NAN);
    reader.read({"parameters/" + names[k].own, names[k].shape, std::vector<std::int64_t>(names[k].shape.size(), 0),
                 Tensor(held.data(), DType::fp64, names[k].shape)});
    EXPECT_EQ(held, expected);
    EXPECT_EQ(values_of(exported, names[k].released), expected);
  }
  EXPECT_EQ(read_hugging_face_config(folder.path() / "exported" / "config.json")->identity(),
            read_hugging_face_config(released / "config.json")->identity());
}

INSTANTIATE_TEST_SUITE_P(Files, FamilyFolders, ::testing::Values("llama", "gpt2", "gpt1_post_norm", "minimax"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace fulmen
