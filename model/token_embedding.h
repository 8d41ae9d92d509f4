// The embedding at the head of the first stage: x = sqrt(hidden) * E[token], the vocabulary split over the tensor
// ranks. The same matrix is the output projection of the last stage (tied).
#pragma once

#include "model/micro_batch.h"
#include "model/model_config.h"
#include "model/model_context.h"
#include "model/token_split.h"

namespace fulmen {

inline constexpr const char* tied_embedding_name = "model.embed_tokens.weight";

// The tied matrix. With several pipeline stages the first and the last each hold a copy.
ParameterDeclaration declare_embedding(const ModelConfig& config, int pipeline_stages);

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
};

}  // namespace fulmen
