// A contiguous run of layers on one pipeline rank.
#include "model/stage.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <ranges>

#include "kernels/elementwise.h"
#include "model/families.h"

namespace fulmen {

std::vector<StageRange> split_stages(std::int64_t layers, int pipeline_stages,
                                     const std::optional<std::vector<std::int64_t>>& layers_per_stage) {
  if (pipeline_stages > layers)
    throw UserError("parallel.pipeline", fmt::format("{} stages for {} layers", pipeline_stages, layers),
                    "every stage needs a layer: use fewer stages");
  if (layers_per_stage) {
    const std::vector<std::int64_t>& counts = *layers_per_stage;
    const std::int64_t sum = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    if (counts.size() != static_cast<std::size_t>(pipeline_stages))
      throw UserError("parallel.stages", fmt::format("lists {} stages, parallel.pipeline is {}", counts.size(), pipeline_stages));
    if (sum != layers || std::ranges::any_of(counts, [](std::int64_t n) { return n < 1; }))
      throw UserError("parallel.stages", fmt::format("the stages hold {} layers, the model has {}", sum, layers),
                      "list at least one layer a stage, adding up to model.layers");
  }
  std::vector<StageRange> ranges;
  std::int64_t next = 0;
  for (int stage = 0; stage < pipeline_stages; ++stage) {
    const std::int64_t count = layers_per_stage ? (*layers_per_stage)[static_cast<std::size_t>(stage)]
                                                : partition(layers, pipeline_stages, stage).size();
    ranges.push_back({next, next + count, stage == 0, stage == pipeline_stages - 1});
    next += count;
  }
  return ranges;
}

std::vector<ParameterDeclaration> declare_stage(const ModelConfig& config, const StageRange& range, int pipeline_stages) {
  std::vector<ParameterDeclaration> list;
  if (range.embedding) list.push_back(declare_embedding(config, pipeline_stages));
  std::ranges::move(declare_layers(config, range.first_layer, range.end_layer), std::back_inserter(list));
  if (range.head && !range.embedding) list.push_back(declare_embedding(config, pipeline_stages));
  return list;
}

std::int64_t parameter_count(const ModelConfig& config) {
  std::int64_t count = 0;
  for (const ParameterDeclaration& declaration : declare_stage(config, {0, config.layers, true, true}, 1))
    for (const LogicalTensor& tensor : declaration.tensors) count += elements_of(tensor.shape);
  return count;
}

Stage::Stage(const ModelConfig& config, const StageRange& range, const ModelContext& context)
    : range_(range), context_(context), hidden_(config.hidden) {
  if (range.embedding) embedding_.emplace(config, context);
  for (std::int64_t layer = range.first_layer; layer < range.end_layer; ++layer)
    std::ranges::move(make_layer(config, layer, context), std::back_inserter(sublayers_));
  if (range.head) head_.emplace(config, context);
  loss_sum_ = OwnedTensor(context.execution.device, DType::fp64, {1}, MemoryKind::activations, *context.execution.ledger);
}

void Stage::prepare(const BatchShape& shape, int slots) {
  shape_ = shape;
  const Shape activation = {shape.tokens(), hidden_};
  const auto allocate = [&](const Shape& s) {
    return OwnedTensor(context_.execution.device, context_.parameters->precision().parameters, s, MemoryKind::activations,
                       *context_.execution.ledger);
  };
  for (const auto& sublayer : sublayers_) sublayer->prepare(shape, slots);
  if (head_) head_->prepare(shape, slots);
  branch_ = allocate(activation);
  if (embedding_) embedded_ = allocate(activation);
  d_even_ = allocate(activation);
  d_odd_ = allocate(activation);
  outputs_.clear();
  for (int slot = 0; slot < slots && !head_; ++slot) outputs_.push_back(allocate(activation));
}

void Stage::forward(int slot, const MicroBatch& micro_batch, const Tensor& input, bool gradient) {
  Tensor residual = input, branch;
  if (embedding_) {
    embedding_->forward(micro_batch, embedded_);
    residual = embedded_;
  }
  for (std::int64_t layer = range_.first_layer; layer < range_.end_layer; ++layer) {
    LayerHooks::call(context_.hooks.before_forward, layer);
    for (const auto& sublayer : sublayers_of(layer)) {
      sublayer->forward(slot, micro_batch, residual, branch, branch_);
      residual = sublayer->sum(slot);
      branch = branch_;
    }
  }
  if (head_)
    head_->forward(slot, micro_batch, residual, branch, gradient, loss_sum_);
  else
    add(context_.execution, residual, branch, outputs_[static_cast<std::size_t>(slot)]);
}

std::span<const std::unique_ptr<Sublayer>> Stage::sublayers_of(std::int64_t layer) const {
  const std::size_t per_layer = sublayers_.size() / static_cast<std::size_t>(range_.end_layer - range_.first_layer);
  return std::span(sublayers_).subspan(static_cast<std::size_t>(layer - range_.first_layer) * per_layer, per_layer);
}

Tensor Stage::output(int slot) const { return head_ ? Tensor() : outputs_[static_cast<std::size_t>(slot)].view(); }

Tensor Stage::take_activation(Arena& arena) const {
  return arena.take(context_.parameters->precision().parameters, {shape_.tokens(), hidden_});
}

Stage::Kept& Stage::keep(int slot) {
  FULMEN_CHECK(std::ranges::none_of(kept_, [&](const auto& kept) { return kept->slot == slot; }),
               "a second backward_input of slot {} before its backward_weight", slot);
  auto free = std::ranges::find_if(kept_, [](const auto& kept) { return kept->slot < 0; });
  if (free == kept_.end()) {
    kept_.push_back(std::make_unique<Kept>(Kept{
        Arena(context_.execution.device, MemoryKind::activations, *context_.execution.ledger), nullptr, -1}));
    free = kept_.end() - 1;
  }
  (*free)->slot = slot;
  (*free)->frame = std::make_unique<Arena::Frame>((*free)->arena);
  return **free;
}

Tensor Stage::backward_input(int slot, const MicroBatch& micro_batch, const Tensor& d_output) {
  Arena& arena = keep(slot).arena;
  Tensor d = d_output;
  if (head_) {
    d = take_activation(arena);
    head_->backward_input(slot, d);
  }
  for (std::int64_t layer = range_.end_layer; layer-- > range_.first_layer;) {
    LayerHooks::call(context_.hooks.before_backward_input, layer);
    for (const auto& sublayer : sublayers_of(layer) | std::views::reverse) {
      const Tensor d_in = take_activation(arena);
      sublayer->backward_input(slot, micro_batch, arena, d, d_in);
      d = d_in;
    }
  }
  if (!embedding_) return d;
  embedding_->backward(micro_batch, d);
  return {};
}

void Stage::backward_weight(int slot) {
  const auto kept = std::ranges::find_if(kept_, [&](const auto& k) { return k->slot == slot; });
  FULMEN_CHECK(kept != kept_.end(), "backward_weight of slot {} before its backward_input", slot);
  for (std::int64_t layer = range_.end_layer; layer-- > range_.first_layer;) {
    LayerHooks::call(context_.hooks.before_backward_weight, layer);
    for (const auto& sublayer : sublayers_of(layer) | std::views::reverse) sublayer->backward_weight(slot);
    LayerHooks::call(context_.hooks.after_backward_weight, layer);
  }
  (*kept)->slot = -1;
  (*kept)->frame.reset();
}

Tensor Stage::backward(int slot, const MicroBatch& micro_batch, const Tensor& d_output) {
  Tensor d = d_output, d_in = d_even_;
  if (head_) {
    d = d_odd_;
    head_->backward_input(slot, d);
  }
  for (std::int64_t layer = range_.end_layer; layer-- > range_.first_layer;) {
    LayerHooks::call(context_.hooks.before_backward_input, layer);
    LayerHooks::call(context_.hooks.before_backward_weight, layer);
    for (const auto& sublayer : sublayers_of(layer) | std::views::reverse) {
      const Arena::Frame frame(*context_.execution.scratch);
      sublayer->backward_input(slot, micro_batch, *context_.execution.scratch, d, d_in);
      sublayer->backward_weight(slot);
      d = d_in;
      d_in = d.data() == d_even_.view().data() ? d_odd_ : d_even_;
    }
    LayerHooks::call(context_.hooks.after_backward_weight, layer);
  }
  if (!embedding_) return d;
  embedding_->backward(micro_batch, d);
  return {};
}

std::vector<Shape> Stage::state_shapes(std::int64_t batch) const {
  std::vector<Shape> shapes;
  for (const auto& sublayer : sublayers_) shapes.push_back(sublayer->state_shape(batch));
  return shapes;
}

void Stage::decode(const MicroBatch& micro_batch, const std::vector<Tensor>& states, const Tensor& logits) {
  FULMEN_CHECK(embedding_ && head_, "decoding needs the whole model on one stage");
  embedding_->forward(micro_batch, embedded_);
  Tensor residual = embedded_, branch;
  for (std::size_t i = 0; i < sublayers_.size(); ++i) {
    sublayers_[i]->decode(0, micro_batch, states[i], residual, branch, branch_);
    residual = sublayers_[i]->sum(0);
    branch = branch_;
  }
  head_->normalize(0, residual, branch);
  head_->logits(0, logits);
}

void Stage::logits(int slot, const Tensor& out) const {
  FULMEN_CHECK(head_.has_value(), "this stage has no head");
  head_->logits(slot, out);
}

Tensor Stage::layer_input(int slot, std::int64_t layer) const {
  return sublayers_of(layer).front()->sum(slot);
}

}  // namespace fulmen
