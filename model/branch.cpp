// Building branches, and counting what they cost.
#include "model/branch.h"

#include <algorithm>

namespace fulmen {

std::vector<std::int64_t> Branch::widths(const std::vector<Value>& of) const {
  std::vector<std::int64_t> list;
  for (const Value value : of) list.push_back(values[static_cast<std::size_t>(value.id)].width);
  return list;
}

std::vector<ParameterDeclaration> Branch::declarations() const {
  std::vector<ParameterDeclaration> list;
  for (const Node& node : nodes) {
    for (const std::size_t weight : node.weights) list.push_back(parameters[weight]);
    if (node.bias) list.push_back(parameters[*node.bias]);
  }
  for (const ValueSpec& value : values)
    if (value.kind == ValueSpec::Kind::parameter) list.push_back(parameters[value.parameter]);
  list.insert(list.end(), norm.weights.begin(), norm.weights.end());
  return list;
}

std::int64_t CarriedPort::local_width(int tensor_ranks, int tensor_rank) const {
  if (units == 0) return width;
  return partition(units, tensor_ranks, tensor_rank).size() * (width / units);
}

Value BranchBuilder::add(ValueSpec spec) {
  branch_.values.push_back(std::move(spec));
  return {static_cast<int>(branch_.values.size()) - 1};
}

void BranchBuilder::read(Value value) { ++spec(value).readers; }

Value BranchBuilder::with_memory(Value value) const {
  const ValueSpec& what = branch_.values[static_cast<std::size_t>(value.id)];
  if (what.kind == ValueSpec::Kind::view) return with_memory(what.parent);
  return what.in_place_of.id >= 0 ? with_memory(what.in_place_of) : value;
}

// A weight's gradient reads the product's input when all else is gone.
void BranchBuilder::read_by_product(Value value) {
  read(value);
  FULMEN_CHECK(spec(value).type == PortType::activation, "a product of values that are not activations");
  ValueSpec& kept = spec(with_memory(value));
  const bool lasts = kept.kind == ValueSpec::Kind::normed || kept.kind == ValueSpec::Kind::carried;
  if (!lasts && kept.keep != Keep::remade) kept.keep = Keep::always;
}

Value BranchBuilder::normed(const Norm& norm) {
  FULMEN_CHECK(branch_.values.empty(), "a branch has one norm, at its beginning");
  branch_.norm = norm;
  return add({.kind = ValueSpec::Kind::normed, .width = branch_.hidden, .replicated = true});
}

std::vector<Value> BranchBuilder::project(Value value, std::vector<ParameterDeclaration> weights) {
  const bool of_normed = spec(value).kind == ValueSpec::Kind::normed;
  FULMEN_CHECK(!of_normed || !normed_projected_, "all products of the normed tokens are one call of project");
  normed_projected_ = normed_projected_ || of_normed;
  // The second factor of a low rank: cheap to make again.
  const bool small = spec(value).kind == ValueSpec::Kind::product && spec(value).replicated;
  read_by_product(value);
  Node node(Node::Kind::project, {value});
  std::vector<Value> values;
  for (ParameterDeclaration& weight : weights) {
    const bool replicated = weight.along(Axis::tensor) != AxisPlacement::split;
    if (replicated) weight.place(Axis::tensor, AxisPlacement::replicated_partial);
    std::int64_t width = 0;
    for (const Segment& segment : weight.segments) width += segment.extent;
    const Value product = add({.kind = ValueSpec::Kind::product,
                               .parameter = branch_.parameters.size(),
                               .keep = small ? Keep::all : Keep::products,
                               .width = width,
                               .replicated = replicated});
    node.weights.push_back(branch_.parameters.size());
    node.outputs.push_back(product);
    if (weight.segments.size() == 1) values.push_back(product);
    for (std::size_t segment = 0; weight.segments.size() > 1 && segment < weight.segments.size(); ++segment) {
      read(product);
      values.push_back(add({.kind = ValueSpec::Kind::view,
                            .parent = product,
                            .segment = segment,
                            .width = weight.segments[segment].extent,
                            .replicated = replicated}));
    }
    branch_.parameters.push_back(std::move(weight));
  }
  branch_.nodes.push_back(std::move(node));
  return values;
}

Value BranchBuilder::parameter(ParameterDeclaration declaration) {
  std::int64_t width = 0;
  for (const LogicalTensor& tensor : declaration.tensors) width += elements_of(tensor.shape);
  const bool replicated = declaration.along(Axis::tensor) != AxisPlacement::split;
  declaration.group.gradient = GradientForm::sum;  // operations add to it
  // Each tensor rank has the gradient of its own heads' part of a parameter that all hold.
  if (declaration.along(Axis::tensor) == AxisPlacement::replicated)
    declaration.place(Axis::tensor, AxisPlacement::replicated_partial);
  branch_.parameters.push_back(std::move(declaration));
  return add({.kind = ValueSpec::Kind::parameter,
              .parameter = branch_.parameters.size() - 1,
              .width = width,
              .replicated = replicated});
}

Value BranchBuilder::constant(std::vector<double> elements) {
  const auto width = static_cast<std::int64_t>(elements.size());
  return add(
      {.kind = ValueSpec::Kind::constant, .elements = std::move(elements), .width = width, .differentiable = false});
}

Value BranchBuilder::shared_constant(std::vector<double> elements) {
  const Value value = constant(std::move(elements));
  spec(value).replicated = true;
  return value;
}

Value BranchBuilder::carried(const CarriedPort& port) {
  return add({.kind = ValueSpec::Kind::carried, .carried = port, .width = port.width, .replicated = port.units == 0});
}

void BranchBuilder::carry(const CarriedPort& port, Value value) {
  read(value);
  FULMEN_CHECK(spec(value).width == port.width, "{} is {} wide, not {}", port.name, spec(value).width, port.width);
  branch_.nodes.emplace_back(Node::Kind::carry, std::vector<Value>{value}).carried = port;
}

std::vector<Value> BranchBuilder::apply(const std::shared_ptr<const LocalOperation>& operation,
                                        const std::vector<Value>& inputs) {
  bool replicated = true;
  for (const Value input : inputs) {
    read(input);
    FULMEN_CHECK(spec(input).keep != Keep::remade,
                 "an operation reads what only its own backward pass will make again");
    replicated = replicated && spec(input).replicated;
  }
  Node node(Node::Kind::apply, inputs);
  node.operation = operation;
  for (const Port& port : operation->outputs(branch_.widths(inputs)))
    node.outputs.push_back(
        add({.kind = ValueSpec::Kind::result,
             .type = port.type,
             .keep = port.keep,
             .in_place_of = port.in_place_of < 0 ? Value{} : inputs[static_cast<std::size_t>(port.in_place_of)],
             .width = port.width,
             .replicated = replicated,
             .differentiable = port.differentiable}));
  branch_.nodes.push_back(node);
  return node.outputs;
}

void BranchBuilder::add_loss(std::shared_ptr<const LossOperation> loss, double coefficient,
                             const std::vector<Value>& inputs) {
  for (const Value input : inputs) read(input);
  Node& node = branch_.nodes.emplace_back(Node::Kind::loss, inputs);
  node.loss = std::move(loss);
  node.coefficient = coefficient;
}

void BranchBuilder::contract(Value value, ParameterDeclaration weight, std::optional<ParameterDeclaration> bias) {
  read_by_product(value);
  Node& node = branch_.nodes.emplace_back(Node::Kind::contract, std::vector<Value>{value});
  node.weights = {branch_.parameters.size()};
  branch_.parameters.push_back(std::move(weight));
  if (!bias) return;
  node.bias = branch_.parameters.size();
  branch_.parameters.push_back(*std::move(bias));
}

void BranchBuilder::deliver(Value value) {
  read(value);
  FULMEN_CHECK(spec(value).width == branch_.hidden && !spec(value).replicated,
               "a branch delivers shares of the hidden width, not {} columns that every rank holds", spec(value).width);
  branch_.nodes.emplace_back(Node::Kind::deliver, std::vector<Value>{value});
}

Branch BranchBuilder::finish() {
  const bool ended = !branch_.nodes.empty() && (branch_.nodes.back().kind == Node::Kind::contract ||
                                                branch_.nodes.back().kind == Node::Kind::deliver);
  FULMEN_CHECK(ended, "a branch ends with contract or deliver");
  FULMEN_CHECK(!branch_.nodes.back().bias || branch_.junction.branch_scale == 1.0, "a bias of a branch that is scaled");
  for (std::size_t i = 0; i < branch_.values.size(); ++i) {
    ValueSpec& value = branch_.values[i];
    FULMEN_CHECK(value.readers > 0, "nothing reads value {} of a branch", i);
    if (value.in_place_of.id < 0) continue;
    const ValueSpec& input = spec(value.in_place_of);
    const bool own = input.kind != ValueSpec::Kind::normed && input.kind != ValueSpec::Kind::carried;
    FULMEN_CHECK(own && input.readers == 1 && input.width == value.width, "value {} cannot take the place of its input",
                 i);
    value.keep = spec(with_memory(value.in_place_of)).keep;
  }
  return std::move(branch_);
}

BranchCosts costs_of(const Branch& branch, std::int64_t length) {
  BranchCosts costs;
  for (const Node& node : branch.nodes) {
    double products = 0.0;
    for (const std::size_t weight : node.weights)
      for (const LogicalTensor& tensor : branch.parameters[weight].tensors)
        products += 2.0 * static_cast<double>(elements_of(tensor.shape));
    costs.products += products;
    if (node.kind == Node::Kind::contract) costs.last_product = products;
    const auto dropped = [&](Value value) {
      return branch.values[static_cast<std::size_t>(value.id)].keep == Keep::all;
    };
    const bool again = std::any_of(node.outputs.begin(), node.outputs.end(), dropped);
    if (again) costs.again += products;
    if (node.kind != Node::Kind::apply) continue;
    const Costs own = node.operation->costs(length, branch.widths(node.inputs));
    costs.operations += own.operations;
    costs.backward_operations += own.backward_operations;
    if (again) costs.again += own.operations;
  }
  return costs;
}

}  // namespace fulmen
