// make_corpus FOLDER VOCABULARY --golden FILE.h5             the tokens of a golden file's /stream, one document
// make_corpus FOLDER VOCABULARY --change CORPUS INDEX TOKEN  another corpus's tokens with one token changed, in shards
//                                                            that are whole HDF5 files, under that corpus's manifest
// make_corpus FOLDER VOCABULARY --move-end CORPUS            another corpus with the end of its first document moved,
//                                                            under that corpus's manifest
// make_corpus FOLDER VOCABULARY --empty                      no tokens at all
// make_corpus FOLDER VOCABULARY --single DOCUMENTS           documents of one token
// Corpora that `fulmen prepare` does not make.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "data/corpus_writer.h"
#include "framework/error.h"
#include "framework/hdf5.h"

namespace fulmen {
namespace {

CorpusManifest header(std::int64_t vocabulary) {
  CorpusManifest manifest;
  manifest.vocabulary = vocabulary;
  manifest.dtype = token_dtype(vocabulary);
  return manifest;
}

void write_one_document(const std::filesystem::path& folder, std::int64_t vocabulary,
                        const std::vector<std::int32_t>& tokens) {
  std::filesystem::create_directories(folder);
  CorpusWriter writer(folder, header(vocabulary), std::int64_t{1} << 30);
  writer.append(tokens);
  writer.end_document();
  writer.finish({});
}

void write_single_tokens(const std::filesystem::path& folder, std::int64_t vocabulary, int documents) {
  std::filesystem::create_directories(folder);
  CorpusWriter writer(folder, header(vocabulary), std::int64_t{1} << 30);
  for (std::int32_t document = 0; document < documents; ++document) {
    const std::vector<std::int32_t> token = {static_cast<std::int32_t>(document % vocabulary)};
    writer.append(token);
    writer.end_document();
  }
  writer.finish({});
}

std::vector<std::int32_t> stream_of(const std::string& golden) {
  const hdf5::File file = hdf5::File::open(golden);
  const hdf5::Dataset stream = file.dataset("/stream");
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(stream.shape().at(0)));
  stream.read({0}, Tensor(tokens.data(), DType::int32, stream.shape()));
  return tokens;
}

// The manifest stays, so that its counts and checksums are the old values.
// A negative index changes no token, but moves the end of each shard's first document, where it is not the last, by
// one.
void copy_with_change(const std::filesystem::path& folder, const std::filesystem::path& source, std::int64_t index,
                      std::uint32_t token) {
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(source / "manifest.yaml", folder / "manifest.yaml");
  const CorpusManifest manifest = read_corpus_manifest(source);
  std::int64_t first = 0;
  for (const CorpusShard& shard : manifest.shards) {
    const hdf5::File from = hdf5::File::open(source / shard.file);
    std::vector<std::uint32_t> tokens(static_cast<std::size_t>(shard.tokens));
    std::vector<std::uint64_t> ends(static_cast<std::size_t>(shard.documents));
    from.dataset("/tokens").read({0}, Tensor(tokens.data(), DType::uint32, {shard.tokens}));
    from.dataset("/document_ends").read({0}, Tensor(ends.data(), DType::uint64, {shard.documents}));
    if (index >= first && index < first + shard.tokens) tokens[static_cast<std::size_t>(index - first)] = token;
    if (index < 0 && ends.size() > 1) --ends.front();
    hdf5::File to = hdf5::File::create(folder / shard.file);
    to.create_dataset("/tokens", manifest.dtype, {shard.tokens})
        .write({0}, Tensor(tokens.data(), DType::uint32, {shard.tokens}));
    to.create_dataset("/document_ends", DType::uint64, {shard.documents})
        .write({0}, Tensor(ends.data(), DType::uint64, {shard.documents}));
    to.close();
    first += shard.tokens;
  }
}

int run(const std::vector<std::string>& arguments) {
  const std::string kind = arguments.size() > 2 ? arguments[2] : "";
  const bool takes_one = kind == "--golden" || kind == "--move-end" || kind == "--single";
  const std::size_t expected = takes_one ? 4 : kind == "--change" ? 6 : 3;
  if (arguments.size() != expected)
    throw UserError("usage", "make_corpus FOLDER VOCABULARY --golden|--change|--move-end|--empty|--single ...");
  const std::int64_t vocabulary = std::stoll(arguments[1]);
  if (kind == "--golden") {
    write_one_document(arguments[0], vocabulary, stream_of(arguments[3]));
  } else if (kind == "--move-end") {
    copy_with_change(arguments[0], arguments[3], -1, 0);
  } else if (kind == "--single") {
    write_single_tokens(arguments[0], vocabulary, std::stoi(arguments[3]));
  } else if (kind == "--change") {
    copy_with_change(arguments[0], arguments[3], std::stoll(arguments[4]),
                     static_cast<std::uint32_t>(std::stoul(arguments[5])));
  } else {
    std::filesystem::create_directories(arguments[0]);
    write_corpus_manifest(arguments[0], header(vocabulary));
  }
  return 0;
}

}  // namespace
}  // namespace fulmen

int main(int argc, char** argv) {
  try {
    return fulmen::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_corpus: %s\n", error.what());
    return 2;
  }
}
