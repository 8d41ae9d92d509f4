// Costs of a stage's passes.
#include "model/stage_costs.h"

#include <algorithm>
#include <limits>

#include "model/families.h"

namespace fulmen {

namespace {

void add_layer(const ModelConfig& config, std::int64_t layer, std::int64_t length, Recompute recompute,
               PassCosts& costs) {
  double last_product = 0.0;
  for (const Branch& branch : config.layer(layer)) {
    const BranchCosts own = costs_of(branch, length);
    costs.forward += own.products + own.operations;
    costs.backward_input += own.products + own.backward_operations;
    costs.backward_weight += own.products;
    if (recompute == Recompute::selective) costs.backward_input += own.again;
    if (recompute == Recompute::full) costs.backward_input += own.products + own.operations;
    last_product = own.last_product;
  }
  if (recompute == Recompute::full) costs.backward_input -= last_product;  // no pass needs a layer's output again
}

}  // namespace

std::vector<PassCosts> stage_costs(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                   std::int64_t length, Recompute recompute) {
  std::vector<PassCosts> list;
  for (const StageRange& range : ranges) {
    PassCosts costs{0.0, 0.0, 0.0};
    for (std::int64_t layer = range.first_layer; layer < range.end_layer; ++layer)
      add_layer(config, layer, length, recompute, costs);
    if (range.head) costs.forward += 3.0 * 2.0 * static_cast<double>(config.vocabulary * config.hidden);
    if (range.embedding) {
      costs.forward += static_cast<double>(config.hidden);
      costs.backward_input += static_cast<double>(config.hidden);
    }
    list.push_back(costs);
  }
  return list;
}

namespace {

// Partitions of layers into stages: which are the best for the layers from one on.
class StageSplit {
 public:
  // costs of the layers, in units in which equal sums are equal to rounding.
  StageSplit(const std::vector<double>& layers, double embedding, double head, int stages)
      : sums_{0.0}, embedding_(embedding), head_(head), stages_(stages) {
    for (const double cost : layers) sums_.push_back(sums_.back() + cost);
  }

  std::vector<std::int64_t> best() const {
    const double longest = solve([](double a, double b) { return std::max(a, b); }, unlimited).value;
    const Solution even = solve([](double a, double b) { return a * a + b; }, longest * (1.0 + rounding));
    return even.counts;
  }

 private:
  static constexpr double rounding = 1e-5;  // smaller differences, such as an embedding makes, decide nothing
  static constexpr double unlimited = std::numeric_limits<double>::infinity();
  struct Solution {
    double value = 0.0;
    std::vector<std::int64_t> counts;
  };

  double cost_of(int stage, std::int64_t begin, std::int64_t end) const {
    return sums_[static_cast<std::size_t>(end)] - sums_[static_cast<std::size_t>(begin)] +
           (stage == 0 ? embedding_ : 0.0) + (stage + 1 == stages_ ? head_ : 0.0);
  }

  // The stages that make join(cost of the first, join(cost of the second, ...)) least, none longer than `limit`.
  template <class Join>
  Solution solve(const Join& join, double limit) const {
    const auto layers = static_cast<std::int64_t>(sums_.size()) - 1;
    const auto width = static_cast<std::size_t>(layers + 1);
    std::vector<double> behind(width, unlimited);  // by first layer, of the stages from the present one on
    behind[static_cast<std::size_t>(layers)] = 0.0;
    std::vector<std::vector<std::int64_t>> chosen(static_cast<std::size_t>(stages_), std::vector<std::int64_t>(width));
    for (int stage = stages_ - 1; stage >= 0; --stage) {
      std::vector<double> best(width, unlimited);
      for (std::int64_t begin = 0; begin < layers; ++begin)
        for (std::int64_t end = layers; end > begin; --end) {  // the most layers first: equals keep the earlier larger
          const double cost = cost_of(stage, begin, end), rest = behind[static_cast<std::size_t>(end)];
          if (cost > limit || rest == unlimited) continue;
          double& least = best[static_cast<std::size_t>(begin)];
          if (const double value = join(cost, rest); value < least * (1.0 - rounding)) {
            least = value;
            chosen[static_cast<std::size_t>(stage)][static_cast<std::size_t>(begin)] = end;
          }
        }
      behind = best;
    }
    Solution solution{behind[0], {}};
    for (std::int64_t stage = 0, begin = 0; stage < stages_; ++stage) {
      const std::int64_t end = chosen[static_cast<std::size_t>(stage)][static_cast<std::size_t>(begin)];
      solution.counts.push_back(end - begin);
      begin = end;
    }
    return solution;
  }

  std::vector<double> sums_;
  double embedding_, head_;
  int stages_;
};

double total(const PassCosts& costs) { return costs.forward + costs.backward_input + costs.backward_weight; }

}  // namespace

std::vector<StageRange> split_stages_by_cost(const ModelConfig& config, int pipeline_stages, std::int64_t length,
                                             Recompute recompute) {
  std::vector<StageRange> even = split_stages(config.layers, pipeline_stages, {});
  if (pipeline_stages == 1) return even;
  std::vector<double> layers;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    layers.push_back(total(stage_costs(config, {{layer, layer + 1, false, false}}, length, recompute)[0]));
  const double embedding = total(stage_costs(config, {{0, 0, true, false}}, length, recompute)[0]);
  const double head = total(stage_costs(config, {{0, 0, false, true}}, length, recompute)[0]);
  return split_stages(config.layers, pipeline_stages, StageSplit(layers, embedding, head, pipeline_stages).best());
}

double operations_beside_products(const ModelConfig& config, std::int64_t length) {
  double sum = 0.0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (const Branch& branch : config.layer(layer)) {
      const BranchCosts costs = costs_of(branch, length);
      sum += costs.operations + costs.backward_operations;
    }
  return sum;
}

}  // namespace fulmen
