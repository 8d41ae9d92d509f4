// Decoding of every family token by token: the logits of the whole pass.
#include <gtest/gtest.h>

#include "tests/model/test_model.h"
#include "tests/train/matrix_models.h"

namespace fulmen {
namespace {

class FamilyDecode : public ::testing::TestWithParam<std::string> {};

TEST_P(FamilyDecode, GivesTheLogitsOfTheWholePass) {
  const MatrixModel& model = matrix_model(GetParam());
  if (testing::on_gpu() && !model.on_gpu) GTEST_SKIP() << "The tests' own family has operations of the CPU alone.";
  const ModelConfig& config = *model.config;
  const BatchShape shape{3, 16};
  RunningModel whole(config), recurrent(config);
  testing::Host host;
  whole.stage.prepare(shape, 1);
  recurrent.stage.prepare({shape.batch, 1}, 1);
  std::vector<Tensor> states;
  for (const StateSpec& state : recurrent.stage.states(shape.batch, shape.length))
    states.push_back(
        host.tensor(DType::fp64, state.shape, testing::Values(static_cast<std::size_t>(elements_of(state.shape)))));
  RandomBatch batch(shape, config.vocabulary, 1, false);
  whole.stage.forward(0, batch.view(), {}, {}, false);
  const Tensor expected = host.poisoned(DType::fp64, {shape.tokens(), config.vocabulary});
  whole.stage.logits(0, expected);
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
  expect_relative(decoded_rows, expected_rows, 1e-12, config.family());
}

std::vector<std::string> names() {
  std::vector<std::string> list;
  for (const MatrixModel& model : matrix_models()) list.push_back(model.name);
  return list;
}

INSTANTIATE_TEST_SUITE_P(Models, FamilyDecode, ::testing::ValuesIn(names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fulmen
