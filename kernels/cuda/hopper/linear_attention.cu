// Sets up the sweeps of linear attention: documents, pieces of long rows, and the halves of LRPE's features.
#include "kernels/cuda/hopper/linear_attention.h"

#include <algorithm>

#include "kernels/cuda/hopper/device_limits.h"
#include "kernels/cuda/hopper/features.h"
#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"
#include "kernels/cuda/hopper/tensor_map.h"

namespace fulmen::cuda::hopper {

namespace {

bool takes_size(int device, const LinearAttentionSize& size) {
  if (!limits(device).hopper || size.dtype != DType::bf16) return false;
  if (size.value_width != size.key_width || (size.key_width != 64 && size.key_width != 128)) return false;
  if (size.query_key_activation != Activation::silu && size.query_key_activation != Activation::none) return false;
  return size.length < std::int64_t{1} << 30 && size.batch <= 65535;
}

// x: the query or the key.
bool takes_kind(const LinearAttentionInputs& inputs, const Tensor& x) {
  return takes_size(x.device().index, size_of(inputs)) && can_be_mapped(x);
}

bool takes_inputs(const LinearAttentionInputs& inputs) {
  return takes_kind(inputs, inputs.query) && can_be_mapped(inputs.key) && can_be_mapped(inputs.value);
}

// Into how many pieces a row is cut. Cutting makes every piece read its keys and values twice, and in reverse its
// queries and output gradients. It pays when there are too few heads for the multiprocessors. Each wave of blocks fills
// and drains once.
int choose_pieces(std::int64_t rows_heads, std::int64_t length, int multiprocessors) {
  constexpr double cost_of_cutting = 1.25, chunks_to_fill = 8.0;
  constexpr std::int64_t least_chunks = 4;
  const std::int64_t chunks = (length + chunk_tokens - 1) / chunk_tokens;
  int best = 1;
  double best_cost = 0.0;
  for (std::int64_t pieces = 1; pieces <= multiprocessors; ++pieces) {
    const std::int64_t each = (chunks + pieces - 1) / pieces;
    if (pieces > 1 && each < least_chunks) break;
    const std::int64_t waves = (rows_heads * pieces + multiprocessors - 1) / multiprocessors;
    const double cost = (pieces > 1 ? cost_of_cutting : 1.0) * static_cast<double>(waves) *
                        (static_cast<double>(each) + chunks_to_fill);
    if (pieces == 1 || cost < best_cost) best = static_cast<int>(pieces), best_cost = cost;
  }
  return best;
}

// How rows are cut.
struct Pieces {
  int count, tokens;
  Pieces(int device, std::int64_t rows_heads, std::int64_t length) {
    const std::int64_t chunks = (length + chunk_tokens - 1) / chunk_tokens;
    const std::int64_t most = choose_pieces(rows_heads, length, limits(device).multiprocessors);
    tokens = static_cast<int>((chunks + most - 1) / most * chunk_tokens);
    count = static_cast<int>((length + tokens - 1) / tokens);
  }
};

// States of the pieces of one direction that outlive a call: fp32 [parts, batch * heads, pieces, D * D].
struct KeptStates {
  Tensor states;  // null for none
  enum class Hold : std::uint8_t {
    nothing,   // yet: they are made there
    own,       // what each piece makes of zero
    incoming,  // what each piece begins with
  } hold = Hold::nothing;
};

// Shared by the sweeps of one call.
class Setup {
 public:
  Setup(const Execution& execution, const LinearAttentionInputs& inputs)
      : execution_(execution),
        inputs_(inputs),
        batch_(inputs.query.size(0)),
        length_(inputs.query.size(1)),
        heads_(inputs.query.size(2)),
        width_(inputs.query.size(3)) {
    sweep_.length = static_cast<int>(length_);
    sweep_.heads = static_cast<int>(heads_);
    sweep_.slope = inputs.slope.as<double>();
    const Pieces pieces(execution.device.index, batch_ * heads_, length_);
    sweep_.pieces = pieces.count, sweep_.piece_tokens = pieces.tokens;

    const bool silu = inputs.query_key_activation == Activation::silu;
    if (inputs.theta) {
      feature_ = silu ? Feature::rotated_silu : Feature::rotated;
      sweep_.rotation = {inputs.theta.as<double>(), inputs.positions.as<std::int64_t>(), inputs.positions.stride(0),
                         inputs.positions.stride(1)};
    } else {
      feature_ = silu ? Feature::silu : Feature::plain;
    }
    const std::int64_t segments = inputs.segments ? inputs.segments.elements() - 1 : batch_;
    if (segments == batch_) return;  // every row is one document
    const Tensor begins = execution.scratch->take(DType::int32, {batch_ * length_});
    const Tensor ends = execution.scratch->take(DType::int32, {batch_ * length_});
    launch_documents(inputs.segments.as<std::int64_t>(), segments, batch_, length_, begins.as<int>(), ends.as<int>(),
                     stream());
    sweep_.document_begin = begins.as<int>();
    sweep_.document_end = ends.as<int>();
  }

