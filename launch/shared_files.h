// Where the files that come with the program lie: configurations and batch scripts.
#pragma once

#include <filesystem>
#include <optional>

namespace fulmen {

// The folder that holds configs/ and slurm/. An installed program has PREFIX/share/fulmen, a built one its source tree.
// Nothing for a program that was copied away from both.
std::optional<std::filesystem::path> shared_folder();

// `path` where there is such a file. Otherwise, for a relative path such as configs/demo.yaml, the shared file of this
// name if it exists. Otherwise `path`.
std::filesystem::path find_shared(const std::filesystem::path& path);

}  // namespace fulmen
