// Attention over slices of a sequence (Ring Attention, arXiv 2310.01889): blocks of keys and values go round the ranks
// while each computes with those that it has; results are merged by their log-sum-exp. Work is shared out as a zigzag
// (model/zigzag.h).
#include <array>
#include <utility>

#include "kernels/elementwise.h"
#include "model/rank_crossing.h"
#include "model/zigzag.h"

namespace fulmen {

namespace {

using Halves = std::array<Tensor, 2>;  // the early and the late one, [batch, rows, ...] each

// A rank's queries, keys or whatever a token has, between where tokens are held and where they are worked on.
class Rearrangement {
 public:
  Rearrangement(const ModelContext& context, const Zigzag& zigzag)
      : context_(context), zigzag_(zigzag), rank_(context.sequence.ranks->rank()) {}

  // held [batch, length, ...] each. Memory is taken from the scratch arena.
  std::vector<Halves> to_work(const std::vector<Tensor>& held) const {
    std::vector<Halves> work(held.size());
    for (std::size_t t = 0; t < held.size(); ++t)
      for (std::size_t i = 0; i < 2; ++i) work[t][i] = take(held[t], zigzag_.tokens(zigzag_.work(rank_)[i]).size());
    std::vector<Transfer> transfers;
    const Arena::Frame frame(*context_.execution.scratch);
    for (int half = 0; half < zigzag_.halves(); ++half) {
      if (zigzag_.tokens(half).size() == 0) continue;
      for (std::size_t t = 0; t < held.size(); ++t) {
        if (Zigzag::home(half) == rank_) send(held_rows(held[t], half), zigzag_.worker(half), transfers);
        if (zigzag_.worker(half) == rank_)
          transfers.push_back({Transfer::Direction::receive, Zigzag::home(half), place(work[t], half)});
      }
    }
    exchange(transfers);
    return work;
  }

  // The reverse: writes held [batch, length, ...], whose dtype may be another.
  void to_held(const std::vector<Halves>& work, const std::vector<Tensor>& held) const {
    const Arena::Frame frame(*context_.execution.scratch);
    std::vector<Transfer> transfers;
    std::vector<std::pair<Tensor, Tensor>> arriving;
    for (int half = 0; half < zigzag_.halves(); ++half) {
      if (zigzag_.tokens(half).size() == 0) continue;
      for (std::size_t t = 0; t < held.size(); ++t) {
        if (zigzag_.worker(half) == rank_) {
          const Tensor from = place(work[t], half), sent = take_as(from, held[t].dtype());
          copy(context_.execution, from, sent);
          transfers.push_back({Transfer::Direction::send, Zigzag::home(half), sent});
        }
        if (Zigzag::home(half) != rank_) continue;
        const Tensor rows = held_rows(held[t], half);
        arriving.emplace_back(take_as(rows, rows.dtype()), rows);
        transfers.push_back({Transfer::Direction::receive, zigzag_.worker(half), arriving.back().first});
      }
    }
    exchange(transfers);
    for (const auto& [received, rows] : arriving) copy(context_.execution, received, rows);
  }

 private:
  Tensor take_as(const Tensor& like, DType dtype) const {
    return context_.execution.scratch->take(dtype, like.shape());
  }
  Tensor take(const Tensor& held, std::int64_t rows) const {
    Shape shape = held.shape();
    shape[1] = rows;
    return context_.execution.scratch->take(held.dtype(), shape);
  }
  Tensor held_rows(const Tensor& held, int half) const {
    const IndexRange rows = zigzag_.rows(half);
    return held.slice(1, rows.begin, rows.end);
  }
  Tensor place(const Halves& work, int half) const { return work[half == zigzag_.work(rank_)[0] ? 0 : 1]; }
  void send(const Tensor& rows, int peer, std::vector<Transfer>& transfers) const {
    const Tensor sent = take_as(rows, rows.dtype());
    copy(context_.execution, rows, sent);
    transfers.push_back({Transfer::Direction::send, peer, sent});
  }
  void exchange(const std::vector<Transfer>& transfers) const {
    const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "sequence communication");
    context_.sequence.ranks->exchange(transfers, context_.execution.stream);
  }

