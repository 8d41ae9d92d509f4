// The two forms of the backward pass, several micro-batches in flight, and that a step allocates nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/model/test_model.h"

namespace fulmen {
namespace {

bool same_bits(const testing::Values& a, const testing::Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

TransnormerConfig config_of(const std::string& variant) {
  TransnormerConfig config = small_config(variant, {0, 2});
  config.layers = 3;
  return config;
}

// Leaves NaN in all the scratch memory that a pass will use: reading what was not written shows.
void poison_scratch(const RunningModel& model) {
  const Arena::Frame frame(*model.execution().scratch);
  const Tensor junk = model.execution().scratch->take(DType::fp64, {1 << 20});
  testing::write(junk,
                 testing::Values(static_cast<std::size_t>(junk.elements()), std::numeric_limits<double>::quiet_NaN()));
}

testing::Values gradient_of(const RunningModel& model, const std::string& name) {
  return testing::read(model.parameters.gradient(model.parameters.id(name)));
}

// The same bits in every parameter but the embedding, whose two gradients (head and first layer) meet in another order.
void expect_same_bits_but_embedding(const RunningModel& actual, const RunningModel& expected) {
  for (ParameterId id = 0; id < expected.parameters.size(); ++id) {
    const std::string& name = expected.parameters.declaration(id).name;
    if (name == tied_embedding_name)
      expect_relative(gradient_of(actual, name), gradient_of(expected, name), 1e-13, name);
    else
      EXPECT_TRUE(same_bits(gradient_of(actual, name), gradient_of(expected, name))) << name;
  }
}

class Backward : public ::testing::TestWithParam<const char*> {};

TEST_P(Backward, InTwoHalvesIsTheSameBitForBit) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch batch({2, 41}, config.vocabulary, 1, true);
  const MicroBatch micro_batch = batch.view();
  RunningModel merged(config), split(config);
  for (RunningModel* model : {&merged, &split}) model->stage.prepare(micro_batch.shape, 1);
  poison_scratch(split);
  const double loss = merged.loss_and_gradients(micro_batch);
  split.stage.forward(0, micro_batch, {}, {}, true);
  poison_scratch(split);
  split.stage.backward_input(0, micro_batch, {}, {});
  poison_scratch(split);
  split.stage.backward_weight(0);
  EXPECT_EQ(split.scaled_loss(micro_batch), loss);
  const auto expected = merged.gradients(), actual = split.gradients();
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t group = 0; group < expected.size(); ++group) EXPECT_TRUE(same_bits(actual[group], expected[group]));
}

TEST_P(Backward, OfAMiddleStageInTwoHalvesIsTheSameBitForBit) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch batch({2, 41}, config.vocabulary, 2, true);
  const MicroBatch micro_batch = batch.view();
  testing::Host host;
  testing::Random random(3);
  const Shape shape = {micro_batch.shape.tokens(), config.hidden};
  const Tensor input = host.tensor(DType::fp64, shape, random.normals(elements_of(shape)));
  const Tensor d_output = host.tensor(DType::fp64, shape, random.normals(elements_of(shape)));
  RunningModel merged(config, StageRange{1, 3, false, false}), split(config, StageRange{1, 3, false, false});
  for (RunningModel* model : {&merged, &split}) {
    model->stage.prepare(micro_batch.shape, 1);
    model->stage.forward(0, micro_batch, input, host.poisoned(DType::fp64, shape), true);
  }
  const Tensor d_input = host.poisoned(DType::fp64, shape), split_d_input = host.poisoned(DType::fp64, shape);
  merged.stage.backward(0, micro_batch, d_output, d_input);
  split.stage.backward_input(0, micro_batch, d_output, split_d_input);
  EXPECT_TRUE(same_bits(testing::read(split_d_input), testing::read(d_input)));
  split.stage.backward_weight(0);
  for (std::size_t group = 0; group < merged.gradients().size(); ++group)
    EXPECT_TRUE(same_bits(split.gradients()[group], merged.gradients()[group]));
}

TEST_P(Backward, OfTwoMicroBatchesInFlightEqualsOneAfterTheOther) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch first_batch({2, 23}, config.vocabulary, 4, true), second_batch({2, 23}, config.vocabulary, 5, true);
  const MicroBatch first = first_batch.view(), second = second_batch.view();
  const auto fresh = [&] {
    auto model = std::make_unique<RunningModel>(config);
    model->stage.prepare(first.shape, 2);
    return model;
  };
  const auto sequential = fresh();
  sequential->loss_and_gradients(first);
  sequential->stage.forward(0, second, {}, {}, true);
  sequential->stage.backward(0, second, {}, {});

  const auto merged = fresh();
  merged->stage.forward(0, first, {}, {}, true);
  merged->stage.forward(1, second, {}, {}, true);
  merged->stage.backward(0, first, {}, {});
  merged->stage.backward(1, second, {}, {});
  expect_same_bits_but_embedding(*merged, *sequential);

  const auto split = fresh();
  split->stage.forward(1, first, {}, {}, true);
  split->stage.forward(0, second, {}, {}, true);
  split->stage.backward_input(1, first, {}, {});
  split->stage.backward_input(0, second, {}, {});
  split->stage.backward_weight(1);
  split->stage.backward_weight(0);
  expect_same_bits_but_embedding(*split, *sequential);

  const auto reversed = fresh();
  reversed->stage.forward(0, first, {}, {}, true);
  reversed->stage.forward(1, second, {}, {}, true);
  reversed->stage.backward_input(1, second, {}, {});
  reversed->stage.backward(0, first, {}, {});
  reversed->stage.backward_weight(1);
  for (ParameterId id = 0; id < sequential->parameters.size(); ++id) {
    const std::string& name = sequential->parameters.declaration(id).name;
    expect_relative(gradient_of(*reversed, name), gradient_of(*sequential, name), 1e-12, name);
  }
}

