// Gated recurrences on a GPU for every width and card, token by token as they are defined. A block has a head of one
// row; its states lie in scratch memory, mostly in the second-level cache. The backward pass keeps the state in front
// of every 64th token, and computes those between again, 64 at a time.
#include <algorithm>

#include "framework/cuda_check.h"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/device_vector.cuh"
#include "kernels/cuda/linear_attention_features.h"
#include "kernels/gated_recurrence.h"

namespace fulmen::cuda {
namespace {

constexpr int threads = 256, warps = threads / lanes_of_warp;
constexpr std::int64_t chunk_tokens = 64;
constexpr std::int64_t most_shared_bytes = 48 * 1024;

// A tensor of rank 4 with unit inner stride, or none.
template <class T>
struct Heads {
  T* data = nullptr;
  std::int64_t strides[3] = {};

  __device__ T* at(std::int64_t a, std::int64_t b, std::int64_t c) const {
    return data + a * strides[0] + b * strides[1] + c * strides[2];
  }
};

template <class T>
Heads<T> heads_of(const Tensor& x) {
  if (x.is_null()) return {};
  return {pointer_to<T>(x), {x.stride(0), x.stride(1), x.stride(2)}};
}

template <class T>
struct Recurrence {
  using A = Accumulated<T>;

  Heads<const T> query, key, value;
  Heads<const A> initial_state;  // [batch, heads, keys, values]
  const A *log_decay, *beta, *bonus;
  const std::int64_t* document_begins;  // [batch * length], or none: a row is a document
  A scale;
  std::int64_t batch, length, key_heads, heads, keys, values, columns;
  bool per_channel;

  std::int64_t group() const { return heads / key_heads; }
  __device__ bool starts_document(std::int64_t row, std::int64_t t) const {
    return t == 0 || (document_begins != nullptr && document_begins[row * length + t] == t);
  }
};

// One token of one head: its rows, and the decays of its channels in shared memory.
template <class T>
struct Token {
  using A = Accumulated<T>;
  const T *query, *key, *value;  // value: none is zero
  const A* bonus;
  A rate;

