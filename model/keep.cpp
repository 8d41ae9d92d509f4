// Results of a micro-batch that are kept, and results that are made again.
#include "model/keep.h"

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {

std::string_view name_of(Recompute recompute) {
  switch (recompute) {
    case Recompute::none: return "none";
    case Recompute::selective: return "selective";
    case Recompute::full: return "full";
  }
  throw InternalError("unknown kind of recomputation");
}

Recompute parse_recompute(std::string_view name) {
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full})
    if (name == name_of(recompute)) return recompute;
  throw UserError("parallel.recompute", fmt::format("'{}' is unknown", name), "use none, selective or full");
}

bool keeps(Recompute recompute, Keep keep) {
  if (keep == Keep::remade || keep == Keep::never) return false;
  switch (recompute) {
    case Recompute::none: return true;
    case Recompute::selective: return keep != Keep::all;
    case Recompute::full: return keep == Keep::always;
  }
  throw InternalError("unknown kind of recomputation");
}

}  // namespace fulmen