  cudaStream_t stream() const { return static_cast<cudaStream_t>(execution_.stream.handle); }
  // LRPE doubles the keys: the state has two parts, one above the other, and results are sums over both.
  int parts() const { return inputs_.theta ? 2 : 1; }
  std::int64_t part_elements() const { return width_ * width_; }
  std::int64_t state_elements() const { return parts() * part_elements(); }
  int pieces() const { return sweep_.pieces; }

  // As the values, contiguous, in scratch.
  Tensor take() const { return execution_.scratch->take(DType::bf16, {batch_, length_, heads_, width_}); }
  // Zeros in place of a tensor. One token of them is enough: the copy engine fills with zeros what lies outside.
  Tensor take_nothing() const {
    const Tensor nothing = execution_.scratch->take(DType::bf16, {batch_, 1, heads_, width_});
    FULMEN_CUDA_CHECK(cudaMemsetAsync(nothing.data(), 0, nothing.bytes(), stream()));
    return nothing;
  }
  // The values through their activation.
  Tensor make_values() const {
    if (inputs_.value_activation == Activation::none) return inputs_.value;
    const Tensor values = take();
    activate_values(execution_, inputs_.value, inputs_.value_activation, values);
    return values;
  }

  SweepShape shape(int pieces) const {
    return {static_cast<int>(width_), feature_,
            dim3(static_cast<unsigned>(heads_), static_cast<unsigned>(pieces), static_cast<unsigned>(batch_))};
  }

  // The sweep over one part, its incoming states ready: from a and b when rows are cut, and from `initial`, the states
  // [batch, heads, parts, width, width] before the rows (after them, in reverse) or null.
  Sweep sweep(int part, const Tensor& initial, const Tensor& a, const Tensor& b, bool reverse,
              const KeptStates& kept) const {
    Sweep sweep = sweep_of(part);
    if (pieces() == 1) {
      sweep.incoming = initial ? part_of(initial, part) : nullptr;
      sweep.incoming_stride = state_elements();
      return sweep;
    }
    float* const states = piece_states(part, kept);
    if (kept.hold == KeptStates::Hold::nothing) make_piece_states(sweep, a, b, reverse, pieces() - 1, states);
    if (kept.hold != KeptStates::Hold::incoming) scan(part, initial, states, states, reverse, Tensor());
    set_incoming(sweep, states);
    return sweep;
  }

  // As `sweep`, where a and b are zero: nothing but what is left of `initial`.
  Sweep sweep_of_initial(int part, const Tensor& initial, bool reverse) const {
    Sweep sweep = sweep_of(part);
    float* const states = piece_states(part, {});
    FULMEN_CUDA_CHECK(
        cudaMemsetAsync(states, 0, sizeof(float) * batch_ * heads_ * pieces() * part_elements(), stream()));
    scan(part, initial, states, states, reverse, Tensor());
    set_incoming(sweep, states);
    return sweep;
  }

