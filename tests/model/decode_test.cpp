// Recurrent decoding against the chunk form: the same logits, token by token.
#include <gtest/gtest.h>

#include "tests/model/test_model.h"

namespace fulmen {
namespace {

struct Case {
  const char* name;
  const char* variant;
  std::vector<std::int64_t> lrpe_layers;
};

void PrintTo(const Case& given, std::ostream* out) { *out << given.name; }

class Decode : public ::testing::TestWithParam<Case> {};

TEST_P(Decode, GivesTheLogitsOfTheChunkForm) {
  const TransnormerConfig config = small_config(GetParam().variant, GetParam().lrpe_layers);
  const BatchShape shape{2, 150};
  RunningModel chunked(config), recurrent(config);
  testing::Host host;
  chunked.stage.prepare(shape, 1);
  recurrent.stage.prepare({shape.batch, 1}, 1);
  std::vector<Tensor> states;
  for (const StateSpec& state : recurrent.stage.states(shape.batch, shape.length))
    states.push_back(
        host.tensor(DType::fp64, state.shape, testing::Values(static_cast<std::size_t>(elements_of(state.shape)))));
  ASSERT_EQ(states.size(), static_cast<std::size_t>(config.layers));

  for (const std::uint64_t conversation : {1, 2}) {  // the second starts from states set to zero again
    for (const Tensor& state : states) fill_zero(recurrent.execution(), state);
    RandomBatch batch(shape, config.vocabulary, conversation, false);
    const MicroBatch whole_batch = batch.view();
    chunked.stage.forward(0, whole_batch, {}, {}, false);
    const Tensor expected = host.poisoned(DType::fp64, {shape.tokens(), config.vocabulary});
    chunked.stage.logits(0, expected);
    testing::Values expected_rows, decoded_rows;
    for (std::int64_t t = 0; t < shape.length; ++t) {
      testing::Host storage;
      const Tensor logits = host.poisoned(DType::fp64, {shape.batch, config.vocabulary});
      recurrent.stage.decode(batch.column(t, storage), states, logits);
      const testing::Values decoded = testing::read(logits);
      decoded_rows.insert(decoded_rows.end(), decoded.begin(), decoded.end());
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        const testing::Values row = testing::read(expected.select(0, b * shape.length + t));
        expected_rows.insert(expected_rows.end(), row.begin(), row.end());
      }
    }
    expect_relative(decoded_rows, expected_rows, 1e-12, fmt::format("conversation {}", conversation));
  }
}

TEST_P(Decode, OfASingleStepRefusesMore) {
  const TransnormerConfig config = small_config(GetParam().variant, GetParam().lrpe_layers);
  RunningModel model(config);
  testing::Host host;
  model.stage.prepare({1, 2}, 1);
  std::vector<Tensor> states;
  for (const StateSpec& state : model.stage.states(1, 2)) states.push_back(host.poisoned(DType::fp64, state.shape));
  RandomBatch batch({1, 2}, config.vocabulary, 1, false);
  const Tensor logits = host.poisoned(DType::fp64, {2, config.vocabulary});
  EXPECT_THROW(model.stage.decode(batch.view(), states, logits), InternalError);
}

INSTANTIATE_TEST_SUITE_P(Models, Decode,
                         ::testing::Values(Case{"tnl1", "tnl1", {0}}, Case{"tnl1_lrpe_everywhere", "tnl1", {0, 1}},
                                           Case{"tnl1_without_lrpe", "tnl1", {}}, Case{"tnl3", "tnl3", {0}},
                                           Case{"tnl3_lrpe_everywhere", "tnl3", {0, 1}}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace fulmen
