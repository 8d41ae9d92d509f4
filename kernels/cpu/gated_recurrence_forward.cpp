// Gated recurrences in chunk form, forward, and the summaries of slices. Per head: from left to right, chunk by chunk.
#include <algorithm>
#include <cstring>

#include <omp.h>

#include "kernels/cpu/gated_recurrence_chunk.h"
#include "kernels/cpu/parallel.h"

namespace fulmen::cpu {
namespace {

template <class T>
struct Workspace {
  Workspace(const GatedShape& shape, void* memory) : carver(memory), chunk(shape, carver) {
    state = carver.take(shape.state_elements());
    output = carver.take(chunk_tokens * shape.column_stride);
    bytes = carver.bytes();
  }

  Carver<T> carver;
  GatedChunk<T> chunk;
  T *state, *output;
  std::int64_t bytes;
};

template <class T>
void store_output(const GatedShape& shape, const GatedRecurrenceOutputs& outputs, const Workspace<T>& work,
                  const Chunk& chunk) {
  const HeadRows<T> rows(outputs.output, work.chunk.row, work.chunk.head);
  for (std::int64_t i = 0; i < chunk.length; ++i) {
    const T* const from = work.output + i * shape.column_stride;
    T* const to = rows.at(chunk.begin + i);
    for (std::int64_t v = 0; v < shape.value_width; ++v) to[v] = outputs.accumulates ? to[v] + from[v] : from[v];
  }
}

template <class T>
void run_head(const GatedShape& shape, const GatedRecurrenceInputs& inputs, const GatedRecurrenceOutputs& outputs,
              Workspace<T>& work, const std::vector<Chunk>& chunks) {
  const std::int64_t row = work.chunk.row, head = work.chunk.head;
  for (const Chunk& chunk : chunks) {
    if (chunk.starts_segment)
      load_state(shape, chunk.begin == 0 ? inputs.initial_state : Tensor(), row, head, work.state);
    work.chunk.load_keys(chunk);
    work.chunk.load_values(chunk);
    work.chunk.write(work.state);
    if (outputs.output) {
      work.chunk.load_queries(chunk);
      work.chunk.score();
      work.chunk.read(work.state, work.output);
      store_output(shape, outputs, work, chunk);
    }
    if (!chunk.ends_segment || (outputs.final_state && &chunk == &chunks.back())) work.chunk.advance(work.state);
  }
  if (outputs.final_state) store_state(shape, work.state, outputs.final_state, row, head);
}

void run(const Execution& execution, const GatedShape& shape, const GatedRecurrenceInputs& inputs,
         const GatedRecurrenceOutputs& outputs) {
  const auto chunks = cut_into_chunks(inputs.segments, shape.batch, shape.length);
  const std::int64_t tasks = shape.batch * shape.heads;
  const int threads = gated_recurrence_threads(shape);
  dispatch_fp32_fp64(inputs.key.dtype(), [&]<class T>(T) {
    const std::int64_t bytes = Workspace<T>(shape, nullptr).bytes;
    Arena::Frame frame(*execution.scratch);
    auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
#pragma omp parallel num_threads(threads)
    {
      // The padding of every matrix must be finite, values that are not given zero.
      std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
      std::memset(own, 0, bytes);
      Workspace<T> work(shape, own);
#pragma omp for schedule(dynamic)
      for (std::int64_t task = 0; task < tasks; ++task) {
        work.chunk.select(inputs, task / shape.heads, task % shape.heads);
        run_head(shape, inputs, outputs, work, chunks[task / shape.heads]);
      }
    }
  });
}

}  // namespace

void gated_recurrence_forward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                              const GatedRecurrenceOutputs& outputs) {
  run(execution, GatedShape(inputs), inputs, outputs);
}

void gated_recurrence_summary(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& summary) {
  GatedRecurrenceInputs from_zero = inputs;
  from_zero.initial_state = Tensor();
  run(execution, GatedShape(inputs, gated_recurrence_transition_columns(inputs)), from_zero, {{}, summary});
}

}  // namespace fulmen::cpu
