// Linear attention over shapes, against its traffic.
#include "launch/bench_attention.h"

#include <cmath>
#include <string_view>

#include "kernels/dispatch.h"
#include "kernels/linear_attention_states.h"
#include "model/mixers/decay_slopes.h"

namespace fulmen {

namespace {

constexpr std::int64_t width = 128;

// batch, heads, length, widths. On the CPU a few that end within seconds. The last is a layer of retention.
std::vector<AttentionShape> training_shapes(bool on_gpu) {
  if (!on_gpu) return {{4, 8, 512, width}, {1, 8, 4096, width}, {1, 2, 512, 2 * width, 4 * width}};
  return {{4, 32, 4096, width},
          {4, 32, 32768, width},
          {8, 16, 2048, width},
          {1, 16, 131072, width},
          {8, 8, 2048, 2 * width, 4 * width}};
}

std::vector<AttentionShape> decoding_shapes(bool on_gpu) {
  if (!on_gpu) return {{4, 8, 1, width}};
  return {{64, 16, 1, width}, {512, 16, 1, width}};
}

// Columns of rows, from `begin` on, as [batch, length, heads, width].
Tensor heads_of(const Tensor& rows, std::int64_t begin, const AttentionShape& shape, std::int64_t width_of_head) {
  return rows.slice(1, begin, begin + shape.heads * width_of_head)
      .split_dimension(0, shape.length)
      .split_dimension(2, width_of_head);
}

// A tensor like the output, alone.
Tensor random_values(BenchTensors& tensors, const AttentionShape& shape, DType dtype) {
  return heads_of(tensors.random(dtype, {shape.batch * shape.length, shape.heads * shape.value_width}), 0, shape,
                  shape.value_width);
}

std::int64_t columns_of_projection(const AttentionShape& shape) {
  return 2 * shape.heads * (shape.width + shape.value_width);
}

LinearAttentionInputs make_inputs(BenchTensors& tensors, const AttentionShape& shape, DType dtype) {
  const Tensor projection = tensors.random(dtype, {shape.batch * shape.length, columns_of_projection(shape)});
  const std::int64_t keys = shape.heads * shape.width;
  LinearAttentionInputs inputs;
  inputs.query = heads_of(projection, 0, shape, shape.width);
  inputs.key = heads_of(projection, keys, shape, shape.width);
  inputs.value = heads_of(projection, 2 * keys, shape, shape.value_width);
  inputs.slope = tensors.holding<double>({shape.heads}, decay_slopes(shape.heads, 0, 2));
  std::vector<std::int64_t> starts;
  for (std::int64_t row = 0; row <= shape.batch; ++row) starts.push_back(row * shape.length);
  inputs.segments = tensors.holding<std::int64_t>({shape.batch + 1}, starts);
  return inputs;
}

std::string name_of(const AttentionShape& shape, const char* pass, const char* variant) {
  const std::string widths =
      shape.value_width == shape.width ? "" : fmt::format(" x {}/{}", shape.width, shape.value_width);
  return fmt::format("{} x {} x {}{} {} {}", shape.batch, shape.heads, shape.length, widths, pass, variant);
}

// The layer whose queries and keys are turned.
void add_lrpe(BenchTensors& tensors, const AttentionShape& shape, AttentionProblem& problem) {
  std::vector<double> theta;
  for (std::int64_t i = 0; i < shape.heads * shape.width; ++i)
    theta.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(shape.heads * shape.width)));
  std::vector<std::int64_t> positions(static_cast<std::size_t>(shape.batch * shape.length));
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i) % shape.length;
  problem.inputs.theta = tensors.holding<double>({shape.heads, shape.width}, theta);
  problem.inputs.positions = tensors.holding<std::int64_t>({shape.batch, shape.length}, positions);
  problem.gradients.d_theta =
      tensors.holding<double>({shape.heads, shape.width}, std::vector<double>(theta.size(), 0.0));
}

}  // namespace

void keep_piece_states(BenchTensors& tensors, const Execution& execution, AttentionProblem& problem) {
  const std::int64_t elements = linear_attention_piece_elements(execution, size_of(problem.inputs));
  Tensor states;
  if (elements > 0) states = tensors.random(accumulation_dtype(problem.inputs.key.dtype()), {elements});
  problem.outputs.piece_states = problem.inputs.piece_states = states;
}

