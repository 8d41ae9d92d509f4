// fulmen bench kernels: each kernel by itself against its floor.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include <nlohmann/json.hpp>

#include "framework/profiler.h"
#include "framework/random.h"
#include "framework/stable_order.h"
#include "framework/threads.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gated_linear_unit.h"
#include "kernels/gemm.h"
#include "kernels/linear_attention.h"
#include "kernels/norm.h"
#include "kernels/rotation.h"
#include "kernels/softmax_attention.h"
#include "launch/bench.h"
#include "launch/bench_attention.h"
#include "launch/bench_measure.h"
#include "launch/bench_report.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"

namespace fulmen {

namespace {

struct KernelShapes {
  std::int64_t batch, length, hidden, heads, glu, vocabulary, layers;
  std::int64_t tokens() const { return batch * length; }
  // The loss is formed on chunks of tokens, so that the logits of all of them never exist.
  std::int64_t loss_tokens() const { return std::min<std::int64_t>(tokens(), 8192); }
};

// Small on the CPU; on a GPU the sizes of the 1 B model in a micro-batch of 8 sequences.
constexpr KernelShapes cpu_shapes{4, 512, 512, 8, 1408, 8192, 8};
constexpr KernelShapes gpu_shapes{8, 2048, 2048, 16, 5632, 64000, 16};

// Tokens that are all as likely, or distributed as in text. Then the k-th most frequent has a share in proportion to 1
// / k, and neighbours in frequency lie far apart in the vocabulary.
std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocabulary, bool skewed) {
  constexpr std::int64_t spread = 1000003;                          // a prime
  std::vector<double> share(static_cast<std::size_t>(vocabulary));  // of the first k + 1
  double sum = 0.0;
  for (std::int64_t k = 0; k < vocabulary; ++k)
    share[static_cast<std::size_t>(k)] = sum += skewed ? 1.0 / static_cast<double>(k + 1) : 1.0;
  const RandomStream random(1, "bench kernels, tokens");
  std::vector<std::int32_t> tokens;
  for (std::int64_t t = 0; t < count; ++t) {
    const auto above = std::ranges::upper_bound(share, sum * random.uniform(static_cast<std::uint64_t>(t)));
    const std::int64_t k = std::min<std::int64_t>(above - share.begin(), vocabulary - 1);
    tokens.push_back(static_cast<std::int32_t>(k * spread % vocabulary));
  }
  return tokens;
}

// Runs the kernels on tensors filled with numbers of the size that training has.
class KernelBench {
 public:
  // Only the kernels whose name contains `filter`.
  KernelBench(const KernelShapes& shapes, DType dtype, const Execution& execution, double seconds_each,
              std::string filter)
      : shapes_(shapes),
        dtype_(dtype),
        execution_(execution),
        timer_(execution, seconds_each),
        tensors_(execution),
        filter_(std::move(filter)) {}

  void run_all();
  const std::vector<BenchRow>& rows() const { return rows_; }

 private:
  Tensor matrix(std::int64_t columns) { return tensors_.random(dtype_, {shapes_.tokens(), columns}); }
  Tensor statistics() { return statistics(shapes_.tokens()); }
  Tensor statistics(std::int64_t tokens) { return tensors_.random(accumulation_dtype(dtype_), {tokens}); }
  bool wanted(const std::string& name) const { return name.find(filter_) != std::string::npos; }
  void measure(const std::string& name, const std::function<void()>& work) {
    if (wanted(name)) rows_.push_back(timer_.time(name, work));
  }
  // A part's tensors are made only if any of its kernels, whose names are given, is wanted.
  void run_part(std::initializer_list<const char*> names, const std::function<void()>& part);
  void run_layer(const std::string& name, std::int64_t tokens, std::int64_t in, std::int64_t out);
  void run_attention();
  void run_softmax_attention();
  void run_norms();
  void run_gated_unit();
  void run_loss();
  void run_embedding();
  void run_flat();

