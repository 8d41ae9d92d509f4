// Finds the files that come with the program, from where the program itself lies.
#include "launch/shared_files.h"

namespace fulmen {

namespace fs = std::filesystem;

std::optional<fs::path> shared_folder() {
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  if (failed) return std::nullopt;
  // FULMEN_SHARED is the way from the installed program's folder. A built one lies in build/PRESET/bin.
  for (const char* way : {FULMEN_SHARED, "../../.."}) {
    const fs::path folder = (program.parent_path() / way).lexically_normal();
    if (fs::is_directory(folder / "configs", failed)) return folder;
  }
  return std::nullopt;
}

fs::path find_shared(const fs::path& path) {
  std::error_code failed;
  if (path.is_absolute() || fs::exists(path, failed)) return path;
  const std::optional<fs::path> folder = shared_folder();
  return folder && fs::is_regular_file(*folder / path, failed) ? *folder / path : path;
}

}  // namespace fulmen
