// Deciding what to go on from, and noting it.
#include "launch/resume.h"

#include <charconv>
#include <system_error>
#include <vector>

#include <fmt/format.h>

#include "checkpoint/checkpoint.h"
#include "framework/error.h"
#include "framework/files.h"
#include "framework/hash.h"
#include "framework/log.h"
#include "framework/yaml.h"
#include "launch/slurm_job.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;
using Kind = ResumeWish::Kind;

constexpr const char* origin_file = "origin.yaml";

// A name for this place that does not depend on the working folder, links or whether it is still there.
fs::path place_of(const fs::path& path) {
  std::error_code error;
  fs::path place = fs::weakly_canonical(fs::absolute(path), error);
  if (error) place = fs::absolute(path).lexically_normal();
  return place.has_filename() ? place : place.parent_path();
}

std::string manifest_checksum(const fs::path& checkpoint) {
  std::error_code error;
  const fs::path manifest = checkpoint / "manifest.yaml";
  return fs::is_regular_file(manifest, error) ? hash_file(manifest) : std::string();
}

// The number in "step-00000500"; nothing for another name.
std::optional<std::int64_t> step_in(const std::string& name) {
  constexpr std::string_view prefix = "step-";
  std::int64_t step = 0;
  if (!name.starts_with(prefix)) return std::nullopt;
  const auto [end, code] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
  if (code != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return step;
}

std::string describe(const ResumeWish& wish) {
  switch (wish.kind) {
    case Kind::none: return "--resume none";
    case Kind::from: return "--resume " + place_of(wish.path).string();
    case Kind::back_to: return "--rewind " + place_of(wish.path).string();
    case Kind::automatic: break;
  }
  return "--resume auto";
}

}  // namespace

ResumeWish parse_resume_wish(const std::string& resume, const std::string& rewind) {
  if (!resume.empty() && !rewind.empty())
    throw UserError("--resume and --rewind", "were both given",
                    "give --resume PATH to go on from PATH or what descends from it, --rewind PATH to go back to it");
  if (!rewind.empty()) return {Kind::back_to, rewind};
  if (resume.empty() || resume == "auto") return {};
  if (resume == "none") return {Kind::none};
  return {Kind::from, resume};
}

ResumeChoice::ResumeChoice(const ResumeWish& wish, const fs::path& run_folder)
    : wish_(wish), folder_(run_folder), checkpoints_(run_folder / "checkpoints"), origin_(read_origin()) {
  std::vector<std::string> skipped;
  const auto newest = newest_checkpoint(checkpoints_, &skipped);
  for (const std::string& folder : skipped) log_warning("not a valid checkpoint: {}", folder);
  if (!newest && !skipped.empty() && wish.kind != Kind::none && wish.kind != Kind::back_to)
    throw UserError(checkpoints_.string(),
                    "holds checkpoints, none of which can be used: a run from the start would replace them",
                    "restore one of them, or choose another run.directory");
  const bool again = newest && obeyed_before();
  if (again)
    log_info("{} was obeyed by an earlier start of this job, which goes on from its newest checkpoint", describe(wish));
  if (again || wish.kind == Kind::automatic)
    go_on(newest);
  else if (wish.kind == Kind::none)
    start_afresh(newest);
  else
    choose_path(newest);
}

void ResumeChoice::start_afresh(const std::optional<fs::path>& newest) {
  if (newest)
    throw UserError(checkpoints_.string(), "already holds checkpoints, which a fresh start would mix with its own",
                    "choose another run.directory, delete the folder, or use --resume auto");
  origin_.checkpoint = origin_.given = origin_.manifest = {};
}

// A run that began from a checkpoint and has saved none of its own does not turn into another run.
void ResumeChoice::go_on(const std::optional<fs::path>& newest) {
  if (!newest && !origin_.checkpoint.empty())
    throw UserError(folder_.string(),
                    fmt::format("this run was started from {} and has no checkpoint of its own", origin_.checkpoint),
                    fmt::format("start it from there again (--resume {}), or afresh (--resume none)", origin_.given));
  checkpoint_ = newest;
  goes_on_ = newest.has_value();
}

