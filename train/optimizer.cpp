// AdamW over flat buffers.
#include "train/optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>

#include "framework/text.h"
#include "framework/transfer.h"
#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace fulmen {

namespace {

// Whether b begins where a ends; two nulls do.
bool follows(const Tensor& a, const Tensor& b) {
  return static_cast<std::byte*>(a.data()) + a.bytes() == b.data() && a.dtype() == b.dtype();
}

Tensor joined(const Tensor& a, const Tensor& b) {
  return a ? Tensor(a.data(), a.dtype(), {a.elements() + b.elements()}, a.device()) : Tensor();
}

// The clip groups of the parameters of all ranks, sorted.
std::vector<std::string> clip_groups(const ParameterStore& parameters, Communicator& model_ranks) {
  std::set<std::string> mine, all;
  for (const ParameterGroup& group : parameters.groups()) mine.insert(group.key.clip_group);
  const std::string text = join({mine.begin(), mine.end()}, "\n");
  for (int rank = 0; rank < model_ranks.size(); ++rank)
    for (const std::string& name : split(model_ranks.broadcast_text(text, rank), '\n')) all.insert(name);
  return {all.begin(), all.end()};
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, double clip, ParameterStore& parameters, Mesh& mesh,
                     const Execution& execution)
    : config_(config),
      clip_(clip),
      parameters_(parameters),
      model_ranks_(mesh.along({Axis::tensor, Axis::pipeline})),
      execution_(execution),
      master_(parameters, execution),
      clip_groups_(clip_groups(parameters, model_ranks_)) {
  for (const Replication& replication : parameters.replications()) {
    const ShardGroups groups(mesh, replication.shards, replication.owned_along);
    holders_.push_back(
        {&groups.shards(), replication.owned_along.empty() ? nullptr : &mesh.along(replication.owned_along)});
  }
  const auto allocate = [&](DType dtype, const Shape& shape) {
    return OwnedTensor(execution.device, dtype, shape, MemoryKind::optimizer, *execution.ledger);
  };
  std::vector<Tensor> first, second;
  for (std::size_t g = 0; g < parameters.groups().size(); ++g) {
    const DType type = parameters.precision().moments_of(parameters.groups()[g].key);
    moments_.push_back(allocate(type, {2, parameters.part_elements(g)}));
    first.push_back(moments_.back().view().select(0, 0));
    second.push_back(moments_.back().view().select(0, 1));
  }
  exp_avg_ = parameters.parts_in(first);
  exp_avg_sq_ = parameters.parts_in(second);
  make_runs();
  const auto groups = static_cast<std::int64_t>(clip_groups_.size());
  scalars_ = allocate(DType::fp64, {groups, adamw_scalars});
  square_sums_ = allocate(DType::fp64, {static_cast<std::int64_t>(holders_.size()), groups});
  norms_ = allocate(DType::fp64, {groups});
}

void Optimizer::make_runs() {
  const ShardMap& map = parameters_.shard_map();
  const FlatParts gradients = parameters_.flat_gradients();
  std::vector<std::size_t> order(map.buckets().size());  // as they lie in memory
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {},
                    [&](std::size_t b) { return std::pair(map.buckets()[b].group, map.buckets()[b].begin); });
  counted_.assign(holders_.size(), std::vector<FlatParts>(clip_groups_.size()));
  for (std::size_t g = 0; g < parameters_.groups().size(); ++g)
    std::ranges::copy(parameters_.counted_in(gradients, g),
                      std::back_inserter(counted_[parameters_.groups()[g].replication][clip_group(g)]));
  for (const std::size_t b : order) {
    const Run run{map.buckets()[b].group, master_.flat()[b], gradients[b], exp_avg_[b],
                  exp_avg_sq_[b],         master_.rounded(b)};
    Run* const last = runs_.empty() ? nullptr : &runs_.back();
    if (last && last->group == run.group && follows(last->master, run.master) &&
        follows(last->gradients, run.gradients) && follows(last->exp_avg, run.exp_avg) &&
        follows(last->exp_avg_sq, run.exp_avg_sq) && follows(last->rounded, run.rounded))
      *last = {run.group,
               joined(last->master, run.master),
               joined(last->gradients, run.gradients),
               joined(last->exp_avg, run.exp_avg),
               joined(last->exp_avg_sq, run.exp_avg_sq),
               joined(last->rounded, run.rounded)};
    else
      runs_.push_back(run);
  }
}