  __device__ Token(const Recurrence<T>& r, std::int64_t row, std::int64_t head, std::int64_t t, A* decays) {
    const std::int64_t key_head = head / (r.heads / r.key_heads), token = (row * r.length + t) * r.heads + head;
    query = r.query.data == nullptr ? nullptr : r.query.at(row, t, key_head);
    key = r.key.at(row, t, key_head);
    value = r.value.data == nullptr ? nullptr : r.value.at(row, t, head);
    bonus = r.bonus == nullptr ? nullptr : r.bonus + head * r.keys;
    rate = r.beta == nullptr ? A(1) : r.beta[token];
    __syncthreads();  // the decays of the token before are no longer read
    for (std::int64_t c = threadIdx.x; c < r.keys; c += threads)
      decays[c] = exp(r.log_decay[r.per_channel ? token * r.keys + c : token]);
    __syncthreads();
  }
  __device__ A value_of(const Recurrence<T>& r, std::int64_t v) const {
    return value == nullptr || v >= r.values ? A(0) : to_accumulated(value[v]);
  }
  // A column of the values; by the delta rule less the decayed state's reading of it. The rate is not applied.
  __device__ A residual(const Recurrence<T>& r, const A* state, const A* decays, std::int64_t v) const {
    A lacks = value_of(r, v);
    if (r.beta == nullptr) return lacks;
    for (std::int64_t c = 0; c < r.keys; ++c) lacks -= to_accumulated(key[c]) * decays[c] * state[c * r.columns + v];
    return lacks;
  }
};

// The state that a document starts from, of one column.
template <class T>
__device__ void start_column(const Recurrence<T>& r, std::int64_t row, std::int64_t head, std::int64_t t,
                             std::int64_t v, Accumulated<T>* state) {
  using A = Accumulated<T>;
  const bool given = t == 0 && r.initial_state.data != nullptr && v < r.values;
  for (std::int64_t c = 0; c < r.keys; ++c) {
    A start = given ? r.initial_state.at(row, head, c)[v] : A(0);
    // The transition's columns: the identity, or its diagonal in a single column.
    if (v >= r.values && (r.columns == r.values + 1 || v - r.values == c)) start = A(1);
    state[c * r.columns + v] = start;
  }
}

// [blocks, keys, columns] of scratch memory: a state for each block.
template <class T>
__global__ void __launch_bounds__(threads)
    forward_kernel(const Recurrence<T> r, const Heads<T> output, const Heads<Accumulated<T>> final_state,
                   bool accumulates, Accumulated<T>* states) {
  using A = Accumulated<T>;
  extern __shared__ unsigned char shared[];
  A* const decays = reinterpret_cast<A*>(shared);
  const std::int64_t row = blockIdx.x / r.heads, head = blockIdx.x % r.heads;
  A* const state = states + blockIdx.x * r.keys * r.columns;
  for (std::int64_t t = 0; t < r.length; ++t) {
    const Token<T> token(r, row, head, t, decays);
    for (std::int64_t v = threadIdx.x; v < r.columns; v += threads) {
      if (r.starts_document(row, t)) start_column(r, row, head, t, v, state);
      const A value = token.value_of(r, v), written = token.rate * token.residual(r, state, decays, v);
      A sum = 0;
      for (std::int64_t c = 0; c < r.keys; ++c) {
        const A key = to_accumulated(token.key[c]), before = state[c * r.columns + v];
        const A after = decays[c] * before + key * written;
        state[c * r.columns + v] = after;
        if (token.query == nullptr) continue;
        sum +=
            to_accumulated(token.query[c]) * (token.bonus == nullptr ? after : before + token.bonus[c] * key * value);
      }
      if (output.data == nullptr || v >= r.values) continue;
      T* const to = output.at(row, t, head) + v;
      *to = round_to<T>(r.scale * sum + (accumulates ? to_accumulated(*to) : A(0)));
    }
  }
  if (final_state.data == nullptr) return;
  for (std::int64_t v = threadIdx.x; v < r.columns; v += threads)
    for (std::int64_t c = 0; c < r.keys; ++c) final_state.at(row, head, c)[v] = state[c * r.columns + v];
}

template <class T>
struct Gradients {
  using A = Accumulated<T>;

  Heads<const T> d_output;
  Heads<const A> d_final_state;
  Heads<T> d_query, d_key, d_value;
  A *d_log_decay, *d_beta;
  A* bonus_shares;  // [batch, heads, keys]
  Heads<A> d_initial_state;
  bool accumulates;
  // Sums over the heads that share keys, [batch, length, key heads, keys], or none.
  A *query_sums, *key_sums;
};

// Scratch memory of a block.
template <class A>
struct BlockStates {
  A* kept;     // [chunks, keys, values]: in front of every chunk
  A* between;  // [chunk_tokens, keys, values]: in front of each token of a chunk
  A* adjoint;  // [keys, values]
};

template <class T>
class HeadBackward {
 public:
  using A = Accumulated<T>;

  __device__ HeadBackward(const Recurrence<T>& r, const Gradients<T>& g, const BlockStates<A>& states, A* shared,
                          std::int64_t row, std::int64_t head)
      : r_(r),
        g_(g),
        states_(states),
        decays_(shared),
        residual_(shared + r.keys),
        d_written_(residual_ + r.values),
        d_decays_(d_written_ + r.values),
        row_(row),
        head_(head) {}

  __device__ void run() {
    const std::int64_t size = r_.keys * r_.values;
    keep_states();
    for (std::int64_t begin = (r_.length - 1) / chunk_tokens * chunk_tokens; begin >= 0; begin -= chunk_tokens) {
      const std::int64_t end = min(r_.length, begin + chunk_tokens);
      __syncthreads();  // the states of the chunk behind are no longer read
      for (std::int64_t t = begin; t < end; ++t) {
        const A* const from =
            t == begin ? states_.kept + begin / chunk_tokens * size : states_.between + (t - begin - 1) * size;
        state_in_front(t, begin, from, states_.between + (t - begin) * size);
      }
      for (std::int64_t t = end - 1; t >= begin; --t) differentiate(t, states_.between + (t - begin) * size);
    }
    if (g_.d_initial_state.data == nullptr) return;
    __syncthreads();
    for (std::int64_t v = threadIdx.x; v < r_.values; v += threads)
      for (std::int64_t c = 0; c < r_.keys; ++c)
        g_.d_initial_state.at(row_, head_, c)[v] = states_.adjoint[c * r_.values + v];
  }

