// When a stage tells of its layers: before weights are read, before gradients are added to, and when they are whole.
#include <gtest/gtest.h>

#include "tests/model/test_model.h"

namespace fulmen {
namespace {

using Calls = std::vector<std::string>;

struct Recorder {
  explicit Recorder(RunningModel& model) {
    const auto record = [this](const char* what) {
      return [this, what](std::int64_t layer) { calls.push_back(fmt::format("{} {}", what, layer)); };
    };
    model.hooks() = {record("forward"), record("input"), record("weight"), record("done")};
  }
  Calls calls;
};

TEST(LayerHooks, FollowThePassesOfAStage) {
  const TransnormerConfig config = small_config("tnl1");
  RunningModel model(config);
  Recorder recorder(model);
  const RandomBatch batch({2, 6}, config.vocabulary, 1, false);
  model.stage.prepare({2, 6}, 1);
  model.stage.forward(0, batch.view(), {}, {}, true);
  EXPECT_EQ(recorder.calls, (Calls{"forward 0", "forward 1"}));
  recorder.calls.clear();
  model.stage.backward(0, batch.view(), {}, {});
  EXPECT_EQ(recorder.calls, (Calls{"input 1", "weight 1", "done 1", "input 0", "weight 0", "done 0"}));
  recorder.calls.clear();
  model.stage.forward(0, batch.view(), {}, {}, true);
  model.stage.backward_input(0, batch.view(), {}, {});
  model.stage.backward_weight(0);
  EXPECT_EQ(recorder.calls,
            (Calls{"forward 0", "forward 1", "input 1", "input 0", "weight 1", "done 1", "weight 0", "done 0"}));
}

// A hook "done" finds the gradients of its layer's parameters as they stay.
TEST(LayerHooks, GradientsAreWholeWhenALayerIsDone) {
  const TransnormerConfig config = small_config("tnl3", {0, 1});
  for (const bool apart : {false, true}) {
    RunningModel model(config);
    const ParameterStore& store = model.parameters;
    std::map<ParameterId, testing::Values> seen;
    model.hooks().after_backward_weight = [&](std::int64_t layer) {
      for (ParameterId id = 0; id < store.size(); ++id)
        if (store.declaration(id).layer == layer) seen[id] = testing::read(store.gradient(id));
    };
    const RandomBatch batch({2, 6}, config.vocabulary, 1, false);
    model.stage.prepare({2, 6}, 1);
    model.stage.forward(0, batch.view(), {}, {}, true);
    if (apart) {
      model.stage.backward_input(0, batch.view(), {}, {});
      model.stage.backward_weight(0);
    } else {
      model.stage.backward(0, batch.view(), {}, {});
    }
    EXPECT_EQ(seen.size(), store.size() - 1);  // all but the embedding, which belongs to no layer
    for (const auto& [id, gradient] : seen) {
      EXPECT_EQ(gradient, testing::read(store.gradient(id))) << store.declaration(id).name;
      EXPECT_GT(*std::ranges::max_element(gradient), 0.0) << store.declaration(id).name;
    }
  }
}

}  // namespace
}  // namespace fulmen