std::size_t Optimizer::clip_group(std::size_t group) const {
  return static_cast<std::size_t>(std::ranges::find(clip_groups_, parameters_.groups()[group].key.clip_group) -
                                  clip_groups_.begin());
}

Tensor Optimizer::scalars(std::size_t clip_group) const {
  return scalars_.view().select(0, static_cast<std::int64_t>(clip_group));
}

Tensor Optimizer::square_sum(std::size_t replication, std::size_t clip_group) const {
  const auto c = static_cast<std::int64_t>(clip_group);
  return square_sums_.view().select(0, static_cast<std::int64_t>(replication)).slice(0, c, c + 1);
}

void Optimizer::reduce_square_sums() {
  fill_zero(execution_, square_sums_);
  const Tensor total = square_sums_.view().select(0, 0);
  for (std::size_t r = 0; r < holders_.size(); ++r) {
    for (std::size_t c = 0; c < clip_groups_.size(); ++c)
      for (const Tensor& run : counted_[r][c]) add_sum_of_squares(execution_, run, square_sum(r, c));
    const Tensor sums = square_sums_.view().select(0, static_cast<std::int64_t>(r));
    for (Communicator* ranks : {holders_[r].shards, holders_[r].owners})
      if (ranks != nullptr && ranks->size() > 1) ranks->all_reduce(sums, ReduceOp::sum, execution_.stream);
    if (r > 0) add(execution_, total, sums, total);
  }
  if (model_ranks_.size() > 1) model_ranks_.all_reduce(total, ReduceOp::sum, execution_.stream);
}

void Optimizer::step(double learning_rate, std::int64_t updates_before) {
  const double t = static_cast<double>(updates_before + 1);
  const std::array<double, adamw_scalars> values = {learning_rate, 1.0 - std::pow(config_.betas[0], t),
                                                    1.0 - std::pow(config_.betas[1], t), 1.0};
  reduce_square_sums();
  for (std::size_t c = 0; c < clip_groups_.size(); ++c) {
    const auto index = static_cast<std::int64_t>(c);
    copy_to_device(execution_, values.data(), scalars(c));
    set_clip_scale(execution_, square_sum(0, c), clip_, norms_.view().slice(0, index, index + 1), scalars(c));
  }
  for (const Run& run : runs_) {
    const ParameterGroupKey& key = parameters_.groups()[run.group].key;
    AdamwOptions options;
    options.beta1 = config_.betas[0];
    options.beta2 = config_.betas[1];
    options.epsilon = config_.epsilon;
    options.weight_decay = key.weight_decay ? config_.weight_decay : 0.0;
    options.learning_rate_scale = key.learning_rate_scale;
    adamw_update(execution_, run.master, run.gradients, run.exp_avg, run.exp_avg_sq, scalars(clip_group(run.group)),
                 options, run.rounded);
  }
}

double Optimizer::compute_gradient_norm() {
  reduce_square_sums();
  std::vector<double> squares(clip_groups_.size());
  copy_to_host(execution_, square_sums_.view().select(0, 0), squares.data());
  return std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
}

std::vector<double> Optimizer::norms() const {
  std::vector<double> norms(clip_groups_.size());
  copy_to_host(execution_, norms_, norms.data());
  return norms;
}

double Optimizer::gradient_norm() const {
  const std::vector<double> all = norms();
  return all.size() == 1 ? all[0] : std::sqrt(std::inner_product(all.begin(), all.end(), all.begin(), 0.0));
}

double Optimizer::gradient_norm(const std::string& clip_group) const {
  const auto found = std::ranges::find(clip_groups_, clip_group);
  return found == clip_groups_.end() ? 0.0 : norms()[static_cast<std::size_t>(found - clip_groups_.begin())];
}

}  // namespace fulmen
