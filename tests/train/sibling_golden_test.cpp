// Every family against public code of its models: loss, hidden states, logits, the gradient of every parameter, and
// training steps.
#include <gtest/gtest.h>

#include "data/batch_loader.h"
#include "framework/stable_order.h"
#include "model/stage.h"
#include "tests/golden.h"
#include "tests/kernels/kernel_test.h"
#include "train/learning_rate.h"
#include "train/micro_batch_buffers.h"
#include "train/model_runner.h"
#include "train/optimizer.h"

namespace fulmen {
namespace {

struct Model {
  const char* file;
  std::map<std::string, std::string> keys;  // of the section `model`
  bool norms_after = false;                 // hidden states behind the first layer are stored behind a norm
  bool last_hidden_normed = true;           // the last hidden state is stored behind the final norm
  // In fp64: torchscale scales each row in front of its head norm, whose epsilon then weighs differently.
  double training = 1e-10;
};

const std::vector<Model>& models() {
  const std::map<std::string, std::string> llama = {
      {"family", "llama"},     {"layers", "3"},          {"hidden", "96"},  {"vocabulary", "320"},
      {"heads", "6"},          {"kv_heads", "2"},        {"glu", "160"},    {"head_width", "16"},
      {"rope_theta", "10000"}, {"rope_type", "default"}, {"tied", "false"}, {"norm_epsilon", "1e-6"}};
  auto tied = llama;
  tied["layers"] = "2", tied["hidden"] = "64", tied["vocabulary"] = "256", tied["glu"] = "176";
  tied["heads"] = tied["kv_heads"] = "4", tied["tied"] = "true", tied["norm_epsilon"] = "1e-5";
  const std::map<std::string, std::string> gpt2 = {
      {"family", "gpt"}, {"layers", "2"},      {"hidden", "64"},         {"vocabulary", "256"},   {"heads", "4"},
      {"ffn", "256"},    {"positions", "160"}, {"norm_epsilon", "1e-5"}, {"norm_place", "before"}};
  auto gpt1 = gpt2;
  gpt1["norm_place"] = "after";
  const std::map<std::string, std::string> retnet = {{"family", "retnet"},
                                                     {"layers", "3"},
                                                     {"hidden", "64"},
                                                     {"vocabulary", "256"},
                                                     {"heads", "4"},
                                                     {"glu", "112"},
                                                     {"value_width", "128"},
                                                     {"norm_epsilon", "1e-6"},
                                                     {"head_norm_epsilon", "1e-12"},
                                                     {"head_norm_gain", "false"},
                                                     {"scale_embedding", "false"},
                                                     {"rotation", "torchscale"}};
  const std::map<std::string, std::string> minimax = {
      {"family", "minimax"},  {"layers", "4"},
      {"hidden", "64"},       {"vocabulary", "256"},
      {"heads", "4"},         {"kv_heads", "2"},
      {"head_width", "16"},   {"layer_types", "[linear, linear, linear, softmax]"},
      {"experts", "4"},       {"experts_per_token", "2"},
      {"expert_glu", "96"},   {"router_loss", "0.01"},
      {"linear_alpha", "1"},  {"linear_beta", "1"},
      {"softmax_alpha", "1"}, {"softmax_beta", "1"},
      {"mlp_alpha", "1"},     {"mlp_beta", "1"},
      {"rope_theta", "1e6"},  {"norm_epsilon", "1e-6"}};
  const std::map<std::string, std::string> gla = {
      {"family", "gla"},      {"layers", "2"},     {"hidden", "48"},        {"vocabulary", "128"},
      {"heads", "4"},         {"key_width", "24"}, {"value_width", "48"},   {"gate_rank", "16"},
      {"gate_divisor", "16"}, {"glu", "64"},       {"norm_epsilon", "1e-6"}};
  static const std::vector<Model> list = {{"minimax", minimax},           {"llama", llama},
                                          {"llama_tied", tied},           {"gpt2", gpt2},
                                          {"gpt1_post_norm", gpt1, true}, {"retnet", retnet, false, false, 1e-8},
                                          {"gla", gla, false, false}};
  return list;
}

struct Tolerances {
  double loss, tensor, training;
};

Tolerances tolerances(DType dtype) {
  return dtype == DType::fp64 ? Tolerances{1e-12, 1e-6, 1e-10} : Tolerances{1e-6, 2e-5, 1e-4};
}

// The golden stream as one batch of rows that follow each other.
Batch stream_batch(const Golden& golden) {
  const Shape shape = golden.shape("/tokens");
  const std::vector<std::int32_t> stream = golden.tokens("/stream");
  Batch batch = make_batch(shape[0], shape[1] - 1);
  batch.segments.clear();
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    batch.segments.push_back(b * batch.length);
    for (std::int64_t t = 0; t < batch.length; ++t) {
      const auto i = static_cast<std::size_t>(b * batch.length + t);
      batch.tokens[i] = stream[i];
      batch.targets[i] = stream[i + 1];
      batch.weights[i] = 1.0f;
      batch.positions[i] = t;
    }
  }
  batch.segments.push_back(batch.batch * batch.length);
  batch.order = stable_order(batch.tokens);
  return batch;
}

// The gradient of every tensor in the file. Pieces of a tensor are compared with its largest element: a bias of keys
// shifts all of a softmax, so its gradient is zero.
void expect_gradients(const ParameterStore& parameters, const Golden& golden, const Execution& execution,
                      double tolerance) {
  std::map<std::string, double> difference, largest;
  for (const ParameterPiece& piece : parameters.pieces(parameters.flat_gradients())) {
    const auto expected = golden.values("/grads/" + piece.tensor, piece.offset, piece.memory.shape());
    const auto actual = host_values(execution, piece.memory);
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      const double distance = std::abs(actual[i] - expected[i]);
      difference[piece.tensor] = std::max(difference[piece.tensor], std::isnan(distance) ? INFINITY : distance);
      largest[piece.tensor] = std::max(largest[piece.tensor], std::abs(expected[i]));
    }
  }
  for (const std::string& name : golden.names("/grads/")) {
    ASSERT_TRUE(difference.contains(name)) << name;
    EXPECT_LE(difference[name], tolerance * largest[name]) << name;
  }
}

