// Recurrent decoding.
#include "infer/decoder.h"

#include <algorithm>

#include "checkpoint/parameters.h"
#include "framework/bfloat16.h"
#include "framework/transfer.h"
#include "kernels/elementwise.h"

namespace fulmen {

Decoder::Decoder(const CheckpointReader& checkpoint, std::int64_t most_tokens, Precision precision,
                 const Execution& execution)
    : config_(ModelConfig::from_identity(checkpoint.description().model, checkpoint.folder().string())),
      execution_(execution),
      most_tokens_(most_tokens),
      self_(make_self_communicator()),
      mesh_(MeshShape{}, *self_),
      parameters_(declare_stage(*config_, whole_model(*config_), 1), mesh_, precision, execution),
      context_{execution, &mesh_.along(Axis::tensor), &parameters_},
      stage_(*config_, whole_model(*config_), context_) {
  check_length(*config_, most_tokens, "generate");
  checkpoint.verify(*self_);
  load_pieces(checkpoint, parameters_, parameters_.flat_weights(), "parameters/", execution);
  stage_.prepare({1, 1}, 1);
  for (const StateSpec& state : stage_.states(1, most_tokens)) {
    const DType dtype =
        state.type == PortType::activation ? precision.parameters : accumulation_dtype(precision.parameters);
    states_.emplace_back(execution.device, dtype, state.shape, MemoryKind::activations, *execution.ledger);
    state_views_.push_back(states_.back());
  }
  token_ = OwnedTensor(execution.device, DType::int32, {1}, MemoryKind::data, *execution.ledger);
  position_tensor_ = OwnedTensor(execution.device, DType::int64, {1, 1}, MemoryKind::data, *execution.ledger);
  logits_ = OwnedTensor(execution.device, precision.parameters, {1, config_->vocabulary}, MemoryKind::activations,
                        *execution.ledger);
  host_logits_.resize(static_cast<std::size_t>(config_->vocabulary));
}

void Decoder::reset() {
  for (const OwnedTensor& state : states_) fill_zero(execution_, state);
  position_ = 0;
}

std::size_t Decoder::state_bytes() const {
  std::size_t bytes = 0;
  for (const OwnedTensor& state : states_) bytes += state.view().bytes();
  return bytes;
}

template <class T, class F>
void Decoder::read_logits(F&& widen) {
  std::vector<T> narrow(host_logits_.size());
  copy_to_host(execution_, logits_, narrow.data());
  std::ranges::transform(narrow, host_logits_.begin(), widen);
}

const std::vector<double>& Decoder::advance(std::int32_t token) {
  FULMEN_CHECK(token >= 0 && token < config_->vocabulary, "token {} is not in the vocabulary of {}", token,
               config_->vocabulary);
  FULMEN_CHECK(position_ < most_tokens_, "token {} of a text of at most {}", position_, most_tokens_);
  copy_to_device(execution_, &token, token_);
  copy_to_device(execution_, &position_, position_tensor_);
  MicroBatch micro_batch;
  micro_batch.shape = {1, 1};
  micro_batch.tokens = token_;
  micro_batch.positions = position_tensor_;
  stage_.decode(micro_batch, state_views_, logits_);
  ++position_;
  switch (logits_.view().dtype()) {
    case DType::fp64: copy_to_host(execution_, logits_, host_logits_.data()); break;
    case DType::bf16: read_logits<BFloat16>([](BFloat16 x) { return static_cast<double>(to_float(x)); }); break;
    default: read_logits<float>([](float x) { return static_cast<double>(x); });
  }
  return host_logits_;
}

}  // namespace fulmen