 private:
  // states_.kept, through `between` as the state at hand.
  __device__ void keep_states() {
    A* const state = states_.between;
    for (std::int64_t t = 0; t < r_.length; ++t) {
      const Token<T> token(r_, row_, head_, t, decays_);
      for (std::int64_t v = threadIdx.x; v < r_.values; v += threads) {
        if (r_.starts_document(row_, t)) start_column(r_, row_, head_, t, v, state);
        if (t % chunk_tokens == 0)
          for (std::int64_t c = 0; c < r_.keys; ++c)
            states_.kept[(t / chunk_tokens * r_.keys + c) * r_.values + v] = state[c * r_.values + v];
        advance_column(token, v, state, state);
      }
    }
  }

  __device__ void advance_column(const Token<T>& token, std::int64_t v, const A* from, A* to) const {
    const A written = token.rate * token.residual(r_, from, decays_, v);
    for (std::int64_t c = 0; c < r_.keys; ++c)
      to[c * r_.values + v] = decays_[c] * from[c * r_.values + v] + to_accumulated(token.key[c]) * written;
  }

  // The state in front of token t > begin from that in front of token t - 1; the chunk's first is copied.
  __device__ void state_in_front(std::int64_t t, std::int64_t begin, const A* from, A* to) {
    if (t == begin) {
      for (std::int64_t v = threadIdx.x; v < r_.values; v += threads)
        for (std::int64_t c = 0; c < r_.keys; ++c) to[c * r_.values + v] = from[c * r_.values + v];
      return;
    }
    const Token<T> token(r_, row_, head_, t - 1, decays_);
    for (std::int64_t v = threadIdx.x; v < r_.values; v += threads) {
      if (r_.starts_document(row_, t))
        start_column(r_, row_, head_, t, v, to);
      else
        advance_column(token, v, from, to);
    }
  }

  // The gradients of token t. `state` lies in front of it; the adjoint belongs to `state` afterwards.
  __device__ void differentiate(std::int64_t t, const A* state) {
    const Token<T> token(r_, row_, head_, t, decays_);
    const T* const d_output = g_.d_output.data == nullptr ? nullptr : g_.d_output.at(row_, t, head_);
    for (std::int64_t v = threadIdx.x; v < r_.values; v += threads) differentiate_column(token, t, v, d_output, state);
    __syncthreads();
    for (std::int64_t c = threadIdx.x / lanes_of_warp; c < r_.keys; c += warps)
      differentiate_channel(token, t, c, d_output, state);
    if (g_.d_query.data == nullptr) return;
    const int lane = threadIdx.x % lanes_of_warp;
    if (threadIdx.x < lanes_of_warp && g_.d_beta != nullptr) {
      A sum = 0;
      for (std::int64_t v = lane; v < r_.values; v += lanes_of_warp) sum += d_written_[v] * residual_[v];
      sum = sum_of_lanes(sum);
      if (lane == 0) store(g_.d_beta + (row_ * r_.length + t) * r_.heads + head_, sum);
    }
    if (r_.per_channel) return;
    __syncthreads();
    if (threadIdx.x >= lanes_of_warp) return;
    A sum = 0;
    for (std::int64_t c = lane; c < r_.keys; c += lanes_of_warp) sum += d_decays_[c];
    sum = sum_of_lanes(sum);
    if (lane == 0) store(g_.d_log_decay + (row_ * r_.length + t) * r_.heads + head_, sum);
  }

