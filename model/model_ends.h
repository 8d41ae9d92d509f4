// The parts before the first layer of a model and behind its last, as data.
#pragma once

#include <string>

#include "model/residual_norm.h"

namespace fulmen {

// x = scale * E[token] (+ P[position]).
struct EmbeddingSpec {
  std::string name;  // of the matrix [vocabulary, hidden]
  double scale = 1.0;
  std::string positions = {};  // of P [most_positions, hidden]; none where it is empty
  std::int64_t most_positions = 0;
};

// logits = norm(x) W^T.
struct HeadSpec {
  Norm norm;
  std::string projection;  // of W [vocabulary, hidden]; the embedding's name: tied
};

}  // namespace fulmen
