// Runs a branch on this rank.
#include "model/branch_executor.h"

#include <algorithm>

#include "framework/transfer.h"
#include "kernels/activation_function.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace fulmen {

using Kind = ValueSpec::Kind;

namespace {

// Whether some Recompute keeps it.
bool stays(Keep keep) { return keep != Keep::never && keep != Keep::remade; }

}  // namespace

BranchExecutor::BranchExecutor(Branch branch, const ModelContext& context)
    : branch_(std::move(branch)), context_(context), norm_(context, branch_.norm) {
  for (const ParameterDeclaration& declaration : branch_.parameters)
    ids_.push_back(context.parameters->id(declaration.name));
  resolve_widths();
  for (std::size_t n = 0; n < branch_.nodes.size(); ++n) {
    const Node& node = branch_.nodes[n];
    crossings_.push_back(crossing_of(node));
    state_counts_.push_back(node.operation ? node.operation->states(1, 1, local_widths(node.inputs)).size() : 0);
    if (node.loss || std::ranges::any_of(node.outputs, [&](Value value) { return stays(spec(value).keep); }) ||
        (node.operation &&
         !node.operation->kept({context.execution, {1, 1}, context.activation_dtype()}, local_widths(node.inputs))
              .empty()))
      last_kept_node_ = n;
    if (!reads_normed(node)) continue;
    if (node.kind == Node::Kind::project)
      outer_ = static_cast<int>(n);
    else
      normed_read_ = true;
  }
  find_reruns();
}

std::unique_ptr<Crossing> BranchExecutor::crossing_of(const Node& node) const {
  if (!node.operation) return nullptr;
  const auto* const owned = dynamic_cast<const OwnedOperation*>(node.operation.get());
  if (owned == nullptr) return make_slice_crossing(context_, *node.operation);
  std::vector<bool> activations;
  Communicator* owners = nullptr;
  for (const Value input : node.inputs) {
    const bool stack = spec(input).kind == Kind::parameter;
    activations.push_back(!stack && spec(input).kind != Kind::constant);
    if (!stack) continue;
    for (const Axis axis : branch_.parameters[spec(input).parameter].owned_along()) owners = context_.owners(axis);
  }
  if (owners == nullptr) return nullptr;
  return make_owner_crossing(context_, *owned, *owners, std::move(activations));
}

bool BranchExecutor::reads_normed(const Node& node) const {
  return std::ranges::any_of(node.inputs, [&](Value value) { return spec(value).kind == Kind::normed; });
}

DType BranchExecutor::dtype(PortType type) const {
  const DType activation = context_.activation_dtype();
  return type == PortType::activation ? activation : accumulation_dtype(activation);
}

std::vector<std::int64_t> BranchExecutor::local_widths(const std::vector<Value>& of) const {
  std::vector<std::int64_t> list;
  for (const Value value : of) list.push_back(widths_[index(value)]);
  return list;
}

void BranchExecutor::resolve_widths() {
  const Execution& execution = context_.execution;
  widths_.resize(branch_.values.size());
  constants_.resize(branch_.values.size());
  for (std::size_t i = 0; i < branch_.values.size(); ++i) {
    const ValueSpec& value = branch_.values[i];
    switch (value.kind) {
      case Kind::normed: widths_[i] = branch_.hidden; break;
      case Kind::product:
        widths_[i] =
            context_.parameters->layout(ids_[value.parameter]).outputs(branch_.parameters[value.parameter].transposed);
        break;
      case Kind::view: {
        const ValueSpec& product = spec(value.parent);
        widths_[i] = context_.parameters->layout(ids_[product.parameter]).segments[value.segment].indices.size();
        break;
      }
      case Kind::parameter: {
        const LocalLayout& layout = context_.parameters->layout(ids_[value.parameter]);
        widths_[i] = layout.rows * layout.columns;
        break;
      }
      case Kind::constant: {
        const auto all = static_cast<std::int64_t>(value.elements.size());
        const IndexRange own =
            value.replicated ? IndexRange{0, all} : partition(all, context_.tensor->size(), context_.tensor->rank());
        widths_[i] = own.size();
        constants_[i] =
            OwnedTensor(execution.device, DType::fp64, {own.size()}, MemoryKind::weights, *execution.ledger);
        copy_to_device(execution, value.elements.data() + own.begin, constants_[i]);
        break;
      }
      case Kind::carried:
        widths_[i] = value.carried.local_width(context_.tensor->size(), context_.tensor->rank());
        break;
      case Kind::result: break;
    }
  }
  for (const Node& node : branch_.nodes) {
    if (!node.operation) continue;
    const std::vector<Port> ports = node.operation->outputs(local_widths(node.inputs));
    for (std::size_t o = 0; o < ports.size(); ++o) widths_[index(node.outputs[o])] = ports[o].width;
  }
}

