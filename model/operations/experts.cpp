// A mixture of experts as operations.
#include "model/operations/experts.h"

#include <algorithm>
#include <bit>

#include "framework/transfer.h"
#include "kernels/elementwise.h"
#include "kernels/experts.h"
#include "kernels/gated_linear_unit.h"
#include "kernels/gemm.h"
#include "kernels/router_loss.h"

namespace fulmen {

std::vector<Port> Router::outputs(Widths in) const {
  const Port table{.type = PortType::accumulation, .width = in[0], .keep = Keep::all};
  return {table, table};
}

// A pass over memory: products and attention are what the time of a pass is made of.
Costs Router::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

void Router::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  (void)kept;
  router_forward(pass.execution, in[0], chosen_, out[1], out[0]);
}

void Router::backward(const Pass& pass, const BackwardTensors& tensors) const {
  router_backward(pass.execution, tensors.out[1], tensors.out[0], tensors.d_out[1], tensors.d_out[0], tensors.d_in[0]);
}

void RouterLoss::summarise(const Pass& pass, Tensors in, const Tensor& sums) const {
  router_loss_sums(pass.execution, in[0], in[1], sums);
}

void RouterLoss::add_loss(const Pass& pass, const Tensor& sums, double scale, const Tensor& loss) const {
  router_loss_add(pass.execution, sums, scale, loss);
}

// How often an expert is chosen has no gradient.
void RouterLoss::backward(const Pass& pass, Tensors in, const Tensor& sums, double scale, Tensors d_in) const {
  (void)in;
  fill_zero(pass.execution, d_in[0]);
  router_loss_backward(pass.execution, sums, scale, d_in[1]);
}

namespace {

// Places of an expert on a GPU come in steps of a sixteenth of what it has on the average, in powers of two: its
// products then have few different sizes.
std::int64_t alignment(const Execution& execution, std::int64_t average) {
  if (execution.device.kind == DeviceKind::cpu) return 1;
  return std::max<std::int64_t>(8, static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(average))) / 16);
}

// The tokens of the owned experts, one expert after another, through the first products. Memory is taken from the
// scratch arena.
class ExpertPass {
 public:
  ExpertPass(const Execution& execution, IndexRange owned, std::int64_t chosen, Tensors in)
      : execution_(execution), owned_(owned), weights_(in[1]), gate_up_(in[2]), down_(in[3]) {
    const std::int64_t tokens = in[0].size(0), step = alignment(execution, tokens * chosen / owned.size());
    const std::int64_t places = most_expert_places(tokens, chosen, owned.size(), step);
    order_.tokens = take(DType::int32, {places});
    order_.experts = take(DType::int32, {places});
    order_.places = take(DType::int32, {tokens, chosen});
    order_.offsets = take(DType::int64, {owned.size() + 1});
    order_by_expert(execution, weights_, owned.begin, chosen, step, order_);
    offsets_.resize(static_cast<std::size_t>(owned.size() + 1));
    copy_to_host(execution, order_.offsets, offsets_.data());
    // Planned: as if every expert were chosen equally often.
    const std::int64_t experts = weights_.size(1);
    for (std::int64_t e = 0; execution.plans() && e <= owned.size(); ++e)
      offsets_[static_cast<std::size_t>(e)] = (e * tokens * chosen + experts - 1) / experts;
    x_ = take_rows(in[0].dtype(), in[0].size(1));
    gather_rows(execution, in[0], order_.tokens, x_);
    both_ = take_rows(x_.dtype(), 2 * inner());
    for_each_expert([&](std::int64_t e, IndexRange rows) {
      linear_forward(execution_, part(x_, rows), item(gate_up_, e), part(both_, rows));
    });
    product_ = take_rows(x_.dtype(), inner());
    gated_linear_unit_forward(execution, gate(both_), up(both_), Activation::silu, product_);
  }

