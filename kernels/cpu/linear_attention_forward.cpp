// Chunked linear attention, forward (Lightning Attention-2, arXiv 2401.04658, algorithm 1). Threads share out the heads
// of all rows; each walks its head's chunks from left to right with the state in the cache.
#include <algorithm>
#include <cstring>

#include <omp.h>

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/cpu/vectorize.h"
#include "kernels/linear_attention.h"

namespace fulmen::cpu {
namespace {

// Copies rows to strided memory; square_sums [rows], where asked for, gets each row's sum of squares.
template <class T>
FULMEN_VECTORIZED void store_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, T* to,
                                  std::int64_t to_stride, T* square_sums, std::int64_t square_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (std::int64_t j = 0; j < width; ++j) {
      to[j] = from[j];
      squares += from[j] * from[j];
    }
    if (square_sums != nullptr) square_sums[i * square_stride] = squares;
    from += from_stride, to += to_stride;
  }
}

template <class T>
struct Workspace {
  Workspace(const AttentionShape& shape, bool lrpe, void* memory) {
    Carver<T> carver(memory);
    query = carver.take(chunk_tokens * shape.key_stride);
    key = carver.take(chunk_tokens * shape.key_stride);
    key_transposed = carver.take(shape.state_width * chunk_tokens);
    value = carver.take(chunk_tokens * shape.value_stride);
    scores = carver.take(chunk_tokens * chunk_tokens);
    output = carver.take(chunk_tokens * shape.value_stride);
    state = carver.take(shape.state_width * shape.value_stride);
    decays = carver.take(DecayTable<T>::elements());
    if (lrpe) {
      activated = carver.take(chunk_tokens * shape.key_width);
      tables.angles = carver.template take<double>(chunk_tokens * shape.key_width);
      tables.cosines = carver.take(chunk_tokens * shape.key_width);
      tables.sines = carver.take(chunk_tokens * shape.key_width);
    }
    bytes = carver.bytes();
  }

  T *query, *key, *key_transposed, *value, *scores, *output, *state, *decays;
  T* activated = nullptr;  // a query or key before LRPE doubles it
  LrpeScratch<T> tables;
  std::int64_t bytes;
};

// One head of one row.
template <class T>
class HeadForward {
 public:
  HeadForward(const AttentionShape& shape, const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs,
              const Workspace<T>& work, std::int64_t row, std::int64_t head)
      : shape_(shape),
        inputs_(inputs),
        outputs_(outputs),
        work_(work),
        row_(row),
        head_(head),
        decay_(work.decays, inputs.slope.as<double>()[head]),
        query_(inputs.query, row, head),
        key_(inputs.key, row, head),
        value_(inputs.value, row, head),
        output_(outputs.output, row, head) {}

  void run(const std::vector<Chunk>& chunks) {
    for (const Chunk& chunk : chunks) {
      if (chunk.starts_segment) start_state(chunk.begin == 0);
      load(chunk);
      attend(chunk);
      store(chunk);
      const bool last = &chunk == &chunks.back();
      if (!chunk.ends_segment || (last && outputs_.final_state)) advance_state(chunk);
    }
    if (outputs_.final_state) store_state();
  }

 private:
  std::int64_t state_offset() const { return (row_ * shape_.heads + head_) * shape_.state_width * shape_.value_width; }

  void start_state(bool row_begins) {
    has_state_ = row_begins && inputs_.initial_state;
    if (!has_state_) return;
    load_rows(Activation::none, inputs_.initial_state.as<T>() + state_offset(), shape_.value_width, shape_.state_width,
              shape_.value_width, work_.state, static_cast<T*>(nullptr), shape_.value_stride);
  }

  void store_state() {
    store_rows(work_.state, shape_.value_stride, shape_.state_width, shape_.value_width,
               outputs_.final_state.as<T>() + state_offset(), shape_.value_width, static_cast<T*>(nullptr), 0);
  }

  void load(const Chunk& chunk) {
    if (inputs_.theta) {
      const Tensor& positions = inputs_.positions;
      lrpe_tables(positions.as<std::int64_t>() + row_ * positions.stride(0) + chunk.begin * positions.stride(1),
                  positions.stride(1), inputs_.theta.as<double>() + head_ * shape_.key_width, chunk.length,
                  shape_.key_width, work_.tables.angles, work_.tables.cosines, work_.tables.sines);
    }
    load_key_like(query_, chunk, work_.query);
    load_key_like(key_, chunk, work_.key);
    transpose(work_.key, shape_.key_stride, chunk.length, shape_.state_width, work_.key_transposed, chunk_tokens);
    load_rows(inputs_.value_activation, value_.at(chunk.begin), value_.stride, chunk.length, shape_.value_width,
              work_.value, static_cast<T*>(nullptr), shape_.value_stride);
  }

