// Data that crosses the borders between slices of a sequence, over the ranks that hold them.
#include "model/rank_crossing.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "kernels/elementwise.h"

namespace fulmen {

namespace {

DType dtype_of_port(PortType type, DType activation) {
  return type == PortType::activation ? activation : accumulation_dtype(activation);
}

// The states of all slices: this rank's own is written into its place, then gathered.
class GatheredStates {
 public:
  GatheredStates(const ModelContext& context, const CarryCore& core, const Pass& pass, Tensors in, const Shape& state)
      : context_(context), core_(core), pass_(pass), in_(in) {
    Shape shape = state;
    shape.insert(shape.begin(), context.sequence.ranks->size());
    states_ = context.execution.scratch->take(accumulation_dtype(context.activation_dtype()), shape);
  }

  Tensor own() const { return states_.select(0, context_.sequence.ranks->rank()); }

  void gather() const {
    const ProfileScope scope = communication();
    context_.sequence.ranks->all_gather(own(), states_, context_.execution.stream);
  }
  [[nodiscard]] Pending start_gather() const {
    return context_.sequence.ranks->start_all_gather(own(), states_, context_.execution.stream);
  }
  void wait(Pending& gathering) const {
    const ProfileScope scope = communication();
    gathering.wait(context_.execution.stream);
  }

  // Once gathered.
  void combine(SliceSide side, const Tensor& reach, const Tensor& out) const {
    core_.combine(pass_, in_, {states_, context_.sequence.bounds, context_.sequence.ranks->rank()}, side, reach, out);
  }

 private:
  ProfileScope communication() const {
    return ProfileScope::communication(context_.execution.profiler, "sequence communication");
  }

  const ModelContext& context_;
  const CarryCore& core_;
  const Pass& pass_;
  Tensors in_;
  Tensor states_;
};

class CarryCrossing final : public Crossing {
 public:
  CarryCrossing(const ModelContext& context, const CarryCore& core) : context_(context), core_(core) {}

  std::vector<KeptTensor> kept(const BatchShape& shape, Widths in) const override {
    return {{PortType::accumulation, core_.state_shape(shape.batch, in), Keep::products}};  // the initial state
  }
  // Not what the state in front of the slice, which arrives later, is no part of.
  bool keeps_own() const override { return !context_.sequence.overlap; }

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    const Arena::Frame frame(*context_.execution.scratch);
    const Tensor& initial = crossing[0];
    const GatheredStates states(context_, core_, pass, in, initial.shape());
    std::vector<Tensor> work;
    if (!keeps_own()) kept = work = take_work(pass, in);
    core_.summarise(pass, in, states.own(), kept);
    if (!context_.sequence.overlap) {
      states.gather();
      states.combine(SliceSide::before, pass.micro_batch.tokens_before, initial);
      core_.forward_from(pass, in, initial, true, out, kept);
      return;
    }
    // Everything but what the state in front of the slice adds is computed while the states travel.
    Pending gathering = states.start_gather();
    core_.forward_from(pass, in, {}, true, out, kept);
    states.wait(gathering);
    states.combine(SliceSide::before, pass.micro_batch.tokens_before, initial);
    core_.add_initial_state(pass, in, initial, out);
  }

  void forward_again(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    if (!context_.sequence.overlap) return core_.forward_from(pass, in, crossing[0], false, out, kept);
    core_.forward_from(pass, in, {}, false, out, {});
    core_.add_initial_state(pass, in, crossing[0], out);
  }

  void backward(const Pass& pass, const BackwardTensors& tensors, Tensors crossing) const override {
    const Arena::Frame frame(*context_.execution.scratch);
    const Tensor& initial = crossing[0];
    const GatheredStates states(context_, core_, pass, tensors.in, initial.shape());
    const std::vector<Tensor> work = take_work(pass, tensors.in);
    core_.summarise_gradient(pass, tensors, initial, states.own(), work);
    const Tensor d_final = context_.execution.scratch->take(initial.dtype(), initial.shape());
    if (!context_.sequence.overlap) {
      states.gather();
      states.combine(SliceSide::after, pass.micro_batch.tokens_after, d_final);
      core_.backward_to(pass, tensors, initial, d_final, work);
      return;
    }
    Pending gathering = states.start_gather();
    core_.backward_to(pass, tensors, initial, {}, work);
    states.wait(gathering);
    states.combine(SliceSide::after, pass.micro_batch.tokens_after, d_final);
    core_.add_final_state_gradient(pass, tensors, initial, d_final);
  }

 private:
  // Memory like the operation's kept tensors.
  std::vector<Tensor> take_work(const Pass& pass, Tensors in) const {
    std::vector<std::int64_t> widths;
    for (const Tensor& input : in) widths.push_back(input.size(-1));
    std::vector<Tensor> work;
    for (const KeptTensor& tensor :
         core_.kept({pass.execution, pass.micro_batch.shape, context_.activation_dtype()}, widths))
      work.push_back(
          pass.execution.scratch->take(dtype_of_port(tensor.type, context_.activation_dtype()), tensor.shape));
    return work;
  }