  const ModelContext& context_;
  const Zigzag& zigzag_;
  int rank_;
};

// Tensors of a pair of halves that go round the ring together: room for the largest pair, in one piece of memory.
class RingBuffer {
 public:
  // rows: of the early and the late half that lie here at the time.
  RingBuffer(const Execution& execution, const Zigzag& zigzag, const Shape& of_row, DType dtype, std::int64_t batch)
      : zigzag_(zigzag), of_row_(of_row), batch_(batch) {
    std::int64_t most = 0;
    for (int rank = 0; rank < zigzag.ranks(); ++rank) most = std::max(most, elements(rank));
    memory_ = execution.scratch->take(dtype, {most});
  }
  std::int64_t elements(int owner) const { return rows(owner, 0) + rows(owner, 1); }
  // What lies here of the pair that `owner` works on.
  Tensor whole(int owner) const { return memory_.slice(0, 0, elements(owner)); }
  Tensor half(int owner, std::size_t i) const {
    const std::int64_t begin = i == 0 ? 0 : rows(owner, 0);
    Shape shape = of_row_;
    shape.insert(shape.begin(), zigzag_.tokens(zigzag_.work(owner)[i]).size());
    shape.insert(shape.begin(), batch_);
    return memory_.slice(0, begin, begin + rows(owner, i)).reshape(shape);
  }

 private:
  std::int64_t rows(int owner, std::size_t i) const {
    return batch_ * zigzag_.tokens(zigzag_.work(owner)[i]).size() * elements_of(of_row_);
  }

  const Zigzag& zigzag_;
  Shape of_row_;
  std::int64_t batch_;
  Tensor memory_;
};

class RingCrossing final : public Crossing {
 public:
  RingCrossing(const ModelContext& context, const RingCore& core)
      : context_(context), core_(core), zigzag_(context.sequence.starts), rank_(context.sequence.ranks->rank()) {}

  std::vector<KeptTensor> kept(const BatchShape& shape, Widths in) const override {
    std::vector<KeptTensor> list;
    for (const int half : zigzag_.work(rank_))
      list.push_back(
          {PortType::accumulation, {shape.batch, core_.log_sums(in), zigzag_.tokens(half).size()}, Keep::products});
    return list;
  }
  // The log-sum-exp of the halves that are worked on here takes its place.
  bool keeps_own() const override { return false; }

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    (void)kept;
    const Execution& execution = context_.execution;
    const Arena::Frame frame(*execution.scratch);
    const Rearrangement rearrangement(context_, zigzag_);
    const std::vector<Halves> work = rearrangement.to_work(held(pass, {in[0], in[1], in[2]}));
    Halves output;
    for (std::size_t i = 0; i < 2; ++i) output[i] = take(wide(), work[query][i].shape());
    std::array<bool, 2> begun{};
    KeyRing keys(*this, work);
    for (int step = 0; step < zigzag_.ranks(); ++step) {
      keys.start(step);
      for_each_block(keys.owner(step), [&](std::size_t i, std::size_t j) {
        const Arena::Frame block_frame(*execution.scratch);
        const Tensor block = take(work[query][i].dtype(), work[query][i].shape());
        const Tensor log_sum = take(wide(), crossing[i].shape());
        core_.forward_block(execution, queries(pass, work, i, keys.owner(step), j), keys.half(step, j), block, log_sum);
        core_.merge_block(execution, block, log_sum, !std::exchange(begun[i], true), output[i], crossing[i]);
      });
      keys.finish();
    }
    rearrangement.to_held({output}, {rows_of(pass, out[0])});
  }

  void forward_again(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    forward(pass, in, out, kept, crossing);
  }

