// The folder of a fuzzing process.
#include "tests/fuzz/scratch.h"

#include <stdlib.h>

#include <cstdlib>
#include <fstream>
#include <system_error>

#include "framework/log.h"
#include "framework/sealed_text.h"

namespace fulmen::fuzz {

namespace fs = std::filesystem;

const fs::path& scratch() {
  static const fs::path folder = [] {
    configure_logging(0, 1, LogLevel::error);  // warnings of each input would drown the findings
    std::string pattern = (fs::temp_directory_path() / "fulmen-fuzz-XXXXXX").string();
    FULMEN_CHECK(mkdtemp(pattern.data()) != nullptr, "no folder {}", pattern);
    std::atexit([] {
      std::error_code ignored;
      fs::remove_all(scratch(), ignored);
    });
    return fs::path(pattern);
  }();
  return folder;
}

fs::path write(const fs::path& name, std::string_view bytes) {
  const fs::path path = scratch() / name;
  fs::create_directories(path.parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  FULMEN_CHECK(file.good(), "{} cannot be written", path.string());
  return path;
}

std::string with_seal(std::string_view text) {
  return text.empty() || text.back() != '\n' ? std::string() : sealed(std::string(text));
}

}  // namespace fulmen::fuzz
