// How layers are dealt out over pipeline stages.
#include <gtest/gtest.h>

#include "model/families/transnormer/config.h"
#include "model/model_family.h"
#include "model/stage_costs.h"
#include "tests/framework/expect_error.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;
using Counts = std::vector<std::int64_t>;

Counts counts_of(const std::vector<StageRange>& stages) {
  Counts counts;
  for (const StageRange& stage : stages) counts.push_back(stage.end_layer - stage.first_layer);
  return counts;
}

// Stages follow each other from layer 0; the first has the embedding, the last the head.
void expect_chain(const std::vector<StageRange>& stages, std::int64_t layers) {
  std::int64_t next = 0;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    EXPECT_EQ(stages[i].first_layer, next);
    EXPECT_GT(stages[i].end_layer, next);
    EXPECT_EQ(stages[i].embedding, i == 0);
    EXPECT_EQ(stages[i].head, i + 1 == stages.size());
    next = stages[i].end_layer;
  }
  EXPECT_EQ(next, layers);
}

TEST(SplitStages, EvenAsCanBeTheEarlierOnesLarger) {
  EXPECT_EQ(counts_of(split_stages(24, 4, {})), (Counts{6, 6, 6, 6}));
  EXPECT_EQ(counts_of(split_stages(7, 3, {})), (Counts{3, 2, 2}));
  EXPECT_EQ(counts_of(split_stages(5, 1, {})), (Counts{5}));
  for (int stages = 1; stages <= 11; ++stages) expect_chain(split_stages(11, stages, {}), 11);
}

// The head of the 1B costs as much as 2.4 of its layers.
TEST(SplitStages, ByCostTheHeadTakesThePlaceOfLayers) {
  const auto counts = [](const ModelConfig& config, int stages) {
    const std::vector<StageRange> ranges = split_stages_by_cost(config, stages, 2048, Recompute::none);
    expect_chain(ranges, config.layers);
    return counts_of(ranges);
  };
  TransnormerConfig config = as<TransnormerConfig>(*preset("transnormer-1b"));
  EXPECT_EQ(counts(config, 1), (Counts{16}));
  EXPECT_EQ(counts(config, 2), (Counts{9, 7}));
  EXPECT_EQ(counts(config, 4), (Counts{4, 5, 5, 2}));  // LRPE makes layer 0 the longest
  EXPECT_EQ(counts(config, 16), Counts(16, 1));
  config.vocabulary = 1;  // no head to speak of, and equal layers: as even as can be
  config.lrpe_layers.emplace();
  EXPECT_EQ(counts(config, 2), (Counts{8, 8}));
  EXPECT_EQ(counts(config, 3), (Counts{6, 5, 5}));
  EXPECT_EQ(counts(config, 5), (Counts{4, 3, 3, 3, 3}));
  expect_user_error([&] { counts(config, 17); }, {"parallel.pipeline", "17 stages", "16 layers"});
}

TEST(SplitStages, AsListed) {
  const std::vector<StageRange> stages = split_stages(16, 3, Counts{9, 1, 6});
  EXPECT_EQ(counts_of(stages), (Counts{9, 1, 6}));
  expect_chain(stages, 16);
}

TEST(SplitStages, RefusesWhatDoesNotFit) {
  expect_user_error([] { split_stages(4, 5, {}); }, {"parallel.pipeline", "5 stages", "4 layers"});
  expect_user_error([] { split_stages(16, 2, Counts{9, 6}); }, {"parallel.stages", "15", "16"});
  expect_user_error([] { split_stages(16, 2, Counts{16}); }, {"parallel.stages", "1", "2"});
  expect_user_error([] { split_stages(16, 2, Counts{16, 0}); }, {"parallel.stages", "at least one layer"});
  expect_user_error([] { split_stages(16, 2, Counts{17, -1}); }, {"parallel.stages", "at least one layer"});
}

}  // namespace
}  // namespace fulmen
