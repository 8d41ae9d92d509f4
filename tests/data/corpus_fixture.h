// Corpora for tests: random streams of documents, written by the writer or, as another program would, dataset by
// dataset.
#pragma once

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/corpus_writer.h"
#include "framework/files.h"
#include "framework/hdf5.h"
#include "framework/sealed_text.h"

namespace fulmen::testing_support {

inline std::mt19937_64& generator() {
  static std::mt19937_64 instance(std::random_device{}());
  return instance;
}

inline std::int64_t random_in(std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(generator());
}

using Document = std::vector<std::int32_t>;

// Documents of 1 to `longest` tokens.
inline std::vector<Document> random_documents(std::int64_t count, std::int64_t longest, std::int64_t vocabulary) {
  std::vector<Document> documents(static_cast<std::size_t>(count));
  for (Document& document : documents) {
    document.resize(static_cast<std::size_t>(random_in(1, longest)));
    for (std::int32_t& token : document) token = static_cast<std::int32_t>(random_in(0, vocabulary - 1));
  }
  return documents;
}

// The stream of all documents as one array, and the positions where documents start.
struct PlainCorpus {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> starts;

  explicit PlainCorpus(const std::vector<Document>& documents) {
    for (const Document& document : documents) {
      starts.push_back(static_cast<std::int64_t>(tokens.size()));
      tokens.insert(tokens.end(), document.begin(), document.end());
    }
  }
  std::vector<std::int64_t> starts_in(std::int64_t begin, std::int64_t end) const {
    std::vector<std::int64_t> found;
    for (const std::int64_t start : starts) {
      if (start > begin && start < end) found.push_back(start);
    }
    return found;
  }
};

inline CorpusManifest plain_manifest(std::int64_t vocabulary) {
  CorpusManifest manifest;
  manifest.vocabulary = vocabulary;
  manifest.dtype = token_dtype(vocabulary);
  return manifest;
}

inline CorpusManifest write_corpus(const std::filesystem::path& folder, const std::vector<Document>& documents,
                                   std::int64_t vocabulary, std::int64_t shard_tokens) {
  std::filesystem::create_directories(folder);
  CorpusWriter writer(folder, plain_manifest(vocabulary), shard_tokens);
  for (const Document& document : documents) {
    // In two pieces, as a large document comes.
    const auto half = document.size() / 2;
    writer.append(std::span(document).first(half));
    writer.append(std::span(document).subspan(half));
    writer.end_document();
  }
  return writer.finish(std::nullopt);
}

// A shard in contiguous datasets, as h5py makes them, with nothing checked.
template <class Stored>
void write_foreign_shard(const std::filesystem::path& path, std::vector<Stored> tokens,
                         std::vector<std::uint64_t> document_ends) {
  hdf5::File file = hdf5::File::create(path);
  const auto length = [](const auto& values) { return static_cast<std::int64_t>(values.size()); };
  file.create_dataset("tokens", dtype_of<Stored>, {length(tokens)})
      .write({0}, Tensor(tokens.data(), dtype_of<Stored>, {length(tokens)}));
  file.create_dataset("document_ends", DType::uint64, {length(document_ends)})
      .write({0}, Tensor(document_ends.data(), DType::uint64, {length(document_ends)}));
  file.close();
}

inline void write_file(const std::filesystem::path& path, const std::string& content) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

// In a manifest, which then has the checksum of the new text.
inline void replace_in_manifest(const std::filesystem::path& path, const std::string& from, const std::string& to) {
  std::string text = read_text(path);
  text.resize(text.rfind('\n', text.size() - 2) + 1);
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << "'" << from << "' is not in " << text;
  write_file(path, sealed(text.replace(at, from.size(), to)));
}

}  // namespace fulmen::testing_support
