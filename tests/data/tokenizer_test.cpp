// Text survives the tokenisers; models that cannot be made or read are refused.
#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include "data/tokenizer_training.h"
#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;

// Sentences of words made of syllables, unlike each other enough for a vocabulary of hundreds.
std::vector<std::string> random_sentences(std::size_t count) {
  const std::vector<std::string> syllables{"ka", "to", "mi",  "ra",  "ne", "shu",
                                           "lo", "be", "ing", "est", "un", "\xc3\xa9t"};
  std::vector<std::string> words(400);
  for (std::string& word : words) {
    for (std::int64_t i = random_in(1, 5); i > 0; --i) word += syllables[static_cast<std::size_t>(random_in(0, 11))];
  }
  std::vector<std::string> sentences(count);
  for (std::string& sentence : sentences) {
    for (std::int64_t i = random_in(3, 15); i > 0; --i) {
      sentence += (sentence.empty() ? "   " : " ") + words[static_cast<std::size_t>(random_in(0, 399))];
    }
  }
  return sentences;
}

class Tokenizers : public ::testing::Test {
 protected:
  std::unique_ptr<Tokenizer> train(std::int64_t vocabulary) {
    write_file(folder_ / "tokenizer.model", train_sentencepiece(sentences_, vocabulary));
    return make_tokenizer(TokenizerKind::sentencepiece, folder_ / "tokenizer.model", vocabulary);
  }
  TemporaryFolder folder_;
  std::vector<std::string> sentences_ = random_sentences(2000);
};

