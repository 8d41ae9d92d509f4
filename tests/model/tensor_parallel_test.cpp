// A model split over tensor ranks against the same model on one rank: loss, gradients, norm, logits and several
// updates. The ranks do not divide the vocabulary and the inner width.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <numeric>
#include <random>

#include "kernels/adamw.h"
#include "tests/model/test_model.h"
#include "tests/mpi_main.h"

namespace fulmen {
namespace {

// All ranks draw the same numbers.
class SharedSeed final : public ::testing::Environment {
 public:
  void SetUp() override {
    const std::int64_t seed = test_world().all_reduce(std::int64_t{std::random_device{}()}, ReduceOp::max);
    constexpr int keep_a_given_one = 0;
    ASSERT_EQ(setenv("FULMEN_TEST_SEED", std::to_string(seed).c_str(), keep_a_given_one), 0);
  }
};
[[maybe_unused]] const auto* const shared_seed = ::testing::AddGlobalTestEnvironment(new SharedSeed);

struct Case {
  const char* name;
  const char* variant;
  int ranks;
  std::int64_t vocabulary, glu;
};

TransnormerConfig config_of(const Case& given) {
  TransnormerConfig config = small_config(given.variant, {0, 1});
  config.hidden = 24;
  config.heads = 6;
  config.vocabulary = given.vocabulary;
  config.glu = given.glu;
  return config;
}

// Sums the gradients that are parts of a sum over the tensor group.
void sum_partial_gradients(RunningModel& model) {
  for (ParameterId id = 0; id < model.parameters.size(); ++id)
    if (model.parameters.declaration(id).along(Axis::tensor) == AxisPlacement::replicated_partial)
      model.tensor().all_reduce(model.parameters.gradient(id), ReduceOp::sum, {});
}

double gradient_norm(RunningModel& model) {
  double squares = 0.0;
  for (std::size_t group = 0; group < model.parameters.groups().size(); ++group)
    for (const Tensor& run : model.parameters.counted_in(model.parameters.flat_gradients(), group))
      for (const double g : testing::read(run)) squares += g * g;
  return std::sqrt(model.tensor().all_reduce(squares, ReduceOp::sum));
}

// AdamW over the flat buffers of a model.
class Updates {
 public:
  explicit Updates(RunningModel& model) : model_(model) {
    for (const ParameterGroup& group : model.parameters.groups())
      for (int i = 0; i < 2; ++i)
        moments_.push_back(
            host_.tensor(DType::fp64, {group.elements}, testing::Values(static_cast<std::size_t>(group.elements))));
  }
  void update() {
    ++step_;
    const AdamwOptions defaults;
    const Tensor scalars =
        host_.tensor(DType::fp64, {adamw_scalars},
                     {0.02, 1.0 - std::pow(defaults.beta1, step_), 1.0 - std::pow(defaults.beta2, step_), 1.0});
    for (std::size_t i = 0; i < model_.parameters.groups().size(); ++i) {
      const ParameterGroup& group = model_.parameters.groups()[i];
      AdamwOptions options;
      options.epsilon = 1e-3;  // keeps rounding in gradients near zero from growing
      options.weight_decay = group.key.weight_decay ? 0.1 : 0.0;
      adamw_update(model_.execution(), group.weights, group.gradients, moments_[2 * i], moments_[2 * i + 1], scalars,
                   options);
    }
  }
  FlatParts flat(int moment) const {
    std::vector<Tensor> list;
    for (std::size_t i = 0; 2 * i < moments_.size(); ++i)
      list.push_back(moments_[2 * i + static_cast<std::size_t>(moment)]);
    return model_.parameters.parts_in(list);
  }

