// The features of layouts and their constraints.
#include "tests/train/layout_matrix.h"

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/random.h"
#include "tests/train/matrix_models.h"

namespace fulmen {
namespace {

constexpr std::size_t layouts_in_ci = 220;
constexpr std::uint64_t layouts_of_three_axes = 5;  // of each three

// Features in an order in which each constraint's are all chosen early.
enum : int {
  data,
  sequence,
  tensor,
  pipeline,
  model,
  expert,
  micro_batches,
  schedule,
  chunks,
  stages,
  split,
  zero,
  zero_group,
  bucket,
  recompute,
  overlap,
  documents
};

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const MatrixModel& model : matrix_models()) names.push_back(model.name);
  return names;
}

const std::vector<Feature>& features() {
  static const std::vector<Feature> list = {
      {"data", {"1", "2", "3", "4", "6", "8"}},
      {"sequence", {"1", "2", "3", "4", "5", "8"}},
      {"tensor", {"1", "2", "3", "4", "6", "8"}},
      {"pipeline", {"1", "2", "3", "4", "5"}},
      {"model", model_names()},
      {"expert", {"1", "2", "3"}},
      {"micro_batches", {"1", "2", "3", "4", "6"}},
      {"schedule", {"gpipe", "1f1b", "interleaved", "zero-bubble"}},
      {"chunks", {"1", "2", "3"}},
      {"stages", {"even", "uneven"}},
      {"tensor_sequence_split", {"false", "true"}},
      {"zero", {"0", "1", "2", "3"}},
      {"zero_group", {"all", "1", "2"}},
      {"bucket_elements", {"1", "30000"}},
      {"recompute", {"none", "selective", "full"}},
      {"overlap", {"none", "auto", "gradients", "weights", "tensor", "pipeline", "sequence"}},
      {"documents", {"false", "true"}},
  };
  return list;
}

const std::string& text(const Combination& c, int feature) {
  return features()[static_cast<std::size_t>(feature)]
      .values[static_cast<std::size_t>(c[static_cast<std::size_t>(feature)])];
}
int number(const Combination& c, int feature) { return std::stoi(text(c, feature)); }

std::vector<Constraint> constraints() {
  return {
      {"more than 8 ranks (data, sequence)",
       {data, sequence},
       [](const Combination& c) { return number(c, data) * number(c, sequence) <= 8; }},
      {"more than 8 ranks (data, sequence, tensor)",
       {data, sequence, tensor},
       [](const Combination& c) { return number(c, data) * number(c, sequence) * number(c, tensor) <= 8; }},
      {"more than 8 ranks",
       {data, sequence, tensor, pipeline},
       [](const Combination& c) {
         return number(c, data) * number(c, sequence) * number(c, tensor) * number(c, pipeline) <= 8;
       }},
      {"the tensor ranks do not divide the heads",
       {tensor, model},
       [](const Combination& c) { return matrix_model(text(c, model)).allows_tensor(number(c, tensor)); }},
      {"only a model with experts has owners of them, and they lie inside data",
       {data, model, expert},
       [](const Combination& c) {
         const int owners = number(c, expert), items = matrix_model(text(c, model)).owned_items;
         return owners == 1 || (items > 0 && items % owners == 0 && number(c, data) % owners == 0);
       }},
      {"the micro-batches do not divide a data rank's samples",
       {data, micro_batches},
       [](const Combination& c) { return matrix_global_batch % (number(c, data) * number(c, micro_batches)) == 0; }},
      {"only ranks of a pipeline that interleaves have more than one chunk",
       {pipeline, schedule, chunks},
       [](const Combination& c) {
         const bool interleaves = text(c, schedule) == "interleaved" || text(c, schedule) == "zero-bubble";
         return number(c, chunks) == 1 || (interleaves && number(c, pipeline) > 1);
       }},
      {"more stages than layers",
       {pipeline, chunks},
       [](const Combination& c) { return number(c, pipeline) * number(c, chunks) <= matrix_layers; }},
      {"stages of unequal length need two stages and more layers than stages",
       {pipeline, chunks, stages},
       [](const Combination& c) {
         return text(c, stages) == "even" ||
                (number(c, pipeline) > 1 && number(c, pipeline) * number(c, chunks) < matrix_layers);
       }},
      {"one tensor rank has no tokens to split",
       {tensor, split},
       [](const Combination& c) { return text(c, split) == "false" || number(c, tensor) > 1; }},
      {"a group that shards needs something to shard, and to be a part",
       {data, sequence, zero, zero_group},
       [](const Combination& c) {
         const int replicas = number(c, data) * number(c, sequence);
         if (text(c, zero_group) == "all") return true;
         return number(c, zero) > 0 && replicas > number(c, zero_group) && replicas % number(c, zero_group) == 0;
       }},
  };
}

}  // namespace