  __device__ void store(A* to, A value) const { *to = value + (g_.accumulates ? *to : A(0)); }
  __device__ A gradient(const T* d_output, std::int64_t v) const {
    return d_output == nullptr ? A(0) : r_.scale * to_accumulated(d_output[v]);
  }

  __device__ void differentiate_column(const Token<T>& token, std::int64_t t, std::int64_t v, const T* d_output,
                                       const A* state) {
    const bool last = t + 1 == r_.length, ends = last || r_.starts_document(row_, t + 1);
    const A d_out = gradient(d_output, v);
    A d_written = 0, d_value = 0;
    for (std::int64_t c = 0; c < r_.keys; ++c) {
      const A key = to_accumulated(token.key[c]), query = to_accumulated(token.query[c]);
      A d = states_.adjoint[c * r_.values + v];
      if (ends) d = last && g_.d_final_state.data != nullptr ? g_.d_final_state.at(row_, head_, c)[v] : A(0);
      if (token.bonus == nullptr)
        d += query * d_out;
      else
        d_value += query * token.bonus[c] * key * d_out;
      states_.adjoint[c * r_.values + v] = d;
      d_written += key * d;
    }
    residual_[v] = token.residual(r_, state, decays_, v);
    d_written_[v] = d_written;
    if (g_.d_value.data == nullptr) return;
    T* const to = g_.d_value.at(row_, t, head_) + v;
    *to = round_to<T>(token.rate * d_written + d_value + (g_.accumulates ? to_accumulated(*to) : A(0)));
  }

  // A warp's channel, over all columns.
  __device__ void differentiate_channel(const Token<T>& token, std::int64_t t, std::int64_t c, const T* d_output,
                                        const A* state) {
    const int lane = threadIdx.x % lanes_of_warp;
    const A key = to_accumulated(token.key[c]), query = to_accumulated(token.query[c]), decay = decays_[c];
    const A bonus = token.bonus == nullptr ? A(0) : token.bonus[c];
    A d_query = 0, d_key = 0, d_decay = 0, d_bonus = 0;
    for (std::int64_t v = lane; v < r_.values; v += lanes_of_warp) {
      const std::int64_t at = c * r_.values + v;
      const A before = state[at], middle = decay * before, written = token.rate * residual_[v], d = states_.adjoint[at];
      const A d_out = gradient(d_output, v), value = token.value_of(r_, v);
      const A d_residual = r_.beta == nullptr ? A(0) : token.rate * d_written_[v];
      const A d_middle = d - key * d_residual;
      d_query += (token.bonus == nullptr ? middle + key * written : before + bonus * key * value) * d_out;
      d_key += d * written - middle * d_residual + query * bonus * value * d_out;
      d_decay += middle * d_middle;
      d_bonus += query * key * value * d_out;
      states_.adjoint[at] = decay * d_middle + (token.bonus == nullptr ? A(0) : query * d_out);
    }
    if (g_.d_query.data == nullptr) return;
    d_query = sum_of_lanes(d_query), d_key = sum_of_lanes(d_key), d_decay = sum_of_lanes(d_decay);
    d_bonus = sum_of_lanes(d_bonus);
    if (lane > 0) return;
    store_shared(g_.d_query, g_.query_sums, t, c, d_query);
    store_shared(g_.d_key, g_.key_sums, t, c, d_key);
    if (r_.per_channel)
      store(g_.d_log_decay + ((row_ * r_.length + t) * r_.heads + head_) * r_.keys + c, d_decay);
    else
      d_decays_[c] = d_decay;
    if (token.bonus == nullptr) return;
    A* const share = g_.bonus_shares + (row_ * r_.heads + head_) * r_.keys + c;
    *share = d_bonus + (t + 1 == r_.length ? A(0) : *share);
  }

