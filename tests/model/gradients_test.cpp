// Gradients of a whole stage against finite differences, in fp64: every kind of parameter, every theta, the stage's
// input.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/model/test_model.h"

namespace fulmen {
namespace {

struct Case {
  const char* name;
  const char* variant;
  std::vector<std::int64_t> lrpe_layers;
  bool documents;
};

void PrintTo(const Case& given, std::ostream* out) { *out << given.name; }

class StageGradients : public ::testing::TestWithParam<Case> {};

// Where q k passes zero under the norm the loss bends sharply, so that steps above 1e-4 are off by truncation; below
// 1e-5 rounding grows. Between them differences agree with the gradients to some 1e-9.
constexpr double step = 3e-5;

// d loss / d element (fp64 [1]), by five-point differences.
double finite_difference(const Tensor& element, const std::function<double()>& loss) {
  const double middle = testing::read(element)[0];
  const auto at = [&](double steps) {
    testing::write(element, {middle + steps * step});
    return loss();
  };
  const double difference = (8.0 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12.0 * step);
  testing::write(element, {middle});
  return difference;
}

// Compares sampled elements of a gradient, relative to its largest; `all` compares every element. With few repetitions:
// one.
void expect_gradient(const Tensor& value, const Tensor& gradient, const std::string& name, bool all,
                     testing::Random& random, const std::function<double()>& loss) {
  ASSERT_TRUE(value.is_contiguous() && gradient.is_contiguous()) << name;
  const testing::Values whole_gradient = testing::read(gradient);
  double largest = 0.0, difference = 0.0;
  for (const double g : whole_gradient) largest = std::max(largest, std::abs(g));
  EXPECT_GT(largest, 1e-9) << name << " does nothing";
  const std::int64_t wanted = testing::few_repetitions() ? 1 : all ? value.elements() : 10;
  const std::int64_t samples = std::min(value.elements(), wanted);
  for (std::int64_t i = 0; i < samples; ++i) {
    const std::int64_t element = all ? i : random.integer(0, value.elements() - 1);
    const double expected = finite_difference(value.flatten().slice(0, element, element + 1), loss);
    const double error = std::abs(whole_gradient[static_cast<std::size_t>(element)] - expected);
    ASSERT_TRUE(std::isfinite(error)) << name << "[" << element << "], FULMEN_TEST_SEED=" << testing::run_seed();
    difference = std::max(difference, error);
  }
  EXPECT_LE(difference / largest, 1e-6) << name << ", FULMEN_TEST_SEED=" << testing::run_seed();
}

TEST_P(StageGradients, EqualFiniteDifferences) {
  const Case& given = GetParam();
  RunningModel model(small_config(given.variant, given.lrpe_layers));
  RandomBatch batch({2, 37}, model.config().vocabulary, 1, given.documents);
  const MicroBatch micro_batch = batch.view();
  model.stage.prepare(micro_batch.shape, 1);
  const double loss = model.loss_and_gradients(micro_batch);
  EXPECT_EQ(model.loss(micro_batch), loss) << "the loss does not depend on whether gradients are wanted";

  testing::Random random(2);
  const std::vector<ParameterPiece> weights = model.parameters.pieces(model.parameters.flat_weights());
  const std::vector<ParameterPiece> gradients = model.parameters.pieces(model.parameters.flat_gradients());
  ASSERT_EQ(weights.size(), gradients.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {  // q, k, v and u of the fused projection are pieces of their own
    const std::string name = fmt::format("{} from row {}", weights[i].tensor, weights[i].offset[0]);
    const bool theta = weights[i].tensor.ends_with("theta");
    expect_gradient(weights[i].memory, gradients[i].memory, theta ? weights[i].tensor : name, theta, random,
                    [&] { return model.loss(micro_batch); });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, StageGradients,
    ::testing::Values(Case{"released", "tnl1", {0}, false}, Case{"released_documents", "tnl1", {0}, true},
                      Case{"without_lrpe", "tnl1", {}, true}, Case{"lrpe_everywhere", "tnl1", {0, 1}, true},
                      Case{"low_rank_gate", "tnl3", {0}, true}, Case{"low_rank_gate_without_lrpe", "tnl3", {}, false},
                      Case{"low_rank_gate_lrpe_everywhere", "tnl3", {0, 1}, true}),
    [](const auto& info) { return std::string(info.param.name); });

// A stage between others: the gradient of what it receives, for a loss that is a weighted sum of what it passes on.
TEST(MiddleStage, PassesOnTheGradientOfItsInput) {
  for (const char* variant : {"tnl1", "tnl3"}) {
    TransnormerConfig config = small_config(variant, {1});
    config.layers = 4;
    RunningModel model(config, StageRange{1, 3, false, false});
    RandomBatch batch({2, 19}, config.vocabulary, 3, true);
    const MicroBatch micro_batch = batch.view();
    model.stage.prepare(micro_batch.shape, 1);
    testing::Host host;
    testing::Random random(4);
    const Shape shape = {micro_batch.shape.tokens(), config.hidden};
    const testing::Values weights = random.normals(elements_of(shape));
    const Tensor input = host.tensor(DType::fp64, shape, random.normals(elements_of(shape)));
    const Tensor d_output = host.tensor(DType::fp64, shape, weights);
    const Tensor output = host.poisoned(DType::fp64, shape), d_input = host.poisoned(DType::fp64, shape);
    const auto loss = [&] {
      model.stage.forward(0, micro_batch, input, output, true);
      return testing::weighted_sum(weights, testing::read(output));
    };
    loss();
    model.stage.backward(0, micro_batch, d_output, d_input);
    EXPECT_EQ(testing::read(model.stage.loss_sum())[0], 0.0);
    expect_gradient(input, d_input, std::string(variant) + " input", false, random, loss);
    const std::vector<ParameterPiece> values = model.parameters.pieces(model.parameters.flat_weights());
    const std::vector<ParameterPiece> gradients = model.parameters.pieces(model.parameters.flat_gradients());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool theta = values[i].tensor.ends_with("theta");
      expect_gradient(values[i].memory, gradients[i].memory, values[i].tensor, theta, random, loss);
    }
  }
}

TEST(MaskedTargets, GiveNeitherLossNorGradient) {
  RunningModel model(small_config("tnl1"));
  RandomBatch batch({2, 9}, model.config().vocabulary, 5, true);
  const MicroBatch micro_batch = batch.view();
  testing::write(micro_batch.weights, testing::Values(static_cast<std::size_t>(micro_batch.shape.tokens()), 0.0));
  model.stage.prepare(micro_batch.shape, 1);
  EXPECT_EQ(model.loss_and_gradients(micro_batch), 0.0);
  for (const testing::Values& gradient : model.gradients())
    EXPECT_TRUE(std::all_of(gradient.begin(), gradient.end(), [](double x) { return x == 0.0; }));
}

}  // namespace
}  // namespace fulmen
