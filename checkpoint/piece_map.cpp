// Pieces as lines of text, and the check that they cover a tensor exactly.
#include "checkpoint/piece_map.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "framework/error.h"
#include "framework/outside_numbers.h"
#include "framework/text.h"

namespace fulmen {

namespace {

constexpr char field_separator = '\t', extent_separator = ',';

std::string extents_text(const std::vector<std::int64_t>& extents) {
  return fmt::format("{}", fmt::join(extents, ","));
}

std::vector<std::int64_t> parse_extents(const std::string& text) {
  std::vector<std::int64_t> extents;
  for (const std::string& word : split(text, extent_separator)) extents.push_back(std::stoll(word));
  return extents;
}

std::string describe(const StoredPiece& piece) {
  return fmt::format("{} at {} ({})", to_string(piece.shape), to_string(piece.offset), piece.file);
}

std::string misfit(const StoredPiece& piece, const StoredPiece& first) {
  if (!is_countable(piece.global_shape)) {
    return fmt::format("{} says that the whole is {}, which no file can hold", piece.file,
                       to_string(piece.global_shape));
  }
  if (piece.global_shape != first.global_shape) {
    return fmt::format("{} says that the whole is {}, {} that it is {}", first.file, to_string(first.global_shape),
                       piece.file, to_string(piece.global_shape));
  }
  if (piece.dtype != first.dtype) {
    return fmt::format("{} holds {}, {} holds {}", first.file, name_of(first.dtype), piece.file, name_of(piece.dtype));
  }
  if (piece.offset.size() != piece.global_shape.size() || piece.shape.size() != piece.global_shape.size()) {
    return "a piece of another rank: " + describe(piece);
  }
  for (std::size_t d = 0; d < piece.shape.size(); ++d) {
    const bool inside =
        piece.offset[d] >= 0 && piece.shape[d] > 0 && piece.shape[d] <= piece.global_shape[d] - piece.offset[d];
    if (!inside) return fmt::format("a piece outside {}: {}", to_string(piece.global_shape), describe(piece));
  }
  return {};
}

bool overlap(const StoredPiece& a, const StoredPiece& b) {
  for (std::size_t d = 0; d < a.shape.size(); ++d) {
    if (a.offset[d] + a.shape[d] <= b.offset[d] || b.offset[d] + b.shape[d] <= a.offset[d]) return false;
  }
  return true;
}

// The dimension cut at most places leaves the fewest pieces side by side for the sweep to compare.
std::size_t sweep_dimension(const std::vector<StoredPiece>& pieces) {
  std::size_t best = 0, most = 0;
  for (std::size_t d = 0; d < pieces[0].offset.size(); ++d) {
    std::set<std::int64_t> starts;
    for (const StoredPiece& piece : pieces) starts.insert(piece.offset[d]);
    if (starts.size() > most) best = d, most = starts.size();
  }
  return best;
}

std::string overlap_problem(const std::vector<StoredPiece>& pieces) {
  const std::size_t d = sweep_dimension(pieces);
  std::vector<const StoredPiece*> order;
  for (const StoredPiece& piece : pieces) order.push_back(&piece);
  std::sort(order.begin(), order.end(),
            [d](const StoredPiece* a, const StoredPiece* b) { return a->offset[d] < b->offset[d]; });
  std::vector<const StoredPiece*> active;  // those that reach beyond the sweep's place
  for (const StoredPiece* piece : order) {
    std::erase_if(active,
                  [&](const StoredPiece* other) { return other->offset[d] + other->shape[d] <= piece->offset[d]; });
    for (const StoredPiece* other : active) {
      if (overlap(*piece, *other)) return fmt::format("{} and {} overlap", describe(*other), describe(*piece));
    }
    active.push_back(piece);
  }
  return {};
}

}  // namespace

std::string piece_dataset(const std::string& name, std::int64_t ordinal) {
  return ordinal == 0 ? "/" + name : fmt::format("/{}@{}", name, ordinal);
}

std::string to_text(const std::vector<StoredPiece>& pieces) {
  std::string text;
  for (const StoredPiece& piece : pieces) {
    text += join({piece.name, std::string(name_of(piece.dtype)), extents_text(piece.global_shape),
                  extents_text(piece.offset), extents_text(piece.shape), piece.file, piece.dataset},
                 std::string_view(&field_separator, 1));
    text += '\n';
  }
  return text;
}

std::vector<StoredPiece> parse_pieces(const std::string& text) {
  std::vector<StoredPiece> pieces;
  for (const std::string& line : split(text, '\n')) {
    if (line.empty()) continue;
    const std::vector<std::string> fields = split(line, field_separator);
    FULMEN_CHECK(fields.size() == 7, "a piece described as '{}'", line);
    pieces.push_back({fields[0], parse_dtype(fields[1]), parse_extents(fields[2]), parse_extents(fields[3]),
                      parse_extents(fields[4]), fields[5], fields[6]});
  }
  return pieces;
}

std::string coverage_problem(const std::vector<StoredPiece>& pieces) {
  if (pieces.empty()) return "no piece of it is there";
  std::int64_t covered = 0;
  for (const StoredPiece& piece : pieces) {
    if (std::string problem = misfit(piece, pieces[0]); !problem.empty()) return problem;
    covered += elements_of(piece.shape);
  }
  if (std::string problem = overlap_problem(pieces); !problem.empty()) return problem;
  const std::int64_t whole = elements_of(pieces[0].global_shape);
  if (covered == whole) return {};
  return fmt::format("{} of {} elements are missing", with_thousands(whole - covered), with_thousands(whole));
}

}  // namespace fulmen