TEST_F(Tokenizers, SentencePieceKeepsEveryCharacter) {
  const auto tokenizer = train(600);
  EXPECT_EQ(tokenizer->vocabulary(), 600);
  EXPECT_EQ(tokenizer->end_of_document(), 2);
  std::vector<std::string> texts{"",
                                 "\n",
                                 " ",
                                 "\n\n\n  \n",
                                 "   indented\n\n      more   so   ",
                                 "tab\there\r\nreturn",
                                 "h\xc3\xa9llo \xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\x98\x80",
                                 std::string("a\0b", 3),
                                 "\xef\xbb\xbfmark",
                                 std::string(200'000, 'x')};
  std::string lines;  // longer than what is encoded at once
  for (const std::string& sentence : sentences_) lines += sentence + (random_in(0, 5) == 0 ? "\n\n" : "\n");
  texts.push_back(lines);
  for (const std::string& text : texts) EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(tokenizer->encode("\n").size(), 1U);
  // Cutting a text behind a line end changes nothing.
  std::vector<std::int32_t> by_line;
  for (std::size_t begin = 0; begin < lines.size();) {
    const std::size_t end = lines.find('\n', begin) + 1;
    const auto ids = tokenizer->encode(lines.substr(begin, end - begin));
    by_line.insert(by_line.end(), ids.begin(), ids.end());
    begin = end;
  }
  EXPECT_EQ(tokenizer->encode(lines), by_line);
  EXPECT_LT(by_line.size() * 2, lines.size()) << "pieces of more than two bytes were expected";
}

TEST_F(Tokenizers, SentencePieceToleratesWhatIsNoUtf8) {
  const auto tokenizer = train(400);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\xff z")), "a\xef\xbf\xbd z");
  EXPECT_EQ(tokenizer->decode({2}), "");
  EXPECT_FALSE(tokenizer->decode({999, -1}).empty());
  for (int i = 0; i < 200; ++i) {
    std::string noise(static_cast<std::size_t>(random_in(0, 300)), '\0');
    for (char& c : noise) c = static_cast<char>(random_in(0, 255));
    for (const std::int32_t id : tokenizer->encode(noise)) {
      ASSERT_GE(id, 0);
      ASSERT_LT(id, 400);
    }
  }
}

TEST_F(Tokenizers, SentencePieceTrainingIsReproducible) {
  const auto sentences = random_sentences(1000);
  EXPECT_EQ(train_sentencepiece(sentences, 500), train_sentencepiece(sentences, 500));
}

TEST_F(Tokenizers, SentencePieceVocabularyThatDoesNotFit) {
  const auto sentences = random_sentences(50);
  expect_user_error([&] { train_sentencepiece(sentences, 30'000); },
                    {"30000", "too large for this text", "--vocabulary"});
  expect_user_error([&] { train_sentencepiece(sentences, 262); }, {"262", "too small"});
  expect_user_error([&] { train_sentencepiece(sentences, 100); }, {"100", "no room"});
  for (const std::string& text : {std::string(), std::string(50, '\0'), std::string("\xe2\x96\x81\xe2\x96\x81")}) {
    expect_user_error([&] { train_sentencepiece({text}, 1000); }, {"no text"});
  }
  expect_user_error([&] { train_sentencepiece({"\t"}, 1000); }, {"1000"});
}

TEST_F(Tokenizers, SentencePieceFilesThatAreNone) {
  const auto open = [&](std::int64_t vocabulary) {
    make_tokenizer(TokenizerKind::sentencepiece, folder_ / "tokenizer.model", vocabulary);
  };
  expect_user_error([&] { open(0); }, {"tokenizer.model", "cannot be read"});
  for (const std::string& content : {std::string(), std::string("not a model"), std::string(1000, '\xff')}) {
    write_file(folder_ / "tokenizer.model", content);
    expect_user_error([&] { open(0); }, {"tokenizer.model", "not a SentencePiece model"});
  }
  train(400);
  open(400);
  open(500);
  expect_user_error([&] { open(399); }, {"tokenizer.model", "400 pieces", "399"});
}

TEST_F(Tokenizers, Bytes) {
  const auto tokenizer = make_tokenizer(TokenizerKind::bytes, {}, 0);
  EXPECT_EQ(tokenizer->vocabulary(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const auto ids = tokenizer->encode(all);
  ASSERT_EQ(ids.size(), 256U);
  for (std::int32_t byte = 0; byte < 256; ++byte) EXPECT_EQ(ids[static_cast<std::size_t>(byte)], byte);
  EXPECT_EQ(tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->decode({'a', 256, 'b', 300, -1}), "ab\xef\xbf\xbd\xef\xbf\xbd");
}

TEST_F(Tokenizers, None) {
  const auto tokenizer = make_tokenizer(TokenizerKind::none, {}, 50);
  EXPECT_EQ(tokenizer->vocabulary(), 50);
  EXPECT_EQ(tokenizer->end_of_document(), std::nullopt);
  EXPECT_EQ(tokenizer->encode(" 1 49\n0 "), (std::vector<std::int32_t>{1, 49, 0}));
  EXPECT_EQ(tokenizer->decode({1, 49, 0}), "1 49 0");
  for (const std::string word : {"50", "-1", "x", "1x", "99999999999"}) {
    expect_user_error([&] { tokenizer->encode("1 " + word); }, {"'" + word + "'", "below 50"});
  }
}

TEST(SentenceSample, IsSpreadOverTheText) {
  SentenceSample sample(100'000, 5), again(100'000, 5), other(100'000, 6);
  for (int i = 0; i < 100'000; ++i) {
    const std::string line = "line " + std::to_string(i) + "\n\n";
    for (SentenceSample* one : {&sample, &again, &other}) one->add(line);
  }
  const auto lines = sample.take_sentences();
  EXPECT_EQ(lines, again.take_sentences());
  EXPECT_NE(lines, other.take_sentences());
  std::size_t bytes = 0;
  std::vector<int> quarters(4);
  int previous = -1;
  for (const std::string& line : lines) {
    bytes += line.size();
    const int number = std::stoi(line.substr(5));
    EXPECT_GT(number, previous);
    previous = number;
    ++quarters[static_cast<std::size_t>(number / 25'000)];
  }
  EXPECT_LE(bytes, 100'000U);
  EXPECT_GT(bytes, 75'000U);
  for (const int count : quarters)
    EXPECT_NEAR(count, static_cast<double>(lines.size()) / 4, static_cast<double>(lines.size()) / 20);
}

TEST(SentenceSample, CutsLongLines) {
  SentenceSample sample(1'000'000, 1);
  std::string line;
  for (int i = 0; i < 5000; ++i) line += "word ";
  sample.add(line);
  sample.add(std::string(10'000, 'x'));
  std::string whole;
  for (const std::string& sentence : sample.take_sentences()) {
    EXPECT_LE(sentence.size(), 4096U);
    whole += sentence;
  }
  EXPECT_EQ(whole, line + std::string(10'000, 'x'));
}

}  // namespace
}  // namespace fulmen
