// The embedding at the head of the first stage.
#include "model/token_embedding.h"

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/position_embedding.h"
#include "model/token_split.h"

namespace fulmen {

ParameterDeclaration declare_token_matrix(const ModelConfig& config, const std::string& name, int pipeline_stages) {
  const double std = config.initializer_std;
  const std::int64_t hidden = config.hidden;
  const std::int64_t pad_row = config.pad_id.value_or(-1);
  const Initializer initializer = [=](const RandomStream& random, std::int64_t index) {
    return index / hidden == pad_row ? 0.0 : std * random.normal(static_cast<std::uint64_t>(index));
  };
  ParameterDeclaration declaration =
      declare_weight(name, {config.vocabulary, config.hidden}, initializer, 0, config.vocabulary);
  declaration.padded = true;
  if (config.tied() && pipeline_stages > 1) {
    declaration.placement[static_cast<std::size_t>(Axis::pipeline)] = AxisPlacement::shared;
    declaration.shared_stages = {0, pipeline_stages - 1};
  }
  return declaration;
}

std::vector<ParameterDeclaration> declare_embedding(const ModelConfig& config, int pipeline_stages) {
  const EmbeddingSpec spec = config.embedding();
  std::vector<ParameterDeclaration> list = {declare_token_matrix(config, spec.name, pipeline_stages)};
  if (spec.positions.empty()) return list;
  // Every tensor rank forms the gradient of all tokens.
  ParameterDeclaration positions = declare_weight(spec.positions, {spec.most_positions, config.hidden},
                                                  normal_initializer(config.initializer_std), 0, 0);
  positions.group.gradient = GradientForm::sum;
  list.push_back(std::move(positions));
  return list;
}

TokenEmbedding::TokenEmbedding(const ModelConfig& config, const ModelContext& context)
    : context_(context), scale_(config.embedding().scale) {
  embedding_ = context.parameters->id(config.embedding().name);
  rows_ = context.parameters->layout(embedding_).segments.front().indices;
  if (const std::string name = config.embedding().positions; !name.empty()) positions_ = context.parameters->id(name);
}

void TokenEmbedding::forward(const MicroBatch& micro_batch, const Tensor& out) const {
  const Tensor weight = context_.parameters->weight(embedding_).slice(0, 0, rows_.size());
  const Arena::Frame frame(*context_.execution.scratch);
  TokenSum sum(context_, out, micro_batch.shape.tokens(), *context_.execution.scratch);
  embedding_forward(context_.execution, micro_batch.tokens, weight, rows_.begin, scale_, sum.partial());
  if (positions_ && context_.tensor->rank() == 0)  // the partial results are summed
    position_embedding_forward(context_.execution, micro_batch.positions, context_.parameters->weight(*positions_),
                               sum.partial());
  sum.add_up_partial();
  sum.finish();
}

void TokenEmbedding::backward(const MicroBatch& micro_batch, TokenGather& d_out) const {
  const Tensor whole = context_.parameters->gradient(embedding_), gradient = whole.slice(0, 0, rows_.size());
  if (context_.parameters->first_accumulation(embedding_))
    fill_zero(context_.execution, whole);  // no head on this stage
  embedding_backward(context_.execution, micro_batch.tokens, micro_batch.order, d_out.whole(), rows_.begin, scale_,
                     gradient);
  if (positions_)
    position_embedding_backward(context_.execution, micro_batch.positions, d_out.whole(),
                                context_.parameters->gradient(*positions_));
}

}  // namespace fulmen
