// The layout of a run as its configuration asks for it (the keys under `parallel`).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/placement.h"

namespace fulmen {

struct LayoutConfig {
  std::optional<std::int64_t> data;  // auto: what the other axes leave of the ranks
  std::int64_t tensor = 1;
  std::int64_t sequence = 1;
  std::int64_t pipeline = 1;
  std::int64_t expert = 1, memory = 1;              // inside data
  std::optional<std::vector<std::int64_t>> stages;  // layers per stage; auto: even
  std::string schedule = "1f1b";
  std::int64_t chunks = 1;
  std::int64_t zero = 0;
  std::string zero_group = "all";
  std::int64_t bucket_elements = 1 << 24;  // that a bucket of gradients has at least, where there are as many
  std::string recompute = "none";
  std::string overlap = "auto";
  std::int64_t communication_multiprocessors = 0;  // of a GPU, that overlapped communication over tensor has
  bool tensor_sequence_split = false;              // tensor ranks hold parts of the tokens between their products

  // Whether communication of this kind (gradients, weights, tensor, pipeline, sequence) goes on behind computation;
  // with auto each kind does.
  bool overlaps(std::string_view what) const;
};

// The problem with a value of parallel.overlap (auto, none, or words as overlaps() knows them, separated by commas),
// or "".
std::string overlap_problem(const std::string& overlap);

// The tokens of every sample that rank `rank` of `ranks` sequence ranks holds. Throws UserError when some rank would
// hold none.
IndexRange sequence_slice(std::int64_t sample_length, int ranks, int rank);

// The mesh of `ranks` ranks. Throws UserError when the axes do not multiply to them; those inside data are for Mesh to
// check.
MeshShape mesh_shape(const LayoutConfig& layout, int ranks);

}  // namespace fulmen
