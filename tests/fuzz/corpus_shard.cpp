// A shard of a corpus, as HDF5, under a manifest without checksums: what other programs make.
#include <vector>

#include "data/corpus.h"
#include "tests/fuzz/scratch.h"

namespace {

constexpr std::string_view manifest =
    "format: fulmen-corpus\nversion: 1\nvocabulary: 258\ndtype: uint16\nend_of_document: 256\n"
    "tokenizer: {kind: bytes}\nshards: [{file: shard-00000.h5, tokens: 48, documents: 3, xxh3: null}]\n";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  static const std::filesystem::path folder = fuzz::write("corpus/manifest.yaml", manifest).parent_path();
  fuzz::write("corpus/shard-00000.h5", fuzz::as_text(data, size));
  fuzz::accepts([&] {
    const CorpusReader reader(folder);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(reader.tokens()));
    reader.read(0, tokens);
    reader.document_starts(0, reader.tokens());
  });
  fuzz::accepts([&] { verify_corpus(folder); });
  return 0;
}
