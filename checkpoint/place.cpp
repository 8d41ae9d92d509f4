// The place of checkpoints before there are any.
#include "checkpoint/place.h"

#include <sys/resource.h>

#include <algorithm>
#include <random>
#include <system_error>

#include <fmt/format.h>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "framework/error.h"
#include "framework/files.h"
#include "framework/log.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

// Checkpoints that will lie there at once beyond those that do.
std::int64_t more_at_once(const CheckpointDemand& demand, std::int64_t existing) {
  if (demand.keep == 0) return demand.saves;
  const std::int64_t most = demand.keep + 1;  // while the oldest is about to go
  return std::clamp<std::int64_t>(most - existing, std::min<std::int64_t>(demand.saves, 1), demand.saves);
}

void check_room(const fs::path& root, const CheckpointDemand& demand) {
  const std::int64_t existing = count_checkpoints(root);
  const double free = static_cast<double>(free_bytes(root));
  const CheckpointDemand one = {demand.bytes, std::min<std::int64_t>(demand.saves, 1), demand.keep};
  const std::string problem = room_problem(demand.keep == 0 ? one : demand, existing, free);
  if (!problem.empty())
    throw UserError(root.string(), problem,
                    "free some space there, choose another run.directory, or lower checkpoint.keep");
  if (const std::string later = room_problem(demand, existing, free); !later.empty())
    log_warning("{}: {}; checkpoint.keep: 0 keeps them all", root.string(), later);
}

// The largest file of a checkpoint is a rank's, with its part of the whole at the least.
void check_file_size(const fs::path& root, double bytes) {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  if (static_cast<double>(limit.rlim_cur) < bytes)
    throw UserError(root.string(),
                    fmt::format("a rank's file of a checkpoint has {} or more, and a file may have {} here (ulimit -f)",
                                human_bytes(bytes), human_bytes(static_cast<double>(limit.rlim_cur))),
                    "raise the limit (ulimit -f unlimited), or use more ranks");
}

}  // namespace

std::string room_problem(const CheckpointDemand& demand, std::int64_t existing, double free_bytes) {
  const std::int64_t more = more_at_once(demand, existing);
  const double needed = demand.bytes * static_cast<double>(more);
  if (needed <= free_bytes) return "";
  return fmt::format(
      "{} checkpoint(s) of {} are to lie there together with the {} that do, but only {} are free on this disk",
      with_thousands(more), human_bytes(demand.bytes), existing, human_bytes(free_bytes));
}

void require_place_for_checkpoints(const fs::path& root, const CheckpointDemand& demand, Communicator& communicator) {
  // Rank 0's, to be seen by all. A new name each time: a network file system may remember that there was no such file.
  const fs::path probe =
      root / communicator.broadcast_text(fmt::format(".probe-{:08x}{}", std::random_device{}(), partial_suffix), 0);
  run_agreed(communicator, [&] {
    if (demand.saves > 0) check_file_size(root, demand.bytes / communicator.size());
    if (communicator.rank() != 0) return;
    ensure_writable_folder(root, "the place of checkpoints");
    check_room(root, demand);
    write_text_atomically(probe, "whether all ranks see one folder\n");
  });
  const auto remove = [&] {
    std::error_code ignored;
    if (communicator.rank() == 0) fs::remove(probe, ignored);
  };
  try {
    run_agreed(communicator, [&] {
      std::error_code error;
      if (!fs::exists(probe, error))
        throw UserError(root.string(),
                        "the ranks do not see one folder: rank 0 has written there, another sees nothing",
                        "put run.directory on a file system that all nodes share");
    });
  } catch (...) {
    remove();
    throw;
  }
  remove();
}

}  // namespace fulmen