  void load_key_like(const HeadRows<T>& rows, const Chunk& chunk, T* to) {
    const bool lrpe = static_cast<bool>(inputs_.theta);
    load_rows(inputs_.query_key_activation, rows.at(chunk.begin), rows.stride, chunk.length, shape_.key_width,
              lrpe ? work_.activated : to, static_cast<T*>(nullptr), lrpe ? shape_.key_width : shape_.key_stride);
    if (lrpe)
      lrpe_expand(work_.activated, shape_.key_width, work_.tables.cosines, work_.tables.sines, chunk.length,
                  shape_.key_width, to, shape_.key_stride);
  }

  // O = diag(decay^1 ... decay^m) Q S + ((Q K^T) .* M) V
  void attend(const Chunk& chunk) {
    multiply(SmallProduct<T>{
        .rows = chunk.length,
        .columns = padded_columns<T>(chunk.length),
        .plain = {work_.query, shape_.key_stride, 1, work_.key_transposed, chunk_tokens, shape_.state_width},
        .mask = decay_.causal(),
        .c = work_.scores,
        .c_row_stride = chunk_tokens});
    multiply(SmallProduct<T>{.rows = chunk.length,
                             .columns = shape_.value_stride,
                             .scaled = {work_.query, shape_.key_stride, 1, work_.state, shape_.value_stride,
                                        has_state_ ? shape_.state_width : 0},
                             .row_scale = decay_.from_start(),
                             .plain = {work_.scores, chunk_tokens, 1, work_.value, shape_.value_stride, chunk.length},
                             .contraction = Contraction::up_to_diagonal,
                             .c = work_.output,
                             .c_row_stride = shape_.value_stride});
  }

  void store(const Chunk& chunk) {
    T* squares = nullptr;
    if (outputs_.square_sums)
      squares = outputs_.square_sums.as<T>() + (row_ * shape_.length + chunk.begin) * shape_.heads + head_;
    store_rows(work_.output, shape_.value_stride, chunk.length, shape_.value_width, output_.at(chunk.begin),
               output_.stride, squares, shape_.heads);
  }

  // S = decay^m S + (diag(decay^(m-1) ... decay^0) K)^T V
  void advance_state(const Chunk& chunk) {
    scale_rows(work_.key, shape_.key_stride, chunk.length, shape_.state_width, decay_.to_end(chunk.length));
    multiply(SmallProduct<T>{.rows = shape_.state_width,
                             .columns = shape_.value_stride,
                             .plain = {work_.key, 1, shape_.key_stride, work_.value, shape_.value_stride, chunk.length},
                             .carry = has_state_ ? work_.state : nullptr,
                             .carry_row_stride = shape_.value_stride,
                             .carry_scale = decay_.power(chunk.length),
                             .c = work_.state,
                             .c_row_stride = shape_.value_stride});
    has_state_ = true;
  }

  const AttentionShape& shape_;
  const LinearAttentionInputs& inputs_;
  const LinearAttentionOutputs& outputs_;
  const Workspace<T>& work_;
  std::int64_t row_, head_;
  DecayTable<T> decay_;
  HeadRows<T> query_, key_, value_, output_;
  bool has_state_ = false;
};

}  // namespace

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs) {
  const AttentionShape shape(inputs);
  const auto chunks = cut_into_chunks(inputs.segments, shape.batch, shape.length);
  const std::int64_t tasks = shape.batch * shape.heads;
  const int threads = attention_threads(shape);
  dispatch_fp32_fp64(inputs.query.dtype(), [&]<class T>(T) {
    const bool lrpe = static_cast<bool>(inputs.theta);
    const std::int64_t bytes = Workspace<T>(shape, lrpe, nullptr).bytes;
    Arena::Frame frame(*execution.scratch);
    auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
#pragma omp parallel num_threads(threads)
    {
      // The padding of every matrix must be finite.
      std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
      std::memset(own, 0, bytes);
      const Workspace<T> work(shape, lrpe, own);
#pragma omp for schedule(dynamic)
      for (std::int64_t task = 0; task < tasks; ++task) {
        const std::int64_t row = task / shape.heads;
        HeadForward<T>(shape, inputs, outputs, work, row, task % shape.heads).run(chunks[row]);
      }
    }
  });
}

}  // namespace fulmen::cpu