 private:
  RunningModel& model_;
  testing::Host host_;
  std::vector<Tensor> moments_;  // first and second of each group
  int step_ = 0;
};

// Each of this rank's pieces equals that part of the whole tensor on one rank.
void expect_parts(const RunningModel& part, const std::vector<Tensor>& part_flat, const RunningModel& one,
                  const std::vector<Tensor>& one_flat, double tolerance, const std::string& what) {
  std::size_t compared = 0;
  const std::vector<ParameterPiece> wholes = one.parameters.pieces(one_flat);
  for (const ParameterPiece& piece : part.parameters.pieces(part_flat))
    for (const ParameterPiece& whole_piece : wholes) {
      if (whole_piece.tensor != piece.tensor) continue;
      Tensor reference = whole_piece.memory;
      bool inside = true;
      for (int d = 0; d < reference.rank(); ++d) {
        const auto axis = static_cast<std::size_t>(d);
        const std::int64_t begin = piece.offset[axis] - whole_piece.offset[axis];
        inside = inside && begin >= 0 && begin + piece.memory.size(d) <= reference.size(d);
        if (inside) reference = reference.slice(d, begin, begin + piece.memory.size(d));
      }
      if (!inside) continue;  // another quarter of the fused projection
      expect_relative(testing::read(piece.memory), testing::read(reference), tolerance, what + " of " + piece.tensor);
      ++compared;
    }
  EXPECT_EQ(compared, part.parameters.pieces(part_flat).size());
}

// Rows of the embedding past the vocabulary, in the weights or what is laid out like them: zero to the bit.
void expect_zero_padding(const RunningModel& model, const std::vector<Tensor>& flat, const std::string& what) {
  const ParameterId id = model.parameters.id(tied_embedding_name);
  const LocalLayout& layout = model.parameters.layout(id);
  const std::int64_t used = layout.segments.front().indices.size() * layout.columns;
  const testing::Values values = testing::read(flat[model.parameters.shard_map().place(id).bucket]);
  for (std::size_t i = static_cast<std::size_t>(used); i < values.size(); ++i) ASSERT_EQ(values[i], 0.0) << what;
}

void expect_same_logits(RunningModel& split, RunningModel& one, const BatchShape& shape) {
  testing::Host host;
  const LanguageHead& head = *split.stage.head();
  const Tensor whole_logits = host.poisoned(DType::fp64, {shape.tokens(), one.config().vocabulary});
  const Tensor local_logits = host.poisoned(DType::fp64, {shape.tokens(), head.columns()});
  one.stage.logits(0, whole_logits);
  split.stage.logits(0, local_logits);
  const IndexRange columns = head.vocabulary();
  // Relative to the largest of all logits, so that a rank without columns has something to compare with.
  testing::Values actual = testing::read(local_logits.slice(1, 0, columns.size()));
  testing::Values expected = testing::read(whole_logits.slice(1, columns.begin, columns.end));
  const testing::Values everything = testing::read(whole_logits);
  actual.insert(actual.end(), everything.begin(), everything.end());
  expected.insert(expected.end(), everything.begin(), everything.end());
  expect_relative(actual, expected, 1e-12, "logits");
}

void PrintTo(const Case& given, std::ostream* out) { *out << given.name; }

class TensorParallel : public ::testing::TestWithParam<Case> {};

TEST_P(TensorParallel, TrainsAsOneRankDoes) {
  const Case& given = GetParam();
  Communicator& world = test_world();
  if (world.rank() >= given.ranks) return;
  std::vector<int> members(static_cast<std::size_t>(given.ranks));
  std::iota(members.begin(), members.end(), 0);
  const std::unique_ptr<Communicator> group = world.subgroup(members);
  const TransnormerConfig config = config_of(given);
  RunningModel split(config, {}, group.get()), one(config);
  const BatchShape shape{2, 31};
  split.stage.prepare(shape, 1);
  one.stage.prepare(shape, 1);
  Updates split_updates(split), one_updates(one);
  double first_loss = 0.0;
  for (int step = 0; step < 5; ++step) {
    SCOPED_TRACE(fmt::format("step {}", step));
    RandomBatch batch(shape, config.vocabulary, static_cast<std::uint64_t>(step), true);
    const MicroBatch micro_batch = batch.view();
    for (RunningModel* model : {&split, &one}) model->parameters.zero_gradients(model->execution());
    const double split_loss = split.loss_and_gradients(micro_batch), loss = one.loss_and_gradients(micro_batch);
    ASSERT_TRUE(std::isfinite(loss));
    EXPECT_NEAR(split_loss / loss, 1.0, 1e-12);
    for (RunningModel* model : {&split, &one}) model->loss(micro_batch);
    expect_same_logits(split, one, shape);
    sum_partial_gradients(split);
    expect_parts(split, split.parameters.flat_gradients(), one, one.parameters.flat_gradients(), 1e-10, "gradient");
    EXPECT_NEAR(gradient_norm(split) / gradient_norm(one), 1.0, 1e-12);
    expect_zero_padding(split, split.parameters.flat_gradients(), "gradient");
    split_updates.update();
    one_updates.update();
    expect_parts(split, split.parameters.flat_weights(), one, one.parameters.flat_weights(), 1e-11, "weights");
    expect_zero_padding(split, split.parameters.flat_weights(), "weights");
    for (const int moment : {0, 1}) expect_zero_padding(split, split_updates.flat(moment), "moments");
    if (step == 0) first_loss = loss;
  }
  RandomBatch first_batch(shape, config.vocabulary, 0, true);
  EXPECT_GT(std::abs(one.loss(first_batch.view()) - first_loss), 1e-3) << "updates change the model";
}

INSTANTIATE_TEST_SUITE_P(Models, TensorParallel,
                         ::testing::Values(Case{"tnl1_on_2", "tnl1", 2, 37, 10}, Case{"tnl1_on_3", "tnl1", 3, 37, 10},
                                           Case{"tnl1_on_3_one_without_vocabulary", "tnl1", 3, 4, 11},
                                           Case{"tnl3_on_2", "tnl3", 2, 17, 11}, Case{"tnl3_on_3", "tnl3", 3, 38, 11},
                                           Case{"tnl3_on_3_one_without_inner_width", "tnl3", 3, 5, 2}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace fulmen
