// Folders that transformers itself wrote, through import and export. The checkpoint holds the weights of the same
// model's golden file, and the folder that comes out has the same tensors.
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
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

INSTANTIATE_TEST_SUITE_P(Files, FamilyFolders, ::testing::Values("llama", "gpt2", "gpt1_post_norm", "minimax"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace fulmen
