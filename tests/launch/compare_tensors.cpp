// compare_tensors A.h5 GROUP B.h5 GROUP TOLERANCE Compares every dataset below two groups (or two single datasets) by
// max|a - b| / max|b|. A tolerance of 0 asks for equal values. Both must hold the same names and shapes, and no NaN.
// Exits 1 and names what differs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "framework/error.h"
#include "framework/hdf5.h"
#include "tests/framework/whole_dataset.h"

namespace fulmen {
namespace {

using Values = testing_support::WholeDataset;

// By the name below the group.
std::map<std::string, Values> read_group(const std::string& path, const std::string& group) {
  const hdf5::File file = hdf5::File::open(path);
  std::map<std::string, Values> tensors;
  for (const std::string& name : file.dataset_names()) {
    if (name != group && !name.starts_with(group + "/")) continue;
    tensors.emplace(name.substr(group.size()), testing_support::read_whole_dataset(path, name));
  }
  return tensors;
}

double relative_difference(const Values& a, const Values& b) {
  double difference = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    if (!std::isfinite(a.values[i]) || !std::isfinite(b.values[i])) return INFINITY;
    difference = std::max(difference, std::abs(a.values[i] - b.values[i]));
    largest = std::max(largest, std::abs(b.values[i]));
  }
  if (difference == 0.0) return 0.0;
  return largest > 0.0 ? difference / largest : INFINITY;
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 5) throw UserError("usage", "compare_tensors A.h5 GROUP B.h5 GROUP TOLERANCE");
  const std::map<std::string, Values> a = read_group(arguments[0], arguments[1]),
                                      b = read_group(arguments[2], arguments[3]);
  const double tolerance = std::stod(arguments[4]);
  int wrong = 0;
  const auto complain = [&](const std::string& name, const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), what.c_str());
    ++wrong;
  };
  if (b.empty()) complain(arguments[3], "no dataset in " + arguments[2]);
  for (const auto& [name, tensor] : a)
    if (!b.contains(name)) complain(name, "only in " + arguments[0]);
  double largest = 0.0;
  for (const auto& [name, tensor] : b) {
    const auto other = a.find(name);
    if (other == a.end()) {
      complain(name, "only in " + arguments[2]);
      continue;
    }
    if (other->second.shape != tensor.shape) {
      complain(name, fmt::format("shapes {} and {}", to_string(other->second.shape), to_string(tensor.shape)));
      continue;
    }
    const double difference = relative_difference(other->second, tensor);
    if (!(difference <= tolerance))
      complain(name, fmt::format("differs by {:.3g}, allowed {:.3g}", difference, tolerance));
    largest = std::max(largest, difference);
  }
  std::printf("%zu tensors, largest relative difference %.3g\n", b.size(), largest);
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fulmen

int main(int argc, char** argv) {
  try {
    return fulmen::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "compare_tensors: %s\n", error.what());
    return 2;
  }
}
