// Combinations of features' values such that every possible pair of values of two features meets in a combination.
// Which pairs are possible is what named constraints leave.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace fulmen {

struct Feature {
  std::string name;
  std::vector<std::string> values;
};

// For each feature the index of its value.
using Combination = std::vector<int>;

struct Constraint {
  std::string name;           // in words: what is not possible, and why
  std::vector<int> features;  // that it looks at
  std::function<bool(const Combination&)> allows;
};

class CombinationSpace {
 public:
  // Constraints should look at features that stand close together: they are looked at once all of these are chosen, in
  // their order.
  CombinationSpace(std::vector<Feature> features, std::vector<Constraint> constraints);

  const std::vector<Feature>& features() const { return features_; }
  int size() const { return static_cast<int>(features_.size()); }
  // The name of the first constraint that forbids it, or "".
  std::string forbidden_by(const Combination& combination) const;
  // Every allowed combination, in lexical order.
  void for_each(const std::function<void(const Combination&)>& f) const;
  // An allowed combination with these values (-1: any), which `seed` picks; nothing if there is none.
  std::optional<Combination> complete(const Combination& partial, std::uint64_t seed) const;

 private:
  bool allows(const Combination& combination, int feature) const;
  template <class Values, class Found>
  bool search(Combination& combination, const std::vector<bool>& fixed, int feature, Values&& values,
              Found&& found) const;

  std::vector<Feature> features_;
  std::vector<Constraint> constraints_;
};

// The given allowed combinations, then others until every possible pair of values meets, and more that bring many new
// triples together, up to `count` in all. All are different. The same each time.
std::vector<Combination> cover_pairs(const CombinationSpace& space, std::size_t count,
                                     const std::vector<Combination>& given = {});

// All values of `size` features taken together (pairs, triples), as numbers that tell them apart.
std::vector<std::uint64_t> tuples_of(const CombinationSpace& space, const Combination& combination, int size);

}  // namespace fulmen
