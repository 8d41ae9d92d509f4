// config.json of a Hugging Face model.
#include "infer/hugging_face.h"
#include "tests/fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  const std::filesystem::path path = fuzz::write("config.json", fuzz::as_text(data, size));
  fuzz::accepts([&] {
    const auto model = read_hugging_face_config(path);
    hugging_face_config(*model, "float32", {"sentencepiece", read_hugging_face_eos(path, model->vocabulary)});
  });
  return 0;
}