TEST_P(Backward, AllocatesNothingFromTheSecondStepOn) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch first_batch({2, 70}, config.vocabulary, 6, true), second_batch({2, 70}, config.vocabulary, 7, false);
  const MicroBatch first = first_batch.view(), second = second_batch.view();
  RunningModel model(config);
  model.stage.prepare(first.shape, 2);
  const auto step = [&] {
    model.stage.forward(0, first, {}, {}, true);
    model.stage.forward(1, second, {}, {}, true);
    model.stage.backward_input(0, first, {}, {});
    model.stage.backward_input(1, second, {}, {});
    model.stage.backward_weight(0);
    model.stage.backward_weight(1);
    model.loss_and_gradients(second);
  };
  const auto next_scratch = [&] {
    const Arena::Frame frame(*model.execution().scratch);
    return model.execution().scratch->take(DType::fp64, {1}).data();
  };
  const void* const scratch = (step(), next_scratch());
  const std::size_t blocks = model.execution().scratch->blocks(), bytes = model.ledger().current_total();
  const std::size_t peak = model.ledger().peak_total();
  for (int i = 0; i < (testing::few_repetitions() ? 3 : 60);
       ++i) {  // so many that what a step failed to give back would need another block
    step();
    ASSERT_EQ(model.execution().scratch->blocks(), blocks);
    ASSERT_EQ(next_scratch(), scratch) << "a step gives back all the scratch memory that it takes";
    ASSERT_EQ(model.ledger().current_total(), bytes);
    ASSERT_EQ(model.ledger().peak_total(), peak);
  }
}

TEST_P(Backward, OutOfTurnIsADefect) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch batch({1, 5}, config.vocabulary, 8, false);
  const MicroBatch micro_batch = batch.view();
  RunningModel model(config);
  model.stage.prepare(micro_batch.shape, 2);
  model.stage.forward(0, micro_batch, {}, {}, true);
  EXPECT_THROW(model.stage.backward_weight(0), InternalError);
  model.stage.backward_input(0, micro_batch, {}, {});
  EXPECT_THROW(model.stage.backward_input(0, micro_batch, {}, {}), InternalError);
  EXPECT_THROW(model.stage.backward_weight(1), InternalError);
  EXPECT_NO_THROW(model.stage.backward_weight(0));
}

// A second forward into the same memory, with another shape: nothing of the first is left over.
TEST_P(Backward, AfterAnotherShapeEqualsAFreshModel) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch large_batch({3, 50}, config.vocabulary, 9, true), small_batch({1, 7}, config.vocabulary, 10, true);
  const MicroBatch large = large_batch.view(), small = small_batch.view();
  RunningModel used(config), fresh(config);
  used.stage.prepare(large.shape, 1);
  used.loss_and_gradients(large);
  used.parameters.zero_gradients(used.execution());
  used.stage.prepare(small.shape, 1);
  fresh.stage.prepare(small.shape, 1);
  EXPECT_EQ(used.loss_and_gradients(small), fresh.loss_and_gradients(small));
  for (std::size_t group = 0; group < fresh.gradients().size(); ++group)
    EXPECT_TRUE(same_bits(used.gradients()[group], fresh.gradients()[group]));
}

// Remains of the step before in the gradients of matrices, here NaN, are overwritten. Also where the embedding, which
// adds rows, has no head before it on its stage.
TEST_P(Backward, OverwritesTheGradientsOfTheStepBefore) {
  const TransnormerConfig config = config_of(GetParam());
  RandomBatch first_batch({2, 19}, config.vocabulary, 11, true), second_batch({2, 19}, config.vocabulary, 12, true);
  testing::Host host;
  testing::Random random(13);
  const Shape shape = {2 * 19, config.hidden};
  const Tensor input = host.tensor(DType::fp64, shape, random.normals(elements_of(shape)));
  const Tensor d_output = host.tensor(DType::fp64, shape, random.normals(elements_of(shape)));
  const Tensor output = host.poisoned(DType::fp64, shape), d_input = host.poisoned(DType::fp64, shape);
  for (const StageRange& range : {whole_model(config), StageRange{0, 2, true, false}, StageRange{2, 3, false, true}}) {
    RunningModel fresh(config, range), used(config, range);
    used.parameters.zero_gradients(used.execution());
    for (ParameterId id = 0; id < used.parameters.size(); ++id) {
      const Tensor gradient = used.parameters.gradient(id);
      if (used.parameters.declaration(id).group.gradient == GradientForm::sum) continue;
      testing::write(gradient, testing::Values(static_cast<std::size_t>(gradient.elements()), std::nan("")));
    }
    for (RunningModel* model : {&fresh, &used}) {
      model->stage.prepare({2, 19}, 1);
      for (const RandomBatch* batch : {&first_batch, &second_batch}) {
        model->stage.forward(0, batch->view(), range.embedding ? Tensor() : input, range.head ? Tensor() : output,
                             true);
        model->stage.backward(0, batch->view(), range.head ? Tensor() : d_output, range.embedding ? Tensor() : d_input);
      }
    }
    for (std::size_t group = 0; group < fresh.gradients().size(); ++group)
      EXPECT_EQ(used.gradients()[group], fresh.gradients()[group]);
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, Backward, ::testing::Values("tnl1", "tnl3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace fulmen