// Nodes whose results are dropped run again, and so do those whose scratch results these read.
void BranchExecutor::find_reruns() {
  reruns_.resize(branch_.nodes.size());
  read_again_.resize(branch_.values.size());
  for (std::size_t n = branch_.nodes.size(); n-- > 0;) {
    const Node& node = branch_.nodes[n];
    reruns_[n] = std::ranges::any_of(
        node.outputs, [&](Value value) { return spec(value).keep == Keep::all || read_again_[index(value)]; });
    if (!reruns_[n]) continue;
    normed_again_ = normed_again_ || reads_normed(node);
    for (const Value input : node.inputs)
      if (!stays(spec(input).keep)) read_again_[index(input)] = true;
  }
}

void BranchExecutor::prepare(int slots, const Tensor& layer_loss, const CarriedTensors& carried) {
  layer_loss_ = layer_loss;
  carried_ = &carried;
  slots_.assign(static_cast<std::size_t>(slots), {});
  for (Slot& slot : slots_) {
    slot.number = static_cast<int>(&slot - slots_.data());
    slot.values.resize(branch_.values.size());
    slot.gradients.resize(branch_.values.size());
    slot.kept.resize(branch_.nodes.size());
    slot.crossing.resize(branch_.nodes.size());
  }
}

std::vector<StashTensor> BranchExecutor::stash(int number, const BatchShape& shape) {
  Slot& slot = slot_of(number);
  const DType type = context_.activation_dtype();
  const std::int64_t rows = residual_rows(context_, shape.tokens());
  std::vector<StashTensor> list = {
      {&slot.sum, type, {rows, branch_.hidden}, Keep::products},
      {&slot.statistics, accumulation_dtype(type), norm_.statistics_shape(rows), Keep::products}};
  const auto keep = [&](std::vector<Tensor>& views, const std::vector<KeptTensor>& tensors) {
    views.resize(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i)
      list.push_back({&views[i], dtype(tensors[i].type), tensors[i].shape, tensors[i].keep});
  };
  for (std::size_t n = 0; n < branch_.nodes.size(); ++n) {
    const Node& node = branch_.nodes[n];
    for (const Value output : node.outputs)
      if (const ValueSpec& value = spec(output); stays(value.keep) && value.in_place_of.id < 0)
        list.push_back(
            {&slot.values[index(output)], dtype(value.type), {shape.tokens(), widths_[index(output)]}, value.keep});
    const std::vector<std::int64_t> widths = local_widths(node.inputs);
    if (node.loss) {
      slot.kept[n].resize(1);
      list.push_back({&slot.kept[n][0], DType::fp64, {shape.batch, node.loss->statistics(widths)}, Keep::products});
    }
    if (!node.operation) continue;
    if (!crossings_[n] || crossings_[n]->keeps_own())
      keep(slot.kept[n], node.operation->kept({context_.execution, shape, type}, widths));
    if (crossings_[n]) keep(slot.crossing[n], crossings_[n]->kept(shape, widths));
  }
  return list;
}

void BranchExecutor::TensorList::add(const Tensor& tensor) {
  FULMEN_CHECK(size_ < tensors_.size(), "an operation with more than {} tensors", tensors_.size());
  tensors_[size_++] = tensor;
}

Tensor BranchExecutor::view(const Tensor& product, const ValueSpec& view) const {
  const LocalSegment& segment = context_.parameters->layout(ids_[spec(view.parent).parameter]).segments[view.segment];
  return product.slice(1, segment.local_begin, segment.local_begin + segment.indices.size());
}

Tensor BranchExecutor::tensor_of(const Slot& slot, Value value) const {
  const ValueSpec& what = spec(value);
  if (what.in_place_of.id >= 0) return tensor_of(slot, what.in_place_of);
  switch (what.kind) {
    case Kind::normed: return slot.whole_normed;
    case Kind::view: return view(slot.values[index(what.parent)], what);
    case Kind::parameter: return context_.parameters->weight(ids_[what.parameter]);
    case Kind::constant: return constants_[index(value)];
    case Kind::carried: return carried_->value(slot.number, what.carried.name);
    case Kind::product:
    case Kind::result: break;
  }
  return slot.values[index(value)];
}

Tensor BranchExecutor::gradient_of(const Slot& slot, Value value) const {
  const ValueSpec& what = spec(value);
  if (what.in_place_of.id >= 0) return gradient_of(slot, what.in_place_of);
  if (what.kind == Kind::view) return view(slot.gradients[index(what.parent)], what);
  if (what.kind == Kind::carried) return carried_->gradient(slot.number, what.carried.name);
  return slot.gradients[index(value)];
}