  // The state that a and b alone make of zero: to `last`, past the rows (before them, in reverse). The states that the
  // pieces make of it is left in `kept`.
  void make_states(int part, const Tensor& a, const Tensor& b, bool reverse, const Tensor& last,
                   const Tensor& kept) const {
    Sweep sweep = sweep_of(part);
    if (pieces() == 1) {
      set_outgoing(sweep, last, part, reverse);
      launch_states({map_heads(a), map_heads(b), sweep}, shape(1), reverse, stream());
      return;
    }
    float* const states = piece_states(part, {kept});
    make_piece_states(sweep, a, b, reverse, pieces(), states);
    scan(part, Tensor(), states, nullptr, reverse, last);
  }

  // Where the state ends up past the rows (before them, in reverse); null for nowhere.
  void set_outgoing(Sweep& sweep, const Tensor& state, int part, bool reverse) const {
    if (state.is_null()) return;
    sweep.outgoing = part_of(state, part);
    sweep.outgoing_stride = state_elements();
    sweep.outgoing_piece = reverse ? 0 : pieces() - 1;
  }

 private:
  float* part_of(const Tensor& states, int part) const { return states.as<float>() + part * part_elements(); }
  Sweep sweep_of(int part) const {
    Sweep sweep = sweep_;
    sweep.rotation.cosine = part == 0;
    return sweep;
  }
  // Those that are kept, or scratch.
  float* piece_states(int part, const KeptStates& kept) const {
    const std::int64_t elements = batch_ * heads_ * pieces() * part_elements();
    if (kept.states.is_null()) return execution_.scratch->take(DType::fp32, {elements}).as<float>();
    return kept.states.as<float>() + part * elements;
  }
  // The states that the first `count` pieces (the last, in reverse) make of zero.
  void make_piece_states(const Sweep& sweep, const Tensor& a, const Tensor& b, bool reverse, int count,
                         float* states) const {
    StatesArguments arguments{map_heads(a), map_heads(b), sweep};
    arguments.sweep.first_piece = reverse ? pieces() - count : 0;
    arguments.sweep.outgoing = states;
    arguments.sweep.outgoing_stride = pieces() * part_elements();
    arguments.sweep.outgoing_piece_stride = part_elements();
    launch_states(arguments, shape(count), reverse, stream());
  }
  void scan(int part, const Tensor& initial, const float* own, float* incoming, bool reverse,
            const Tensor& last) const {
    ScanArguments arguments{own, incoming, sweep_};
    if (initial) arguments.initial = part_of(initial, part);
    if (last) arguments.last = part_of(last, part);
    arguments.initial_stride = arguments.last_stride = state_elements();
    arguments.elements = static_cast<int>(part_elements());
    launch_scan(arguments, static_cast<int>(batch_), reverse, stream());
  }
  void set_incoming(Sweep& sweep, const float* states) const {
    sweep.incoming = states;
    sweep.incoming_stride = pieces() * part_elements();
    sweep.incoming_piece_stride = part_elements();
  }

  const Execution& execution_;
  const LinearAttentionInputs& inputs_;
  std::int64_t batch_, length_, heads_, width_;
  Sweep sweep_;
  Feature feature_;
};

// The sums of d_theta from every warp of every sweep; nothing without LRPE.
class ThetaShares {
 public:
  ThetaShares(const Execution& execution, const LinearAttentionInputs& inputs, int pieces, int sweeps)
      : execution_(execution) {
    if (inputs.theta.is_null()) return;
    constexpr int warps = 4;
    of_sweep_ = inputs.query.size(0) * pieces * warps * inputs.theta.elements();
    shares_ =
        execution.scratch->take(DType::fp64, {sweeps * of_sweep_ / inputs.theta.elements(), inputs.theta.elements()});
  }
  double* at(int sweep) const { return shares_ ? shares_.as<double>() + sweep * of_sweep_ : nullptr; }
  void add(const Tensor& d_theta) const {
    if (shares_) add_theta_shares(execution_, shares_, d_theta);
  }

