// Recurrent decoding: one token at a time from what the tokens before left in states, on one rank.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/stage.h"

namespace fulmen {

// A whole model on this rank, loaded from a checkpoint, with its recurrent states.
class Decoder {
 public:
  // For texts of at most `most_tokens`: states that grow with the text (softmax attention's keys and values) take their
  // memory at once. Throws UserError when the checkpoint is damaged or not of a known family, or has fewer positions.
  Decoder(const CheckpointReader& checkpoint, std::int64_t most_tokens, Precision precision,
          const Execution& execution);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  const ModelConfig& config() const { return *config_; }
  // Forgets everything: the next token is the first of a text.
  void reset();
  // Advances by one token and returns the logits of the next: fp64 [vocabulary] on the host.
  const std::vector<double>& advance(std::int32_t token);
  std::int64_t position() const { return position_; }
  std::size_t state_bytes() const;

 private:
  // The logits as the device has them, each through `widen` to fp64.
  template <class T, class F>
  void read_logits(F&& widen);

  std::shared_ptr<const ModelConfig> config_;
  Execution execution_;
  std::int64_t most_tokens_;
  std::unique_ptr<Communicator> self_;
  Mesh mesh_;
  ParameterStore parameters_;
  ModelContext context_;
  Stage stage_;
  std::vector<OwnedTensor> states_;  // of all branches, in their order
  std::vector<Tensor> state_views_;
  OwnedTensor token_, position_tensor_, logits_;
  std::int64_t position_ = 0;
  std::vector<double> host_logits_;
};

}  // namespace fulmen
