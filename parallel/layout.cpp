// From the configured layout to the mesh.
#include "parallel/layout.h"

#include <algorithm>

#include "framework/text.h"

namespace fulmen {

namespace {

constexpr std::string_view overlap_kinds[] = {"gradients", "weights", "tensor", "pipeline", "sequence"};

bool is_overlap_kind(std::string_view word) {
  return std::ranges::find(overlap_kinds, word) != std::end(overlap_kinds);
}

std::vector<std::string> overlap_words(const std::string& overlap) {
  std::string text = overlap;
  std::erase(text, ' ');
  return split(text, ',');
}

std::string known_words() {
  std::vector<std::string> words = {"auto", "none"};
  words.insert(words.end(), std::begin(overlap_kinds), std::end(overlap_kinds));
  return join(words, ", ");
}

}  // namespace

bool LayoutConfig::overlaps(std::string_view what) const {
  FULMEN_CHECK(is_overlap_kind(what), "no communication is called {}", what);
  if (overlap == "auto" || overlap == "none") return overlap == "auto";
  return std::ranges::count(overlap_words(overlap), what) > 0;
}

std::string overlap_problem(const std::string& overlap) {
  if (overlap == "auto" || overlap == "none") return "";
  for (const std::string& word : overlap_words(overlap))
    if (!is_overlap_kind(word))
      return fmt::format("'{}' is not one of {} (several are separated by commas)", word, known_words());
  return "";
}

IndexRange sequence_slice(std::int64_t sample_length, int ranks, int rank) {
  if (sample_length < ranks)
    throw UserError("parallel.sequence", fmt::format("{} ranks share samples of {} tokens", ranks, sample_length),
                    fmt::format("use at most {}, or a longer data.sequence_length", sample_length));
  return partition(sample_length, ranks, rank);
}

MeshShape mesh_shape(const LayoutConfig& layout, int ranks) {
  MeshShape shape;
  shape.tensor = static_cast<int>(layout.tensor);
  shape.sequence = static_cast<int>(layout.sequence);
  shape.pipeline = static_cast<int>(layout.pipeline);
  shape.expert = static_cast<int>(layout.expert);
  shape.memory = static_cast<int>(layout.memory);
  const std::int64_t others = layout.tensor * layout.sequence * layout.pipeline;
  if (!layout.data && ranks % others != 0)
    throw UserError("parallel",
                    fmt::format("tensor {} x sequence {} x pipeline {} = {} does not divide the {} ranks of this job",
                                layout.tensor, layout.sequence, layout.pipeline, others, ranks),
                    "start a multiple of that many ranks, or change the layout");
  const std::int64_t data = layout.data ? *layout.data : ranks / others;
  if (data * others != ranks)
    throw UserError("parallel",
                    fmt::format("data {} x tensor {} x sequence {} x pipeline {} = {} ranks, but this job has {}", data,
                                layout.tensor, layout.sequence, layout.pipeline, data * others, ranks),
                    fmt::format("start {} ranks (mpirun -n {}), or change the layout", data * others, data * others));
  shape.data = static_cast<int>(data);
  return shape;
}

}  // namespace fulmen
