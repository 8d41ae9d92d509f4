// The embedding at the head of the first stage: x = scale * E[token] (+ P[position]), the vocabulary split over the
// tensor ranks. Tied, the same matrix is the output projection of the last stage.
#pragma once

#include <optional>
#include <vector>

#include "model/micro_batch.h"
#include "model/model_config.h"
#include "model/model_context.h"
#include "model/token_split.h"

namespace fulmen {

// A matrix [vocabulary, hidden], split by tokens. With several pipeline stages a tied embedding has a copy on the first
// and on the last.
ParameterDeclaration declare_token_matrix(const ModelConfig& config, const std::string& name, int pipeline_stages);

// All of the embedding's parameters.
std::vector<ParameterDeclaration> declare_embedding(const ModelConfig& config, int pipeline_stages);

class TokenEmbedding {
 public:
  TokenEmbedding(const ModelConfig& config, const ModelContext& context);

  // out [residual rows, hidden] (model/token_split.h).
  void forward(const MicroBatch& micro_batch, const Tensor& out) const;
  // Adds to the matrix's gradient.
  void backward(const MicroBatch& micro_batch, TokenGather& d_out) const;

 private:
  const ModelContext& context_;
  ParameterId embedding_;
  IndexRange rows_;  // of the vocabulary, on this rank
  double scale_;
  std::optional<ParameterId> positions_;
};

}  // namespace fulmen