BranchExecutor::TensorList BranchExecutor::inputs_of(const Slot& slot, const Node& node) const {
  TensorList list;
  for (const Value input : node.inputs) list.add(tensor_of(slot, input));
  return list;
}

BranchExecutor::TensorList BranchExecutor::outputs_of(const Slot& slot, const Node& node) const {
  TensorList list;
  for (const Value output : node.outputs) list.add(tensor_of(slot, output));
  return list;
}

void BranchExecutor::forward(int slot, const MicroBatch& micro_batch, ResidualStream& stream) {
  run_forward(Run::first, slot, micro_batch, stream, {});
}

void BranchExecutor::forward_again(int slot, const MicroBatch& micro_batch, ResidualStream& stream) {
  run_forward(Run::again, slot, micro_batch, stream, {});
}

void BranchExecutor::decode(const MicroBatch& micro_batch, std::span<const Tensor> states, ResidualStream& stream) {
  FULMEN_CHECK(micro_batch.shape.length == 1, "decoding takes one token a row, not {}", micro_batch.shape.length);
  run_forward(Run::first, 0, micro_batch, stream, states);
}

std::vector<StateSpec> BranchExecutor::states(std::int64_t batch, std::int64_t length) const {
  std::vector<StateSpec> list;
  for (const Node& node : branch_.nodes)
    if (node.operation)
      for (StateSpec& state : node.operation->states(batch, length, local_widths(node.inputs)))
        list.push_back(std::move(state));
  return list;
}

void BranchExecutor::run_forward(Run run, int number, const MicroBatch& micro_batch, ResidualStream& stream,
                                 std::span<const Tensor> states) {
  Slot& slot = slot_of(number);
  Arena& scratch = *context_.execution.scratch;
  const Arena::Frame frame(scratch);
  const Junction& junction = branch_.junction;
  slot.tokens = micro_batch.shape.tokens();
  const Tensor normed = junction.from_norm ? stream.next_normed() : scratch.take(slot.sum.dtype(), slot.sum.shape());
  norm_.forward(stream, slot.sum, normed, slot.statistics);
  if (normed_read_) slot.whole_normed = TokenGather(context_, normed, slot.tokens, scratch).whole();

  const std::size_t end = stream.branch_memory ? branch_.nodes.size() : last_kept_node_ + 1;
  for (std::size_t n = 0; n < end; ++n) run_node(run, slot, n, micro_batch, normed, stream.branch_memory, states);
  stream.residual = junction.from_norm ? normed : slot.sum;
  stream.branch = stream.branch_memory;
  stream.residual_scale = junction.residual_scale;
  stream.branch_scale = junction.branch_scale;
}

void BranchExecutor::run_node(Run run, Slot& slot, std::size_t n, const MicroBatch& micro_batch, const Tensor& normed,
                              const Tensor& branch_out, std::span<const Tensor>& states) {
  const Node& node = branch_.nodes[n];
  take_scratch(slot, node, run);
  switch (node.kind) {
    case Node::Kind::project: project(slot, node, normed); break;
    case Node::Kind::loss:
      if (states.empty()) add_loss(slot, n, micro_batch, run);
      break;
    case Node::Kind::carry:
      if (run == Run::first) carry(slot, node);
      break;
    case Node::Kind::contract: contract(slot, node, branch_out); break;
    case Node::Kind::deliver: deliver(slot, node, branch_out); break;
    case Node::Kind::apply:
      if (states.empty() || state_counts_[n] == 0) {
        apply(slot, n, micro_batch, run);
        break;
      }
      step(slot, n, micro_batch, states.first(state_counts_[n]));
      states = states.subspan(state_counts_[n]);
      break;
  }
}

// Memory for results that outlive only the pass.
void BranchExecutor::take_scratch(Slot& slot, const Node& node, Run run) {
  for (const Value output : node.outputs) {
    const ValueSpec& value = spec(output);
    if (stays(value.keep) || value.in_place_of.id >= 0) continue;
    const bool wanted = run != Run::restoring || read_again_[index(output)];
    slot.values[index(output)] =
        wanted ? context_.execution.scratch->take(dtype(value.type), {slot.tokens, widths_[index(output)]}) : Tensor();
  }
}

void BranchExecutor::project(Slot& slot, const Node& node, const Tensor& normed) {
  const auto multiply = [&](const Execution& execution, IndexRange rows, const Tensor& values) {
    for (std::size_t w = 0; w < node.weights.size(); ++w)
      linear_forward(execution, values, context_.parameters->product_weight(ids_[node.weights[w]]),
                     slot.values[index(node.outputs[w])].slice(0, rows.begin, rows.end));
  };
  if (spec(node.inputs[0]).kind != Kind::normed || normed_read_)
    multiply(context_.execution, {0, slot.tokens}, tensor_of(slot, node.inputs[0]));
  else
    multiply_gathered(context_, normed, slot.tokens, multiply);
}

