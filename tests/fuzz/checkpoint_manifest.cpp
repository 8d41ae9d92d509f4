// The manifest of a checkpoint, and the model that it describes.
#include "checkpoint/manifest.h"
#include "model/model_config.h"
#include "tests/fuzz/scratch.h"

namespace {

void read(std::string_view text) {
  using namespace fulmen;
  const std::filesystem::path folder = fuzz::write("checkpoint/manifest.yaml", text).parent_path();
  fuzz::accepts([&] {
    const CheckpointManifest manifest = read_manifest(folder);
    ModelConfig::from_identity(manifest.description.model, folder.string())->validate();
    check_file_sizes(folder, manifest);
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fulmen::fuzz::as_text(data, size);
  read(text);
  if (const std::string sealed = fulmen::fuzz::with_seal(text); !sealed.empty()) read(sealed);
  return 0;
}
