// Causal softmax attention.
#include "model/mixers/softmax_attention.h"

#include "model/operations/bias.h"
#include "model/operations/rotation.h"
#include "model/operations/softmax_attention.h"

namespace fulmen {

Branch softmax_attention(const SoftmaxAttentionOptions& options) {
  BranchBuilder b(options.hidden);
  b.join(options.junction);
  std::vector<Value> heads = b.project(b.normed(options.norm), {options.projections});
  if (options.projections_bias) {
    std::vector<Value> inputs = heads;
    inputs.push_back(b.parameter(*options.projections_bias));
    heads = b.apply(std::make_shared<AddBias>(3), inputs);
  }
  if (!options.frequencies.empty()) {
    const auto rotation = std::make_shared<RotateHeads>(
        RotationOptions{.head_width = options.head_width, .pairs = options.pairs, .scales = {1.0, 1.0}});
    const auto rotated = b.apply(rotation, {heads[0], heads[1], b.shared_constant(options.frequencies)});
    heads = {rotated[0], rotated[1], heads[2]};
  }
  const auto attention = std::make_shared<SoftmaxAttention>(options.head_width);
  b.contract(b.apply(attention, heads)[0], options.out, options.out_bias);
  return b.finish();
}

}  // namespace fulmen
