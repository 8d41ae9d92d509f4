// Tensors between a Hugging Face folder and a checkpoint where they lie otherwise in each: apart, merged, transposed,
// stacked. A family of the tests' own has an adapter that does all of this.
#include <gtest/gtest.h>

#include <set>

#include "checkpoint/checkpoint.h"
#include "framework/files.h"
#include "infer/hugging_face.h"
#include "infer/hugging_face/adapter.h"
#include "infer/hugging_face/config_reader.h"
#include "infer/safetensors_folder.h"
#include "model/model_family.h"
#include "model/stage.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"
#include "tests/model/toy_family.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;

constexpr std::int64_t layers = 2, hidden = 6, items = 2, inner = 5, vocabulary = 7;

std::shared_ptr<const ModelConfig> read_toy(const ConfigReader& reader, const std::string& model_type) {
  ToyConfig config;
  EXPECT_EQ(model_type, "toy");
  config.layers = reader.integer("layers");
  config.hidden = reader.integer("hidden");
  config.vocabulary = reader.integer("vocabulary");
  config.heads = reader.integer("heads", 3);
  config.items = reader.integer("items");
  config.inner = reader.integer("inner");
  reader.pass_over({"dropout"});
  if (reader.has("rope")) {
    const ConfigReader rope = reader.section("rope");
    rope.require("kind", "default");
    rope.refuse_others();
  }
  return std::make_shared<const ToyConfig>(config);
}

std::string write_toy(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<ToyConfig>(model);
  return nlohmann::ordered_json{
      {"model_type", "toy"},   {"layers", config.layers}, {"hidden", config.hidden}, {"vocabulary", config.vocabulary},
      {"heads", config.heads}, {"items", config.items},   {"inner", config.inner},   {"dtype", torch_dtype}}
      .dump();
}

void map_toy(const ModelConfig& model, const std::set<std::string>& held, TensorMap& map) {
  const std::string root = held.contains("embedding") ? "" : "m.";
  const auto& config = as<ToyConfig>(model);
  const std::int64_t width = config.hidden;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string toy = fmt::format("toy.{}.", layer), released = fmt::format("{}{}.", root, layer);
    map.add(released + "v", map.rows(toy + "vg", 0, width));
    map.add(released + "g", map.rows(toy + "vg", width, width));
    map.add(released + "mix", map.whole(toy + "mix"), true);
    map.add({{released + "norms", {0, 0}, {1, width}}, map.whole(toy + "token_norm")});
    map.add({{released + "norms", {1, 0}, {1, width}}, map.whole(toy + "expert_norm")});
    for (std::int64_t item = 0; item < config.items; ++item) {
      const std::string expert = fmt::format("{}experts.{}.", released, item);
      map.add_item(expert + "first", map.item_rows(toy + "in", item, 0, 2));
      map.add_item(expert + "second", map.item_rows(toy + "in", item, 2, config.inner - 2));
      map.add_item(expert + "back", map.item(toy + "back", item), true);
    }
  }
  map.add_others([&](const std::string& name) { return root + name.substr(std::string("toy.").size()); });
  map.add_repeat({root + "copy", root + "embedding"});
  map.pass_over(".slopes");
}

// Element i of a tensor, of any; all are different.
double value(const std::string& name, std::int64_t element) {
  return static_cast<double>(std::hash<std::string>()(name) % 1000) + static_cast<double>(element) / 1024.0;
}

class HuggingFaceTensors : public ::testing::Test {
 protected:
  HuggingFaceTensors() {
    std::filesystem::create_directory(folder_ / "hf");
    const std::string prefix = "m.";
    shapes_ = {{prefix + "embedding", {vocabulary, hidden}},
               {prefix + "projection", {vocabulary, hidden}},
               {prefix + "final_norm", {hidden}}};
    for (const std::string layer : {"m.0.", "m.1."}) {
      shapes_.insert({{layer + "v", {hidden, hidden}},
                      {layer + "g", {hidden, hidden}},
                      {layer + "mix", {hidden, 2}},
                      {layer + "norms", {2, hidden}},
                      {layer + "out", {hidden, hidden}},
                      {layer + "router", {items, hidden}}});
      for (const std::string item : {"experts.0.", "experts.1."})
        shapes_.insert({{layer + item + "first", {2, hidden}},
                        {layer + item + "second", {inner - 2, hidden}},
                        {layer + item + "back", {inner, hidden}}});
    }
  }

  static nlohmann::json config() {
    return {{"model_type", "toy"}, {"layers", layers}, {"hidden", hidden},
            {"items", items},      {"inner", inner},   {"vocabulary", vocabulary}};
  }
  void write_config(const std::string& text) const { write_text_atomically(folder_ / "hf" / "config.json", text); }
  std::shared_ptr<const ModelConfig> read(const nlohmann::json& json) const {
    write_config(json.dump());
    return read_hugging_face_config(folder_ / "hf" / "config.json");
  }

