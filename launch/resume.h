// Where a start of a run goes on from: the wish of its command, held against where the checkpoints in the run folder
// come from. A command that is started again, as after exit code 75, never goes back behind its own progress.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace fulmen {

struct ResumeWish {
  enum class Kind {
    automatic,  // the newest checkpoint of the folder, else from the start
    none,       // from the start
    from,       // from `path`, or the newest checkpoint of the folder if that descends from it
    back_to     // from `path`, whatever the folder holds
  };
  Kind kind = Kind::automatic;
  std::filesystem::path path = {};
};

// From the flags --resume (auto, none or a path) and --rewind (a path); empty: not given. Throws UserError for both.
ResumeWish parse_resume_wish(const std::string& resume, const std::string& rewind);

// A wish that was decided. The run folder's file origin.yaml keeps what is needed to decide the next wish.
class ResumeChoice {
 public:
  // Throws UserError where the wish would mix or leave what the folder holds. Only rank 0 makes a decision.
  ResumeChoice(const ResumeWish& wish, const std::filesystem::path& run_folder);

  // Nothing: a fresh start.
  const std::optional<std::filesystem::path>& checkpoint() const { return checkpoint_; }
  // Once the weights are there: sets aside the checkpoints that a run that goes back leaves, with the metrics so far,
  // and notes the origin. Throws UserError where that cannot be written.
  void carry_out() const;

 private:
  void go_on(const std::optional<std::filesystem::path>& newest);
  void start_afresh(const std::optional<std::filesystem::path>& newest);
  void choose_path(const std::optional<std::filesystem::path>& newest);
  bool descends(const std::filesystem::path& newest) const;

  // The content of origin.yaml; all of it empty where there is none.
  struct Origin {
    std::string checkpoint;  // that the first checkpoint of the folder descends from; empty: from initial weights
    std::string given;       // how the command named it
    std::string manifest;    // checksum of its manifest
    std::string wish, job, attempt;  // of the last start that did not just go on
  };
  Origin read_origin() const;
  bool obeyed_before() const;

  ResumeWish wish_;
  std::filesystem::path folder_, checkpoints_;
  Origin origin_;
  std::optional<std::filesystem::path> checkpoint_;
  bool goes_on_ = false;                         // from where the folder stands
  std::optional<std::int64_t> set_aside_after_;  // the step
};

}  // namespace fulmen
