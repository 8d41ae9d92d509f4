// Which checkpoints a folder holds, which is the newest, and which may go.
#include <algorithm>
#include <system_error>

#include <fmt/format.h>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "framework/error.h"
#include "framework/log.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

struct Found {
  fs::path folder;
  std::int64_t step = 0;
  bool aside = false;  // it was making way for a successor of the same name
};

bool is_step_name(const std::string& name) {
  constexpr std::string_view prefix = "step-";
  return name.size() > prefix.size() && name.starts_with(prefix) &&
         name.find_first_not_of("0123456789", prefix.size()) == std::string::npos;
}

std::string without_suffix(const std::string& name, std::string_view suffix) {
  return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : std::string();
}

std::vector<fs::path> folders_in(const fs::path& root) {
  std::vector<fs::path> folders;
  std::error_code error, unreadable;
  for (fs::directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->is_directory(unreadable)) folders.push_back(entry->path());
  }
  if (error) {
    throw UserError(root.string(), "cannot be listed: " + error.message(), "check the path and its permissions");
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

// The valid checkpoints directly in `root`, newest first. Among equal steps, a folder under its own name precedes a
// folder that stepped aside.
std::vector<Found> valid_checkpoints(const fs::path& root, std::vector<std::string>* skipped) {
  std::vector<Found> found;
  std::error_code error;
  for (const fs::path& folder : folders_in(root)) {
    const std::string name = folder.filename().string();
    if (name.ends_with(partial_suffix)) continue;
    if (!is_step_name(name) && !fs::exists(folder / manifest_file, error)) continue;
    try {
      const CheckpointReader reader(folder);
      found.push_back({folder, reader.description().step, name.ends_with(replaced_suffix)});
    } catch (const UserError& problem) {
      if (skipped != nullptr) skipped->push_back(split(problem.what(), '\n').front());
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return a.step != b.step ? a.step > b.step : !a.aside && b.aside;
  });
  return found;
}

void remove_or_warn(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) log_warning("{}: cannot be removed: {}", folder.string(), error.message());
}

// Under the name of an unfinished save first: a deletion that is cut short must not look like a checkpoint.
void remove_checkpoint(const fs::path& folder) {
  fs::path partial = folder;
  partial += partial_suffix;
  remove_or_warn(partial);
  std::error_code error;
  fs::rename(folder, partial, error);
  if (error) return log_warning("{}: cannot be removed: {}", folder.string(), error.message());
  remove_or_warn(partial);
}

}  // namespace

fs::path find_checkpoint(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    throw UserError(path.string(), fs::exists(path, error) ? "is not a folder" : "there is no such folder",
                    "give a checkpoint, a folder of checkpoints, or a run's folder");
  }
  if (fs::exists(path / manifest_file, error)) return CheckpointReader(path).folder();
  std::vector<std::string> skipped;
  if (const auto newest = newest_checkpoint(path, &skipped)) return *newest;
  if (const auto newest = newest_checkpoint(path / "checkpoints", &skipped)) return *newest;
  std::string what = "holds no valid checkpoint";
  for (const std::string& why : skipped) what += "\n     " + why;
  throw UserError(path.string(), what, "give a checkpoint, a folder of checkpoints, or a run's folder");
}

fs::path find_checkpoint(const fs::path& path, Communicator& communicator) {
  std::string found;
  run_agreed(communicator, [&] {
    if (communicator.rank() == 0) found = find_checkpoint(path).string();
  });
  return communicator.broadcast_text(found, 0);
}

namespace {

// Whether the checkpoint that `path` led to is gone, though `path` is not.
bool was_deleted(const fs::path& path, const fs::path& folder) {
  std::error_code error;
  return !fs::exists(folder / manifest_file, error) && !error && fs::exists(path, error) &&
         !fs::exists(path / manifest_file, error);
}

}  // namespace

void with_checkpoint(const fs::path& path, Communicator& communicator,
                     const std::function<void(const CheckpointReader&)>& use) {
  constexpr int attempts = 10;  // each finds a later checkpoint
  for (int attempt = 1;; ++attempt) {
    const fs::path folder = find_checkpoint(path, communicator);
    try {
      std::optional<CheckpointReader> checkpoint;
      run_agreed(communicator, [&] { checkpoint.emplace(folder); });
      return use(*checkpoint);
    } catch (const Error&) {
      const bool mine = communicator.rank() == 0 && attempt < attempts && was_deleted(path, folder);
      if (communicator.all_reduce(static_cast<std::int64_t>(mine), ReduceOp::max) == 0) throw;
      log_info("{} was deleted while it was read: taking the next checkpoint", folder.string());
    }
  }
}

std::optional<fs::path> newest_checkpoint(const fs::path& root, std::vector<std::string>* skipped) {
  std::error_code error;
  if (!fs::exists(root, error)) return std::nullopt;
  const std::vector<Found> found = valid_checkpoints(root, skipped);
  if (found.empty()) return std::nullopt;
  return found.front().folder;
}

std::int64_t count_checkpoints(const fs::path& root) {
  std::error_code error;
  return fs::exists(root, error) ? static_cast<std::int64_t>(valid_checkpoints(root, nullptr).size()) : 0;
}

void prune_checkpoints(const fs::path& root, std::int64_t keep) {
  std::error_code error;
  if (!fs::exists(root, error)) return;
  // A symbolic link is neither counted nor removed, nor is a folder whose name saving never gives.
  std::vector<fs::path> valid;
  for (const Found& found : valid_checkpoints(root, nullptr)) {
    const std::string name = found.folder.filename().string();
    if (is_step_name(name) && !fs::is_symlink(found.folder, error)) valid.push_back(found.folder);
  }
  for (const fs::path& folder : folders_in(root)) {
    if (fs::is_symlink(folder, error)) continue;
    const std::string name = folder.filename().string();
    const std::string successor = without_suffix(name, replaced_suffix);
    const bool succeeded = std::find(valid.begin(), valid.end(), root / successor) != valid.end();
    const bool leftover = is_step_name(without_suffix(name, partial_suffix)) || (is_step_name(successor) && succeeded);
    if (leftover) remove_or_warn(folder);
  }
  if (keep <= 0) return;
  for (std::size_t i = static_cast<std::size_t>(keep); i < valid.size(); ++i) remove_checkpoint(valid[i]);
}

std::optional<fs::path> set_aside_checkpoints_after(const fs::path& root, std::int64_t step) {
  std::error_code error;
  if (!fs::exists(root, error)) return std::nullopt;
  std::vector<fs::path> later;
  for (const Found& found : valid_checkpoints(root, nullptr))
    if (found.step > step) later.push_back(found.folder);
  if (later.empty()) return std::nullopt;
  fs::path aside = root / "set-aside";
  for (int number = 2; fs::exists(aside, error); ++number) aside = root / fmt::format("set-aside-{}", number);
  const auto check = [&](const fs::path& place) {
    if (error)
      throw UserError(place.string(), fmt::format("cannot be moved or made: {}", error.message()),
                      "move the checkpoints of later steps away, or give the run another run.directory");
  };
  fs::create_directory(aside, error);
  check(aside);
  for (const fs::path& folder : later) {
    fs::rename(folder, aside / folder.filename(), error);
    check(folder);
  }
  return aside;
}

}  // namespace fulmen
