// A family that only tests know.
#include "tests/model/toy_family.h"

#include "framework/configuration.h"
#include "model/branch.h"
#include "model/operations/gated_linear_unit.h"
#include "tests/model/toy_operations.h"

namespace fulmen {

namespace {

Norm norm_with_gain(const ToyConfig& config, const std::string& name) {
  return {config.norm_epsilon, NormKind::rms, {declare_norm_weight(name, config.hidden, 0.9)}};
}

// y = W (silu(g) * (running sum of v + what layer 0 carried)), with v, g = V shift(normed).
Branch token_mixer(const ToyConfig& config, std::int64_t layer) {
  const std::string prefix = fmt::format("toy.{}.", layer);
  const std::int64_t hidden = config.hidden, heads = config.heads;
  const Initializer normal = normal_initializer(config.initializer_std);
  const CarriedPort first{"toy.first", hidden, heads};
  BranchBuilder b(hidden);
  const Value normed = b.normed(norm_with_gain(config, prefix + "token_norm"));
  const Value mix = b.parameter(declare_vector(prefix + "mix", {2, hidden}, normal_initializer(0.3), 0));
  const Value shifted = b.apply(std::make_shared<ToyShift>(), {normed, mix})[0];
  const auto p = b.project(shifted, {declare_fused(prefix + "vg", 2, hidden, hidden, heads, normal)});
  Value sum = b.apply(std::make_shared<ToyRunningSum>(), {p[0]})[0];
  if (layer == 0)
    b.carry(first, sum);
  else
    sum = b.apply(std::make_shared<ToyAdd>(), {sum, b.carried(first)})[0];
  const Value gated = b.apply(std::make_shared<GatedLinearUnit>(Activation::silu), {p[1], sum})[0];
  b.contract(gated, declare_weight(prefix + "out", {hidden, hidden}, normal, 1, heads));
  return b.finish();
}

// Clipped by their own norm, and with their own learning rate.
ParameterDeclaration stack(const std::string& name, const Shape& shape, const Initializer& initializer, int split,
                           std::int64_t units) {
  ParameterDeclaration declaration = declare_stack(name, shape, initializer, split, units, Axis::expert);
  declaration.group.clip_group = toy_clip_group;
  declaration.group.learning_rate_scale = 2.5;
  return declaration;
}

Branch experts(const ToyConfig& config, std::int64_t layer) {
  const std::string prefix = fmt::format("toy.{}.", layer);
  const std::int64_t hidden = config.hidden, items = config.items, inner = config.inner;
  const Initializer normal = normal_initializer(config.initializer_std);
  BranchBuilder b(hidden);
  const Value normed = b.normed(norm_with_gain(config, prefix + "expert_norm"));
  const auto logits = b.project(normed, {declare_weight(prefix + "router", {items, hidden}, normal, 0, 0)});
  const Value probabilities = b.apply(std::make_shared<ToySoftmax>(), {logits[0]})[0];
  b.add_loss(std::make_shared<ToyBalance>(), config.balance / static_cast<double>(config.layers), {probabilities});
  const Value in = b.parameter(stack(prefix + "in", {items, inner, hidden}, normal, 0, inner));
  const Value out = b.parameter(stack(prefix + "back", {items, hidden, inner}, normal, 1, inner));
  b.deliver(b.apply(std::make_shared<ToyExperts>(items), {normed, probabilities, in, out})[0]);
  return b.finish();
}

}  // namespace

void ToyConfig::bind(Schema& schema) {
  schema.add("model.heads", heads, {0, 1 << 16}, "Units that tensor ranks share out.");
  schema.add("model.items", items, {0, 1 << 16}, "Items of the stacks.");
  schema.add("model.inner", inner, {0, 1 << 16}, "Width of an item.");
}

void ToyConfig::check_shares(int shares) const {
  if (heads % shares != 0) throw UserError("parallel.tensor", fmt::format("{} ranks for {} heads", shares, heads));
}

HeadSpec ToyConfig::head() const { return {norm_with_gain(*this, "toy.final_norm"), "toy.projection"}; }

std::vector<Branch> ToyConfig::layer(std::int64_t layer) const {
  return {token_mixer(*this, layer), experts(*this, layer)};
}

void ToyConfig::validate_family() const { require_positive("heads", heads); }

void ToyConfig::add_identity(std::map<std::string, std::string>& identity) const {
  identity["heads"] = std::to_string(heads);
  identity["items"] = std::to_string(items);
  identity["inner"] = std::to_string(inner);
}

}  // namespace fulmen
