// The backward pass of a branch, in an order that lets communication of the tensor ranks go on behind products.
#include <algorithm>

#include "kernels/activation_function.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "model/branch_executor.h"
#include "model/normed_input.h"

namespace fulmen {

using Kind = ValueSpec::Kind;

void BranchExecutor::backward_input(int number, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                                    TokenGather& d_in) {
  Slot& slot = slot_of(number);
  begin_backward(slot, micro_batch, kept, d_out);
  Arena& scratch = *context_.execution.scratch;
  const Arena::Frame frame(scratch);
  const Tensor d_part = normed_read_ ? scratch.take(slot.sum.dtype(), slot.sum.shape()) : slot.normed;
  TokenSum d_normed(context_, d_part, slot.tokens, scratch);
  Differentiation pass{slot, micro_batch, d_normed};
  differentiate(pass);
  differentiate_normed(pass, false);
  finish_input(pass, d_out, d_in, normed_read_ ? Tensor() : slot.normed);
}

void BranchExecutor::backward_weight(int number) {
  const Slot& slot = slot_of(number);
  add_output_gradients(slot);
  if (normed_read_) return add_input_gradients(slot, context_.execution, slot.whole_normed);
  const Arena::Frame frame(*context_.execution.scratch);
  TokenGather normed(context_, slot.normed, slot.tokens, *context_.execution.scratch);
  add_input_gradients(slot, context_.execution, normed.whole());
}

void BranchExecutor::backward(int number, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                              TokenGather& d_in) {
  if (normed_read_) {
    backward_input(number, micro_batch, kept, d_out, d_in);
    return backward_weight(number);
  }
  Slot& slot = slot_of(number);
  begin_backward(slot, micro_batch, kept, d_out);
  Arena& scratch = *context_.execution.scratch;
  const Arena::Frame frame(scratch);
  TokenSum d_normed(context_, slot.normed, slot.tokens, scratch);
  Differentiation pass{slot, micro_batch, d_normed};
  differentiate(pass);
  NormedInput normed(context_, norm_, slot.sum, slot.statistics, slot.normed, slot.tokens);
  differentiate_normed(pass, normed.travels());
  add_output_gradients(slot);
  finish_input(pass, d_out, d_in, normed.to_write());
  add_input_gradients(slot, context_.beside_communication(), normed.whole());
}

void BranchExecutor::begin_backward(Slot& slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out) {
  slot.tokens = micro_batch.shape.tokens();
  // Gathered once for both halves. The normed input would have to be kept as long: it is gathered again, unless
  // operations read it.
  slot.d_out = d_out.whole();
  if (branch_.junction.branch_scale != 1.0) {
    const Tensor scaled = kept.take(slot.d_out.dtype(), slot.d_out.shape());
    copy(context_.execution, slot.d_out, scaled);
    scale(context_.execution, scaled, branch_.junction.branch_scale);
    slot.d_out = scaled;
  }
  if (const auto bias = branch_.nodes.back().bias) {
    const ParameterId id = ids_[*bias];
    activation_function_backward(context_.execution, d_out.part(), {}, context_.parameters->weight(id).flatten(),
                                 Activation::none, {}, context_.parameters->gradient(id).flatten(), {});
  }
  slot.normed = kept.take(slot.sum.dtype(), slot.sum.shape());
  if (normed_read_) {
    norm_.forward(slot.sum, {}, slot.sum, slot.normed, slot.statistics);
    slot.whole_normed = TokenGather(context_, slot.normed, slot.tokens, kept).whole();
  }
  take_gradients(slot, kept, true);
}

// Gradients that weight gradients read outlive backward_input, others do not.
void BranchExecutor::take_gradients(Slot& slot, Arena& arena, bool for_products) {
  for (std::size_t i = 0; i < branch_.values.size(); ++i) {
    const ValueSpec& value = branch_.values[i];
    if ((value.kind != Kind::product && value.kind != Kind::result) || value.in_place_of.id >= 0) continue;
    if (!value.differentiable || for_products != (value.kind == Kind::product || value.keep == Keep::remade)) continue;
    slot.gradients[i] = arena.take(dtype(value.type), {slot.tokens, widths_[i]});
  }
}

void BranchExecutor::differentiate(Differentiation& pass) {
  if (normed_read_) (void)pass.d_normed.partial();  // before the frame, which it outlives
  const Arena::Frame frame(*context_.execution.scratch);
  take_gradients(pass.slot, *context_.execution.scratch, false);
  pass.written.assign(branch_.values.size(), false);
  for (std::size_t i = 0; i < branch_.values.size(); ++i) pass.written[i] = branch_.values[i].kind == Kind::carried;
  for (std::size_t n = branch_.nodes.size(); n-- > 0;) {
    const Node& node = branch_.nodes[n];
    switch (node.kind) {
      case Node::Kind::contract: differentiate_product(pass, node); break;
      case Node::Kind::deliver: add_gradient(pass, node.inputs[0], pass.slot.d_out); break;
      case Node::Kind::project:
        if (static_cast<int>(n) != outer_) differentiate_product(pass, node);
        break;
      case Node::Kind::apply: differentiate_operation(pass, n); break;
      case Node::Kind::loss: differentiate_loss(pass, n); break;
      case Node::Kind::carry:
        add_gradient(pass, node.inputs[0], carried_->gradient(pass.slot.number, node.carried.name));
        break;
    }
  }
}

void BranchExecutor::differentiate_product(Differentiation& pass, const Node& node) {
  const Value input = node.inputs[0];
  const Tensor place = gradient_of(pass.slot, input);
  for (std::size_t w = 0; w < node.weights.size(); ++w) {
    const Tensor& d_y =
        node.kind == Node::Kind::contract ? pass.slot.d_out : pass.slot.gradients[index(node.outputs[w])];
    linear_backward_input(context_.execution, d_y, context_.parameters->product_weight(ids_[node.weights[w]]), place,
                          pass.written[index(input)]);
    pass.written[index(input)] = true;
  }
}

void BranchExecutor::add_gradient(Differentiation& pass, Value value, const Tensor& gradient) {
  const Tensor place = gradient_of(pass.slot, value);
  if (pass.written[index(value)])
    add_to(context_.execution, place, gradient);
  else
    copy(context_.execution, gradient, place);
  pass.written[index(value)] = true;
}

BranchExecutor::Destination BranchExecutor::destination(Differentiation& pass, Value value) {
  const ValueSpec& what = spec(value);
  if (what.kind == Kind::parameter) return {context_.parameters->gradient(ids_[what.parameter]), {}};
  if (!what.differentiable) return {};
  const Tensor place = what.kind == Kind::normed ? pass.d_normed.partial() : gradient_of(pass.slot, value);
  if (what.kind == Kind::normed) pass.normed_written = true;
  if (!pass.written[index(value)]) {
    pass.written[index(value)] = true;
    return {place, {}};
  }
  return {context_.execution.scratch->take(place.dtype(), place.shape()), place};
}

void BranchExecutor::settle(const Destination& destination) const {
  if (destination.place) add_to(context_.execution, destination.place, destination.written);
}

// The gradients of a node's inputs.
class BranchExecutor::Destinations {
 public:
  Destinations(BranchExecutor& executor, Differentiation& pass, const Node& node) : executor_(executor) {
    for (const Value input : node.inputs) {
      list_.push_back(executor.destination(pass, input));
      written_.add(list_.back().written);
    }
  }
  Tensors written() const { return written_; }
  void settle() const {
    for (const Destination& destination : list_) executor_.settle(destination);
  }