  // Heads of values that share a head of keys are summed before the sum is rounded.
  __device__ void store_shared(const Heads<T>& to, A* sums, std::int64_t t, std::int64_t c, A value) const {
    const std::int64_t group = r_.heads / r_.key_heads, member = head_ % group, key_head = head_ / group;
    if (sums != nullptr) {
      A* const sum = sums + ((row_ * r_.length + t) * r_.key_heads + key_head) * r_.keys + c;
      value += member > 0 ? *sum : A(0);
      *sum = value;
      if (member + 1 < group) return;
    }
    T* const at = to.at(row_, t, key_head) + c;
    *at = round_to<T>(value + (g_.accumulates ? to_accumulated(*at) : A(0)));
  }

  const Recurrence<T>& r_;
  const Gradients<T>& g_;
  const BlockStates<A>& states_;
  A *decays_, *residual_, *d_written_, *d_decays_;  // [keys], [values], [values], [keys] of shared memory
  std::int64_t row_, head_;
};

// A block for each head of keys.
template <class T>
__global__ void __launch_bounds__(threads)
    backward_kernel(const Recurrence<T> r, const Gradients<T> g, Accumulated<T>* scratch, std::int64_t of_block) {
  using A = Accumulated<T>;
  extern __shared__ unsigned char shared[];
  const std::int64_t size = r.keys * r.values, chunks = (r.length + chunk_tokens - 1) / chunk_tokens;
  A* const own = scratch + blockIdx.x * of_block;
  const BlockStates<A> states{own, own + chunks * size, own + (chunks + chunk_tokens) * size};
  const std::int64_t row = blockIdx.x / r.key_heads, group = r.heads / r.key_heads;
  const std::int64_t first = blockIdx.x % r.key_heads * group;
  for (std::int64_t head = first; head < first + group; ++head) {
    HeadBackward<T>(r, g, states, reinterpret_cast<A*>(shared), row, head).run();
    __syncthreads();
  }
}

template <class A>
__global__ void add_shares_kernel(const A* shares, std::int64_t batch, std::int64_t elements, A* total) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (at >= elements) return;
  A sum = total[at];
  for (std::int64_t row = 0; row < batch; ++row) sum += shares[row * elements + at];
  total[at] = sum;
}

// A block for each head of one row, a thread for each column of the state.
template <class A>
__global__ void __launch_bounds__(threads)
    combine_kernel(const A* summaries, const std::int64_t* bounds, const std::int64_t* reach, int slices, int slice,
                   bool before, std::int64_t heads, std::int64_t keys, std::int64_t values, std::int64_t columns,
                   A* spare, A* out) {
  const std::int64_t elements = keys * columns, block = blockIdx.x;
  const auto summary = [&](int i) { return summaries + (static_cast<std::int64_t>(i) * gridDim.x + block) * elements; };
  const A* const own = summary(slice);
  A* const to = out + block * elements;
  for (std::int64_t v = threadIdx.x; v < columns; v += threads) {
    if (v >= values) {
      for (std::int64_t c = 0; c < keys; ++c) to[c * columns + v] = own[c * columns + v];
      continue;
    }
    A *state = to, *next = spare + block * elements;
    for (std::int64_t c = 0; c < keys; ++c) state[c * columns + v] = A(0);
    for (int i = before ? 0 : slices - 1; i != slice; i += before ? 1 : -1) {
      const std::int64_t distance = before ? bounds[slice] - bounds[i + 1] : bounds[i] - bounds[slice + 1];
      if (distance >= reach[block / heads]) continue;
      const A* const of = summary(i);
      for (std::int64_t c = 0; c < keys; ++c) {
        A sum = of[c * columns + v];
        if (columns == values + 1) {
          sum += of[c * columns + values] * state[c * columns + v];
        } else {
          for (std::int64_t k = 0; k < keys; ++k)
            sum += (before ? of[c * columns + values + k] : of[k * columns + values + c]) * state[k * columns + v];
        }
        next[c * columns + v] = sum;
      }
      A* const was = state;
      state = next, next = was;
    }
    if (state != to)
      for (std::int64_t c = 0; c < keys; ++c) to[c * columns + v] = state[c * columns + v];
  }
}

template <class T>
Recurrence<T> recurrence_of(const GatedRecurrenceInputs& inputs, std::int64_t transition_columns) {
  using A = Accumulated<T>;
  Recurrence<T> r{};
  r.query = heads_of<const T>(inputs.query), r.key = heads_of<const T>(inputs.key);
  r.value = heads_of<const T>(inputs.value), r.initial_state = heads_of<const A>(inputs.initial_state);
  r.log_decay = pointer_to<const A>(inputs.log_decay);
  r.beta = inputs.beta ? pointer_to<const A>(inputs.beta) : nullptr;
  r.bonus = inputs.bonus ? pointer_to<const A>(inputs.bonus) : nullptr;
  r.scale = static_cast<A>(inputs.scale);
  r.batch = inputs.key.size(0), r.length = inputs.key.size(1), r.key_heads = inputs.key.size(2);
  r.heads = inputs.log_decay.size(2), r.keys = inputs.key.size(3);
  r.values = inputs.value ? inputs.value.size(3) : inputs.initial_state.size(3);
  r.columns = r.values + transition_columns;
  r.per_channel = inputs.per_channel();
  return r;
}

// int64 [batch * length], or null where rows are documents.
Tensor take_document_begins(const Execution& execution, const GatedRecurrenceInputs& inputs) {
  if (inputs.segments.is_null() && !execution.plans()) return {};
  return execution.scratch->take(DType::int64, {inputs.key.size(0), inputs.key.size(1)});
}

void check_shared_memory(std::int64_t bytes, std::int64_t keys, std::int64_t values) {
  FULMEN_CHECK(bytes <= most_shared_bytes, "keys of width {} and values of width {} take {} bytes of shared memory",
               keys, values, bytes);
}

template <class T>
void run_forward(const Execution& execution, Recurrence<T> r, const GatedRecurrenceInputs& inputs,
                 const GatedRecurrenceOutputs& outputs) {
  using A = Accumulated<T>;
  Arena::Frame frame(*execution.scratch);
  const Tensor begins = take_document_begins(execution, inputs);
  const Tensor states =
      execution.scratch->take(accumulation_dtype(inputs.key.dtype()), {r.batch * r.heads, r.keys, r.columns});
  if (execution.plans()) return;
  if (begins) {
    document_begins(execution, inputs.segments, r.batch, r.length, pointer_to<std::int64_t>(begins));
    r.document_begins = pointer_to<std::int64_t>(begins);
  }
  const std::int64_t bytes = r.keys * static_cast<std::int64_t>(sizeof(A));
  check_shared_memory(bytes, r.keys, r.values);
  forward_kernel<T>
      <<<static_cast<unsigned>(r.batch * r.heads), threads, static_cast<std::size_t>(bytes), stream_of(execution)>>>(
          r, heads_of<T>(outputs.output), heads_of<A>(outputs.final_state), outputs.accumulates, pointer_to<A>(states));
  FULMEN_CUDA_CHECK_LAUNCH();
}

template <class T>
Gradients<T> gradients_of(const GatedRecurrenceGradients& gradients) {
  using A = Accumulated<T>;
  Gradients<T> g{};
  g.d_output = heads_of<const T>(gradients.d_output), g.d_final_state = heads_of<const A>(gradients.d_final_state);
  g.d_query = heads_of<T>(gradients.d_query), g.d_key = heads_of<T>(gradients.d_key);
  g.d_value = heads_of<T>(gradients.d_value), g.d_initial_state = heads_of<A>(gradients.d_initial_state);
  g.d_log_decay = gradients.d_log_decay ? pointer_to<A>(gradients.d_log_decay) : nullptr;
  g.d_beta = gradients.d_beta ? pointer_to<A>(gradients.d_beta) : nullptr;
  g.accumulates = gradients.accumulates;
  return g;
}

template <class T>
void run_backward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                  const GatedRecurrenceGradients& gradients) {
  using A = Accumulated<T>;
  Recurrence<T> r = recurrence_of<T>(inputs, 0);
  Gradients<T> g = gradients_of<T>(gradients);
  const DType wide = accumulation_dtype(inputs.key.dtype());
  Arena::Frame frame(*execution.scratch);
  const auto take = [&](const Shape& shape) { return execution.scratch->take(wide, shape); };
  const Tensor begins = take_document_begins(execution, inputs);
  const std::int64_t chunks = divide_up(r.length, chunk_tokens), blocks = r.batch * r.key_heads;
  const std::int64_t of_block = (chunks + chunk_tokens + 1) * r.keys * r.values;
  const Tensor states = take({blocks, of_block});
  const Tensor shares = r.bonus != nullptr ? take({r.batch, r.heads, r.keys}) : Tensor();
  const bool sums = r.group() > 1;
  const Tensor query_sums = sums ? take(inputs.key.shape()) : Tensor();
  const Tensor key_sums = sums ? take(inputs.key.shape()) : Tensor();
  if (execution.plans()) return;
  if (begins) {
    document_begins(execution, inputs.segments, r.batch, r.length, pointer_to<std::int64_t>(begins));
    r.document_begins = pointer_to<std::int64_t>(begins);
  }
  g.bonus_shares = shares ? pointer_to<A>(shares) : nullptr;
  g.query_sums = sums ? pointer_to<A>(query_sums) : nullptr, g.key_sums = sums ? pointer_to<A>(key_sums) : nullptr;
  const std::int64_t bytes = 2 * (r.keys + r.values) * static_cast<std::int64_t>(sizeof(A));
  check_shared_memory(bytes, r.keys, r.values);
  backward_kernel<T><<<static_cast<unsigned>(blocks), threads, static_cast<std::size_t>(bytes), stream_of(execution)>>>(
      r, g, pointer_to<A>(states), of_block);
  FULMEN_CUDA_CHECK_LAUNCH();
  if (shares.is_null() || gradients.d_query.is_null()) return;
  const std::int64_t elements = r.heads * r.keys;
  add_shares_kernel<A><<<static_cast<unsigned>(divide_up(elements, threads)), threads, 0, stream_of(execution)>>>(
      pointer_to<A>(shares), r.batch, elements, pointer_to<A>(gradients.d_bonus));
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace

void gated_recurrence_forward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                              const GatedRecurrenceOutputs& outputs) {
  dispatch_floating(inputs.key.dtype(),
                    [&]<class T>(T) { run_forward(execution, recurrence_of<T>(inputs, 0), inputs, outputs); });
}