void BranchExecutor::apply(Slot& slot, std::size_t n, const MicroBatch& micro_batch, Run run) {
  const Node& node = branch_.nodes[n];
  const Pass pass{context_.execution, micro_batch};
  const TensorList in = inputs_of(slot, node), out = outputs_of(slot, node);
  const auto* const spanning = dynamic_cast<const SpanningOperation*>(node.operation.get());
  if (spanning != nullptr && context_.tensor->size() > 1) {
    const Tensor sums = context_.execution.scratch->take(dtype(PortType::accumulation), {slot.tokens});
    spanning->forward_sums(pass, in, sums);
    context_.sum_over_tensor(sums);
    spanning->forward_with(pass, in, sums, out, slot.kept[n]);
  } else if (!crossings_[n]) {
    node.operation->forward(pass, in, out, slot.kept[n]);
  } else if (run == Run::restoring) {
    crossings_[n]->forward_again(pass, in, out, slot.kept[n], slot.crossing[n]);
  } else {
    crossings_[n]->forward(pass, in, out, slot.kept[n], slot.crossing[n]);
  }
}

void BranchExecutor::step(Slot& slot, std::size_t n, const MicroBatch& micro_batch, std::span<const Tensor> states) {
  const Node& node = branch_.nodes[n];
  const Pass pass{context_.execution, micro_batch};
  node.operation->step(pass, inputs_of(slot, node), outputs_of(slot, node), slot.kept[n], states);
}

void BranchExecutor::contract(Slot& slot, const Node& node, const Tensor& branch_out) {
  const Tensor input = tensor_of(slot, node.inputs[0]);
  TokenSum sum(context_, branch_out, slot.tokens, *context_.execution.scratch);
  sum.add_up([&](const Execution& execution, IndexRange rows, const Tensor& values) {
    linear_forward(execution, input.slice(0, rows.begin, rows.end),
                   context_.parameters->product_weight(ids_[node.weights[0]]), values);
  });
  sum.finish();
  if (!node.bias) return;
  const Tensor bias = context_.parameters->weight(ids_[*node.bias]).flatten();
  activation_function_forward(context_.execution, branch_out, bias, Activation::none, branch_out);
}

void BranchExecutor::deliver(Slot& slot, const Node& node, const Tensor& branch_out) {
  TokenSum sum(context_, branch_out, slot.tokens, *context_.execution.scratch);
  copy(context_.execution, tensor_of(slot, node.inputs[0]), sum.partial());
  sum.add_up_partial();
  sum.finish();
}

void BranchExecutor::carry(Slot& slot, const Node& node) {
  copy(context_.execution, tensor_of(slot, node.inputs[0]), carried_->value(slot.number, node.carried.name));
}

void BranchExecutor::add_loss(Slot& slot, std::size_t n, const MicroBatch& micro_batch, Run run) {
  const Node& node = branch_.nodes[n];
  const Pass pass{context_.execution, micro_batch};
  const Tensor& sums = slot.kept[n][0];
  node.loss->summarise(pass, inputs_of(slot, node), sums);
  if (context_.sequence.ranks != nullptr) {
    const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "sequence communication");
    context_.sequence.ranks->all_reduce(sums, ReduceOp::sum, context_.execution.stream);
  }
  const bool first_slice = context_.sequence.ranks == nullptr || context_.sequence.ranks->rank() == 0;
  if (run != Run::first || !first_slice) return;  // ranks along sequence add their losses up
  node.loss->add_loss(pass, sums, node.coefficient * micro_batch.sample_scale, layer_loss_);
}

void BranchExecutor::restore(int number, const MicroBatch& micro_batch) {
  Slot& slot = slot_of(number);
  Arena& scratch = *context_.execution.scratch;
  Tensor normed;
  if (normed_again_) {
    normed = scratch.take(slot.sum.dtype(), slot.sum.shape());
    norm_.forward(slot.sum, {}, slot.sum, normed, slot.statistics);
    slot.whole_normed = TokenGather(context_, normed, slot.tokens, scratch).whole();
  }
  for (std::size_t n = 0; n < branch_.nodes.size(); ++n) {
    if (!reruns_[n]) continue;
    const Node& node = branch_.nodes[n];
    take_scratch(slot, node, Run::restoring);
    if (node.kind == Node::Kind::project)
      project(slot, node, normed);
    else
      apply(slot, n, micro_batch, Run::restoring);
  }
}

}  // namespace fulmen
