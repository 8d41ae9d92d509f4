// Greedy covering arrays: of some random completions of a pair that has not met, the completion in which most others
// meet.
#include "tests/train/covering_array.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <unordered_set>

namespace fulmen {
namespace {

constexpr int candidates = 40;

// A feature and value as one number.
std::uint64_t code_of(int feature, int value) { return static_cast<std::uint64_t>(feature * 16 + value); }

}  // namespace

CombinationSpace::CombinationSpace(std::vector<Feature> features, std::vector<Constraint> constraints)
    : features_(std::move(features)), constraints_(std::move(constraints)) {}

std::string CombinationSpace::forbidden_by(const Combination& combination) const {
  for (const Constraint& constraint : constraints_)
    if (!constraint.allows(combination)) return constraint.name;
  return {};
}

// Whether the constraints that look at this feature, and at chosen features only, hold.
bool CombinationSpace::allows(const Combination& combination, int feature) const {
  return std::ranges::all_of(constraints_, [&](const Constraint& constraint) {
    if (std::ranges::find(constraint.features, feature) == constraint.features.end()) return true;
    const bool chosen =
        std::ranges::all_of(constraint.features, [&](int f) { return combination[static_cast<std::size_t>(f)] >= 0; });
    return !chosen || constraint.allows(combination);
  });
}

// Depth first over the features that are not fixed; ends when found(combination) says so.
template <class Values, class Found>
bool CombinationSpace::search(Combination& combination, const std::vector<bool>& fixed, int feature, Values&& values,
                              Found&& found) const {
  if (feature == size()) return found(combination);
  const auto at = static_cast<std::size_t>(feature);
  if (fixed[at]) return allows(combination, feature) && search(combination, fixed, feature + 1, values, found);
  for (const int value : values(feature)) {
    combination[at] = value;
    if (allows(combination, feature) && search(combination, fixed, feature + 1, values, found)) return true;
  }
  combination[at] = -1;
  return false;
}

void CombinationSpace::for_each(const std::function<void(const Combination&)>& f) const {
  Combination combination(features_.size(), -1);
  std::vector<std::vector<int>> orders;
  for (const Feature& feature : features_) {
    orders.emplace_back(feature.values.size());
    std::iota(orders.back().begin(), orders.back().end(), 0);
  }
  search(
      combination, std::vector<bool>(features_.size(), false), 0,
      [&](int feature) -> const std::vector<int>& { return orders[static_cast<std::size_t>(feature)]; },
      [&](const Combination& found) {
        f(found);
        return false;
      });
}

std::optional<Combination> CombinationSpace::complete(const Combination& partial, std::uint64_t seed) const {
  std::mt19937_64 random(seed);
  std::vector<bool> fixed;
  for (const int value : partial) fixed.push_back(value >= 0);
  const auto shuffled = [&](int feature) {
    std::vector<int> order(features_[static_cast<std::size_t>(feature)].values.size());
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    return order;
  };
  Combination combination = partial;
  if (!search(combination, fixed, 0, shuffled, [](const Combination&) { return true; })) return std::nullopt;
  return combination;
}

std::vector<std::uint64_t> tuples_of(const CombinationSpace& space, const Combination& combination, int size) {
  std::vector<std::uint64_t> tuples = {0};
  std::vector<int> first = {0};  // the features after the tuple so far
  for (int chosen = 0; chosen < size; ++chosen) {
    std::vector<std::uint64_t> longer;
    std::vector<int> after;
    for (std::size_t i = 0; i < tuples.size(); ++i)
      for (int feature = first[i]; feature < space.size(); ++feature) {
        longer.push_back(tuples[i] * 1024 + 1 + code_of(feature, combination[static_cast<std::size_t>(feature)]));
        after.push_back(feature + 1);
      }
    tuples = std::move(longer);
    first = std::move(after);
  }
  return tuples;
}

std::vector<Combination> cover_pairs(const CombinationSpace& space, std::size_t count,
                                     const std::vector<Combination>& given) {
  std::vector<Combination> chosen;
  std::set<Combination> distinct;
  std::unordered_set<std::uint64_t> pairs, triples;
  std::uint64_t seed = 1;
  // The completion of `partial` in which most of these tuples are new.
  const auto choose = [&](const Combination& partial, const std::unordered_set<std::uint64_t>& met, int size) {
    std::optional<Combination> best;
    std::ptrdiff_t best_new = -1;
    for (int i = 0; i < candidates; ++i) {
      const auto candidate = space.complete(partial, seed++);
      if (!candidate) return best;
      if (distinct.contains(*candidate)) continue;
      const auto fresh =
          std::ranges::count_if(tuples_of(space, *candidate, size), [&](std::uint64_t t) { return !met.contains(t); });
      if (fresh > best_new) best = candidate, best_new = fresh;
    }
    return best;
  };
  const auto take = [&](const Combination& combination) {
    chosen.push_back(combination);
    distinct.insert(combination);
    for (const std::uint64_t pair : tuples_of(space, combination, 2)) pairs.insert(pair);
    for (const std::uint64_t triple : tuples_of(space, combination, 3)) triples.insert(triple);
  };
  for (const Combination& combination : given)
    if (!distinct.contains(combination)) take(combination);
  const auto values_of = [&](int feature) {
    return static_cast<int>(space.features()[static_cast<std::size_t>(feature)].values.size());
  };
  for (int a = 0; a < space.size(); ++a)
    for (int b = a + 1; b < space.size(); ++b)
      for (int x = 0; x < values_of(a); ++x)
        for (int y = 0; y < values_of(b); ++y) {
          Combination partial(static_cast<std::size_t>(space.size()), -1);
          partial[static_cast<std::size_t>(a)] = x;
          partial[static_cast<std::size_t>(b)] = y;
          const std::uint64_t pair = (1 + code_of(a, x)) * 1024 + 1 + code_of(b, y);
          if (pairs.contains(pair)) continue;
          if (const auto combination = choose(partial, pairs, 2)) take(*combination);
        }
  for (int attempt = 0; chosen.size() < count && attempt < 1000; ++attempt)
    if (const auto combination = choose(Combination(static_cast<std::size_t>(space.size()), -1), triples, 3))
      take(*combination);
  return chosen;
}

}  // namespace fulmen