  KernelShapes shapes_;
  DType dtype_;
  Execution execution_;
  KernelTimer timer_;
  BenchTensors tensors_;
  std::string filter_;
  std::vector<BenchRow> rows_;
};

void KernelBench::run_part(std::initializer_list<const char*> names, const std::function<void()>& part) {
  if (std::ranges::any_of(names, [&](const char* name) { return wanted(name); })) part();
  tensors_.clear();
}

// A linear layer of a model, or its head, which works on a chunk of tokens.
void KernelBench::run_layer(const std::string& name, std::int64_t tokens, std::int64_t in, std::int64_t out) {
  const std::string forward = name + " forward", d_input = name + " d_input", d_weights = name + " d_weight";
  run_part({forward.c_str(), d_input.c_str(), d_weights.c_str()}, [&] {
    const Tensor x = tensors_.random(dtype_, {tokens, in}), y = tensors_.random(dtype_, {tokens, out});
    const Tensor weight = tensors_.random(dtype_, {out, in});
    const Tensor d_weight = tensors_.random(accumulation_dtype(dtype_), {out, in});
    measure(forward, [&] { linear_forward(execution_, x, weight, y); });
    measure(d_input, [&] { linear_backward_input(execution_, y, weight, x); });
    measure(d_weights, [&] { linear_backward_weight(execution_, y, x, d_weight); });
  });
}

void KernelBench::run_attention() {
  AttentionProblem problem =
      make_attention(tensors_, {shapes_.batch, shapes_.heads, shapes_.length, shapes_.hidden / shapes_.heads}, dtype_);
  keep_piece_states(tensors_, execution_, problem);
  measure("linear attention forward", [&] { linear_attention_forward(execution_, problem.inputs, problem.outputs); });
  measure("linear attention backward",
          [&] { linear_attention_backward(execution_, problem.inputs, problem.gradients); });
}

// As a layer of softmax attention has it: queries, keys and values side by side in one projection. With documents, four
// of equal length a row.
void KernelBench::run_softmax_attention() {
  const std::int64_t width = shapes_.hidden / shapes_.heads;
  const Tensor projection = matrix(3 * shapes_.hidden), d_projection = matrix(3 * shapes_.hidden);
  const auto heads = [&](const Tensor& rows, int part) {
    return rows.slice(1, part * shapes_.hidden, (part + 1) * shapes_.hidden)
        .split_dimension(0, shapes_.length)
        .split_dimension(2, width);
  };
  SoftmaxAttentionInputs inputs{heads(projection, 0), heads(projection, 1), heads(projection, 2),
                                1.0 / std::sqrt(static_cast<double>(width))};
  const Tensor sums = tensors_.allocate(accumulation_dtype(dtype_), {shapes_.batch, shapes_.heads, shapes_.length});
  const SoftmaxAttentionGradients gradients{heads(matrix(shapes_.hidden), 0), sums,
                                            heads(matrix(shapes_.hidden), 0), heads(d_projection, 0),
                                            heads(d_projection, 1),           heads(d_projection, 2)};
  std::vector<std::int64_t> positions, starts;
  for (std::int64_t t = 0; t < shapes_.tokens(); ++t) {
    const std::int64_t position = t % shapes_.length, document = std::max<std::int64_t>(shapes_.length / 4, 1);
    positions.push_back(position), starts.push_back(position / document * document);
  }
  const auto forward = [&] { softmax_attention_forward(execution_, inputs, gradients.output, sums); };
  const auto backward = [&] { softmax_attention_backward(execution_, inputs, gradients); };
  measure("softmax attention forward", forward);
  measure("softmax attention backward", backward);
  inputs.first_visible = tensors_.holding<std::int64_t>({shapes_.batch, shapes_.length}, starts);
  measure("softmax attention forward, documents", forward);
  measure("softmax attention backward, documents", backward);
  if (width < 2) return;
  const Rotation rotation{width, RotationPairs::halves,
                          tensors_.holding<double>({width / 2}, rotary_frequencies(10000.0, width / 2 * 2))};
  const Tensor places = tensors_.holding<std::int64_t>({shapes_.tokens()}, positions);
  measure("rotation", [&] { rotate(execution_, rotation, places, false, projection.slice(1, 0, 2 * shapes_.hidden)); });
}

void KernelBench::run_norms() {
  const Tensor a = matrix(shapes_.hidden), b = matrix(shapes_.hidden), c = matrix(shapes_.hidden),
               d = matrix(shapes_.hidden), e = matrix(shapes_.hidden);
  const Tensor inverse_rms = statistics(), dot = statistics();
  const Tensor squares = tensors_.random(accumulation_dtype(dtype_), {shapes_.tokens(), shapes_.heads});
  measure("residual norm forward", [&] { residual_norm_forward(execution_, a, b, 1e-6, c, d, inverse_rms); });
  // As a layer runs it, what its weight gradient needs written in the gradient's place; and as the head does.
  measure("residual norm backward", [&] { residual_norm_backward(execution_, a, b, inverse_rms, c, d, a); });
  measure("residual norm backward of the head",
          [&] { residual_norm_backward(execution_, a, b, inverse_rms, {}, d, {}); });
  measure("gated norm forward", [&] {
    gated_norm_forward(execution_, a, squares, shapes_.hidden, 1e-6, b, Activation::none, c, inverse_rms);
  });
  measure("gated norm backward", [&] {
    gated_norm_backward(execution_, a, b, inverse_rms, c, Activation::none, {}, shapes_.hidden, d, e, a);
  });
  measure("gated norm backward, split", [&] {
    gated_norm_backward_dot(execution_, a, b, inverse_rms, c, Activation::none, dot);
    gated_norm_backward(execution_, a, b, inverse_rms, c, Activation::none, dot, shapes_.hidden, d, e, a);
  });
}

void KernelBench::run_gated_unit() {
  const Tensor wide = matrix(2 * shapes_.glu), product = matrix(shapes_.glu), d_wide = matrix(2 * shapes_.glu);
  const auto half = [&](const Tensor& whole, int i) { return whole.slice(1, i * shapes_.glu, (i + 1) * shapes_.glu); };
  measure("gated unit forward",
          [&] { gated_linear_unit_forward(execution_, half(wide, 0), half(wide, 1), Activation::none, product); });
  measure("gated unit backward", [&] {
    gated_linear_unit_backward(execution_, product, half(wide, 0), half(wide, 1), Activation::none, half(d_wide, 0),
                               half(d_wide, 1), product);
  });
}

void KernelBench::run_loss() {
  const std::int64_t tokens = shapes_.loss_tokens();
  const Tensor logits = tensors_.random(dtype_, {tokens, shapes_.vocabulary}), maximum = statistics(tokens);
  const Tensor exp_sum = statistics(tokens), target = statistics(tokens);
  const Tensor targets = tensors_.integers({tokens}, shapes_.vocabulary);
  const Tensor weights = tensors_.random(DType::fp32, {tokens}), scale = tensors_.random(DType::fp64, {1});
  measure("cross entropy forward",
          [&] { cross_entropy_local(execution_, logits, targets, 0, shapes_.vocabulary, maximum, exp_sum, target); });
  measure("cross entropy backward", [&] {
    cross_entropy_backward(execution_, logits, targets, weights, 0, shapes_.vocabulary, maximum, exp_sum, scale,
                           logits);
  });
  const Tensor losses = tensors_.allocate(DType::fp64, {tokens});
  measure("cross entropy with gradient",
          [&] { cross_entropy(execution_, logits, targets, weights, shapes_.vocabulary, scale, losses, logits); });
  measure("cross entropy without gradient",
          [&] { cross_entropy(execution_, logits, targets, weights, shapes_.vocabulary, scale, losses, {}); });
}

void KernelBench::run_embedding() {
  const Tensor embedding = tensors_.random(dtype_, {shapes_.vocabulary, shapes_.hidden}), x = matrix(shapes_.hidden);
  const Tensor gradient = tensors_.random(accumulation_dtype(dtype_), {shapes_.vocabulary, shapes_.hidden});
  const auto measure_backward = [&](const std::string& name, const std::vector<std::int32_t>& values,
                                    const Tensor& tokens) {
    const StableOrder sorted = stable_order(values);
    const TokenOrder order{tensors_.holding<std::int32_t>({shapes_.tokens()}, sorted.places), sorted.distinct,
                           sorted.longest_run};
    measure(name, [&] { embedding_backward(execution_, tokens, order, x, 0, 1.0, gradient); });
  };
  const std::vector<std::int32_t> even = random_tokens(shapes_.tokens(), shapes_.vocabulary, false);
  const std::vector<std::int32_t> skewed = random_tokens(shapes_.tokens(), shapes_.vocabulary, true);
  const Tensor tokens = tensors_.holding<std::int32_t>({shapes_.tokens()}, even);
  measure("embedding forward", [&] { embedding_forward(execution_, tokens, embedding, 0, 1.0, x); });
  measure_backward("embedding backward", even, tokens);
  measure_backward("embedding backward, skewed", skewed, tensors_.holding<std::int32_t>({shapes_.tokens()}, skewed));
}

// As many parameters as the model of these sizes has. With bf16 weights the optimiser keeps fp32 masters, moments and
// gradients, and also writes the weights.
void KernelBench::run_flat() {
  const Shape flat = {shapes_.vocabulary * shapes_.hidden +
                      shapes_.layers * shapes_.hidden * (5 * shapes_.hidden + 3 * shapes_.glu)};
  const DType wide = accumulation_dtype(dtype_);
  const Tensor p = tensors_.random(wide, flat), g = tensors_.random(wide, flat), m = tensors_.random(wide, flat);
  const Tensor v = tensors_.allocate(wide, flat);
  const Tensor rounded = wide == dtype_ ? Tensor() : tensors_.allocate(dtype_, flat);
  const Tensor scalars = tensors_.holding<double>({adamw_scalars}, {1e-4, 0.1, 0.05, 1.0});
  const Tensor total = tensors_.random(DType::fp64, {1});
  measure("adamw", [&] { adamw_update(execution_, p, g, m, v, scalars, {}, rounded); });
  measure("gradient norm", [&] { add_sum_of_squares(execution_, g, total); });
  measure("copy", [&] { copy(execution_, g, p); });
}

void KernelBench::run_all() {
  run_layer("product q|k|v|u", shapes_.tokens(), shapes_.hidden, 4 * shapes_.hidden);
  run_layer("product out", shapes_.tokens(), shapes_.hidden, shapes_.hidden);
  run_layer("product l1|l2", shapes_.tokens(), shapes_.hidden, 2 * shapes_.glu);
  run_layer("product l3", shapes_.tokens(), shapes_.glu, shapes_.hidden);
  run_layer("product head", shapes_.loss_tokens(), shapes_.hidden, shapes_.vocabulary);
  run_part({"linear attention forward", "linear attention backward"}, [&] { run_attention(); });
  run_part({"softmax attention forward", "softmax attention backward", "softmax attention forward, documents",
            "softmax attention backward, documents", "rotation"},
           [&] { run_softmax_attention(); });
  run_part({"residual norm forward", "residual norm backward", "residual norm backward of the head",
            "gated norm forward", "gated norm backward", "gated norm backward, split"},
           [&] { run_norms(); });
  run_part({"gated unit forward", "gated unit backward"}, [&] { run_gated_unit(); });
  run_part({"cross entropy forward", "cross entropy backward", "cross entropy with gradient"}, [&] { run_loss(); });
  run_part({"embedding forward", "embedding backward", "embedding backward, skewed"}, [&] { run_embedding(); });
  run_part({"adamw", "gradient norm", "copy"}, [&] { run_flat(); });
}

CommandLine command_line() {
  CommandLine line(
      "bench kernels [options]",
      "Times each kernel and prints its ratio to its floor. The floor is the larger of two times:\n"
      "its operations at the measured rate of products, and its bytes at the measured rate of copies. Data is where\n"
      "the previous call left it: tensors that stay in a cache can be faster than the copy's floor. Sizes are by\n"
      "default small on the CPU, and on a GPU the sizes of a model of 1 B parameters.",
      "fulmen bench kernels --batch 4 --length 512");
  line.option("batch", "sequences (4; 8 on a GPU)");
  line.option("length", "tokens of each (512; 2048)");
  line.option("hidden", "width (512; 2048)");
  line.option("heads", "heads (8; 16)");
  line.option("glu", "inner width (1408; 5632)");
  line.option("vocabulary", "vocabulary (8192; 64000)");
  line.option("device", "auto (default), cpu or cuda");
  line.option("precision", "auto (default: bf16 on a GPU, else fp32), bf16, fp32 or fp64");
  line.option("seconds", "for each kernel (0.2)");
  line.option("filter", "only the kernels whose name contains this text (all)");
  line.flag("attention", "linear attention alone: a table of shapes against their traffic");
  line.flag("json", "print one JSON object");
  return line;
}

KernelShapes read_shapes(const CommandLine& line, Device device) {
  const KernelShapes& usual = device.kind == DeviceKind::cuda ? gpu_shapes : cpu_shapes;
  const KernelShapes shapes{line.integer("batch", usual.batch, 1, 1 << 20),
                            line.integer("length", usual.length, 1, 1 << 24),
                            line.integer("hidden", usual.hidden, 1, 1 << 20),
                            line.integer("heads", usual.heads, 1, 1 << 16),
                            line.integer("glu", usual.glu, 1, 1 << 22),
                            line.integer("vocabulary", usual.vocabulary, 1, 1 << 24),
                            usual.layers};
  if (shapes.hidden % shapes.heads != 0) throw UserError("--heads", "do not divide --hidden");
  return shapes;
}

void print_rows(const std::vector<BenchRow>& rows, const DeviceRates& rates, Device device, DType dtype, bool json) {
  double total = 0.0;
  for (const BenchRow& row : rows) total += row.seconds;
  if (json) {
    const nlohmann::ordered_json result = {{"device", describe_device(device)},
                                           {"precision", name_of(dtype)},
                                           {"threads", compute_threads()},
                                           {"gemm_flops_per_second", rates.gemm_operations_per_second},
                                           {"copy_bytes_per_second", rates.copy_bytes_per_second},
                                           {"kernels", nlohmann::ordered_json::parse(format_json(rows, total))}};
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("device  %s, %s\n", describe_device(device).c_str(), std::string(name_of(dtype)).c_str());
  std::printf("rates   products %.0f GFLOP/s, copy %.1f GB/s\n%s", rates.gemm_operations_per_second * 1e-9,
              rates.copy_bytes_per_second * 1e-9, format_table(rows, total).c_str());
}

}  // namespace

ExitCode bench_kernels(const std::vector<std::string>& arguments, World& world) {
  CommandLine line = command_line();
  if (!line.parse(arguments)) return ExitCode::done;
  if (world.size() > 1) throw UserError("bench kernels", "runs as one process", "start it without mpirun");
  configure_threads({});
  const Device device = choose_device(line.text("device", "auto"), "--device");
  const DType dtype = parse_precision(line.text("precision", "auto"), device).parameters;
  const KernelShapes shapes = read_shapes(line, device);
  const double seconds_each = line.number("seconds", 0.2, 0.0, 100.0);

  ExecutionResources resources(device);
  const DeviceRates rates = measure_rates(resources.execution(), dtype);
  Profiler profiler(rates.gemm_operations_per_second, rates.copy_bytes_per_second, resources.execution().stream);
  resources.set_profiler(&profiler);
  std::vector<BenchRow> rows;
  if (line.has("attention")) {
    rows =
        measure_attention(resources.execution(), dtype, rates.copy_bytes_per_second, seconds_each, line.text("filter"));
  } else {
    KernelBench bench(shapes, dtype, resources.execution(), seconds_each, line.text("filter"));
    bench.run_all();
    rows = bench.rows();
  }
  if (rows.empty())
    throw UserError("--filter", fmt::format("no kernel's name contains '{}'", line.text("filter")),
                    "run without it to see the names");
  print_rows(rows, rates, device, dtype, line.has("json"));
  return ExitCode::done;
}

}  // namespace fulmen