  void backward(const Pass& pass, const BackwardTensors& tensors, Tensors crossing) const override {
    const Execution& execution = context_.execution;
    const Arena::Frame frame(*execution.scratch);
    const Rearrangement rearrangement(context_, zigzag_);
    const std::vector<Halves> work = rearrangement.to_work(
        held(pass, {tensors.in[0], tensors.in[1], tensors.in[2], tensors.out[0], tensors.d_out[0]}));
    constexpr std::size_t output = 5, d_output = 6;
    Halves d_query;
    for (std::size_t i = 0; i < 2; ++i) {
      d_query[i] = take(wide(), work[query][i].shape());
      fill_zero(execution, d_query[i]);
    }
    KeyRing keys(*this, work);
    GradientRing gradients(*this, work);
    for (int step = 0; step < zigzag_.ranks(); ++step) {
      keys.start(step);
      const int owner = keys.owner(step);
      gradients.begin(step);
      for_each_block(owner, [&](std::size_t i, std::size_t j) {
        core_.backward_block(execution, queries(pass, work, i, owner, j), keys.half(step, j),
                             {.output = work[output][i],
                              .log_sum = crossing[i],
                              .d_output = work[d_output][i],
                              .d_query = d_query[i],
                              .d_key = gradients.d_key(step, owner, j),
                              .d_value = gradients.d_value(step, owner, j)});
      });
      gradients.pass_on(step, owner);
      keys.finish();
    }
    const std::array<Halves, 2> d_keys = gradients.arrived();
    rearrangement.to_held(
        {d_query, d_keys[0], d_keys[1]},
        {rows_of(pass, tensors.d_in[0]), rows_of(pass, tensors.d_in[1]), rows_of(pass, tensors.d_in[2])});
  }

 private:
  // Places in what is rearranged.
  static constexpr std::size_t positions = 0, first_visible = 1, query = 2, key = 3, value = 4;

  DType wide() const { return accumulation_dtype(context_.activation_dtype()); }
  Tensor take(DType dtype, const Shape& shape) const { return context_.execution.scratch->take(dtype, shape); }
  Communicator& ring() const { return *context_.sequence.ranks; }
  int next() const { return (rank_ + 1) % zigzag_.ranks(); }
  int previous() const { return (rank_ + zigzag_.ranks() - 1) % zigzag_.ranks(); }

  static Tensor rows_of(const Pass& pass, const Tensor& matrix) {
    return matrix.split_dimension(0, pass.micro_batch.shape.length);
  }
  std::vector<Tensor> held(const Pass& pass, const std::vector<Tensor>& matrices) const {
    const MicroBatch& batch = pass.micro_batch;
    const Tensor first = take(DType::int64, batch.positions.shape());
    core_.find_first_visible(pass, first);
    std::vector<Tensor> list = {batch.positions, first};
    for (const Tensor& matrix : matrices) list.push_back(rows_of(pass, matrix));
    return list;
  }
  // Half i of the queries here, and half j of the keys of `owner`. In a single document nothing need be looked up.
  RingQueries queries(const Pass& pass, const std::vector<Halves>& work, std::size_t i, int owner,
                      std::size_t j) const {
    if (!pass.micro_batch.one_document) return {work[query][i], work[positions][i], work[first_visible][i]};
    return {work[query][i], {}, {}, zigzag_.work(owner)[j] < zigzag_.work(rank_)[i]};
  }

  // The pairs of a half of queries here and one of the keys of `owner` in which a query may see a key.
  template <class F>
  void for_each_block(int owner, const F& f) const {
    for (std::size_t i = 0; i < 2; ++i)
      for (std::size_t j = 0; j < 2; ++j) {
        const int queries = zigzag_.work(rank_)[i], keys = zigzag_.work(owner)[j];
        if (keys > queries || zigzag_.tokens(queries).size() == 0 || zigzag_.tokens(keys).size() == 0) continue;
        f(i, j);
      }
  }

  // Keys and values on their way round the ring: those of the next step arrive while those of this one are used.
  class KeyRing {
   public:
    KeyRing(const RingCrossing& crossing, const std::vector<Halves>& work) : crossing_(crossing) {
      const Execution& execution = crossing.context_.execution;
      const std::int64_t batch = work[key][0].size(0);
      for (const std::size_t part : {key, value, positions}) {
        const Shape of_row = part == positions ? Shape{} : Shape{work[part][0].size(2)};
        for (auto& buffers : buffers_)
          buffers.emplace_back(execution, crossing.zigzag_, of_row, work[part][0].dtype(), batch);
        for (std::size_t i = 0; i < 2; ++i) copy(execution, work[part][i], buffers_[0].back().half(crossing.rank_, i));
      }
    }

