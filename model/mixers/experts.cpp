// The channel mixer of experts.
#include "model/mixers/experts.h"

#include "model/operations/experts.h"

namespace fulmen {

Branch experts(const std::string& router, const std::string& gate_up, const std::string& down,
               const ExpertsOptions& options) {
  const std::int64_t hidden = options.hidden, inner = options.inner, count = options.experts;
  const Initializer normal = normal_initializer(options.initializer_std);
  BranchBuilder b(hidden);
  b.join(options.junction);
  const Value normed = b.normed(options.norm);
  const Value logits = b.project(normed, {declare_weight(router, {count, hidden}, normal, 0, 0)})[0];
  const auto routed = b.apply(std::make_shared<Router>(options.chosen), {logits});
  b.add_loss(std::make_shared<RouterLoss>(), options.router_loss, routed);
  ParameterDeclaration first = declare_stack(gate_up, {count, 2 * inner, hidden}, normal, 0, inner, Axis::expert);
  first.segments = {{gate_up, 0, inner, inner}, {gate_up, inner, inner, inner}};
  const Value in = b.parameter(std::move(first));
  const Value out = b.parameter(declare_stack(down, {count, hidden, inner}, normal, 1, inner, Axis::expert));
  b.deliver(b.apply(std::make_shared<Experts>(count, options.chosen), {normed, routed[0], in, out})[0]);
  return b.finish();
}

}  // namespace fulmen