  const ModelContext& context_;
  const CarryCore& core_;
};

// Rows [begin, end) of a sample that a slice has and another slice wants.
struct Rows {
  int peer;
  IndexRange rows;
};

class HaloCrossing final : public Crossing {
 public:
  HaloCrossing(const ModelContext& context, const HaloCore& core)
      : context_(context), core_(core), rank_(context.sequence.ranks->rank()) {
    const std::vector<std::int64_t>& starts = context.sequence.starts;
    for (int peer = 0; peer < context.sequence.ranks->size(); ++peer) {
      const IndexRange wanted = common(halo_of(rank_), slice_of(peer));
      if (wanted.size() > 0) wanted_.push_back({peer, wanted});
      const IndexRange given = common(halo_of(peer), slice_of(rank_));
      if (given.size() > 0) given_.push_back({peer, given});
    }
    FULMEN_CHECK(static_cast<int>(starts.size()) == context.sequence.ranks->size() + 1, "slices without bounds");
  }

  std::vector<KeptTensor> kept(const BatchShape& shape, Widths in) const override {
    return {{PortType::activation, {shape.batch, core_.halo(), in.front()}, Keep::products}};
  }
  bool keeps_own() const override { return true; }

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    fetch(pass, in[0], crossing[0]);
    core_.forward_after(pass, in, crossing[0], out, kept);
  }
  void forward_again(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    core_.forward_after(pass, in, crossing[0], out, kept);
  }
  void backward(const Pass& pass, const BackwardTensors& tensors, Tensors crossing) const override {
    const Arena::Frame frame(*context_.execution.scratch);
    const Tensor d_before = context_.execution.scratch->take(crossing[0].dtype(), crossing[0].shape());
    core_.backward_after(pass, tensors, crossing[0], d_before);
    give_back(pass, d_before, tensors.d_in[0]);
  }

 private:
  static IndexRange common(IndexRange a, IndexRange b) {
    const std::int64_t begin = std::max(a.begin, b.begin);
    return {begin, std::max(begin, std::min(a.end, b.end))};
  }
  IndexRange slice_of(int slice) const {
    const auto i = static_cast<std::size_t>(slice);
    return {context_.sequence.starts[i], context_.sequence.starts[i + 1]};
  }
  IndexRange halo_of(int slice) const {
    const std::int64_t end = slice_of(slice).begin;
    return {std::max<std::int64_t>(0, end - core_.halo()), end};
  }
  // Those rows of x [batch * length, width], as [batch, rows, width].
  Tensor rows_of(const Pass& pass, const Tensor& x, IndexRange rows) const {
    const std::int64_t begin = slice_of(rank_).begin;
    return x.split_dimension(0, pass.micro_batch.shape.length).slice(1, rows.begin - begin, rows.end - begin);
  }
  Tensor halo_rows(const Tensor& before, IndexRange rows) const {
    const std::int64_t begin = slice_of(rank_).begin - core_.halo();
    return before.slice(1, rows.begin - begin, rows.end - begin);
  }
  Tensor take(const Tensor& like) const { return context_.execution.scratch->take(like.dtype(), like.shape()); }
  void exchange(const std::vector<Transfer>& transfers) const {
    if (transfers.empty()) return;
    const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "sequence communication");
    context_.sequence.ranks->exchange(transfers, context_.execution.stream);
  }

  void fetch(const Pass& pass, const Tensor& x, const Tensor& before) const {
    const Arena::Frame frame(*context_.execution.scratch);
    std::vector<Transfer> transfers;
    std::vector<std::pair<Tensor, Tensor>> arriving;
    for (const Rows& given : given_) {
      const Tensor rows = rows_of(pass, x, given.rows), sent = take(rows);
      copy(pass.execution, rows, sent);
      transfers.push_back({Transfer::Direction::send, given.peer, sent});
    }
    for (const Rows& wanted : wanted_) {
      const Tensor rows = halo_rows(before, wanted.rows);
      arriving.emplace_back(take(rows), rows);
      transfers.push_back({Transfer::Direction::receive, wanted.peer, arriving.back().first});
    }
    fill_zero(pass.execution, before);
    exchange(transfers);
    for (const auto& [received, rows] : arriving) copy(pass.execution, received, rows);
  }

  // The gradients of tokens in front of the slice go to the slices that hold them.
  void give_back(const Pass& pass, const Tensor& d_before, const Tensor& d_x) const {
    std::vector<Transfer> transfers;
    std::vector<std::pair<Tensor, Tensor>> arriving;
    for (const Rows& wanted : wanted_) {
      const Tensor rows = halo_rows(d_before, wanted.rows), sent = take(rows);
      copy(pass.execution, rows, sent);
      transfers.push_back({Transfer::Direction::send, wanted.peer, sent});
    }
    for (const Rows& given : given_) {
      const Tensor rows = rows_of(pass, d_x, given.rows);
      arriving.emplace_back(take(rows), rows);
      transfers.push_back({Transfer::Direction::receive, given.peer, arriving.back().first});
    }
    exchange(transfers);
    for (const auto& [received, rows] : arriving)
      for (std::int64_t i = 0; i < rows.size(1); ++i) add_to(pass.execution, rows.select(1, i), received.select(1, i));
  }

  const ModelContext& context_;
  const HaloCore& core_;
  int rank_;
  std::vector<Rows> wanted_, given_;
};

}  // namespace

std::unique_ptr<Crossing> make_slice_crossing(const ModelContext& context, const LocalOperation& operation) {
  if (context.sequence.ranks == nullptr) return nullptr;
  if (const auto* carry = dynamic_cast<const CarryCore*>(&operation))
    return std::make_unique<CarryCrossing>(context, *carry);
  if (const auto* halo = dynamic_cast<const HaloCore*>(&operation))
    return std::make_unique<HaloCrossing>(context, *halo);
  if (const auto* ring = dynamic_cast<const RingCore*>(&operation)) return make_ring_crossing(context, *ring);
  return nullptr;
}

}  // namespace fulmen
