// The memory that a run would hold, counted without it, against the memory of a run.
#include "train/memory_estimate.h"

#include <gtest/gtest.h>

#include "parallel/shard_groups.h"
#include "tests/mpi_main.h"
#include "tests/parallel/rank_groups.h"
#include "tests/train/sample_batches.h"
#include "train/optimizer.h"

namespace fulmen {
namespace {

struct EstimateCase {
  std::string name;
  LayoutConfig layout = {};
  int ranks = 1;
  int micro_batches = 1;
  DType dtype = DType::fp32;
  std::int64_t length = 800;
};

// Large enough that no kind of memory is lost in the least block of an arena.
TransnormerConfig estimated_model() {
  TransnormerConfig config = sample_model();
  config.layers = 4;
  config.hidden = 64;
  config.glu = 176;
  config.vocabulary = 1000;
  return config;
}

std::vector<EstimateCase> cases() {
  std::vector<EstimateCase> list = {
      {"plain"}, {"plain in fp64", {}, 1, 1, DType::fp64}, {"long", {}, 1, 2, DType::fp32, 2000}};
  const auto add = [&](const std::string& name, int ranks, int micro_batches, const auto& change) {
    EstimateCase entry{name, {}, ranks, micro_batches};
    change(entry.layout);
    list.push_back(entry);
  };
  for (const char* const recompute : {"selective", "full"})
    add(std::string("recompute ") + recompute, 1, 2, [&](LayoutConfig& layout) { layout.recompute = recompute; });
  add("tensor 2", 2, 1, [](LayoutConfig& layout) { layout.tensor = 2; });
  for (const char* const overlap : {"none", "auto"})
    add(std::string("tensor 2 with parts of the tokens, overlap ") + overlap, 2, 1, [&](LayoutConfig& layout) {
      layout.tensor = 2, layout.tensor_sequence_split = true, layout.overlap = overlap;
    });
  for (const char* const overlap : {"none", "auto"})
    add(std::string("sequence 2, overlap ") + overlap, 2, 1,
        [&](LayoutConfig& layout) { layout.sequence = 2, layout.overlap = overlap; });
  for (const char* const schedule : {"gpipe", "1f1b", "zero-bubble"})
    add(std::string("pipeline 2, ") + schedule, 2, 6,
        [&](LayoutConfig& layout) { layout.pipeline = 2, layout.schedule = schedule; });
  add("pipeline 2, two chunks, selective", 2, 4, [](LayoutConfig& layout) {
    layout.pipeline = 2, layout.schedule = "interleaved", layout.chunks = 2, layout.recompute = "selective";
  });
  for (const int zero : {0, 1, 2, 3})
    add(fmt::format("data 4, ZeRO {}", zero), 4, 2, [&](LayoutConfig& layout) { layout.zero = zero; });
  add("data 2 x tensor 2, ZeRO 3 without overlap", 4, 1,
      [](LayoutConfig& layout) { layout.tensor = 2, layout.zero = 3, layout.overlap = "none"; });
  add("pipeline 2 x tensor 2, full", 4, 4, [](LayoutConfig& layout) {
    layout.tensor = 2, layout.pipeline = 2, layout.recompute = "full", layout.schedule = "zero-bubble";
  });
  return list;
}

MemoryLedger ledger_after(int steps, const ModelRunnerOptions& options, Mesh& mesh) {
  ExecutionResources resources(Device::cpu());
  ModelRunner runner(estimated_model(), options, mesh, resources.execution());
  Optimizer optimizer({}, 1.0, runner.parameters(), mesh, resources.execution());
  runner.parameters().initialize(1, resources.execution());
  const IndexRange slice =
      sequence_slice(options.micro_batch.length, mesh.size(Axis::sequence), mesh.coordinate(Axis::sequence));
  const std::vector<Batch> batches(static_cast<std::size_t>(options.micro_batches),
                                   sample_slice(options.micro_batch.length, slice));
  for (int step = 0; step < steps; ++step) runner.accumulate(batches, [&] { optimizer.step(1e-4, step); });
  return resources.ledger();
}

TEST(MemoryEstimate, EqualsWhatIsHeld) {
  Communicator& world = test_world();
  for (const EstimateCase& each : cases()) {
    if (world.rank() >= each.ranks) continue;
    const std::unique_ptr<Communicator> ranks = world.subgroup(first_ranks(each.ranks));
    Mesh mesh(mesh_shape(each.layout, each.ranks), *ranks);
    ModelRunnerOptions options;
    options.layout = each.layout;
    options.precision = {each.dtype, each.dtype};
    options.micro_batch = {sample_rows, each.length};
    options.micro_batches = each.micro_batches;
    // A second step finds all memory as the first left it.
    const MemoryLedger held = ledger_after(each.ranks == 1 ? 2 : 1, options, mesh);
    const MemoryLedger planned = estimate_memory(estimated_model(), options, mesh.shape(), mesh.rank(), Device::cpu());
    for (std::size_t k = 0; k < memory_kinds; ++k) {
      const auto kind = static_cast<MemoryKind>(k);
      EXPECT_EQ(planned.peak(kind), held.peak(kind))
          << each.name << ", rank " << mesh.rank() << ", " << name_of(kind) << ": counted, and held";
    }
    EXPECT_EQ(planned.peak_total(), held.peak_total()) << each.name << ", rank " << mesh.rank();
    if (each.name == "long") {
      EXPECT_GT(held.peak(MemoryKind::workspace), std::size_t{8} << 20) << each.name;
    }
    const LeastMemory least = least_memory(estimated_model(), options, mesh.shape());
    const double all = ranks->all_reduce(static_cast<double>(held.peak_total()), ReduceOp::sum);
    EXPECT_LE(least.total(), all) << each.name;
    EXPECT_GT(least.total(), 0.02 * all) << each.name;
  }
}

// The planner's case: no rank but this process, and no memory that could hold it.
TEST(MemoryEstimate, NeedsNeitherRanksNorMemory) {
  if (test_world().rank() > 0) return;
  TransnormerConfig config = estimated_model();
  config.layers = 96;
  config.hidden = 12288;
  config.heads = 96;
  config.glu = 32768;
  config.vocabulary = 64000;
  ModelRunnerOptions options;
  options.layout.tensor = 8;
  options.layout.pipeline = 8;
  options.layout.zero = 1;
  options.micro_batch = {1, 8192};
  options.micro_batches = 16;
  const MeshShape shape = mesh_shape(options.layout, 1024);
  std::size_t first = 0;
  for (const int stage : {0, 7}) {
    const MemoryLedger planned =
        estimate_memory(config, options, shape, stage * shape.ranks() / shape.pipeline, Device::cpu());
    EXPECT_GT(planned.peak(MemoryKind::weights), std::size_t{5} << 30);
    EXPECT_LT(planned.peak_total(), std::size_t{400} << 30);
    if (stage == 0) first = planned.peak(MemoryKind::activations);
    if (stage == 7) {
      EXPECT_GT(first, 2 * planned.peak(MemoryKind::activations)) << "1f1b: the first stage keeps most";
    }
  }
  const LeastMemory least = least_memory(config, options, shape);
  EXPECT_NEAR(least.weights, 4.0 * static_cast<double>(parameter_count(config)),
              1e-6 * least.weights);  // theta is fp64
  EXPECT_NEAR(least.optimizer, 2.0 * least.weights, 1e-6 * least.weights);
}

TEST(MemoryEstimate, EvaluationHasNoOptimiser) {
  if (test_world().rank() > 0) return;
  ModelRunnerOptions options;
  options.micro_batch = {sample_rows, 1024};
  const MemoryLedger training = estimate_memory(estimated_model(), options, {}, 0, Device::cpu()),
                     evaluation =
                         estimate_memory(estimated_model(), options, {}, 0, Device::cpu(), MemoryUse::evaluation);
  EXPECT_EQ(evaluation.peak(MemoryKind::weights), training.peak(MemoryKind::weights));
  EXPECT_EQ(evaluation.peak(MemoryKind::optimizer), 0U);
  EXPECT_LT(evaluation.peak_total(), training.peak_total());
}

}  // namespace
}  // namespace fulmen
