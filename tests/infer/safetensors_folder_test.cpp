// One file or several with an index: the same map of names; and indices that are wrong.
#include "infer/safetensors_folder.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "framework/files.h"
#include "tests/framework/expected_errors.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

std::vector<SafetensorsTensor> some_tensors() {
  return {
      {"embed", "F32", {10, 4}}, {"layer.0", "BF16", {6, 4}}, {"layer.1", "BF16", {6, 4}}, {"head", "F32", {10, 4}}};
}

void write_model(const fs::path& folder, std::int64_t shard_bytes) {
  SafetensorsFolderWriter writer(folder, some_tensors(), {{"format", "pt"}}, shard_bytes);
  float value = 0;
  for (const SafetensorsTensor& tensor : some_tensors()) {
    std::vector<float> values(static_cast<std::size_t>(elements_of(tensor.shape)));
    for (float& x : values) x = value++;
    writer.write(tensor.name, {0, 0}, Tensor(values.data(), DType::fp32, tensor.shape));
  }
  writer.close();
}

void expect_model(const fs::path& folder) {
  const SafetensorsFolder model(folder);
  EXPECT_EQ(model.names(), (std::vector<std::string>{"embed", "head", "layer.0", "layer.1"}));
  float value = 0;
  for (const SafetensorsTensor& tensor : some_tensors()) {
    EXPECT_EQ(model.tensor(tensor.name).shape, tensor.shape);
    std::vector<double> values(static_cast<std::size_t>(elements_of(tensor.shape)), NAN);
    model.read(tensor.name, {0, 0}, Tensor(values.data(), DType::fp64, tensor.shape));
    for (const double x : values) EXPECT_EQ(x, value++) << tensor.name;
  }
  expect_mentions(message_of<UserError>([&] { static_cast<void>(model.tensor("layer.2")); }),
                  {"layer.2", "it has layer."});
}

TEST(SafetensorsFolder, OneFile) {
  const TemporaryFolder folder;
  write_model(folder.path() / "deep" / "model", 1 << 20);
  EXPECT_TRUE(fs::exists(folder.path() / "deep" / "model" / "model.safetensors"));
  EXPECT_FALSE(fs::exists(folder.path() / "deep" / "model" / "model.safetensors.index.json"));
  expect_model(folder.path() / "deep" / "model");
  write_model(folder.path() / "deep" / "model", 1 << 20);  // over itself
  expect_model(folder.path() / "deep" / "model");
}

TEST(SafetensorsFolder, SeveralFilesWithAnIndex) {
  const TemporaryFolder folder;
  write_model(folder.path(), 200);  // 160, 48 + 48, 160 bytes
  EXPECT_TRUE(fs::exists(folder.path() / "model-00001-of-00003.safetensors"));
  EXPECT_TRUE(fs::exists(folder.path() / "model-00003-of-00003.safetensors"));
  expect_model(folder.path());
  const auto index = nlohmann::json::parse(read_text(folder.path() / "model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 416);
  EXPECT_EQ(index["weight_map"]["layer.1"], "model-00002-of-00003.safetensors");
  write_model(folder.path(), 200);
  expect_model(folder.path());
  expect_mentions(message_of<UserError>([&] { write_model(folder.path(), 1 << 20); }),
                  {"holds model", "another model"});
  expect_model(folder.path());
}

TEST(SafetensorsFolder, AShardSizeBelowATensorStillWorks) {
  const TemporaryFolder folder;
  write_model(folder.path(), 1);
  EXPECT_TRUE(fs::exists(folder.path() / "model-00004-of-00004.safetensors"));
  expect_model(folder.path());
}

TEST(SafetensorsFolder, WrongIndices) {
  const TemporaryFolder folder;
  write_model(folder.path(), 200);
  const fs::path path = folder.path() / "model.safetensors.index.json";
  const auto refusal = [&](const std::string& index) {
    write_text_atomically(path, index);
    const std::string message = message_of<UserError>([&] { const SafetensorsFolder model(folder.path()); });
    expect_mentions(message, {"model.safetensors.index.json", "->"});
    return message;
  };
  expect_mentions(refusal("{"), {"not valid JSON"});
  expect_mentions(refusal("[]"), {"not a JSON object"});
  expect_mentions(refusal("{}"), {"'weight_map'"});
  expect_mentions(refusal(R"({"weight_map": []})"), {"'weight_map'"});
  expect_mentions(refusal(R"({"weight_map": {}})"), {"empty"});
  expect_mentions(refusal(R"({"weight_map": {"embed": 3}})"), {"embed", "3"});
  expect_mentions(refusal(R"({"weight_map": {"embed": "../other/model.safetensors"}})"), {"embed", "in its folder"});
  expect_mentions(refusal(R"({"weight_map": {"embed": "absent.safetensors"}})"), {"absent.safetensors", "not there"});
  expect_mentions(refusal(R"({"weight_map": {"head": "model-00001-of-00003.safetensors"}})"), {"head", "does not"});
  expect_mentions(refusal(R"({"weight_map": {"embed": "a", "embed": "b"}})"), {"'embed'", "twice"});
}

TEST(SafetensorsFolder, ADamagedShardIsNamed) {
  const TemporaryFolder folder;
  write_model(folder.path(), 200);
  fs::resize_file(folder.path() / "model-00002-of-00003.safetensors", 300);
  expect_mentions(message_of<UserError>([&] { const SafetensorsFolder model(folder.path()); }),
                  {"model-00002-of-00003.safetensors"});
}

TEST(SafetensorsFolder, NoModel) {
  const TemporaryFolder folder;
  const auto open = [&] { const SafetensorsFolder model(folder.path()); };
  expect_mentions(message_of<UserError>(open), {"model.safetensors", "model.safetensors.index.json"});
  write_text_atomically(folder.path() / "pytorch_model.bin", "x");
  expect_mentions(message_of<UserError>(open), {"pytorch_model.bin", "convert"});
  expect_mentions(message_of<UserError>([&] { const SafetensorsFolder model(folder.path() / "absent"); }),
                  {"absent", "not a folder"});
}

}  // namespace
}  // namespace fulmen