const CombinationSpace& layout_space() {
  static const CombinationSpace space(features(), constraints());
  return space;
}

LayoutCase layout_of(const Combination& c) {
  LayoutCase layout;
  layout.shape = {number(c, tensor), number(c, sequence), number(c, data), number(c, pipeline), number(c, expert)};
  layout.model = text(c, model);
  layout.micro_batches = number(c, micro_batches);
  layout.schedule = text(c, schedule);
  layout.chunks = number(c, chunks);
  layout.uneven = text(c, stages) == "uneven";
  layout.split = text(c, split) == "true";
  layout.zero = number(c, zero);
  layout.zero_group = text(c, zero_group);
  layout.bucket_elements = number(c, bucket);
  layout.recompute = text(c, recompute);
  layout.overlap = text(c, overlap);
  layout.documents = text(c, documents) == "true";
  return layout;
}

LayoutConfig LayoutCase::layout() const {
  LayoutConfig config;
  config.data = shape.data;
  config.sequence = shape.sequence;
  config.tensor = shape.tensor;
  config.pipeline = shape.pipeline;
  config.expert = shape.expert;
  config.schedule = schedule;
  config.chunks = chunks;
  config.tensor_sequence_split = split;
  config.zero = zero;
  config.zero_group = zero_group;
  config.bucket_elements = bucket_elements;
  config.recompute = recompute;
  config.overlap = overlap;
  return config;
}

std::string LayoutCase::describe() const {
  return fmt::format(
      "{}{}, {}{}, {} micro-batches, {}, {} chunks{}, zero {} over {} in buckets of {}, recompute {}, overlap {}",
      model, documents ? " with documents" : "", shape.describe(), split ? " with its tokens split" : "", micro_batches,
      schedule, chunks, uneven ? ", uneven stages" : "", zero, zero_group, bucket_elements, recompute, overlap);
}

std::vector<Combination> layout_combinations() {
  // Three axes at once are rare among all layouts: of each three some to begin with.
  std::vector<Combination> given;
  for (const int alone : {data, sequence, tensor, pipeline})
    for (std::uint64_t seed = 1; seed <= layouts_of_three_axes; ++seed) {
      Combination partial(features().size(), -1);
      for (const int axis : {data, sequence, tensor, pipeline})
        partial[static_cast<std::size_t>(axis)] = axis == alone ? 0 : 1;
      given.push_back(layout_space().complete(partial, static_cast<std::uint64_t>(alone) * 1000 + seed).value());
    }
  return cover_pairs(layout_space(), layouts_in_ci, given);
}

std::vector<LayoutCase> layout_matrix() {
  std::vector<LayoutCase> cases;
  for (const Combination& combination : layout_combinations()) cases.push_back(layout_of(combination));
  return cases;
}

std::vector<LayoutCase> layout_shard(std::int64_t shard, std::int64_t shards) {
  FULMEN_CHECK(0 <= shard && shard < shards, "shard {} of {}", shard, shards);
  std::vector<LayoutCase> cases;
  std::int64_t place = 0;
  layout_space().for_each([&](const Combination& combination) {
    if (place++ % shards == shard) cases.push_back(layout_of(combination));
  });
  return cases;
}

std::vector<LayoutCase> layouts_of_ranks(int ranks, std::size_t count) {
  std::vector<LayoutCase> all, cases;
  layout_space().for_each([&](const Combination& combination) {
    LayoutCase layout = layout_of(combination);
    if (layout.shape.ranks() == ranks) all.push_back(std::move(layout));
  });
  // Steps that have nothing in common with the product's periods.
  const RandomStream random(5, "layouts of ranks");
  std::uint64_t draw = 0;
  for (std::size_t i = 0; i < std::min(count, all.size()); ++i) {
    const std::size_t other = i + random.bits(draw++) % (all.size() - i);
    std::swap(all[i], all[other]);
    cases.push_back(all[i]);
  }
  return cases;
}

}  // namespace fulmen
