// Operations on stacks of parameters over the ranks that own them. The tokens of all owners are gathered, and each
// owner forms its items' share for all of them. The shares are summed where the tokens came from.
#include "kernels/elementwise.h"
#include "model/rank_crossing.h"

namespace fulmen {

namespace {

class OwnerCrossing final : public Crossing {
 public:
  OwnerCrossing(const ModelContext& context, const OwnedOperation& operation, Communicator& owners,
                std::vector<bool> activations)
      : context_(context),
        operation_(operation),
        owners_(owners),
        activations_(std::move(activations)),
        owned_(partition(operation.items(), owners.size(), owners.rank())) {}

  std::vector<KeptTensor> kept(const BatchShape& shape, Widths in) const override {
    (void)shape, (void)in;
    return {};
  }
  bool keeps_own() const override { return true; }

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    (void)kept, (void)crossing;
    const Arena::Frame frame(*context_.execution.scratch);
    const std::vector<Tensor> inputs = gather_inputs(in);
    std::vector<Tensor> shares;
    for (const Tensor& result : out) shares.push_back(result ? take(result) : Tensor());
    operation_.forward_owned(pass.execution, owned_, inputs, shares);
    for (std::size_t i = 0; i < out.size(); ++i)
      if (out[i]) sum(shares[i], out[i]);
  }
  void forward_again(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    forward(pass, in, out, kept, crossing);
  }
  void backward(const Pass& pass, const BackwardTensors& tensors, Tensors crossing) const override {
    (void)crossing;
    const Arena::Frame frame(*context_.execution.scratch);
    const std::vector<Tensor> inputs = gather_inputs(tensors.in);
    std::vector<Tensor> d_out, d_in;
    for (const Tensor& gradient : tensors.d_out) d_out.push_back(gather(gradient));
    for (std::size_t i = 0; i < tensors.d_in.size(); ++i)
      d_in.push_back(activations_[i] && tensors.d_in[i] ? take(tensors.d_in[i]) : tensors.d_in[i]);
    operation_.backward_owned(pass.execution, owned_, {inputs, {}, {}, d_out, d_in});
    for (std::size_t i = 0; i < d_in.size(); ++i)
      if (activations_[i] && tensors.d_in[i]) sum(d_in[i], tensors.d_in[i]);
  }

 private:
  // As many rows as all owners have.
  Tensor take(const Tensor& like) const {
    return context_.execution.scratch->take(like.dtype(), {like.size(0) * owners_.size(), like.size(1)});
  }
  ProfileScope communication() const {
    return ProfileScope::communication(context_.execution.profiler, "owners' communication");
  }

  Tensor gather(const Tensor& rows) const {
    const Tensor all = take(rows),
                 own = all.slice(0, owners_.rank() * rows.size(0), (owners_.rank() + 1) * rows.size(0));
    copy(context_.execution, rows, own);
    const ProfileScope scope = communication();
    owners_.all_gather(own, all, context_.execution.stream);
    return all;
  }
  std::vector<Tensor> gather_inputs(Tensors in) const {
    std::vector<Tensor> inputs;
    for (std::size_t i = 0; i < in.size(); ++i) inputs.push_back(activations_[i] ? gather(in[i]) : in[i]);
    return inputs;
  }
  void sum(const Tensor& shares, const Tensor& out) const {
    const Arena::Frame frame(*context_.execution.scratch);
    const Tensor own = context_.execution.scratch->take(out.dtype(), out.shape());
    {
      const ProfileScope scope = communication();
      owners_.reduce_scatter(shares, own, ReduceOp::sum, context_.execution.stream);
    }
    copy(context_.execution, own, out);
  }

  const ModelContext& context_;
  const OwnedOperation& operation_;
  Communicator& owners_;
  std::vector<bool> activations_;
  IndexRange owned_;
};

}  // namespace

std::unique_ptr<Crossing> make_owner_crossing(const ModelContext& context, const OwnedOperation& operation,
                                              Communicator& owners, std::vector<bool> activations) {
  return std::make_unique<OwnerCrossing>(context, operation, owners, std::move(activations));
}

}  // namespace fulmen
