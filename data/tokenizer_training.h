// Training of a SentencePiece model on a sample of text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen {

// Lines chosen evenly over a text of unknown length, at most `most_bytes` of them. A line is kept when a keyed hash of
// its number is below a threshold. The threshold falls by an eighth whenever the sample is full. The same text gives
// the same sample.
class SentenceSample {
 public:
  SentenceSample(std::size_t most_bytes, std::uint64_t seed) : most_bytes_(most_bytes), seed_(seed) {}
  // Text of one document, in whole lines as far as it has any.
  void add(std::string_view text);
  std::vector<std::string> take_sentences();               // in the order of the text
  std::int64_t text_bytes() const { return text_bytes_; }  // seen so far, sampled or not

 private:
  struct Line {
    std::string text;
    std::uint64_t hash;
  };
  void add_line(std::string_view line);
  void shrink();

  std::size_t most_bytes_, bytes_ = 0;
  std::uint64_t seed_, lines_seen_ = 0;
  std::uint64_t threshold_ = ~std::uint64_t{0};
  std::int64_t text_bytes_ = 0;
  std::vector<Line> lines_;
};

// A serialised unigram model (Kudo, "Subword Regularization", ACL 2018) with byte fallback and line ends as a piece of
// their own. So encoding and decoding keep every line end and space. `<unk>` is 0, `<s>` 1, `</s>` 2. The same
// sentences give the same model on every machine. Throws UserError when the text is too small for so large a
// vocabulary, or a vocabulary too small for its characters.
std::string train_sentencepiece(std::vector<std::string> sentences, std::int64_t vocabulary);

}  // namespace fulmen
