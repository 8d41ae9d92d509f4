// model.safetensors.index.json over a file with two tensors.
#include "infer/safetensors_folder.h"
#include "tests/fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  static const bool once = [] {
    fuzz::write("model/marker", "");
    SafetensorsWriter writer(fuzz::scratch() / "model/model-00001-of-00001.safetensors",
                             {{"a", "F32", {2}}, {"b", "F32", {1}}});
    float values[] = {1.0F, 2.0F};
    writer.write("a", {0}, Tensor(values, DType::fp32, {2}));
    writer.write("b", {0}, Tensor(values, DType::fp32, {1}));
    writer.close();
    return true;
  }();
  (void)once;
  fuzz::write("model/model.safetensors.index.json", fuzz::as_text(data, size));
  fuzz::accepts([&] {
    const SafetensorsFolder folder(fuzz::scratch() / "model");
    for (const std::string& name : folder.names()) folder.tensor(name);
  });
  return 0;
}