AttentionProblem make_attention(BenchTensors& tensors, const AttentionShape& shape, DType dtype) {
  const std::int64_t tokens = shape.batch * shape.length, keys = shape.heads * shape.width;
  AttentionProblem problem;
  problem.inputs = make_inputs(tensors, shape, dtype);
  problem.outputs.output = random_values(tensors, shape, dtype);
  if (shape.value_width == shape.width)  // the norm behind retention sums its own squares
    problem.outputs.square_sums = tensors.allocate(accumulation_dtype(dtype), {tokens, shape.heads});
  problem.gradients.d_output = random_values(tensors, shape, dtype);
  const Tensor d_projection = tensors.allocate(dtype, {tokens, columns_of_projection(shape)});
  problem.gradients.d_query = heads_of(d_projection, 0, shape, shape.width);
  problem.gradients.d_key = heads_of(d_projection, keys, shape, shape.width);
  problem.gradients.d_value = heads_of(d_projection, 2 * keys, shape, shape.value_width);
  return problem;
}

std::vector<BenchRow> measure_attention(const Execution& execution, DType dtype, double copy_bytes_per_second,
                                        double seconds_each, const std::string& filter) {
  const bool on_gpu = execution.device.kind == DeviceKind::cuda;
  KernelTimer timer(execution, seconds_each);
  BenchTensors tensors(execution);
  std::vector<BenchRow> rows;
  const auto measure = [&](const std::string& name, double bytes, const std::function<void()>& work) {
    if (name.find(filter) == std::string::npos) return;
    BenchRow row = timer.time(name, work);
    row.bytes = bytes;
    row.floor_seconds = bytes / copy_bytes_per_second;
    rows.push_back(row);
  };
  for (const AttentionShape& shape : training_shapes(on_gpu)) {
    AttentionProblem problem = make_attention(tensors, shape, dtype);
    const LinearAttentionInputs& in = problem.inputs;
    const LinearAttentionGradients& out = problem.gradients;
    for (const char* const variant : {"none", "silu", "lrpe"}) {
      const std::string_view name = variant;
      if (name != "none" && shape.value_width != shape.width) continue;
      problem.inputs.query_key_activation = name == "none" ? Activation::none : Activation::silu;
      if (name == "lrpe") add_lrpe(tensors, shape, problem);  // with SiLU, as models have it
      keep_piece_states(tensors, execution, problem);
      measure(name_of(shape, "forward", variant), traffic({in.query, in.key, in.value, problem.outputs.output}),
              [&] { linear_attention_forward(execution, in, problem.outputs); });
      measure(name_of(shape, "backward", variant),
              traffic({in.query, in.key, in.value, out.d_output, out.d_query, out.d_key, out.d_value}),
              [&] { linear_attention_backward(execution, in, out); });
      const Tensor state = tensors.allocate(
          accumulation_dtype(dtype),
          {shape.batch, shape.heads, name == "lrpe" ? 2 * shape.width : shape.width, shape.value_width});
      measure(name_of(shape, "states", variant), traffic({in.key, in.value, state}),
              [&] { linear_attention_final_state(execution, in, state); });
    }
    tensors.clear();
  }
  for (const AttentionShape& shape : decoding_shapes(on_gpu)) {
    LinearAttentionInputs inputs = make_inputs(tensors, shape, dtype);
    inputs.segments = Tensor();
    const Tensor state =
        tensors.random(accumulation_dtype(dtype), {shape.batch, shape.heads, shape.width, shape.value_width});
    const LinearAttentionOutputs outputs{random_values(tensors, shape, dtype),
                                         tensors.allocate(accumulation_dtype(dtype), {shape.batch, shape.heads}),
                                         Tensor()};
    measure(name_of(shape, "step", "silu"),
            traffic({state, state, inputs.query, inputs.key, inputs.value, outputs.output}),
            [&] { linear_attention_step(execution, inputs, state, outputs); });
    tensors.clear();
  }
  return rows;
}

}  // namespace fulmen
