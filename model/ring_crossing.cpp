// Attention over slices of a sequence (Ring Attention, arXiv 2310.01889): blocks of keys and values go round the ranks
// while each computes with those that it has; results are merged by their log-sum-exp. Work is shared out as a zigzag
// (model/zigzag.h).
#include <array>
#include <utility>

#include "kernels/elementwise.h"
#include "model/rank_crossing.h"
#include "model/zigzag_exchange.h"

namespace fulmen {

namespace {

using Halves = ZigzagExchange::Halves;

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
  // The part that lies here of the pair that `owner` works on.
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
    const ZigzagExchange exchange(context_, zigzag_);
    Arrival arrival(exchange, held(pass, {in[0], in[1], in[2]}));
    const std::vector<Halves>& work = arrival.work();
    Halves output;
    for (std::size_t i = 0; i < 2; ++i) output[i] = take(wide(), work[query][i].shape());
    std::array<bool, 2> begun{};
    const auto compute = [&](const Block& block, const RingKeys& keys) {
      const Arena::Frame block_frame(*execution.scratch);
      const Tensor result = take(work[query][block.i].dtype(), work[query][block.i].shape());
      const Tensor log_sum = take(wide(), crossing[block.i].shape());
      core_.forward_block(execution, queries(pass, work, block), keys, result, log_sum);
      core_.merge_block(execution, result, log_sum, !std::exchange(begun[block.i], true), output[block.i],
                        crossing[block.i]);
    };
    begin(arrival, compute);
    KeyRing keys(*this, work);
    std::vector<ZigzagExchange::Rows> returning;
    for (int step = 0; step < zigzag_.ranks(); ++step) {
      keys.start(step);
      for (std::size_t i = 0; i < 2; ++i) {
        for (const Block& block : blocks(step))
          if (block.i == i) compute(block, keys.half(step, block.j));
        if (step + 1 == zigzag_.ranks())
          returning.push_back(exchange.start_to_held(i, 0, {output[i]}, {rows_of(pass, out[0])}));
      }
      keys.finish();
    }
    for (ZigzagExchange::Rows& rows : returning) rows.finish();
  }

