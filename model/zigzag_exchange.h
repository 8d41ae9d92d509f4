// Moves rows of tokens between the ranks that hold them and the ranks that work on them (model/zigzag.h). Nothing waits
// before it must: transfers are started, and the caller computes meanwhile.
#pragma once

#include <array>
#include <utility>
#include <vector>

#include "model/model_context.h"
#include "model/zigzag.h"

namespace fulmen {

class ZigzagExchange {
 public:
  using Halves = std::array<Tensor, 2>;  // the early and the late one, [batch, rows, ...] each

  // Rows on their way. finish() makes the stream wait for them.
  class Rows {
   public:
    void finish();

   private:
    friend class ZigzagExchange;
    const ZigzagExchange* exchange_ = nullptr;
    Pending pending_;
    std::vector<std::pair<Tensor, Tensor>> arriving_;  // received, and where its rows belong
  };

  ZigzagExchange(const ModelContext& context, const Zigzag& zigzag)
      : context_(context), zigzag_(zigzag), rank_(context.sequence.ranks->rank()) {}

  // Room for the halves that this rank works on, as `held` [batch, length, ...]. All memory of this class is taken from
  // the scratch arena.
  std::vector<Halves> take_work(const std::vector<Tensor>& held) const;
  // Brings what `held` has of the half that each rank begins with (Zigzag::begins_with), or of the other half.
  Rows start_to_work(bool begins_with, const std::vector<Tensor>& held, const std::vector<Halves>& work) const;
  // Brings rows home: `work` belongs to half i of the pair of rank + `ahead`, `held` [batch, length, ...] is written,
  // and may have another dtype.
  Rows start_to_held(std::size_t i, int ahead, const std::vector<Tensor>& work, const std::vector<Tensor>& held) const;

 private:
  Tensor take_as(const Tensor& like, DType dtype) const;
  // The rows of a half in a tensor of this rank's slice.
  Tensor held_rows(const Tensor& held, int half) const;
  void send(const Tensor& rows, DType dtype, int peer, std::vector<Transfer>& transfers) const;
  void start(const std::vector<Transfer>& transfers, Rows& rows) const;

  const ModelContext& context_;
  const Zigzag& zigzag_;
  int rank_;
};

}  // namespace fulmen