  // Writes the folder: shapes_, with `root` in the place of "m.".
  void write(const std::string& root = "m.") const {
    write_config(config().dump());
    std::vector<SafetensorsTensor> tensors;
    for (const auto& [name, shape] : shapes_) tensors.push_back({root + name.substr(2), "F32", shape});
    SafetensorsFolderWriter writer(folder_ / "hf", tensors, {}, 1 << 20);
    for (const auto& [name, shape] : shapes_) {
      const std::string source = name == "m.copy" ? "m.embedding" : name;
      std::vector<float> values;
      for (std::int64_t i = 0; i < elements_of(shape); ++i) values.push_back(static_cast<float>(value(source, i)));
      if (name == "m.copy") values.back() += copy_error_;
      writer.write(root + name.substr(2), std::vector<std::int64_t>(shape.size(), 0),
                   Tensor(values.data(), DType::fp32, shape));
    }
    writer.close();
  }
  void import() const { import_hugging_face(folder_ / "hf", folder_ / "checkpoint", true); }

  // All elements of a parameter of the checkpoint.
  std::vector<double> parameter(const std::string& name) const {
    const CheckpointReader checkpoint(folder_ / "checkpoint");
    const Shape shape = checkpoint.shape("parameters/" + name);
    std::vector<double> values(static_cast<std::size_t>(elements_of(shape)));
    checkpoint.read({"parameters/" + name, shape, std::vector<std::int64_t>(shape.size(), 0),
                     Tensor(values.data(), DType::fp64, shape)});
    return values;
  }

  AdditionalFamily family_{{std::make_shared<const ToyConfig>(), {}}};
  AdditionalAdapter adapter_{{"toy", {{"toy", "ToyForCausalLM"}}, read_toy, write_toy, map_toy}};
  testing_support::TemporaryFolder folder_;
  std::map<std::string, Shape> shapes_;
  float copy_error_ = 0.0f;
};

TEST_F(HuggingFaceTensors, EachElementHasItsPlaceInTheCheckpoint) {
  write();
  import();
  for (const std::string layer : {"0.", "1."}) {
    const auto vg = parameter("toy." + layer + "vg"), mix = parameter("toy." + layer + "mix");
    const auto in = parameter("toy." + layer + "in"), back = parameter("toy." + layer + "back");
    const auto token_norm = parameter("toy." + layer + "token_norm");
    const auto expert_norm = parameter("toy." + layer + "expert_norm");
    const std::string m = "m." + layer;
    for (std::int64_t i = 0; i < hidden * hidden; ++i) {
      EXPECT_EQ(vg[i], value(m + "v", i));
      EXPECT_EQ(vg[hidden * hidden + i], value(m + "g", i));
    }
    for (std::int64_t c = 0; c < hidden; ++c) {
      EXPECT_EQ(mix[c], value(m + "mix", 2 * c));
      EXPECT_EQ(mix[hidden + c], value(m + "mix", 2 * c + 1));
      EXPECT_EQ(token_norm[c], value(m + "norms", c));
      EXPECT_EQ(expert_norm[c], value(m + "norms", hidden + c));
    }
    for (std::int64_t item = 0; item < items; ++item)
      for (std::int64_t r = 0; r < inner; ++r)
        for (std::int64_t c = 0; c < hidden; ++c) {
          const std::string expert = fmt::format("{}experts.{}.", m, item);
          EXPECT_EQ(in[(item * inner + r) * hidden + c],
                    r < 2 ? value(expert + "first", r * hidden + c) : value(expert + "second", (r - 2) * hidden + c));
          EXPECT_EQ(back[(item * hidden + c) * inner + r], value(expert + "back", r * hidden + c));
        }
  }
}

TEST_F(HuggingFaceTensors, ExportWritesTheSameFolder) {
  write();
  import();
  export_hugging_face(folder_ / "checkpoint", folder_ / "again", {});
  const SafetensorsFolder again(folder_ / "again");
  EXPECT_EQ(again.names().size(), shapes_.size() + 1);
  shapes_["m.copy"] = shapes_["m.embedding"];
  for (const auto& [name, shape] : shapes_) {
    ASSERT_EQ(again.tensor(name).shape, shape) << name;
    std::vector<double> values(static_cast<std::size_t>(elements_of(shape)));
    again.read(name, std::vector<std::int64_t>(shape.size(), 0), Tensor(values.data(), DType::fp64, shape));
    for (std::int64_t i = 0; i < elements_of(shape); ++i)
      EXPECT_EQ(values[i], value(name == "m.copy" ? "m.embedding" : name, i)) << name;
  }
  EXPECT_EQ(read_hugging_face_config(folder_ / "again" / "config.json")->identity(), read(config())->identity());
}