 private:
  const Execution& execution_;
  std::int64_t of_sweep_ = 0;
  Tensor shares_;
};

// The second half of LRPE's features adds to the first's results.
AddTo add_to(const Tensor& x, int part) {
  if (part == 0) return {};
  return {static_cast<const __nv_bfloat16*>(x.data()), {x.stride(0), x.stride(1), x.stride(2)}};
}

}  // namespace

bool takes(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs) {
  return takes_inputs(inputs) && can_be_mapped(outputs.output);
}

bool takes(const LinearAttentionInputs& inputs, const LinearAttentionGradients& gradients) {
  return takes_inputs(inputs) && can_be_mapped(gradients.d_output) && can_be_mapped(gradients.d_query) &&
         can_be_mapped(gradients.d_key) && can_be_mapped(gradients.d_value);
}

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs) {
  const Arena::Frame frame(*execution.scratch);
  const Setup setup(execution, inputs);
  const Tensor values = setup.make_values();
  const KeptStates kept{outputs.piece_states,
                        outputs.own_piece_states ? KeptStates::Hold::own : KeptStates::Hold::nothing};
  for (int part = 0; part < setup.parts(); ++part) {
    const bool last = part + 1 == setup.parts();
    ForwardArguments arguments{map_heads(inputs.key), map_heads(values), map_heads(inputs.query),
                               map_heads(outputs.output),
                               setup.sweep(part, inputs.initial_state, inputs.key, values, false, kept)};
    setup.set_outgoing(arguments.sweep, outputs.final_state, part, false);
    if (last) arguments.square_sums = outputs.square_sums.as<float>();
    arguments.add_to = add_to(outputs.output, part);
    launch_forward(arguments, setup.shape(setup.pieces()), setup.stream());
  }
}

void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients) {
  const Arena::Frame frame(*execution.scratch);
  const Setup setup(execution, inputs);
  const Tensor values = setup.make_values();
  const bool value_activated = inputs.value_activation != Activation::none;
  const Tensor d_value = value_activated ? setup.take() : gradients.d_value;
  const CUtensorMap query = map_heads(inputs.query), key = map_heads(inputs.key), value = map_heads(values);
  const CUtensorMap d_output = map_heads(gradients.d_output);
  const ThetaShares shares(execution, inputs, setup.pieces(), 2 * setup.parts());
  const KeptStates kept_states{inputs.piece_states,
                               inputs.piece_states ? KeptStates::Hold::incoming : KeptStates::Hold::nothing};
  const KeptStates kept_gradients{gradients.piece_gradients,
                                  gradients.piece_gradients ? KeptStates::Hold::own : KeptStates::Hold::nothing};
  for (int part = 0; part < setup.parts(); ++part) {
    // The states of pieces end where the first sweep begins, and that ends where the second begins: the L2 cache serves
    // both.
    BackwardKeyValueArguments for_keys{
        query,
        d_output,
        key,
        value,
        map_heads(gradients.d_key),
        map_heads(d_value),
        setup.sweep(part, gradients.d_final_state, inputs.query, gradients.d_output, true, kept_gradients),
        add_to(gradients.d_key, part),
        add_to(d_value, part)};
    for_keys.sweep.rotation.d_theta = shares.at(2 * part + 1);
    setup.set_outgoing(for_keys.sweep, gradients.d_initial_state, part, true);
    BackwardQueryArguments for_query{key,
                                     value,
                                     d_output,
                                     query,
                                     map_heads(gradients.d_query),
                                     setup.sweep(part, inputs.initial_state, inputs.key, values, false, kept_states),
                                     add_to(gradients.d_query, part)};
    for_query.sweep.rotation.d_theta = shares.at(2 * part);
    launch_backward_query(for_query, setup.shape(setup.pieces()), setup.stream());
    launch_backward_key_value(for_keys, setup.shape(setup.pieces()), setup.stream());
  }
  shares.add(gradients.d_theta);
  if (value_activated)
    differentiate_values(execution, inputs.value, inputs.value_activation, d_value, gradients.d_value);
}