    int owner(int step) const {
      return (crossing_.rank_ + crossing_.zigzag_.ranks() - step) % crossing_.zigzag_.ranks();
    }
    RingKeys half(int step, std::size_t j) const {
      const std::vector<RingBuffer>& buffers = buffers_[static_cast<std::size_t>(step % 2)];
      const int from = owner(step);
      return {buffers[0].half(from, j), buffers[1].half(from, j), buffers[2].half(from, j)};
    }
    // What this step uses is sent on, and what the next one uses received.
    void start(int step) {
      if (step + 1 == crossing_.zigzag_.ranks()) return;
      std::vector<Transfer> transfers;
      for (std::size_t part = 0; part < 3; ++part) {
        const std::size_t here = static_cast<std::size_t>(step % 2);
        transfers.push_back({Transfer::Direction::send, crossing_.next(), buffers_[here][part].whole(owner(step))});
        transfers.push_back(
            {Transfer::Direction::receive, crossing_.previous(), buffers_[1 - here][part].whole(owner(step + 1))});
      }
      pending_ = crossing_.ring().start_exchange(transfers, crossing_.context_.execution.stream);
      if (!crossing_.context_.sequence.overlap_ring) finish();
    }
    void finish() {
      const ProfileScope scope =
          ProfileScope::communication(crossing_.context_.execution.profiler, "sequence communication");
      pending_.wait(crossing_.context_.execution.stream);
      pending_ = {};
    }

   private:
    const RingCrossing& crossing_;
    std::array<std::vector<RingBuffer>, 2> buffers_;  // in turns: of keys, values and their positions
    Pending pending_;
  };

  // The gradients of keys and values follow them one step behind, and are at home after the last.
  class GradientRing {
   public:
    GradientRing(const RingCrossing& crossing, const std::vector<Halves>& work) : crossing_(crossing) {
      const std::int64_t batch = work[key][0].size(0);
      for (auto& buffers : buffers_)
        for (const std::size_t part : {key, value})
          buffers.emplace_back(crossing.context_.execution, crossing.zigzag_, Shape{work[part][0].size(2)},
                               crossing.wide(), batch);
    }

    void begin(int step) const {
      for (const RingBuffer& buffer : own(step)) fill_zero(crossing_.context_.execution, buffer.whole(owner(step)));
    }
    Tensor d_key(int step, int owner, std::size_t j) const { return own(step)[0].half(owner, j); }
    Tensor d_value(int step, int owner, std::size_t j) const { return own(step)[1].half(owner, j); }

    // Adds what the ranks before this one have found, and sends the sum on.
    void pass_on(int step, int block) {
      const Execution& execution = crossing_.context_.execution;
      if (step > 0) {
        wait();
        for (std::size_t part = 0; part < 2; ++part) {
          const Tensor sum = own(step)[part].whole(block);
          add(execution, sum, received()[part].whole(block), sum);
        }
      }
      std::vector<Transfer> transfers;
      for (std::size_t part = 0; part < 2; ++part) {
        transfers.push_back({Transfer::Direction::send, crossing_.next(), own(step)[part].whole(block)});
        transfers.push_back(
            {Transfer::Direction::receive, crossing_.previous(), received()[part].whole(owner(step + 1))});
      }
      pending_ = crossing_.ring().start_exchange(transfers, execution.stream);
      if (!crossing_.context_.sequence.overlap_ring) wait();
    }
    // Of the keys and the values that this rank works on.
    std::array<Halves, 2> arrived() {
      wait();
      std::array<Halves, 2> list;
      for (std::size_t part = 0; part < 2; ++part)
        for (std::size_t i = 0; i < 2; ++i) list[part][i] = received()[part].half(crossing_.rank_, i);
      return list;
    }

   private:
    int owner(int step) const {
      const int ranks = crossing_.zigzag_.ranks();
      return (crossing_.rank_ + 2 * ranks - step) % ranks;
    }
    // Written in a step while what was sent in the step before may still be under way.
    const std::vector<RingBuffer>& own(int step) const { return buffers_[static_cast<std::size_t>(step % 2)]; }
    const std::vector<RingBuffer>& received() const { return buffers_[2]; }
    void wait() {
      const ProfileScope scope =
          ProfileScope::communication(crossing_.context_.execution.profiler, "sequence communication");
      pending_.wait(crossing_.context_.execution.stream);
      pending_ = {};
    }

    const RingCrossing& crossing_;
    std::array<std::vector<RingBuffer>, 3> buffers_;
    Pending pending_;
  };

  const ModelContext& context_;
  const RingCore& core_;
  Zigzag zigzag_;
  int rank_;
};

}  // namespace

std::unique_ptr<Crossing> make_ring_crossing(const ModelContext& context, const RingCore& core) {
  return std::make_unique<RingCrossing>(context, core);
}

}  // namespace fulmen
