// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus.h"

namespace fulmen {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  virtual std::string decode(const std::vector<std::int32_t>& ids) const = 0;
  virtual std::int64_t vocabulary() const = 0;
  virtual std::optional<std::int64_t> end_of_document() const = 0;
};

// kind none gives a tokeniser that reads and writes ids as decimal numbers separated by spaces. Throws UserError when
// the model file is missing or not a SentencePiece model.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, const std::filesystem::path& file,
                                          std::int64_t vocabulary);

}  // namespace fulmen