std::int64_t piece_elements(const Execution& execution, const LinearAttentionSize& size) {
  if (!takes_size(execution.device.index, size)) return 0;
  const std::int64_t pieces = Pieces(execution.device.index, size.batch * size.heads, size.length).count;
  return pieces == 1 ? 0 : (size.lrpe ? 2 : 1) * size.batch * size.heads * pieces * size.key_width * size.value_width;
}

bool takes_states(const LinearAttentionInputs& inputs) {
  return takes_kind(inputs, inputs.key) && can_be_mapped(inputs.value);
}

bool takes_initial_state(const LinearAttentionInputs& inputs) { return takes_kind(inputs, inputs.query); }

bool takes_state_gradients(const LinearAttentionInputs& inputs, const Tensor& d_output) {
  return takes_kind(inputs, inputs.query) && can_be_mapped(d_output);
}

void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor& piece_states) {
  const Arena::Frame frame(*execution.scratch);
  LinearAttentionInputs keys = inputs;
  keys.query = inputs.key;  // for the sizes
  const Setup setup(execution, keys);
  const Tensor values = setup.make_values();
  for (int part = 0; part < setup.parts(); ++part)
    setup.make_states(part, inputs.key, values, false, final_state, piece_states);
}

void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state,
                                             const Tensor& piece_gradients) {
  const Arena::Frame frame(*execution.scratch);
  const Setup setup(execution, inputs);
  for (int part = 0; part < setup.parts(); ++part)
    setup.make_states(part, inputs.query, d_output, true, d_initial_state, piece_gradients);
}

void linear_attention_initial_state_outputs(const Execution& execution, const LinearAttentionInputs& inputs,
                                            const Tensor& output) {
  const Arena::Frame frame(*execution.scratch);
  const Setup setup(execution, inputs);
  const Tensor nothing = setup.take_nothing();  // for keys and values
  for (int part = 0; part < setup.parts(); ++part) {
    ForwardArguments arguments{map_heads(nothing), map_heads(nothing), map_heads(inputs.query), map_heads(output),
                               setup.sweep_of_initial(part, inputs.initial_state, false)};
    arguments.add_to = add_to(output, part);
    launch_forward(arguments, setup.shape(setup.pieces()), setup.stream());
  }
}

void linear_attention_final_state_gradients(const Execution& execution, const LinearAttentionInputs& inputs,
                                            const LinearAttentionGradients& gradients) {
  const Arena::Frame frame(*execution.scratch);
  LinearAttentionInputs keys = inputs;
  keys.query = inputs.key;
  const Setup setup(execution, keys);
  const Tensor values = setup.make_values();
  const bool value_activated = inputs.value_activation != Activation::none;
  const Tensor d_value = value_activated ? setup.take() : gradients.d_value;
  const Tensor nothing = setup.take_nothing();  // for queries and d_output
  const ThetaShares shares(execution, keys, setup.pieces(), setup.parts());
  for (int part = 0; part < setup.parts(); ++part) {
    BackwardKeyValueArguments arguments{map_heads(nothing),
                                        map_heads(nothing),
                                        map_heads(inputs.key),
                                        map_heads(values),
                                        map_heads(gradients.d_key),
                                        map_heads(d_value),
                                        setup.sweep_of_initial(part, gradients.d_final_state, true),
                                        add_to(gradients.d_key, part),
                                        add_to(d_value, part)};
    arguments.sweep.rotation.d_theta = shares.at(part);
    launch_backward_key_value(arguments, setup.shape(setup.pieces()), setup.stream());
  }
  shares.add(gradients.d_theta);
  if (value_activated)
    differentiate_values(execution, inputs.value, inputs.value_activation, d_value, gradients.d_value);
}

}  // namespace fulmen::cuda::hopper