void gated_recurrence_backward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                               const GatedRecurrenceGradients& gradients) {
  dispatch_floating(inputs.key.dtype(), [&]<class T>(T) { run_backward<T>(execution, inputs, gradients); });
}

void gated_recurrence_summary(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& summary) {
  GatedRecurrenceInputs own = inputs;
  own.query = Tensor(), own.bonus = Tensor(), own.initial_state = Tensor();
  dispatch_floating(inputs.key.dtype(), [&]<class T>(T) {
    run_forward(execution, recurrence_of<T>(own, gated_recurrence_transition_columns(inputs)), own, {{}, summary});
  });
}

void gated_recurrence_step(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& state,
                           const Tensor& output) {
  GatedRecurrenceInputs token = inputs;
  token.initial_state = state;  // read before it is written
  cuda::gated_recurrence_forward(execution, token, {output, state});
}

void combine_gated_slices(const Execution& execution, const GatedSlices& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out) {
  Arena::Frame frame(*execution.scratch);
  const Tensor spare = execution.scratch->take(out.dtype(), out.shape());
  if (execution.plans()) return;
  dispatch_floating(out.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    combine_kernel<A><<<static_cast<unsigned>(out.size(0) * out.size(1)), threads, 0, stream_of(execution)>>>(
        pointer_to<const A>(slices.summaries), pointer_to<const std::int64_t>(slices.bounds),
        pointer_to<const std::int64_t>(reach), static_cast<int>(slices.summaries.size(0)), slices.slice,
        side == SliceSide::before, out.size(1), out.size(2), slices.value_width, out.size(3), pointer_to<A>(spare),
        pointer_to<A>(out));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace fulmen::cuda