  void forward_again(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const override {
    forward(pass, in, out, kept, crossing);
  }

  void backward(const Pass& pass, const BackwardTensors& tensors, Tensors crossing) const override {
    const Execution& execution = context_.execution;
    const Arena::Frame frame(*execution.scratch);
    const ZigzagExchange exchange(context_, zigzag_);
    Arrival arrival(exchange,
                    held(pass, {tensors.in[0], tensors.in[1], tensors.in[2], tensors.out[0], tensors.d_out[0]}));
    const std::vector<Halves>& work = arrival.work();
    Halves d_query;
    for (std::size_t i = 0; i < 2; ++i) {
      d_query[i] = take(wide(), work[query][i].shape());
      fill_zero(execution, d_query[i]);
    }
    GradientRing gradients(*this, work);
    const auto compute = [&](const Block& block, const RingKeys& keys) {
      core_.backward_block(execution, queries(pass, work, block), keys,
                           {.output = work[output][block.i],
                            .log_sum = crossing[block.i],
                            .d_output = work[d_output][block.i],
                            .d_query = d_query[block.i],
                            .d_key = gradients.d_key(block),
                            .d_value = gradients.d_value(block)});
    };
    gradients.begin(0);
    begin(arrival, compute);
    KeyRing keys(*this, work);
    const int last = zigzag_.ranks() - 1;
    for (int step = 0; step < last; ++step) {
      keys.start(step);
      if (step > 0) gradients.begin(step);
      for (const Block& block : blocks(step)) compute(block, keys.half(step, block.j));
      gradients.pass_on(step);
      keys.finish();
    }
    // In the last step each gradient goes home as soon as it is whole.
    gradients.begin(last);
    std::vector<ZigzagExchange::Rows> returning;
    const auto compute_last = [&](std::size_t i, std::size_t j) {
      for (const Block& block : blocks(last))
        if (block.i == i && block.j == j) compute(block, keys.half(last, j));
    };
    const auto return_query = [&](std::size_t i) {
      returning.push_back(exchange.start_to_held(i, 0, {d_query[i]}, {rows_of(pass, tensors.d_in[0])}));
    };
    const auto return_keys = [&](std::size_t j) {
      returning.push_back(exchange.start_to_held(j, 1, gradients.whole(last, j),
                                                 {rows_of(pass, tensors.d_in[1]), rows_of(pass, tensors.d_in[2])}));
    };
    compute_last(0, 0);
    return_query(0);
    compute_last(1, 1);
    return_keys(1);
    compute_last(1, 0);
    return_keys(0);
    return_query(1);
    for (ZigzagExchange::Rows& rows : returning) rows.finish();
  }

 private:
  // Places in what is rearranged; the last two in the backward pass.
  static constexpr std::size_t positions = 0, first_visible = 1, query = 2, key = 3, value = 4, output = 5,
                               d_output = 6;

  // Half i of the queries here, and half j of the keys of `owner`.
  struct Block {
    int step, owner;
    std::size_t i, j;
  };

  // The rows that this rank works on, on their way here.
  class Arrival {
   public:
    Arrival(const ZigzagExchange& exchange, const std::vector<Tensor>& held) : work_(exchange.take_work(held)) {
      for (const bool first : {true, false}) rows_.push_back(exchange.start_to_work(first, held, work_));
    }
    const std::vector<Halves>& work() const { return work_; }
    void finish_first() { rows_[0].finish(); }
    void finish() { rows_[1].finish(); }

   private:
    std::vector<Halves> work_;
    std::vector<ZigzagExchange::Rows> rows_;
  };

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
  // In a single document nothing need be looked up.
  RingQueries queries(const Pass& pass, const std::vector<Halves>& work, const Block& block) const {
    if (!pass.micro_batch.one_document)
      return {work[query][block.i], work[positions][block.i], work[first_visible][block.i]};
    return {work[query][block.i], {}, {}, zigzag_.work(block.owner)[block.j] < zigzag_.work(rank_)[block.i]};
  }

  int owner(int step) const { return (rank_ + zigzag_.ranks() - step) % zigzag_.ranks(); }
  bool meet(const Block& block) const {
    const int queries = zigzag_.work(rank_)[block.i], keys = zigzag_.work(block.owner)[block.j];
    return keys <= queries && zigzag_.tokens(queries).size() > 0 && zigzag_.tokens(keys).size() > 0;
  }
  // The half that a rank begins with meets itself while the other arrives.
  Block first_block() const {
    const std::size_t i = zigzag_.begins_with(rank_);
    return {0, rank_, i, i};
  }
  template <class F>
  void begin(Arrival& arrival, const F& compute) const {
    const std::vector<Halves>& work = arrival.work();
    const Block block = first_block();
    arrival.finish_first();
    if (meet(block)) compute(block, RingKeys{work[key][block.i], work[value][block.i], work[positions][block.i]});
    arrival.finish();
  }
  // The other blocks of a step in which a query may see a key.
  std::vector<Block> blocks(int step) const {
    std::vector<Block> list;
    for (std::size_t i = 0; i < 2; ++i)
      for (std::size_t j = 0; j < 2; ++j) {
        const Block block{step, owner(step), i, j};
        const bool begun = step == 0 && i == first_block().i && j == first_block().j;
        if (!begun && meet(block)) list.push_back(block);
      }
    return list;
  }

  // Keys and values on their way round the ring. The next step's arrive while this step's are used.
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

    RingKeys half(int step, std::size_t j) const {
      const std::vector<RingBuffer>& buffers = buffers_[static_cast<std::size_t>(step % 2)];
      const int from = crossing_.owner(step);
      return {buffers[0].half(from, j), buffers[1].half(from, j), buffers[2].half(from, j)};
    }
    // Sends this step's keys and values on, and receives the next step's.
    void start(int step) {
      if (step + 1 == crossing_.zigzag_.ranks()) return;
      std::vector<Transfer> transfers;
      for (std::size_t part = 0; part < 3; ++part) {
        const std::size_t here = static_cast<std::size_t>(step % 2);
        transfers.push_back(
            {Transfer::Direction::send, crossing_.next(), buffers_[here][part].whole(crossing_.owner(step))});
        transfers.push_back({Transfer::Direction::receive, crossing_.previous(),
                             buffers_[1 - here][part].whole(crossing_.owner(step + 1))});
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

  // The gradients of keys and values follow them one step behind. After the last step they go home.
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
      for (const RingBuffer& buffer : own(step))
        fill_zero(crossing_.context_.execution, buffer.whole(crossing_.owner(step)));
    }
    Tensor d_key(const Block& block) const { return own(block.step)[0].half(block.owner, block.j); }
    Tensor d_value(const Block& block) const { return own(block.step)[1].half(block.owner, block.j); }

    // Adds the gradients of the ranks before, and sends the sum on.
    void pass_on(int step) {
      const Execution& execution = crossing_.context_.execution;
      if (step > 0) {
        wait();
        for (std::size_t part = 0; part < 2; ++part) {
          const Tensor sum = own(step)[part].whole(crossing_.owner(step));
          add(execution, sum, received()[part].whole(crossing_.owner(step)), sum);
        }
      }
      std::vector<Transfer> transfers;
      for (std::size_t part = 0; part < 2; ++part) {
        transfers.push_back(
            {Transfer::Direction::send, crossing_.next(), own(step)[part].whole(crossing_.owner(step))});
        transfers.push_back(
            {Transfer::Direction::receive, crossing_.previous(), received()[part].whole(crossing_.owner(step + 1))});
      }
      pending_ = crossing_.ring().start_exchange(transfers, execution.stream);
      if (!crossing_.context_.sequence.overlap_ring) wait();
    }
    // The sums over all ranks for half j, of keys and of values.
    std::vector<Tensor> whole(int last, std::size_t j) {
      wait();
      std::vector<Tensor> sums;
      for (std::size_t part = 0; part < 2; ++part) {
        const int owner = crossing_.owner(last);
        sums.push_back(own(last)[part].half(owner, j));
        if (sums.back().elements() > 0)
          add(crossing_.context_.execution, sums.back(), received()[part].half(owner, j), sums.back());
      }
      return sums;
    }

   private:
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