 private:
  BranchExecutor& executor_;
  std::vector<Destination> list_;
  TensorList written_;
};

void BranchExecutor::differentiate_operation(Differentiation& pass, std::size_t n) {
  const Node& node = branch_.nodes[n];
  Slot& slot = pass.slot;
  const Arena::Frame frame(*context_.execution.scratch);
  const TensorList in = inputs_of(slot, node);
  TensorList out, d_out;
  for (const Value output : node.outputs) {
    const ValueSpec& value = spec(output);
    const Tensor gradient = gradient_of(slot, output);
    out.add(value.keep == Keep::remade ? gradient : value.keep == Keep::never ? Tensor() : tensor_of(slot, output));
    d_out.add(value.differentiable ? gradient : Tensor());
  }
  const Destinations d_in(*this, pass, node);
  const BackwardTensors tensors{in, out, slot.kept[n], d_out, d_in.written()};
  const Pass operation_pass{context_.execution, pass.micro_batch};
  const auto* const spanning = dynamic_cast<const SpanningOperation*>(node.operation.get());
  if (spanning != nullptr && context_.tensor->size() > 1) {
    const Tensor sums = context_.execution.scratch->take(dtype(PortType::accumulation), {slot.tokens});
    spanning->backward_sums(operation_pass, tensors, sums);
    context_.sum_over_tensor(sums);
    spanning->backward_with(operation_pass, tensors, sums);
  } else if (crossings_[n]) {
    crossings_[n]->backward(operation_pass, tensors, slot.crossing[n]);
  } else {
    node.operation->backward(operation_pass, tensors);
  }
  d_in.settle();
}

void BranchExecutor::differentiate_loss(Differentiation& pass, std::size_t n) {
  const Node& node = branch_.nodes[n];
  const Arena::Frame frame(*context_.execution.scratch);
  // Where each tensor rank holds all of the input, each gives its share: the gradients are summed.
  const bool replicated = std::ranges::all_of(node.inputs, [&](Value value) { return spec(value).replicated; });
  const double share = replicated ? 1.0 / context_.tensor->size() : 1.0;
  const Destinations d_in(*this, pass, node);
  node.loss->backward({context_.execution, pass.micro_batch}, inputs_of(pass.slot, node), pass.slot.kept[n][0],
                      node.coefficient * pass.micro_batch.sample_scale * share, d_in.written());
  d_in.settle();
}

void BranchExecutor::differentiate_normed(Differentiation& pass, bool beside) {
  const Slot& slot = pass.slot;
  const auto multiply = [&](const Execution& execution, IndexRange rows, const Tensor& values, bool accumulate) {
    const Node& node = branch_.nodes[static_cast<std::size_t>(outer_)];
    for (std::size_t w = 0; w < node.weights.size(); ++w)
      linear_backward_input(execution, slot.gradients[index(node.outputs[w])].slice(0, rows.begin, rows.end),
                            context_.parameters->product_weight(ids_[node.weights[w]]), values, accumulate || w > 0);
  };
  if (!normed_read_) {
    pass.d_normed.add_up([&](const Execution& execution, IndexRange rows,
                             const Tensor& values) { multiply(execution, rows, values, false); },
                         beside);
    return;
  }
  if (outer_ >= 0) multiply(context_.execution, {0, slot.tokens}, pass.d_normed.partial(), pass.normed_written);
  pass.d_normed.add_up_partial();
}

void BranchExecutor::finish_input(Differentiation& pass, TokenGather& d_out, TokenGather& d_in, const Tensor& normed) {
  pass.d_normed.finish();
  const Tensor d_normed = normed_read_ ? pass.d_normed.part() : pass.slot.normed;
  const Execution& execution = context_.execution;
  const double factor = branch_.junction.residual_scale;
  Tensor d_residual = d_out.part();
  if (branch_.junction.from_norm) {
    add_scaled(execution, d_normed, 1.0, d_residual, factor, d_normed);
    d_residual = {};
  } else if (factor != 1.0) {
    d_residual = execution.scratch->take(d_out.part().dtype(), d_out.part().shape());
    copy(execution, d_out.part(), d_residual);
    scale(execution, d_residual, factor);
  }
  norm_.backward(d_normed, pass.slot.sum, pass.slot.statistics, d_residual, d_in.part(), normed);
  d_in.start();
}

// The part of its input that a weight's gradient reads.
Tensor BranchExecutor::product_input(const Slot& slot, Value value) const {
  return spec(value).keep == Keep::remade ? slot.gradients[index(value)] : tensor_of(slot, value);
}

void BranchExecutor::add_output_gradients(const Slot& slot) {
  for (std::size_t n = branch_.nodes.size(); n-- > 0;) {
    const Node& node = branch_.nodes[n];
    if (node.weights.empty() || static_cast<int>(n) == outer_) continue;
    for (std::size_t w = 0; w < node.weights.size(); ++w) {
      const Tensor& d_y = node.kind == Node::Kind::contract ? slot.d_out : slot.gradients[index(node.outputs[w])];
      add_weight_gradient(context_, context_.execution, ids_[node.weights[w]], d_y,
                          product_input(slot, node.inputs[0]));
    }
  }
}

void BranchExecutor::add_input_gradients(const Slot& slot, const Execution& execution, const Tensor& normed) {
  if (outer_ < 0) return;
  const Node& node = branch_.nodes[static_cast<std::size_t>(outer_)];
  for (std::size_t w = 0; w < node.weights.size(); ++w)
    add_weight_gradient(context_, execution, ids_[node.weights[w]], slot.gradients[index(node.outputs[w])], normed);
}

}  // namespace fulmen