class SiblingGolden : public ::testing::TestWithParam<std::tuple<std::size_t, DType>> {
 protected:
  const Model& model() const { return models()[std::get<0>(GetParam())]; }
  DType dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(SiblingGolden, LossHiddenStatesLogitsAndGradients) {
  const Golden golden(std::string("siblings/") + model().file);
  const auto config = ModelConfig::from_identity(model().keys, model().file);
  const Tolerances tolerance = tolerances(dtype());
  ExecutionResources resources(testing::test_device());
  const Execution& execution = resources.execution();
  const auto self = make_self_communicator();
  Mesh mesh(MeshShape{}, *self);
  ParameterStore parameters(declare_stage(*config, whole_model(*config), 1), mesh, {dtype(), dtype()}, execution);
  golden.load_weights(parameters, execution);
  const ModelContext context{execution, &mesh.along(Axis::tensor), &parameters};
  Stage stage(*config, whole_model(*config), context);
  const Batch whole = stream_batch(golden);
  const BatchShape shape{whole.batch, whole.length};
  stage.prepare(shape, 1);
  MicroBatchBuffers buffers(shape, 1.0 / static_cast<double>(whole.batch), execution);
  testing::Host host;
  const double scale = 1.0 / static_cast<double>(shape.tokens());
  const MicroBatch& batch = buffers.fill(whole, host.tensor(DType::fp64, {1}, {scale}), execution);

  stage.forward(0, batch, {}, {}, false);
  const double loss = host_values(execution, stage.loss_sum())[0] * scale;
  EXPECT_NEAR(loss, golden.scalar("/loss"), tolerance.loss * golden.scalar("/loss"));
  const double total = loss + host_values(execution, stage.layer_loss_sum())[0];
  EXPECT_NEAR(total, golden.scalar("/total"), tolerance.loss * golden.scalar("/total"));
  for (std::int64_t layer = 0; layer < (model().norms_after ? 1 : config->layers); ++layer)
    EXPECT_LE(relative_difference(host_values(execution, stage.layer_input(0, layer)),
                                  golden.values(fmt::format("/hidden/{}", layer))),
              tolerance.tensor)
        << "input of layer " << layer;
  if (model().last_hidden_normed) {
    EXPECT_LE(relative_difference(host_values(execution, stage.head()->normed(0)),
                                  golden.values(fmt::format("/hidden/{}", config->layers))),
              tolerance.tensor);
  }
  const OwnedTensor logits(testing::test_device(), dtype(), {shape.tokens(), config->vocabulary}, MemoryKind::workspace,
                           resources.ledger());
  stage.logits(0, logits);
  EXPECT_LE(relative_difference(host_values(execution, logits), golden.values("/logits")), tolerance.tensor);

  stage.forward(0, batch, {}, {}, true);
  stage.backward(0, batch, {}, {});
  expect_gradients(parameters, golden, execution, tolerance.tensor);
}

TEST_P(SiblingGolden, TrainingSteps) {
  const Golden golden(std::string("siblings/") + model().file);
  const auto config = ModelConfig::from_identity(model().keys, model().file);
  const double tolerance = std::max(tolerances(dtype()).training, model().training);
  const std::vector<Batch> batches = {stream_batch(golden)};
  ExecutionResources resources(testing::test_device());
  const Execution& execution = resources.execution();
  const auto self = make_self_communicator();
  Mesh mesh(MeshShape{}, *self);
  ModelRunnerOptions options;
  options.precision = {dtype(), dtype()};
  options.micro_batch = {batches[0].batch, batches[0].length};
  options.micro_batches = 1;
  ModelRunner runner(*config, options, mesh, execution);
  golden.load_weights(runner.parameters(), execution);
  Optimizer optimizer(OptimizerConfig{}, 1.0, runner.parameters(), mesh, execution);
  LearningRateConfig schedule;
  schedule.kind = "cosine";
  schedule.warmup_steps = 2;
  schedule.minimum = 3e-4;
  const std::vector<double> losses = golden.values("/train/loss"), totals = golden.values("/train/total"),
                            norms = golden.values("/train/grad_norm"), rates = golden.values("/train/lr");
  const auto steps = static_cast<std::int64_t>(norms.size());
  for (std::int64_t t = 0; t < steps; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const double rate = learning_rate(schedule, 3e-3, t, steps);
    EXPECT_NEAR(rate, rates[i], 1e-15);
    const StepLoss loss = runner.accumulate(batches, [&] { optimizer.step(rate, t); });
    EXPECT_NEAR(loss.loss_nats, losses[i], tolerance * losses[i]) << "step " << t;
    EXPECT_NEAR(loss.loss_nats + loss.layer_loss, totals[i], tolerance * totals[i]) << "step " << t;
    EXPECT_NEAR(optimizer.gradient_norm(), norms[i], tolerance * norms[i]) << "step " << t;
  }
  const StepLoss last = runner.accumulate(batches, {});
  EXPECT_NEAR(last.loss_nats, losses.back(), tolerance * losses.back());
}

INSTANTIATE_TEST_SUITE_P(Files, SiblingGolden,
                         ::testing::Combine(::testing::Range<std::size_t>(0, models().size()),
                                            ::testing::Values(DType::fp64, DType::fp32)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", models()[std::get<0>(info.param)].file,
                                              name_of(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace fulmen
