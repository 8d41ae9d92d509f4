// Three tokenisers: SentencePiece, raw bytes, and decimal ids as they are.
#include "data/tokenizer.h"

#include <charconv>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sentencepiece_processor.h>

#include "framework/error.h"
#include "framework/files.h"

namespace fulmen {

namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& file, std::int64_t vocabulary) {
    const std::string model = read_text(file);
    if (model.empty() || !processor_.LoadFromSerializedProto(model).ok()) {
      throw UserError(file.string(), "is not a SentencePiece model",
                      "check the path, or train a model with 'fulmen prepare'");
    }
    if (vocabulary > 0 && processor_.GetPieceSize() > vocabulary) {
      throw UserError(file.string(),
                      fmt::format("has {} pieces, more than the vocabulary of {} that it is used with",
                                  processor_.GetPieceSize(), vocabulary),
                      "give the model that belongs to this corpus or checkpoint");
    }
    lines_stand_alone_ = probe_lines();
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    if (!lines_stand_alone_) return encode_whole(text);
    std::vector<std::int32_t> ids;
    while (!text.empty()) {
      const std::size_t newline = text.find('\n', encoded_at_once - 1);
      const std::size_t length = newline == std::string_view::npos ? text.size() : newline + 1;
      const std::vector<std::int32_t> part = encode_whole(text.substr(0, length));
      ids.insert(ids.end(), part.begin(), part.end());
      text.remove_prefix(length);
    }
    return ids;
  }

  std::string decode(const std::vector<std::int32_t>& ids) const override {
    std::vector<int> known(ids.begin(), ids.end());
    for (int& id : known) {
      if (id < 0 || id >= processor_.GetPieceSize()) id = processor_.unk_id();
    }
    std::string text;
    const auto status = processor_.Decode(known, &text);
    FULMEN_CHECK(status.ok(), "SentencePiece does not decode: {}", status.ToString());
    return text;
  }

  std::int64_t vocabulary() const override { return processor_.GetPieceSize(); }

  std::optional<std::int64_t> end_of_document() const override {
    if (processor_.eos_id() < 0) return std::nullopt;
    return processor_.eos_id();
  }

 private:
  // The library's memory is a multiple of the text that it is given at once.
  static constexpr std::size_t encoded_at_once = std::size_t{1} << 14;

  std::vector<std::int32_t> encode_whole(std::string_view text) const {
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    FULMEN_CHECK(status.ok(), "SentencePiece does not encode: {}", status.ToString());
    return ids;
  }

  // Whether text may be cut behind a line end without changing its pieces. That is so where a line end is a piece that
  // joins no other, and nothing is put before a text. So it is with the models trained here.
  bool probe_lines() const {
    for (const std::string line : {"a\n", "  b c\n", "\n"}) {
      std::vector<std::int32_t> apart = encode_whole(line);
      const std::vector<std::int32_t> second = apart;
      apart.insert(apart.end(), second.begin(), second.end());
      if (encode_whole(line + line) != apart) return false;
    }
    return encode_whole("\n").size() == 1;
  }

  sentencepiece::SentencePieceProcessor processor_;
  bool lines_stand_alone_ = false;
};

// Ids 0 to 255 are bytes, 256 ends a document.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }

  std::string decode(const std::vector<std::int32_t>& ids) const override {
    std::string text;
    for (const std::int32_t id : ids) {
      if (id >= 0 && id < end) text += static_cast<char>(id);
      if (id < 0 || id > end) text += "\xef\xbf\xbd";  // the replacement character
    }
    return text;
  }

  std::int64_t vocabulary() const override { return end + 1; }
  std::optional<std::int64_t> end_of_document() const override { return end; }

 private:
  static constexpr std::int32_t end = 256;
};

class NumberTokenizer : public Tokenizer {
 public:
  explicit NumberTokenizer(std::int64_t vocabulary) : vocabulary_(vocabulary) {}

  std::vector<std::int32_t> encode(std::string_view text) const override {
    constexpr std::string_view space = " \t\r\n";
    std::vector<std::int32_t> ids;
    for (std::size_t begin = text.find_first_not_of(space); begin != std::string_view::npos;) {
      const std::size_t end = std::min(text.find_first_of(space, begin), text.size());
      ids.push_back(parse(text.substr(begin, end - begin)));
      begin = text.find_first_not_of(space, end);
    }
    return ids;
  }

  std::string decode(const std::vector<std::int32_t>& ids) const override {
    return fmt::format("{}", fmt::join(ids, " "));
  }

  std::int64_t vocabulary() const override { return vocabulary_; }
  std::optional<std::int64_t> end_of_document() const override { return std::nullopt; }

 private:
  std::int32_t parse(std::string_view word) const {
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error == std::errc() && end == word.data() + word.size() && id >= 0 && id < vocabulary_) return id;
    throw UserError(fmt::format("'{}'", word.substr(0, 40)), fmt::format("is no token id below {}", vocabulary_),
                    "without a tokeniser, text is token ids: decimal numbers separated by spaces");
  }

  std::int64_t vocabulary_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, const std::filesystem::path& file,
                                          std::int64_t vocabulary) {
  switch (kind) {
    case TokenizerKind::sentencepiece: return std::make_unique<SentencePieceTokenizer>(file, vocabulary);
    case TokenizerKind::bytes: return std::make_unique<ByteTokenizer>();
    case TokenizerKind::none: return std::make_unique<NumberTokenizer>(vocabulary);
  }
  throw InternalError("an unknown tokeniser");
}

}  // namespace fulmen