void ResumeChoice::choose_path(const std::optional<fs::path>& newest) {
  if (wish_.kind == Kind::from && newest && descends(*newest)) {
    const fs::path place = place_of(wish_.path), own = place_of(checkpoints_);
    if (place != place_of(*newest) && place != own && place != own.parent_path())
      log_info("{} descends from {}: going on from it (--rewind would go back)", newest->string(), wish_.path.string());
    return go_on(newest);
  }
  const fs::path found = find_checkpoint(wish_.path);
  if (wish_.kind == Kind::from && newest)
    throw UserError(fmt::format("--resume {}", wish_.path.string()),
                    fmt::format("is no ancestor of the checkpoints in {}, as far as is known", checkpoints_.string()),
                    "go on from them with --resume auto, leave them with --rewind, or choose another run.directory");
  checkpoint_ = found;
  const bool own = place_of(found).parent_path() == place_of(checkpoints_);
  if (newest) set_aside_after_ = own ? CheckpointReader(found).description().step : -1;
  if (own) return;
  origin_.checkpoint = place_of(found).string();
  origin_.given = place_of(wish_.path).string();
  origin_.manifest = manifest_checksum(found);
}

// The folder's checkpoints are one line: going back sets aside what was after. So each descends from those before it,
// whether they are still there or not, and all from the origin.
bool ResumeChoice::descends(const fs::path& newest) const {
  const fs::path place = place_of(wish_.path), own = place_of(checkpoints_);
  if (place == own || place == own.parent_path()) return true;
  if (!origin_.checkpoint.empty() && (place == origin_.given || place == origin_.checkpoint)) return true;
  std::error_code error;
  const std::int64_t reached = CheckpointReader(newest).description().step;
  if (place.parent_path() == own && !fs::exists(place, error)) {
    const auto step = step_in(place.filename().string());
    return step && *step <= reached;
  }
  const fs::path found = find_checkpoint(wish_.path);
  if (place_of(found).parent_path() == own) return CheckpointReader(found).description().step <= reached;
  const std::string manifest = manifest_checksum(found);
  return manifest == origin_.manifest || manifest == manifest_checksum(checkpoints_ / found.filename());
}

bool ResumeChoice::obeyed_before() const {
  const SlurmJob job = slurm_job();
  return !job.id.empty() && job.id == origin_.job && job.attempt != origin_.attempt && origin_.wish == describe(wish_);
}

ResumeChoice::Origin ResumeChoice::read_origin() const {
  std::error_code error;
  const fs::path file = folder_ / origin_file;
  if (!fs::exists(file, error)) return {};
  const YAML::Node root = load_document(read_text(file), file.string());
  const auto text = [&](const char* key) {
    if (root.IsMap() && root[key] && root[key].IsScalar()) return root[key].Scalar();
    throw UserError(file.string(), fmt::format("has no text under '{}': it is damaged", key),
                    "remove it, and go on with --resume auto");
  };
  return {text("checkpoint"), text("given"), text("manifest"), text("wish"), text("job"), text("attempt")};
}

void ResumeChoice::carry_out() const {
  if (goes_on_) return;
  if (set_aside_after_) {
    if (const auto aside = set_aside_checkpoints_after(checkpoints_, *set_aside_after_)) {
      std::error_code error;  // no metrics, nothing to keep
      fs::copy_file(folder_ / "metrics.jsonl", *aside / "metrics.jsonl", error);
      log_warning("the checkpoints {} are set aside in {}",
                  *set_aside_after_ < 0 ? "of another line" : fmt::format("after step {}", *set_aside_after_),
                  aside->string());
    }
  }
  const SlurmJob job = slurm_job();
  write_text_atomically(
      folder_ / origin_file,
      fmt::format("# The ancestor of the checkpoints in this folder, and the start that began their line.\n"
                  "checkpoint: {}\ngiven: {}\nmanifest: {}\nwish: {}\njob: {}\nattempt: {}\n",
                  to_yaml(origin_.checkpoint), to_yaml(origin_.given), to_yaml(origin_.manifest),
                  to_yaml(describe(wish_)), to_yaml(job.id), to_yaml(job.attempt)));
}

}  // namespace fulmen
