// The model against the authors' own: loss, every hidden state, logits and every gradient.
#include "tests/golden.h"

#include <gtest/gtest.h>

#include "framework/stable_order.h"
#include "model/stage.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

struct Case {
  const char* file;
  DType dtype;
  double loss_tolerance, tensor_tolerance;
};

class GoldenModel : public ::testing::TestWithParam<Case> {};

void expect_gradients(const ParameterStore& parameters, const Golden& golden, const Execution& execution,
                      double tensor_tolerance) {
  std::size_t compared = 0;
  for (const ParameterPiece& piece : parameters.pieces(parameters.flat_gradients())) {
    if (piece.memory.size(0) != piece.global_shape[0]) continue;  // parts of the fused projection: below
    EXPECT_LE(relative_difference(host_values(execution, piece.memory), golden.values("/grads/" + piece.tensor)),
              tensor_tolerance)
        << piece.tensor;
    ++compared;
  }
  const std::int64_t layers = golden.config().layers;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::string projection = fmt::format("model.layers.{}.token_mixer.qkvu_proj.weight", layer);
    EXPECT_LE(relative_difference(host_values(execution, parameters.gradient(parameters.id(projection))),
                                  golden.values("/grads/" + projection)),
              tensor_tolerance)
        << projection;
    ++compared;
  }
  EXPECT_EQ(compared, static_cast<std::size_t>(2 + 5 * layers));  // embedding, theta, five tensors a layer
}

TEST_P(GoldenModel, LossHiddenStatesLogitsAndGradients) {
  const auto [name, dtype, loss_tolerance, tensor_tolerance] = GetParam();
  const Golden golden(name);
  const TransnormerConfig config = golden.config();
  ExecutionResources resources(testing::test_device());
  const Execution& execution = resources.execution();
  const auto self = make_self_communicator();
  Mesh mesh(MeshShape{}, *self);
  const StageRange range = whole_model(config);
  ParameterStore parameters(declare_stage(config, range, 1), mesh, {dtype, dtype}, execution);
  golden.load_weights(parameters, execution);
  const ModelContext context{execution, &mesh.along(Axis::tensor), &parameters};
  Stage stage(config, range, context);
  const Shape tokens_shape = golden.shape("/tokens");
  const BatchShape shape{tokens_shape[0], tokens_shape[1] - 1};
  stage.prepare(shape, 1);

  const std::vector<std::int32_t> stream = golden.tokens("/stream");
  std::vector<std::int64_t> positions, segments;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    segments.push_back(b * shape.length);
    for (std::int64_t t = 0; t < shape.length; ++t) positions.push_back(t);
  }
  segments.push_back(shape.tokens());
  const double scale = 1.0 / static_cast<double>(shape.tokens());
  testing::Host host;
  MicroBatch batch;
  batch.shape = shape;
  batch.tokens = host.integers<std::int32_t>({shape.tokens()}, {stream.begin(), stream.begin() + shape.tokens()});
  batch.targets =
      host.integers<std::int32_t>({shape.tokens()}, {stream.begin() + 1, stream.begin() + 1 + shape.tokens()});
  batch.weights =
      host.tensor(DType::fp32, {shape.tokens()}, testing::Values(static_cast<std::size_t>(shape.tokens()), 1.0));
  batch.positions = host.integers<std::int64_t>({shape.batch, shape.length}, positions);
  batch.segments = host.integers<std::int64_t>({static_cast<std::int64_t>(segments.size())}, segments);
  const StableOrder order = stable_order(std::span(stream).first(static_cast<std::size_t>(shape.tokens())));
  batch.order = {host.integers<std::int32_t>({shape.tokens()}, order.places), order.distinct, order.longest_run};
  batch.loss_scale = host.tensor(DType::fp64, {1}, {scale});

  stage.forward(0, batch, {}, {}, false);
  const double loss = host_values(execution, stage.loss_sum())[0] * scale;
  EXPECT_NEAR(loss, golden.scalar("/loss"), loss_tolerance * golden.scalar("/loss"));
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    EXPECT_LE(relative_difference(host_values(execution, stage.layer_input(0, layer)),
                                  golden.values(fmt::format("/hidden/{}", layer))),
              tensor_tolerance)
        << "input of layer " << layer;
  EXPECT_LE(relative_difference(host_values(execution, stage.head()->normed(0)),
                                golden.values(fmt::format("/hidden/{}", config.layers))),
            tensor_tolerance);
  const OwnedTensor logits(testing::test_device(), dtype, {shape.tokens(), config.vocabulary}, MemoryKind::workspace,
                           resources.ledger());
  stage.logits(0, logits);
  EXPECT_LE(relative_difference(host_values(execution, logits), golden.values("/logits")), tensor_tolerance);
  stage.forward(0, batch, {}, {}, true);
  stage.backward(0, batch, {}, {});
  expect_gradients(parameters, golden, execution, tensor_tolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Files, GoldenModel,
    ::testing::Values(Case{"tnl_small", DType::fp64, 1e-12, 1e-6}, Case{"tnl_six_heads", DType::fp64, 1e-12, 1e-6},
                      Case{"tnl_wide", DType::fp64, 1e-12, 1e-6}, Case{"tnl_small", DType::fp32, 1e-6, 1e-5},
                      Case{"tnl_six_heads", DType::fp32, 1e-6, 1e-5}, Case{"tnl_wide", DType::fp32, 1e-6, 1e-5}),
    [](const auto& info) { return std::string(info.param.file) + "_" + std::string(name_of(info.param.dtype)); });

}  // namespace
}  // namespace fulmen
