// The manifest of a corpus.
#include "data/corpus.h"
#include "tests/fuzz/scratch.h"

namespace {

void read(std::string_view text) {
  using namespace fulmen;
  const std::filesystem::path folder = fuzz::write("corpus/manifest.yaml", text).parent_path();
  fuzz::accepts([&] {
    const CorpusManifest manifest = read_corpus_manifest(folder);
    FULMEN_CHECK(manifest.tokens() >= manifest.documents(), "documents without tokens");
    corpus_identity(manifest);
    unprotected(manifest);
    CorpusReader reader(folder);  // whose shards are not there
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fulmen::fuzz::as_text(data, size);
  read(text);
  if (const std::string sealed = fulmen::fuzz::with_seal(text); !sealed.empty()) read(sealed);
  return 0;
}
