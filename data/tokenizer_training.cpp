// The sample and SentencePiece's trainer. Whatever the trainer would end the process over is kept from it.
#include "data/tokenizer_training.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>
#include <sentencepiece_trainer.h>

#include "framework/error.h"
#include "framework/random.h"

namespace fulmen {

namespace {

constexpr std::size_t longest_sentence = 4096;      // bytes
constexpr std::int64_t fixed_pieces = 3 + 256 + 1;  // unknown, begin and end; bytes; the line end

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string>& sentences) : sentences_(&sentences) {}
  bool done() const override { return next_ == sentences_->size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return (*sentences_)[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>* sentences_;
  std::size_t next_ = 0;
};

// The trainer skips sentences with characters that it uses itself: tabs become spaces, the others cost the sentence.
bool make_trainable(std::string& sentence) {
  std::replace(sentence.begin(), sentence.end(), '\t', ' ');
  const bool reserved = sentence.find('\0') != std::string::npos ||
                        sentence.find("\xe2\x96\x81") != std::string::npos ||
                        sentence.find("\xe2\x96\x85") != std::string::npos;
  return !reserved && !sentence.empty();
}

[[noreturn]] void throw_refused(std::int64_t vocabulary, const std::string& reason) {
  constexpr std::string_view most = "Please set it to a value <= ";
  const std::string where = fmt::format("a SentencePiece vocabulary of {}", vocabulary);
  if (const std::size_t at = reason.find(most); at != std::string::npos) {
    const std::string largest = reason.substr(at + most.size(), reason.find('.', at + most.size()) - at - most.size());
    throw UserError(where, fmt::format("is too large for this text, which supports {} at most", largest),
                    fmt::format("use --vocabulary {} or less, more text, or --tokenizer bytes", largest));
  }
  if (reason.find("smaller than required_chars") != std::string::npos) {
    throw UserError(where, "is too small for the characters of this text",
                    "use a larger --vocabulary, or --tokenizer bytes");
  }
  throw UserError(where, "cannot be trained on this text: " + reason, "use --tokenizer bytes, or other text");
}

}  // namespace

void SentenceSample::add(std::string_view text) {
  text_bytes_ += static_cast<std::int64_t>(text.size());
  while (!text.empty()) {
    const std::size_t newline = text.find('\n');
    add_line(text.substr(0, newline));
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
  }
}

void SentenceSample::add_line(std::string_view line) {
  while (!line.empty()) {
    std::size_t length = std::min(line.size(), longest_sentence);
    // A longer line is cut at a space, which every script with words has nearby.
    if (length < line.size()) {
      const std::size_t space = line.rfind(' ', length);
      if (space != std::string_view::npos && space > 0) length = space;
    }
    const auto random = philox4x32(
        {static_cast<std::uint32_t>(lines_seen_), static_cast<std::uint32_t>(lines_seen_ >> 32), 0, 0}, seed_);
    ++lines_seen_;
    const std::uint64_t hash = random[0] | static_cast<std::uint64_t>(random[1]) << 32;
    if (hash <= threshold_) {
      lines_.push_back({std::string(line.substr(0, length)), hash});
      bytes_ += length;
      shrink();
    }
    line.remove_prefix(length);
  }
}

void SentenceSample::shrink() {
  while (bytes_ > most_bytes_ && threshold_ > 0) {
    threshold_ -= std::max<std::uint64_t>(threshold_ / 8, 1);
    const auto dropped =
        std::remove_if(lines_.begin(), lines_.end(), [&](const Line& l) { return l.hash > threshold_; });
    lines_.erase(dropped, lines_.end());
    bytes_ = 0;
    for (const Line& line : lines_) bytes_ += line.text.size();
  }
}

std::vector<std::string> SentenceSample::take_sentences() {
  std::vector<std::string> sentences;
  sentences.reserve(lines_.size());
  for (Line& line : lines_) sentences.push_back(std::move(line.text));
  lines_.clear();
  bytes_ = 0;
  return sentences;
}

std::string train_sentencepiece(std::vector<std::string> sentences, std::int64_t vocabulary) {
  std::erase_if(sentences, [](std::string& sentence) { return !make_trainable(sentence); });
  if (vocabulary <= fixed_pieces) {
    throw UserError(fmt::format("a SentencePiece vocabulary of {}", vocabulary),
                    fmt::format("has no room: {} pieces are bytes and marks", fixed_pieces),
                    "use a larger --vocabulary, or --tokenizer bytes");
  }
  if (sentences.empty()) {
    throw UserError(fmt::format("a SentencePiece vocabulary of {}", vocabulary), "there is no text to train it on",
                    "give more text, or use --tokenizer bytes");
  }
  const std::unordered_map<std::string, std::string> settings{
      {"model_type", "unigram"},
      {"vocab_size", std::to_string(vocabulary)},
      {"character_coverage", "0.9995"},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"allow_whitespace_only_pieces", "true"},  // indentation in one token
      {"user_defined_symbols", "\n"},
      {"max_sentence_length", std::to_string(2 * longest_sentence)},
      {"num_threads", "4"},  // of the result too: sums are taken by thread
      {"minloglevel", "2"}};
  Sentences iterator(sentences);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &iterator, &model);
  if (!status.ok()) throw_refused(vocabulary, status.ToString());
  return model;
}

}  // namespace fulmen