  void finish(const Tensor& out) const {
    weigh_rows(execution_, order_, weights_, owned_.begin, product_);
    const Tensor y = take_rows(x_.dtype(), x_.size(1));
    for_each_expert([&](std::int64_t e, IndexRange rows) {
      linear_forward(execution_, part(product_, rows), item(down_, e), part(y, rows));
    });
    combine_rows(execution_, y, order_.places, out);
  }

  // d_in as the inputs. The gradients of the stacks are added to.
  void backward(const Tensor& d_out, Tensors d_in) const {
    const Tensor d_y = take_rows(x_.dtype(), x_.size(1)), d_product = take_rows(x_.dtype(), inner());
    gather_rows(execution_, d_out, order_.tokens, d_y);
    for_each_expert([&](std::int64_t e, IndexRange rows) {
      linear_backward_input(execution_, part(d_y, rows), item(down_, e), part(d_product, rows));
    });
    fill_zero(execution_, d_in[1]);
    weigh_rows_backward(execution_, order_, weights_, owned_.begin, d_product, product_, d_in[1]);
    for_each_expert([&](std::int64_t e, IndexRange rows) {
      linear_backward_weight(execution_, part(d_y, rows), part(product_, rows), item(d_in[3], e));
    });
    const Tensor d_both = take_rows(x_.dtype(), 2 * inner());
    gated_linear_unit_backward(execution_, d_product, gate(both_), up(both_), Activation::silu, gate(d_both),
                               up(d_both), {});
    for_each_expert([&](std::int64_t e, IndexRange rows) {
      linear_backward_weight(execution_, part(d_both, rows), part(x_, rows), item(d_in[2], e));
      linear_backward_input(execution_, part(d_both, rows), item(gate_up_, e), part(d_y, rows));
    });
    combine_rows(execution_, d_y, order_.places, d_in[0]);
  }

 private:
  Tensor take(DType dtype, const Shape& shape) const { return execution_.scratch->take(dtype, shape); }
  Tensor take_rows(DType dtype, std::int64_t width) const { return take(dtype, {offsets_.back(), width}); }
  std::int64_t inner() const { return down_.size(1); }
  static Tensor part(const Tensor& rows, IndexRange range) { return rows.slice(0, range.begin, range.end); }
  Tensor gate(const Tensor& both) const { return both.slice(1, 0, inner()); }
  Tensor up(const Tensor& both) const { return both.slice(1, inner(), 2 * inner()); }
  Tensor item(const Tensor& stack, std::int64_t e) const {
    const std::int64_t rows = stack.size(0) / owned_.size();
    return stack.slice(0, e * rows, (e + 1) * rows);
  }
  template <class F>
  void for_each_expert(const F& f) const {
    for (std::int64_t e = 0; e < owned_.size(); ++e) {
      const auto i = static_cast<std::size_t>(e);
      if (offsets_[i + 1] > offsets_[i]) f(e, {offsets_[i], offsets_[i + 1]});
    }
  }

  const Execution& execution_;
  IndexRange owned_;
  Tensor weights_, gate_up_, down_;
  ExpertOrder order_;
  std::vector<std::int64_t> offsets_;
  Tensor x_, both_, product_;
};

}  // namespace

std::vector<Port> Experts::outputs(Widths in) const { return {{.width = in[0], .keep = Keep::never}}; }

Costs Experts::costs(std::int64_t length, Widths in) const {
  (void)length;
  const double of_token =
      2.0 * static_cast<double>(in[2] + in[3]) * static_cast<double>(chosen_) / static_cast<double>(experts_);
  return {of_token, 2.0 * of_token};
}

void Experts::forward_owned(const Execution& execution, IndexRange owned, Tensors in, Tensors out) const {
  const Arena::Frame frame(*execution.scratch);
  ExpertPass(execution, owned, chosen_, in).finish(out[0]);
}

void Experts::backward_owned(const Execution& execution, IndexRange owned, const BackwardTensors& tensors) const {
  const Arena::Frame frame(*execution.scratch);
  ExpertPass(execution, owned, chosen_, tensors.in).backward(tensors.d_out[0], tensors.d_in);
}

}  // namespace fulmen
