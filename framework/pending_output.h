// The results of commands: each appears under its name whole or not at all, and replaces nothing unless it is asked to.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "framework/descriptor.h"

namespace fulmen {

// A file or folder NAME that is written as NAME.partial/NAME and moved to its place when it is complete. NAME.partial
// holds a mark that its writer has locked. So remains of a killed writer are told from the work of a living writer, and
// from a folder of that name of other origin.
class PendingOutput {
 public:
  enum class Kind { file, folder };

  // Claims the name. Throws UserError where something stands there and is not to be overwritten, or is of another kind.
  // Also where a folder holds an entry that `is_part` does not know, since a result is replaced as a whole. Also where
  // another program is writing there, where NAME.partial is not of our making, and where the place cannot be written.
  // An empty folder stands in no folder's way. A killed writer's leftovers are removed.
  PendingOutput(const std::filesystem::path& path, Kind kind, bool overwrite,
                const std::function<bool(const std::string& name)>& is_part = {});
  ~PendingOutput();  // without complete(): removes what was written
  PendingOutput(const PendingOutput&) = delete;
  PendingOutput& operator=(const PendingOutput&) = delete;

  // Where to write. Nothing is there yet.
  const std::filesystem::path& place() const { return place_; }
  // Flushes and moves into place. Throws UserError when something has come to stand there.
  void complete();

 private:
  void refuse_what_is_there(const std::function<bool(const std::string&)>& is_part) const;
  void claim();
  void take_leftover();

  std::filesystem::path path_, partial_, place_;
  Kind kind_;
  bool overwrite_;
  bool claimed_ = false;
  Descriptor mark_;
};

// The rule for names of results, as commands document it.
inline constexpr const char* overwrite_help = "replace what stands there under that name";

}  // namespace fulmen
