// The loss of a model that ignores context: the yardstick for a held-out loss.
#pragma once

#include <cstdint>

#include "data/corpus.h"

namespace fulmen {

// Cross entropy, in nats per token, of the held-out tokens under the training corpus's unigram distribution with
// add-one smoothing: p(w) = (count(w) + 1) / (tokens + vocabulary). The vocabulary must cover both corpora.
double unigram_loss_nats(const CorpusReader& train, const CorpusReader& heldout, std::int64_t vocabulary);

}  // namespace fulmen
