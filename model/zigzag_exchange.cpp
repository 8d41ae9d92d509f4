// Moves rows of tokens between the ranks that hold them and the ranks that work on them.
#include "model/zigzag_exchange.h"

#include "kernels/elementwise.h"

namespace fulmen {

void ZigzagExchange::Rows::finish() {
  if (exchange_ == nullptr) return;
  const Execution& execution = exchange_->context_.execution;
  {
    const ProfileScope scope = ProfileScope::communication(execution.profiler, "sequence communication");
    pending_.wait(execution.stream);
  }
  pending_ = {};
  for (const auto& [received, rows] : arriving_) copy(execution, received, rows);
  arriving_.clear();
  exchange_ = nullptr;
}

std::vector<ZigzagExchange::Halves> ZigzagExchange::take_work(const std::vector<Tensor>& held) const {
  std::vector<Halves> work(held.size());
  for (std::size_t t = 0; t < held.size(); ++t)
    for (std::size_t i = 0; i < 2; ++i) {
      Shape shape = held[t].shape();
      shape[1] = zigzag_.tokens(zigzag_.work(rank_)[i]).size();
      work[t][i] = context_.execution.scratch->take(held[t].dtype(), shape);
    }
  return work;
}

ZigzagExchange::Rows ZigzagExchange::start_to_work(bool begins_with, const std::vector<Tensor>& held,
                                                   const std::vector<Halves>& work) const {
  std::vector<Transfer> transfers;
  for (int half = 0; half < zigzag_.halves(); ++half) {
    const int home = Zigzag::home(half), worker = zigzag_.worker(half);
    const std::size_t i = zigzag_.index(half);
    if (zigzag_.tokens(half).size() == 0 || (i == zigzag_.begins_with(worker)) != begins_with) continue;
    for (std::size_t t = 0; t < held.size(); ++t) {
      if (home == rank_ && worker == rank_)
        copy(context_.execution, held_rows(held[t], half), work[t][i]);
      else if (home == rank_)
        send(held_rows(held[t], half), held[t].dtype(), worker, transfers);
      else if (worker == rank_)
        transfers.push_back({Transfer::Direction::receive, home, work[t][i]});
    }
  }
  Rows rows;
  start(transfers, rows);
  return rows;
}

ZigzagExchange::Rows ZigzagExchange::start_to_held(std::size_t i, int ahead, const std::vector<Tensor>& work,
                                                   const std::vector<Tensor>& held) const {
  std::vector<Transfer> transfers;
  Rows rows;
  for (int worker = 0; worker < zigzag_.ranks(); ++worker) {
    const int half = zigzag_.work(worker)[i], home = Zigzag::home(half);
    const int sender = (worker + zigzag_.ranks() - ahead) % zigzag_.ranks();
    if (zigzag_.tokens(half).size() == 0) continue;
    for (std::size_t t = 0; t < held.size(); ++t) {
      if (home == rank_ && sender == rank_) {
        copy(context_.execution, work[t], held_rows(held[t], half));
      } else if (sender == rank_) {
        send(work[t], held[t].dtype(), home, transfers);
      } else if (home == rank_) {
        const Tensor target = held_rows(held[t], half);
        const Tensor received = target.is_contiguous() ? target : take_as(target, target.dtype());
        if (!target.is_contiguous()) rows.arriving_.emplace_back(received, target);
        transfers.push_back({Transfer::Direction::receive, sender, received});
      }
    }
  }
  start(transfers, rows);
  return rows;
}

Tensor ZigzagExchange::take_as(const Tensor& like, DType dtype) const {
  return context_.execution.scratch->take(dtype, like.shape());
}

Tensor ZigzagExchange::held_rows(const Tensor& held, int half) const {
  const IndexRange rows = zigzag_.rows(half);
  return held.slice(1, rows.begin, rows.end);
}

void ZigzagExchange::send(const Tensor& rows, DType dtype, int peer, std::vector<Transfer>& transfers) const {
  Tensor sent = rows;
  if (!rows.is_contiguous() || rows.dtype() != dtype) {
    sent = take_as(rows, dtype);
    copy(context_.execution, rows, sent);
  }
  transfers.push_back({Transfer::Direction::send, peer, sent});
}

void ZigzagExchange::start(const std::vector<Transfer>& transfers, Rows& rows) const {
  rows.exchange_ = this;
  rows.pending_ = context_.sequence.ranks->start_exchange(transfers, context_.execution.stream);
  if (!context_.sequence.overlap_ring) rows.finish();
}

}  // namespace fulmen
