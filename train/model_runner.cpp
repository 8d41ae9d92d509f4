// Turns batches into losses and gradients on a mesh of ranks.
#include "train/model_runner.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>

#include "framework/transfer.h"
#include "kernels/elementwise.h"
#include "model/families.h"
#include "model/stage_costs.h"

namespace fulmen {

namespace {

// Ranks along an axis that own nothing would be a mistake.
void check_owners(const ModelConfig& config, int ranks, Axis axis, const char* what) {
  if (ranks == 1) return;
  const std::vector<ParameterDeclaration> all = declare_layers(config, 0, config.layers);
  if (std::ranges::any_of(all,
                          [&](const auto& declaration) { return declaration.along(axis) == AxisPlacement::owned; }))
    return;
  throw UserError(fmt::format("parallel.{}", name_of(axis)),
                  fmt::format("{} ranks are to share the {} of the layers, and the model has none", ranks, what),
                  "set it to 1");
}

const ModelConfig& checked(const ModelConfig& config, const MeshShape& shape) {
  config.validate();
  config.check_shares(shape.tensor);
  check_owners(config, shape.expert, Axis::expert, "experts");
  return config;
}

// Where the slices of a sample begin, and the end.
std::vector<std::int64_t> slice_starts(std::int64_t sample_length, int ranks) {
  std::vector<std::int64_t> starts = {0};
  for (int rank = 0; rank < ranks; ++rank) starts.push_back(sequence_slice(sample_length, ranks, rank).end);
  return starts;
}

OwnedTensor slice_bounds(std::int64_t sample_length, int ranks, const Execution& execution) {
  if (ranks == 1) return {};
  OwnedTensor tensor(execution.device, DType::int64, {ranks + 1}, MemoryKind::data, *execution.ledger);
  copy_to_device(execution, slice_starts(sample_length, ranks).data(), tensor);
  return tensor;
}

// On a GPU adding the state afterwards costs more than the gather takes: there it is done where it is asked for by
// name.
bool overlap_states(const LayoutConfig& layout, const Execution& execution) {
  return layout.overlaps("sequence") && (execution.device.kind == DeviceKind::cpu || layout.overlap != "auto");
}

SequenceSlices sequence_slices(Mesh& mesh, const OwnedTensor& bounds, std::int64_t sample_length,
                               const LayoutConfig& layout, const Execution& execution) {
  if (mesh.size(Axis::sequence) == 1) return {};
  return {&mesh.along(Axis::sequence), bounds, slice_starts(sample_length, mesh.size(Axis::sequence)),
          overlap_states(layout, execution), layout.overlaps("sequence")};
}

Sharding sharding_of(const LayoutConfig& layout, Mesh& mesh) {
  Sharding sharding;
  sharding.shards = shard_count(layout, mesh);
  sharding.stage = sharding.shards > 1 ? static_cast<int>(layout.zero) : 0;  // one rank has nothing to share
  sharding.smallest_bucket = layout.bucket_elements;
  sharding.gradient_slots = layout.overlaps("gradients") ? 2 : 1;
  sharding.weight_slots = layout.overlaps("weights") ? 2 : 1;
  return sharding;
}

int chunks_of(const ModelRunnerOptions& options) { return static_cast<int>(options.layout.chunks); }

std::vector<StageRange> stages_of(const ModelConfig& config, const ModelRunnerOptions& options, int pipeline_ranks) {
  const int stages = pipeline_ranks * chunks_of(options);
  if (options.layout.stages) return split_stages(config.layers, stages, options.layout.stages);
  return split_stages_by_cost(config, stages, options.micro_batch.length, parse_recompute(options.layout.recompute));
}

// This rank's part of a list by stage of the whole model: chunk c is stage c * ranks + rank.
template <class T>
std::vector<T> of_this_rank(const std::vector<T>& stages, const Mesh& mesh) {
  std::vector<T> mine;
  for (auto stage = static_cast<std::size_t>(mesh.coordinate(Axis::pipeline)); stage < stages.size();
       stage += static_cast<std::size_t>(mesh.size(Axis::pipeline)))
    mine.push_back(stages[stage]);
  return mine;
}

std::vector<ParameterDeclaration> declare_stages(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                                 const Mesh& mesh) {
  std::vector<ParameterDeclaration> list;
  for (const StageRange& range : of_this_rank(ranges, mesh))
    std::ranges::move(declare_stage(config, range, mesh.size(Axis::pipeline)), std::back_inserter(list));
  return list;
}

std::vector<std::unique_ptr<Stage>> make_stages(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                                const Mesh& mesh, const ModelContext& context, Recompute recompute) {
  std::vector<std::unique_ptr<Stage>> stages;
  for (const StageRange& range : of_this_rank(ranges, mesh))
    stages.push_back(std::make_unique<Stage>(config, range, context, recompute));
  return stages;
}

std::vector<Stage*> pointers_to(const std::vector<std::unique_ptr<Stage>>& stages) {
  std::vector<Stage*> pointers;
  for (const auto& stage : stages) pointers.push_back(stage.get());
  return pointers;
}

}  // namespace

ModelRunner::ModelRunner(const ModelConfig& config, const ModelRunnerOptions& options, Mesh& mesh,
                         const Execution& execution)
    : options_(options),
      mesh_(mesh),
      execution_(execution),
      ranges_(stages_of(checked(config, mesh.shape()), options, mesh.size(Axis::pipeline))),
      costs_{stage_costs(config, ranges_, options.micro_batch.length, parse_recompute(options.layout.recompute)), 0.0,
             options.layout.overlaps("pipeline")},
      schedule_(make_schedule(parse_schedule_kind(options.layout.schedule), mesh.size(Axis::pipeline),
                              options.micro_batches, chunks_of(options), costs_)),
      report_(check_schedule(schedule_, options.micro_batches, chunks_of(options), costs_)),
      parameters_(declare_stages(config, ranges_, mesh), mesh, options.precision, execution,
                  sharding_of(options.layout, mesh)),
      slice_(sequence_slice(options.micro_batch.length, mesh.size(Axis::sequence), mesh.coordinate(Axis::sequence))),
      slice_bounds_(slice_bounds(options.micro_batch.length, mesh.size(Axis::sequence), execution)),
      context_{execution,
               &mesh.along(Axis::tensor),
               &parameters_,
               sequence_slices(mesh, slice_bounds_, options.micro_batch.length, options.layout, execution),
               {},
               options.layout.tensor_sequence_split && mesh.size(Axis::tensor) > 1,
               options.layout.overlaps("tensor") && mesh.size(Axis::tensor) > 1,
               static_cast<int>(options.layout.communication_multiprocessors),
               [&mesh](Axis axis) { return mesh.size(axis) > 1 ? &mesh.along(axis) : nullptr; }},
      stages_(make_stages(config, ranges_, mesh, context_, parse_recompute(options.layout.recompute))),
      layers_lose_(has_layer_losses(config)),
      sync_(parameters_, mesh, options.layout.overlaps("gradients"), execution, context_.split_tokens),
      weights_(parameters_, mesh, options.layout.overlaps("weights"), execution),
      executor_(pointers_to(stages_), mesh.along(Axis::pipeline),
                {{options.micro_batch.batch, slice_.size()},
                 options.precision.parameters,
                 1.0 / static_cast<double>(options.micro_batch.batch * options.micro_batches * mesh.size(Axis::data)),
                 report_.peak_slots[static_cast<std::size_t>(mesh.coordinate(Axis::pipeline))],
                 options.layout.overlaps("pipeline")},
                execution),
      loss_scale_(execution.device, DType::fp64, {1}, MemoryKind::activations, *execution.ledger),
      reduce_timer_(execution.stream),
      update_timer_(execution.stream) {
  // Now, while no rank waits for another on a GPU, and in one order on all ranks.
  if (context_.overlap_tensor) context_.tensor->limit_multiprocessors(context_.communication_multiprocessors);
  context_.tensor->connect(context_.overlap_tensor && context_.split_tokens ? Connections::exchanges
                                                                            : Connections::plain);
  mesh.along(Axis::sequence).connect(Connections::plain);
  mesh.along(Axis::pipeline).connect(Connections::exchanges);
  sync_.connect();

  context_.hooks.before_forward = [this](std::int64_t layer) { weights_.before_forward(layer); };
  context_.hooks.before_backward_input = [this](std::int64_t layer) {
    weights_.before_backward(layer);
    sync_.before_backward_input(layer);
  };
  context_.hooks.before_backward_weight = [this](std::int64_t layer) { sync_.before_backward_weight(layer); };
  context_.hooks.after_backward_weight = [this](std::int64_t layer) { sync_.after_backward_weight(layer); };
}

void ModelRunner::reset_loss() {
  fill_zero(execution_, stage().loss_sum());
  if (layers_lose_)
    for (const auto& stage : stages_) fill_zero(execution_, stage->layer_loss_sum());
  targets_ = 0.0;
}

StepLoss ModelRunner::reduce_loss() {
  // Losses live on the last stage only, and every rank of a tensor group has them; targets are known on all stages.
  Communicator& ranks = mesh_.along({Axis::sequence, Axis::data, Axis::pipeline});
  std::array<double, 4> sums = {0.0, targets_ / mesh_.size(Axis::pipeline), 0.0, 0.0};
  copy_to_host(execution_, stage().loss_sum(), &sums[0]);
  for (std::size_t i = 0; layers_lose_ && i < stages_.size(); ++i) {
    double own = 0.0;
    copy_to_host(execution_, stages_[i]->layer_loss_sum(), &own);
    sums[3] += own;
  }
  sums[2] =
      executor_.waiting_seconds() / ranks.size();  // the device is done with the step: reading it waits for nothing
  ranks.all_reduce(Tensor(sums.data(), DType::fp64, {static_cast<std::int64_t>(sums.size())}), ReduceOp::sum, Stream{});
  return {sums[1] > 0.0 ? sums[0] / sums[1] : std::numeric_limits<double>::quiet_NaN(), sums[1], sums[3], sums[2]};
}

StepLoss ModelRunner::accumulate(std::span<const Batch> batches, const std::function<void()>& update) {
  FULMEN_CHECK(static_cast<int>(batches.size()) == options_.micro_batches, "{} micro-batches for a schedule of {}",
               batches.size(), options_.micro_batches);
  reset_loss();
  for (const Batch& batch : batches) targets_ += batch.target_count();
  const double global_targets = mesh_.along({Axis::sequence, Axis::data}).all_reduce(targets_, ReduceOp::sum);
  const double scale = global_targets > 0.0 ? 1.0 / global_targets : 0.0;
  copy_to_device(execution_, &scale, loss_scale_);
  weights_.begin_pass();
  sync_.begin_step(options_.micro_batches);

  reduce_timer_.reset();
  update_timer_.reset();
  const auto timed = [](StreamTimer& timer, const auto& work) {
    timer.start();
    work();
    timer.stop();
  };
  StepHandlers handlers;
  handlers.reduce_shared = [&] { timed(reduce_timer_, [&] { sync_.reduce_shared(); }); };
  handlers.reduce_gradients = [&] { timed(reduce_timer_, [&] { sync_.reduce_gradients(); }); };
  handlers.optimizer_step = [&] {
    if (!update || global_targets == 0.0) return;
    timed(update_timer_, update);
    weights_.weights_changed();
  };
  executor_.run(schedule_[static_cast<std::size_t>(mesh_.coordinate(Axis::pipeline))], batches, loss_scale_, true,
                handlers);
  return reduce_loss();
}

IdealStep ModelRunner::ideal_step() {
  Communicator& pipeline = mesh_.along(Axis::pipeline);
  std::vector<double> seconds(3 * ranges_.size());
  for (int c = 0; c < chunks_of(options_); ++c) {
    const PassCosts costs = executor_.pass_seconds(c);
    const auto stage = static_cast<std::size_t>(c * pipeline.size() + pipeline.rank());
    seconds[3 * stage] = costs.forward;
    seconds[3 * stage + 1] = costs.backward_input;
    seconds[3 * stage + 2] = costs.backward_weight;
  }
  pipeline.all_reduce(Tensor(seconds.data(), DType::fp64, {static_cast<std::int64_t>(seconds.size())}), ReduceOp::sum,
                      Stream{});
  ScheduleCosts costs;
  costs.overlap = true;
  for (std::size_t stage = 0; stage < ranges_.size(); ++stage)
    costs.stages.push_back({seconds[3 * stage], seconds[3 * stage + 1], seconds[3 * stage + 2]});
  const ScheduleReport report = check_schedule(schedule_, options_.micro_batches, chunks_of(options_), costs);
  // In a reduction between stages: who came first also waited for the others.
  const double after =
      pipeline.all_reduce(reduce_seconds(), ReduceOp::min) + pipeline.all_reduce(update_seconds(), ReduceOp::max);
  return {report.makespan + after, report.bubble};
}

void ModelRunner::evaluate(std::span<const Batch> batches) {
  for (const Batch& batch : batches) targets_ += batch.target_count();
  const int micro_batches = static_cast<int>(batches.size());
  weights_.begin_pass();
  InstructionList& list = evaluation_lists_[micro_batches];
  if (list.empty()) {
    const int chunks = chunks_of(options_);
    const ScheduleKind kind = chunks > 1 ? ScheduleKind::interleaved : ScheduleKind::one_forward_one_backward;
    const auto lists = make_schedule(kind, mesh_.size(Axis::pipeline), micro_batches, chunks, costs_);
    list = forward_only(lists[static_cast<std::size_t>(mesh_.coordinate(Axis::pipeline))]);
  }
  executor_.run(list, batches, loss_scale_, false, {});
}

}  // namespace fulmen
