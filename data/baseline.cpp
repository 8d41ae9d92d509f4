// Two histograms and their cross entropy.
#include "data/baseline.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "framework/error.h"

namespace fulmen {

namespace {

std::vector<std::int64_t> token_counts(const CorpusReader& corpus, std::int64_t vocabulary) {
  FULMEN_CHECK(corpus.manifest().vocabulary <= vocabulary, "a corpus of vocabulary {} counted in {}",
               corpus.manifest().vocabulary, vocabulary);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(vocabulary));
  std::vector<std::int32_t> tokens(std::size_t{1} << 16);
  for (std::int64_t begin = 0; begin < corpus.tokens(); begin += static_cast<std::int64_t>(tokens.size())) {
    tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(corpus.tokens() - begin)));
    corpus.read(begin, tokens);
    for (const std::int32_t token : tokens) ++counts[static_cast<std::size_t>(token)];
  }
  return counts;
}

}  // namespace

double unigram_loss_nats(const CorpusReader& train, const CorpusReader& heldout, std::int64_t vocabulary) {
  const std::vector<std::int64_t> seen = token_counts(train, vocabulary);
  const std::vector<std::int64_t> asked = token_counts(heldout, vocabulary);
  const double total = std::log(static_cast<double>(train.tokens() + vocabulary));
  double sum = 0.0;
  for (std::size_t w = 0; w < seen.size(); ++w) {
    sum += static_cast<double>(asked[w]) * (total - std::log(static_cast<double>(seen[w] + 1)));
  }
  return sum / static_cast<double>(heldout.tokens());
}

}  // namespace fulmen
