// config.json: which family it is of, what is refused, and that what is written is read back as the same model.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "framework/files.h"
#include "infer/hugging_face.h"
#include "infer/safetensors_folder.h"
#include "model/families/transnormer/config.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;

class HuggingFaceConfig : public ::testing::Test {
 protected:
  static nlohmann::json written(const std::string& name) {
    return nlohmann::json::parse(hugging_face_config(*preset(name), "float32"));
  }
  std::shared_ptr<const ModelConfig> read(const nlohmann::json& json) const {
    const std::filesystem::path path = folder_.path() / "config.json";
    write_text_atomically(path, json.dump());
    return read_hugging_face_config(path);
  }
  void refused(const nlohmann::json& json, std::vector<std::string> words) const {
    words.emplace_back("config.json");
    expect_user_error([&] { read(json); }, words);
  }

  testing_support::TemporaryFolder folder_;
  const nlohmann::json config_ = written("tnl3-410m");
};

TEST_F(HuggingFaceConfig, EveryPresetComesBack) {
  for (const std::string& name : preset_names()) {
    if (name == "minimax-1b") continue;  // without experts: config.json cannot say it
    EXPECT_EQ(read(written(name))->identity(), preset(name)->identity()) << name;
  }
}

// The configurations of fla-hub's retnet-1.3B-100B and retnet-2.7B-100B, as flash-linear-attention writes them.
TEST_F(HuggingFaceConfig, FlashLinearAttentionsRetentionIsAPresetOfTheSameCount) {
  nlohmann::json json = {{"architectures", {"RetNetForCausalLM"}},
                         {"attn", nullptr},
                         {"attn_mode", "chunk"},
                         {"bos_token_id", 1},
                         {"conv_size", 4},
                         {"elementwise_affine", true},
                         {"eos_token_id", 2},
                         {"expand_k", 1},
                         {"expand_v", 2},
                         {"feature_map", nullptr},
                         {"fuse_cross_entropy", true},
                         {"fuse_norm", true},
                         {"hidden_act", "swish"},
                         {"hidden_ratio", 2},
                         {"hidden_size", 2048},
                         {"initializer_range", 0.02},
                         {"intermediate_size", nullptr},
                         {"max_position_embeddings", 2048},
                         {"model_type", "retnet"},
                         {"norm_eps", 1e-6},
                         {"num_heads", 8},
                         {"num_hidden_layers", 24},
                         {"num_kv_heads", nullptr},
                         {"tie_word_embeddings", false},
                         {"torch_dtype", "bfloat16"},
                         {"transformers_version", "4.45.0"},
                         {"use_cache", true},
                         {"use_output_gate", true},
                         {"use_short_conv", false},
                         {"vocab_size", 32000}};
  EXPECT_EQ(parameter_count(*read(json)), 1'351'727'104);
  EXPECT_EQ(read(json)->identity(), preset("retnet-1.3b")->identity());
  json["hidden_size"] = 2560, json["num_heads"] = 10, json["num_hidden_layers"] = 32;
  EXPECT_EQ(parameter_count(*read(json)), 2'722'548'224);
  EXPECT_EQ(read(json)->identity(), preset("retnet-2.7b")->identity());
  json["use_short_conv"] = true;
  refused(json, {"use_short_conv"});
}

TEST_F(HuggingFaceConfig, TheModelTypeOrElseTheArchitecturesSayOfWhichFamily) {
  nlohmann::json json = config_;
  json.erase("model_type");
  EXPECT_EQ(read(json)->identity(), preset("tnl3-410m")->identity());
  json["architectures"] = {"BertForCausalLM"};
  refused(json, {"BertForCausalLM", "not known", "transnormer"});
  json.erase("architectures");
  refused(json, {"neither model_type nor architectures", "transnormer"});
  json = config_;
  json["model_type"] = "bert";
  refused(json, {"model_type is \"bert\"", "not known", "have the model_type transnormer"});
  json["model_type"] = 3;
  refused(json, {"model_type is 3"});
}

TEST_F(HuggingFaceConfig, AnotherNormIsRefusedAndSoIsAModelThatCannotBeSaid) {
  nlohmann::json json = config_;
  json["norm_type"] = "layernorm";
  refused(json, {"norm_type", "layernorm", "simplermsnorm"});
  TransnormerConfig config = as<TransnormerConfig>(*preset("tnl3-410m"));
  config.norm_epsilon = 1e-5;
  expect_user_error([&] { hugging_face_config(config, "float32"); }, {"model.norm_epsilon", "1e-05", "1e-06"});
}

TEST_F(HuggingFaceConfig, SizesHaveTheRangesOfTheConfiguration) {
  for (const char* key : {"vocab_size", "decoder_embed_dim", "decoder_layers", "decoder_attention_heads", "glu_dim"}) {
    for (const std::uint64_t value :
         {std::uint64_t{1} << 62, (std::uint64_t{1} << 63) - 1, ~std::uint64_t{0}, std::uint64_t{0}}) {
      nlohmann::json json = config_;
      json[key] = value;
      refused(json, {});
    }
    for (const nlohmann::json& value :
         {nlohmann::json(-7), nlohmann::json(1.5), nlohmann::json("8"), nlohmann::json()}) {
      nlohmann::json json = config_;
      json[key] = value;
      refused(json, {});
    }
  }
  nlohmann::json json = config_;
  json["vocab_size"] = 1073741825;
  refused(json, {"model.vocabulary", "1073741825"});
}

TEST_F(HuggingFaceConfig, NestingEndsAtOnce) {
  write_text_atomically(folder_ / "config.json",
                        "{\"bias\": " + std::string(300'000, '[') + std::string(300'000, ']') + "}");
  expect_user_error([&] { read_hugging_face_config(folder_ / "config.json"); }, {"config.json", "64 deep"});
}

// A model that no memory holds: the weights that are there tell at once that it is not theirs.
TEST_F(HuggingFaceConfig, SizesAreComparedBeforeAnythingIsAllocated) {
  nlohmann::json json = config_;
  json["decoder_embed_dim"] = json["hidden_dim"] = 1 << 20;
  json["decoder_attention_heads"] = 1 << 10;
  read(json);
  SafetensorsFolderWriter writer(folder_.path(), {{"model.embed_tokens.weight", "F32", {64, 8}}}, {}, 1 << 20);
  std::vector<float> weights(64 * 8, 0.0f);
  writer.write("model.embed_tokens.weight", {0, 0}, Tensor(weights.data(), DType::fp32, {64, 8}));
  writer.close();
  expect_user_error([&] { import_hugging_face(folder_.path(), folder_ / "imported"); },
                    {folder_.path().string(), "description makes it"});
  EXPECT_FALSE(std::filesystem::exists(folder_ / "imported"));
}

}  // namespace
}  // namespace fulmen
