// Recomputation: less memory is kept for backward, and the bits are the same.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "tests/framework/expect_error.h"
#include "tests/model/test_model.h"

namespace fulmen {
namespace {

bool same_bits(const testing::Values& a, const testing::Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

struct Case {
  const char* variant;
  DType dtype;
  Recompute recompute;
};

void PrintTo(const Case& given, std::ostream* out) {
  *out << given.variant << ' ' << name_of(given.dtype) << ' ' << name_of(given.recompute);
}

// Sizes at which vectors, their remainders and several chunks of attention occur.
TransnormerConfig config_of(const std::string& variant) {
  TransnormerConfig config = small_config(variant, {0, 2});
  config.layers = 4;
  config.hidden = 3 * 22;
  config.glu = 71;
  config.initializer_std = 0.2;
  return config;
}

void poison_scratch(const RunningModel& model) {
  const Arena::Frame frame(*model.execution().scratch);
  const Tensor junk = model.execution().scratch->take(DType::fp64, {1 << 20});
  testing::write(junk,
                 testing::Values(static_cast<std::size_t>(junk.elements()), std::numeric_limits<double>::quiet_NaN()));
}

void expect_same_gradients(const RunningModel& actual, const RunningModel& expected) {
  for (ParameterId id = 0; id < expected.parameters.size(); ++id)
    EXPECT_TRUE(
        same_bits(testing::read(actual.parameters.gradient(id)), testing::read(expected.parameters.gradient(id))))
        << expected.parameters.declaration(id).name;
}

class Recomputing : public ::testing::TestWithParam<Case> {
 protected:
  static std::unique_ptr<RunningModel> model(const TransnormerConfig& config, const Case& given, Recompute recompute,
                                             std::optional<StageRange> range = {}) {
    return std::make_unique<RunningModel>(config, range, nullptr, given.dtype, 1, recompute);
  }
};

TEST_P(Recomputing, GivesTheSameBits) {
  const Case& given = GetParam();
  const TransnormerConfig config = config_of(given.variant);
  RandomBatch first_batch({2, 83}, config.vocabulary, 1, true), second_batch({2, 83}, config.vocabulary, 2, false);
  const MicroBatch first = first_batch.view(), second = second_batch.view();
  const auto kept = model(config, given, Recompute::none), merged = model(config, given, given.recompute),
             split = model(config, given, given.recompute);
  for (RunningModel* each : {kept.get(), merged.get(), split.get()}) {
    each->stage.prepare(first.shape, 2);
    each->stage.forward(1, first, {}, {}, true);
    poison_scratch(*each);
    each->stage.forward(0, second, {}, {}, true);
    poison_scratch(*each);
  }
  for (RunningModel* each : {kept.get(), merged.get()}) {
    each->stage.backward(1, first, {}, {});
    poison_scratch(*each);
    each->stage.backward(0, second, {}, {});
  }
  split->stage.backward_input(1, first, {}, {});
  poison_scratch(*split);
  split->stage.backward_input(0, second, {}, {});
  poison_scratch(*split);
  split->stage.backward_weight(1);
  split->stage.backward_weight(0);
  EXPECT_EQ(testing::read(merged->stage.loss_sum())[0], testing::read(kept->stage.loss_sum())[0]);
  EXPECT_EQ(testing::read(split->stage.loss_sum())[0], testing::read(kept->stage.loss_sum())[0]);
  expect_same_gradients(*merged, *kept);
  expect_same_gradients(*split, *kept);
}

TEST_P(Recomputing, OfAMiddleStageGivesTheSameBits) {
  const Case& given = GetParam();
  const TransnormerConfig config = config_of(given.variant);
  RandomBatch batch({2, 41}, config.vocabulary, 3, true);
  const MicroBatch micro_batch = batch.view();
  testing::Host host;
  testing::Random random(4);
  const Shape shape = {micro_batch.shape.tokens(), config.hidden};
  const Tensor input = host.tensor(given.dtype, shape, random.normals(elements_of(shape)));
  const Tensor d_output = host.tensor(given.dtype, shape, random.normals(elements_of(shape)));
  std::vector<std::unique_ptr<RunningModel>> models;
  std::vector<testing::Values> outputs, d_inputs;
  for (const Recompute recompute : {Recompute::none, given.recompute}) {
    models.push_back(model(config, given, recompute, StageRange{1, 3, false, false}));
    Stage& stage = models.back()->stage;
    const Tensor output = host.poisoned(given.dtype, shape), d_input = host.poisoned(given.dtype, shape);
    stage.prepare(micro_batch.shape, 1);
    stage.forward(0, micro_batch, input, output, true);
    stage.backward(0, micro_batch, d_output, d_input);
    outputs.push_back(testing::read(output));
    d_inputs.push_back(testing::read(d_input));
  }
  EXPECT_TRUE(same_bits(outputs[1], outputs[0]));
  EXPECT_TRUE(same_bits(d_inputs[1], d_inputs[0]));
  expect_same_gradients(*models[1], *models[0]);
}

TEST_P(Recomputing, AllocatesNothingFromTheSecondStepOn) {
  const Case& given = GetParam();
  const TransnormerConfig config = config_of(given.variant);
  RandomBatch batch({2, 70}, config.vocabulary, 5, true);
  const MicroBatch micro_batch = batch.view();
  const auto running = model(config, given, given.recompute);
  running->stage.prepare(micro_batch.shape, 2);
  const auto step = [&] {
    running->stage.forward(1, micro_batch, {}, {}, true);
    running->stage.backward_input(1, micro_batch, {}, {});
    running->loss_and_gradients(micro_batch);
    running->stage.backward_weight(1);
  };
  step();
  const std::size_t bytes = running->ledger().current_total(), blocks = running->execution().scratch->blocks();
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(running->ledger().current_total(), bytes);
  EXPECT_EQ(running->execution().scratch->blocks(), blocks);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, Recomputing,
    ::testing::Values(Case{"tnl1", DType::fp64, Recompute::selective}, Case{"tnl1", DType::fp64, Recompute::full},
                      Case{"tnl3", DType::fp64, Recompute::selective}, Case{"tnl3", DType::fp64, Recompute::full},
                      Case{"tnl1", DType::fp32, Recompute::selective}, Case{"tnl1", DType::fp32, Recompute::full},
                      Case{"tnl3", DType::fp32, Recompute::selective}, Case{"tnl3", DType::fp32, Recompute::full}),
    [](const auto& info) {
      return std::string(info.param.variant) + "_" + std::string(name_of(info.param.dtype)) + "_" +
             std::string(name_of(info.param.recompute));
    });

// Elements per token and slot, as docs/architecture.md has them.
TEST(RecomputeMemory, IsWhatTheTableSays) {
  for (const char* variant : {"tnl1", "tnl3"}) {
    TransnormerConfig config = config_of(variant);
    const std::int64_t d = config.hidden, g = config.glu, rank = config.gate_rank;
    const std::int64_t cheap = config.low_rank_gate() ? 2 * d : d;
    const std::int64_t everything = d + 5 * d + rank + d + 2 * g + 3;  // of one layer, in fp64 throughout
    for (const auto& [recompute, layer] : {std::pair{Recompute::none, everything},
                                           {Recompute::selective, everything - cheap},
                                           {Recompute::full, d + rank}}) {
      RunningModel running(config, {}, nullptr, DType::fp64, 1, recompute);
      const std::size_t before = running.ledger().current(MemoryKind::activations);
      const BatchShape shape{2, 32};
      running.stage.prepare(shape, 3);
      const std::int64_t elements = 3 * shape.tokens() * (config.layers * layer + d);  // and the head
      EXPECT_EQ(running.ledger().current(MemoryKind::activations) - before,
                static_cast<std::size_t>(elements) * sizeof(double))
          << variant << ' ' << name_of(recompute);
    }
  }
}

TEST(RecomputeNames, AreThoseOfTheConfiguration) {
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full})
    EXPECT_EQ(parse_recompute(name_of(recompute)), recompute);
  testing_support::expect_user_error([] { parse_recompute("some"); }, {"parallel.recompute", "some", "selective"});
}

}  // namespace
}  // namespace fulmen