TEST_F(HuggingFaceTensors, AFolderInAnotherFormIsReadAsWell) {
  write();
  import();
  const auto expected = parameter("toy.1.back");
  std::filesystem::remove_all(folder_ / "hf");
  std::filesystem::create_directory(folder_ / "hf");
  write("");
  import();
  EXPECT_EQ(parameter("toy.1.back"), expected);
}

TEST_F(HuggingFaceTensors, WhatHoldsNoParameterIsNamedAndWhatIsUnknownIsRefused) {
  shapes_["m.0.slopes"] = {3, 1};
  shapes_["m.1.slopes"] = {3, 1};
  write();
  testing::internal::CaptureStderr();
  import();
  EXPECT_NE(testing::internal::GetCapturedStderr().find("passed over 2 tensors *.slopes"), std::string::npos);
  shapes_["m.0.bias"] = {3};
  write();
  expect_user_error([&] { import(); }, {"does not have", "m.0.bias"});
  shapes_.erase("m.0.bias");
  shapes_["m.0.experts.1.back"] = {hidden, inner};
  write();
  expect_user_error([&] { import(); }, {"m.0.experts.1.back", "[6, 5]", "[5, 6]"});
  shapes_.erase("m.0.experts.1.back");
  write();
  expect_user_error([&] { import(); }, {"has no tensor m.0.experts.1.back"});
}

TEST_F(HuggingFaceTensors, ARepeatedTensorIsTheSame) {
  shapes_["m.copy"] = shapes_["m.embedding"];
  write();
  import();
  copy_error_ = 1.0f;
  write();
  expect_user_error([&] { import(); }, {"m.copy differs from m.embedding"});
}

TEST_F(HuggingFaceTensors, EachKeyIsHonouredPassedOverOrRefused) {
  nlohmann::json json = config();
  json.update({{"heads", nullptr}, {"dropout", 0.1}, {"use_cache", true}, {"sliding_window", nullptr}});
  json["rope"] = {{"kind", "default"}};
  EXPECT_EQ(as<ToyConfig>(*read(json)).heads, 3);
  json["rope"]["factor"] = 8;
  expect_user_error([&] { read(json); }, {"config.json: rope", "factor is 8"});
  json["rope"] = {{"kind", "yarn"}};
  expect_user_error([&] { read(json); }, {"config.json: rope", "kind is \"yarn\"", "only \"default\""});
  json.erase("rope");
  json["quantization_config"] = {{"bits", 4}};
  expect_user_error([&] { read(json); }, {"quantization_config", "\"bits\":4", "do not have"});
}

TEST_F(HuggingFaceTensors, InfinityIsANumberOutsideOfTexts) {
  write_config(
      R"({"a": [0.0, Infinity], "b": [{"__float__": "Infinity"}], "c": ["an \"Infinity", "x"], "d": Infinity})");
  const ConfigReader reader(folder_ / "hf" / "config.json");
  EXPECT_TRUE(std::isinf(reader.numbers("a").at(1)));
  EXPECT_TRUE(std::isinf(reader.numbers("b").at(0)));
  EXPECT_EQ(reader.texts("c").at(0), "an \"Infinity");
  EXPECT_TRUE(std::isinf(reader.number("d", 0.0)));
  expect_user_error([&] { reader.numbers("c"); }, {"c is", "not a number"});
  expect_user_error([&] { reader.integer("d"); }, {"d is not an integer"});
}

TEST(TensorMap, ATensorIsCoveredOnce) {
  ToyConfig config;
  config.layers = 1, config.hidden = 6, config.vocabulary = 7;
  const auto map_with = [&](const std::function<void(TensorMap&)>& fill) {
    TensorMap map(declare_stage(config, whole_model(config), 1));
    fill(map);
    map.add_others();
    map.check();
  };
  map_with([](TensorMap&) {});
  const auto first = [](TensorMap& map) { map.add("a", map.rows("toy.0.vg", 0, 5)); };
  EXPECT_THROW(map_with(first), InternalError);  // a gap
  EXPECT_THROW(map_with([&](TensorMap& map) { first(map), map.add("b", map.rows("toy.0.vg", 4, 8)); }), InternalError);
  map_with([&](TensorMap& map) { first(map), map.add("b", map.rows("toy.0.vg", 5, 7)); });
  EXPECT_THROW(map_with([&](TensorMap& map) { first(map), map.add("a", map.rows("toy.0.vg", 5, 7)); }), InternalError);
  EXPECT_THROW(map_with([](TensorMap& map) {
                 map.add({{"a", {0, 0}, {6, 7}}, map.whole("toy.projection")});
               }),
               InternalError);  // [7, 6]
}

}  // namespace
}  // namespace fulmen
