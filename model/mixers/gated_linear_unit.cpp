// The channel mixer of gated linear units.
#include "model/mixers/gated_linear_unit.h"

#include "model/operations/gated_linear_unit.h"

namespace fulmen {

Branch gated_linear_unit(const std::string& first, const std::string& second, const std::string& last,
                         const GatedLinearUnitOptions& options) {
  const Initializer normal = normal_initializer(options.initializer_std);
  BranchBuilder b(options.hidden);
  b.join(options.junction);
  const auto p =
      b.project(b.normed(options.norm), {declare_pair(first, second, {options.width, options.hidden}, normal)});
  const Value product = b.apply(std::make_shared<GatedLinearUnit>(options.activation), {p[0], p[1]})[0];
  b.contract(product, declare_weight(last, {options.hidden, options.width}, normal, 1, options.width));
  return b.finish();
}

}  // namespace fulmen
