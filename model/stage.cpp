// A contiguous run of layers on one pipeline rank.
#include "model/stage.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <ranges>

#include "kernels/elementwise.h"
#include "model/families.h"

namespace fulmen {

StageRange whole_model(const ModelConfig& config) { return {0, config.layers, true, true}; }

std::vector<StageRange> split_stages(std::int64_t layers, int pipeline_stages,
                                     const std::optional<std::vector<std::int64_t>>& layers_per_stage) {
  if (pipeline_stages > layers)
    throw UserError("parallel.pipeline", fmt::format("{} stages for {} layers", pipeline_stages, layers),
                    "every stage needs a layer: use fewer ranks, or fewer parallel.chunks");
  if (layers_per_stage) {
    const std::vector<std::int64_t>& counts = *layers_per_stage;
    const std::int64_t sum = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    if (counts.size() != static_cast<std::size_t>(pipeline_stages))
      throw UserError("parallel.stages", fmt::format("lists {} stages, parallel.pipeline x parallel.chunks is {}",
                                                     counts.size(), pipeline_stages));
    if (sum != layers || std::ranges::any_of(counts, [](std::int64_t n) { return n < 1; }))
      throw UserError("parallel.stages", fmt::format("the stages hold {} layers, the model has {}", sum, layers),
                      "list at least one layer a stage, model.layers in all");
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

std::vector<ParameterDeclaration> declare_stage(const ModelConfig& config, const StageRange& range,
                                                int pipeline_stages) {
  std::vector<ParameterDeclaration> list;
  if (range.embedding) list = declare_embedding(config, pipeline_stages);
  std::ranges::move(declare_layers(config, range.first_layer, range.end_layer), std::back_inserter(list));
  if (!range.head) return list;
  const HeadSpec head = config.head();
  if (!range.embedding || !config.tied())
    list.push_back(declare_token_matrix(config, head.projection, pipeline_stages));
  list.insert(list.end(), head.norm.weights.begin(), head.norm.weights.end());
  return list;
}

void for_each_declaration(const ModelConfig& config, const std::function<void(const ParameterDeclaration&)>& visit) {
  const auto visit_range = [&](const StageRange& range) {
    for (const ParameterDeclaration& declaration : declare_stage(config, range, 1)) visit(declaration);
  };
  visit_range({0, 0, true, true});
  for (std::int64_t layer = 0; layer < config.layers; ++layer) visit_range({layer, layer + 1, false, false});
}

std::int64_t parameter_count(const ModelConfig& config) {
  std::int64_t count = 0;
  for_each_declaration(config, [&](const ParameterDeclaration& declaration) {
    for (const LogicalTensor& tensor : declaration.tensors) count += elements_of(tensor.shape);
  });
  return count;
}

namespace {

// The carried tensors that layers of the stage write or read, or that pass through it.
std::vector<CarriedSpec> carried_through(const ModelConfig& config, const StageRange& range,
                                         const Communicator& tensor) {
  struct Span {
    CarriedPort port;
    std::int64_t written = -1, last_read = -1;  // layers
  };
  std::vector<Span> spans;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (const Branch& branch : config.layer(layer)) {
      for (const ValueSpec& value : branch.values) {
        if (value.kind != ValueSpec::Kind::carried) continue;
        const auto span = std::ranges::find_if(spans, [&](const Span& s) { return s.port.name == value.carried.name; });
        FULMEN_CHECK(span != spans.end(), "layer {} reads {}, which no branch before it carries", layer,
                     value.carried.name);
        span->last_read = layer;
      }
      for (const Node& node : branch.nodes)
        if (node.kind == Node::Kind::carry) spans.push_back({node.carried, layer, layer});
    }
  std::vector<CarriedSpec> specs;
  for (const Span& span : spans)
    if (span.written < range.end_layer && span.last_read >= range.first_layer)
      specs.push_back({span.port.name, span.port.local_width(tensor.size(), tensor.rank()),
                       span.written < range.first_layer, span.last_read >= range.end_layer});
  return specs;
}

}  // namespace

Stage::Stage(const ModelConfig& config, const StageRange& range, const ModelContext& context, Recompute recompute)
    : range_(range),
      context_(context),
      recompute_(recompute),
      hidden_(config.hidden),
      carried_(carried_through(config, range, *context.tensor)) {
  if (range.embedding) embedding_.emplace(config, context);
  for (std::int64_t layer = range.first_layer; layer < range.end_layer; ++layer) {
    Layer& executors = layers_.emplace_back();
    for (Branch& branch : config.layer(layer))
      executors.push_back(std::make_unique<BranchExecutor>(std::move(branch), context));
    for (const auto& executor : executors) norms_go_on_ = norms_go_on_ || executor->goes_on_with_norm();
  }
  if (range.head) head_.emplace(config, context);
  for (OwnedTensor* sum : {&loss_sum_, &layer_loss_sum_})
    *sum = OwnedTensor(context.execution.device, DType::fp64, {1}, MemoryKind::activations, *context.execution.ledger);
}

void Stage::prepare(const BatchShape& shape, int slots) {
  shape_ = shape;
  if (head_) head_->prepare(shape, slots);
  carried_.prepare(shape, slots, context_.activation_dtype(), context_.execution);
  for (const Layer& layer : layers_)
    for (const auto& branch : layer) branch->prepare(slots, layer_loss_sum_, carried_);
  stash_.clear();
  dropped_.assign(static_cast<std::size_t>(slots), std::vector<std::vector<StashTensor>>(layers_.size()));
  for (int slot = 0; slot < slots; ++slot)
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) prepare_layer(slot, layer);
}

void Stage::prepare_layer(int slot, std::size_t layer) {
  std::vector<StashTensor> sums, others;
  for (std::size_t i = 0; i < layers_[layer].size(); ++i) {
    std::vector<StashTensor> list = layers_[layer][i]->stash(slot, shape_);
    if (i == 0) list.front().keep = Keep::always;  // what enters the layer
    for (std::size_t t = 0; t < list.size(); ++t) {
      if (!keeps(recompute_, list[t].keep)) {
        (t == 0 ? sums : others).push_back(list[t]);
        continue;
      }
      stash_.emplace_back(context_.execution.device, list[t].dtype, list[t].shape, MemoryKind::activations,
                          *context_.execution.ledger);
      *list[t].view = stash_.back();
    }
  }
  // The sums first, so that they lie at one place for all layers: the next layer reads the sums of the last layer.
  sums.insert(sums.end(), others.begin(), others.end());
  dropped_[static_cast<std::size_t>(slot)][layer] = std::move(sums);
}

void Stage::place_dropped(int slot, std::size_t layer) {
  for (const StashTensor& tensor : dropped_[static_cast<std::size_t>(slot)][layer])
    *tensor.view = context_.execution.scratch->take(tensor.dtype, tensor.shape);
}

void Stage::restore(int slot, std::size_t layer, const MicroBatch& micro_batch) {
  if (recompute_ == Recompute::none) return;
  place_dropped(slot, layer);
  const Layer& branches = layers_[layer];
  if (recompute_ == Recompute::selective) {
    for (const auto& branch : branches) branch->restore(slot, micro_batch);
    return;
  }
  const Arena::Frame frame(*context_.execution.scratch);
  ResidualStream stream = take_stream(*context_.execution.scratch, branches.front()->sum(slot));
  for (const auto& branch : branches) {
    if (branch == branches.back()) stream.branch_memory = {};  // its output is known: the input of what comes after
    branch->forward_again(slot, micro_batch, stream);
  }
}

void Stage::forward(int slot, const MicroBatch& micro_batch, const Tensor& input, const Tensor& output, bool gradient) {
  Arena& scratch = *context_.execution.scratch;
  const Arena::Frame frame(scratch);
  ResidualStream stream = take_stream(scratch, residual_of(input));
  if (input) carried_.enter(context_.execution, slot, carried_of(input));
  if (embedding_) {
    stream.residual = layers_.front().front()->sum(slot);
    embedding_->forward(micro_batch, stream.residual);
  }
  std::optional<Arena::Frame> layer_frame;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    layer_frame.reset();
    layer_frame.emplace(scratch);
    place_dropped(slot, layer);
    LayerHooks::call(context_.hooks.before_forward, number_of(layer));
    for (const auto& executor : layers_[layer]) executor->forward(slot, micro_batch, stream);
  }
  if (head_)
    head_->forward(slot, micro_batch, stream, gradient, loss_sum_);
  else if (stream.scaled())
    add_scaled(context_.execution, stream.residual, stream.residual_scale, stream.branch, stream.branch_scale,
               residual_of(output));
  else
    add(context_.execution, stream.residual, stream.branch, residual_of(output));
  if (output) carried_.leave(context_.execution, slot, carried_of(output));
}

Tensor Stage::residual_of(const Tensor& crossing) const {
  if (!crossing) return {};
  return crossing.flatten().slice(0, 0, rows() * hidden_).reshape({rows(), hidden_});
}

Tensor Stage::carried_of(const Tensor& crossing) const {
  if (!crossing) return {};
  return crossing.flatten().slice(0, rows() * hidden_, crossing.elements());
}

Tensor Stage::take_activation(Arena& arena) const {
  return arena.take(context_.parameters->precision().parameters, {rows(), hidden_});
}

ResidualStream Stage::take_stream(Arena& arena, const Tensor& residual) const {
  ResidualStream stream{.residual = residual, .branch_memory = take_activation(arena)};
  if (norms_go_on_)
    for (Tensor& memory : stream.normed_memory) memory = take_activation(arena);
  return stream;
}

TokenGather Stage::gathered_activation(Arena& arena) const {
  return TokenGather(context_, context_.parameters->precision().parameters, hidden_, shape_.tokens(), arena);
}

Stage::Kept& Stage::keep(int slot) {
  FULMEN_CHECK(std::ranges::none_of(kept_, [&](const auto& kept) { return kept->slot == slot; }),
               "a second backward_input of slot {} before its backward_weight", slot);
  auto free = std::ranges::find_if(kept_, [](const auto& kept) { return kept->slot < 0; });
  if (free == kept_.end()) {
    kept_.push_back(std::make_unique<Kept>(
        Kept{Arena(context_.execution.device, MemoryKind::activations, *context_.execution.ledger), nullptr, -1}));
    free = kept_.end() - 1;
  }
  (*free)->slot = slot;
  (*free)->frame = std::make_unique<Arena::Frame>((*free)->arena);
  return **free;
}

void Stage::backward_input(int slot, const MicroBatch& micro_batch, const Tensor& d_output, const Tensor& d_input) {
  Arena& arena = keep(slot).arena;
  TokenGather d(context_, head_ ? head_->d_in(slot) : residual_of(d_output), shape_.tokens(), arena);
  carried_.begin_backward(context_.execution, slot, carried_of(d_output));
  for (std::size_t layer = layers_.size(); layer-- > 0;) {
    LayerHooks::call(context_.hooks.before_backward_input, number_of(layer));
    const Arena::Frame restored(*context_.execution.scratch);
    restore(slot, layer, micro_batch);
    for (std::size_t i = layers_[layer].size(); i-- > 0;) {
      const bool first = layer == 0 && i == 0;
      TokenGather d_in = first && !embedding_ ? TokenGather(residual_of(d_input)) : gathered_activation(arena);
      layers_[layer][i]->backward_input(slot, micro_batch, arena, d, d_in);
      d = std::move(d_in);
    }
  }
  if (embedding_) embedding_->backward(micro_batch, d);
  if (d_input) carried_.end_backward(context_.execution, slot, carried_of(d_input));
}

void Stage::backward_weight(int slot) {
  const auto kept = std::ranges::find_if(kept_, [&](const auto& k) { return k->slot == slot; });
  FULMEN_CHECK(kept != kept_.end(), "backward_weight of slot {} before its backward_input", slot);
  for (std::size_t layer = layers_.size(); layer-- > 0;) {
    LayerHooks::call(context_.hooks.before_backward_weight, number_of(layer));
    for (auto branch = layers_[layer].rbegin(); branch != layers_[layer].rend(); ++branch)
      (*branch)->backward_weight(slot);
    LayerHooks::call(context_.hooks.after_backward_weight, number_of(layer));
  }
  (*kept)->slot = -1;
  (*kept)->frame.reset();
}

void Stage::backward(int slot, const MicroBatch& micro_batch, const Tensor& d_output, const Tensor& d_input) {
  Arena& scratch = *context_.execution.scratch;
  const Arena::Frame frame(scratch);
  TokenGather incoming(context_, head_ ? head_->d_in(slot) : residual_of(d_output), shape_.tokens(), scratch),
      outgoing(residual_of(d_input));
  carried_.begin_backward(context_.execution, slot, carried_of(d_output));
  // Gradients between branches, in turns.
  TokenGather even = gathered_activation(scratch), odd = gathered_activation(scratch);
  TokenGather *d = &incoming, *next = &even, *after = &odd;
  for (std::size_t layer = layers_.size(); layer-- > 0;) {
    const Arena::Frame layer_frame(scratch);
    LayerHooks::call(context_.hooks.before_backward_input, number_of(layer));
    LayerHooks::call(context_.hooks.before_backward_weight, number_of(layer));
    restore(slot, layer, micro_batch);
    for (std::size_t i = layers_[layer].size(); i-- > 0;) {
      const Arena::Frame branch_frame(scratch);
      const bool first = layer == 0 && i == 0;
      TokenGather* const d_in = first && !embedding_ ? &outgoing : next;
      d_in->reset();
      layers_[layer][i]->backward(slot, micro_batch, scratch, *d, *d_in);
      d = d_in;
      std::swap(next, after);
    }
    LayerHooks::call(context_.hooks.after_backward_weight, number_of(layer));
  }
  if (embedding_) embedding_->backward(micro_batch, *d);
  if (d_input) carried_.end_backward(context_.execution, slot, carried_of(d_input));
}

std::vector<StateSpec> Stage::states(std::int64_t batch, std::int64_t length) const {
  std::vector<StateSpec> list;
  for (const Layer& layer : layers_)
    for (const auto& branch : layer) std::ranges::move(branch->states(batch, length), std::back_inserter(list));
  return list;
}

void Stage::decode(const MicroBatch& micro_batch, std::span<const Tensor> states, const Tensor& logits) {
  FULMEN_CHECK(embedding_ && head_, "decoding needs the whole model on one stage");
  FULMEN_CHECK(recompute_ == Recompute::none, "decoding with recomputation");
  const Arena::Frame frame(*context_.execution.scratch);
  ResidualStream stream = take_stream(*context_.execution.scratch, layers_.front().front()->sum(0));
  embedding_->forward(micro_batch, stream.residual);
  for (const Layer& layer : layers_)
    for (const auto& executor : layer) {
      executor->decode(micro_batch, states.first(executor->state_count()), stream);
      states = states.subspan(executor->state_count());
    }
  head_->normalize(0, stream);
  head_->logits(0, logits);
}

void Stage::logits(int slot, const Tensor& out) const {
  FULMEN_CHECK(head_.has_value(), "this stage has no head");
  head_->logits(slot, out);
}

Tensor Stage::layer_input(int slot, std::int64_t layer) const {
  return layers_[static_cast<std::size_t>(layer - range_.first_layer)].front()->sum(slot);
}

}  // namespace fulmen
