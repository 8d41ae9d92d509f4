// A family that leans on every seam of the executor of branches. Gradients are compared with finite differences,
// decoding with the whole pass. Recomputation and the two halves of backward are compared with the plain pass. Its
// layouts: tests/train/layouts_test.cpp.
#include "tests/model/toy_family.h"

#include <gtest/gtest.h>

#include "model/branch.h"
#include "tests/model/test_model.h"
#include "tests/model/toy_operations.h"

namespace fulmen {
namespace {

// `action` must throw an InternalError whose message holds the words.
void expect_internal_error(const std::function<void()>& action, const std::string& words) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one with '" << words << "'";
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

ToyConfig toy() {
  ToyConfig config;
  config.layers = 3;
  config.hidden = 12;
  config.heads = 3;
  config.items = 4;
  config.inner = 5;
  config.vocabulary = 17;
  config.balance = 0.4;
  config.initializer_std = 0.4;
  return config;
}

class ToyFamily : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::on_gpu()) GTEST_SKIP() << "its operations are the CPU's";
  }
  MicroBatch view_of(RandomBatch& batch) const {
    MicroBatch view = batch.view();
    view.sample_scale = 1.0 / static_cast<double>(view.shape.batch);
    return view;
  }
  double total_loss(RunningModel& model, const MicroBatch& batch, bool gradients) const {
    fill_zero(model.execution(), model.stage.layer_loss_sum());
    const double main = gradients ? model.loss_and_gradients(batch) : model.loss(batch);
    return main + testing::read(model.stage.layer_loss_sum())[0];
  }
};

TEST_F(ToyFamily, GradientsOfEveryParameterEqualFiniteDifferences) {
  const ToyConfig config = toy();
  RunningModel model(config);
  const BatchShape shape{2, 11};
  model.stage.prepare(shape, 1);
  RandomBatch batch(shape, config.vocabulary, 5, true);
  const MicroBatch view = view_of(batch);
  model.parameters.zero_gradients(model.execution());
  total_loss(model, view, true);
  ASSERT_GT(testing::read(model.stage.layer_loss_sum())[0], 0.0);
  for (ParameterId id = 0; id < model.parameters.size(); ++id) {
    const Tensor weight = model.parameters.weight(id).flatten();
    const testing::Values gradient = testing::read(model.parameters.gradient(id).flatten());
    double largest = 0.0;
    for (const double g : gradient) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 0.0) << model.parameters.declaration(id).name;
    const std::int64_t step = std::max<std::int64_t>(1, weight.elements() / 7);
    for (std::int64_t i = 0; i < weight.elements(); i += step) {
      double& element = weight.as<double>()[i];
      const double saved = element, delta = 1e-5;
      element = saved + delta;
      const double above = total_loss(model, view, false);
      element = saved - delta;
      const double below = total_loss(model, view, false);
      element = saved;
      EXPECT_NEAR(gradient[static_cast<std::size_t>(i)], (above - below) / (2 * delta), 1e-8 + 1e-6 * largest)
          << model.parameters.declaration(id).name << " at " << i << ", FULMEN_TEST_SEED=" << testing::run_seed();
    }
  }
}

TEST_F(ToyFamily, RecomputationAndSplitHalvesKeepTheGradients) {
  const ToyConfig config = toy();
  const BatchShape shape{2, 11};
  std::vector<testing::Values> expected;
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full})
    for (const bool halves : {false, true}) {
      RunningModel model(config, {}, nullptr, DType::fp64, 1, recompute);
      model.stage.prepare(shape, 1);
      RandomBatch batch(shape, config.vocabulary, 5, true);
      const MicroBatch view = view_of(batch);
      model.parameters.zero_gradients(model.execution());
      model.stage.forward(0, view, {}, {}, true);
      const double layer_loss = testing::read(model.stage.layer_loss_sum())[0];
      if (halves) {
        model.stage.backward_input(0, view, {}, {});
        model.stage.backward_weight(0);
      } else {
        model.stage.backward(0, view, {}, {});
      }
      EXPECT_EQ(testing::read(model.stage.layer_loss_sum())[0], layer_loss) << "what is made again adds no loss";
      const std::vector<testing::Values> gradients = model.gradients();
      if (expected.empty()) expected = gradients;
      ASSERT_EQ(gradients.size(), expected.size());
      for (std::size_t i = 0; i < gradients.size(); ++i)
        expect_relative(gradients[i], expected[i], 1e-13, std::string(name_of(recompute)));
    }
}

TEST_F(ToyFamily, DecodingWithAGrowingStateGivesTheLogitsOfTheWholePass) {
  const ToyConfig config = toy();
  const BatchShape shape{2, 9};
  RunningModel whole(config), recurrent(config);
  testing::Host host;
  whole.stage.prepare(shape, 1);
  recurrent.stage.prepare({shape.batch, 1}, 1);
  std::vector<Tensor> states;
  for (const StateSpec& state : recurrent.stage.states(shape.batch, shape.length))
    states.push_back(
        host.tensor(DType::fp64, state.shape, testing::Values(static_cast<std::size_t>(elements_of(state.shape)))));
  ASSERT_EQ(states.size(), static_cast<std::size_t>(2 * config.layers));  // the halo and the running sum
  RandomBatch batch(shape, config.vocabulary, 7, false);
  whole.stage.forward(0, batch.view(), {}, {}, false);
  const Tensor expected = host.poisoned(DType::fp64, {shape.tokens(), config.vocabulary});
  whole.stage.logits(0, expected);
  for (std::int64_t t = 0; t < shape.length; ++t) {
    testing::Host storage;
    const Tensor logits = host.poisoned(DType::fp64, {shape.batch, config.vocabulary});
    recurrent.stage.decode(batch.column(t, storage), states, logits);
    for (std::int64_t row = 0; row < shape.batch; ++row)
      expect_relative(testing::read(logits.select(0, row)), testing::read(expected.select(0, row * shape.length + t)),
                      1e-12, fmt::format("token {} of row {}", t, row));
  }
}

TEST(BranchBuilder, RefusesWhatWouldBeWrongInSilence) {
  const Initializer zero = [](const RandomStream&, std::int64_t) { return 0.0; };
  const auto weight = [&](const std::string& name, int dimension) {
    return declare_weight(name, {8, 8}, zero, dimension, 4);
  };
  expect_internal_error(
      [&] {
        BranchBuilder b(8);
        const auto p = b.project(b.normed({}), {weight("a", 0), weight("unread", 0)});
        b.contract(p[0], weight("out", 1));
        b.finish();
      },
      "nothing reads value");
  expect_internal_error(
      [&] {
        BranchBuilder b(8);
        const Value normed = b.normed({});
        b.project(normed, {weight("a", 0)});
        b.project(normed, {weight("b", 0)});
      },
      "one call of project");
  expect_internal_error(
      [&] {
        BranchBuilder b(8);
        b.project(b.normed({}), {weight("a", 0)});
        b.finish();
      },
      "ends with contract or deliver");
  expect_internal_error(
      [&] {
        BranchBuilder b(8);
        const auto p = b.project(b.normed({}), {declare_weight("replicated", {8, 8}, zero, 0, 0)});
        b.deliver(b.apply(std::make_shared<ToyAdd>(), {p[0], p[0]})[0]);
      },
      "every rank holds");
}

}  // namespace
}  // namespace fulmen
