// The forward pass against the naive model: both variants, LRPE in none, one or all of the layers, documents, long
// rows.
#include <gtest/gtest.h>

#include "tests/model/reference_model.h"

namespace fulmen {
namespace {

struct Case {
  std::string name, variant;
  std::vector<std::int64_t> lrpe_layers;
  bool documents;
};

void PrintTo(const Case& given, std::ostream* out) { *out << given.name; }

class Forward : public ::testing::TestWithParam<Case> {};

TEST_P(Forward, EqualsTheNaiveModel) {
  const Case& given = GetParam();
  TransnormerConfig config = small_config(given.variant, given.lrpe_layers);
  config.layers = 3;
  config.norm_epsilon = 1e-3;  // large enough to be seen
  RunningModel model(config);
  RandomBatch batch({2, 150}, config.vocabulary, 1, given.documents);
  const MicroBatch micro_batch = batch.view(), host_batch = batch.on_host();
  model.stage.prepare(micro_batch.shape, 1);
  const double loss = model.loss(micro_batch);
  testing::Host host;
  const Tensor logits = host.poisoned(DType::fp64, {micro_batch.shape.tokens(), config.vocabulary});
  model.stage.logits(0, logits);

  const ReferenceModel reference(model);
  testing::Values expected;
  for (const std::vector<double>& row : reference.logits(host_batch))
    expected.insert(expected.end(), row.begin(), row.end());
  expect_relative(testing::read(logits), expected, 1e-11, "logits");
  expect_relative({loss}, {reference.loss(host_batch)}, 1e-12, "loss");
}

INSTANTIATE_TEST_SUITE_P(
    Models, Forward,
    ::testing::Values(Case{"released", "tnl1", {0}, false}, Case{"released_documents", "tnl1", {0}, true},
                      Case{"without_lrpe", "tnl1", {}, true}, Case{"lrpe_everywhere", "tnl1", {0, 1, 2}, true},
                      Case{"low_rank_gate", "tnl3", {0}, false}, Case{"low_rank_gate_documents", "tnl3", {0}, true},
                      Case{"low_rank_gate_without_lrpe", "tnl3", {}, true},
                      Case{"low_rank_gate_lrpe_everywhere", "tnl3", {0, 1, 2}, true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace fulmen
