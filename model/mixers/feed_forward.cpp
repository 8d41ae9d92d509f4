// The channel mixer of two products.
#include "model/mixers/feed_forward.h"

#include "model/operations/activation.h"

namespace fulmen {

Branch feed_forward(const FeedForwardOptions& options) {
  BranchBuilder b(options.hidden);
  b.join(options.junction);
  std::vector<Value> inputs = b.project(b.normed(options.norm), {options.first});
  if (options.first_bias) inputs.push_back(b.parameter(*options.first_bias));
  const Value inner = b.apply(std::make_shared<ActivationFunction>(options.activation), inputs)[0];
  b.contract(inner, options.second, options.second_bias);
  return b.finish();
}

}  // namespace fulmen
