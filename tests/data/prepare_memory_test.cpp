// The memory that preparing a corpus needs does not grow with the input. A program of its own, so that no other test's
// memory hides it.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "data/prepare.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using testing_support::TemporaryFolder;
namespace fs = std::filesystem;

// Paragraphs of random letters, as many megabytes as asked for.
void write_text(const fs::path& path, int megabytes) {
  std::mt19937_64 generator(std::random_device{}());
  std::string chunk;
  while (chunk.size() < 1'000'000) {
    const auto letter = generator() % 32;
    chunk += letter < 26 ? static_cast<char>('a' + letter) : ' ';
    if (generator() % 60 == 0) chunk += '\n';
    if (generator() % 600 == 0) chunk += "\n\n";
  }
  std::ofstream file(path);
  for (int i = 0; i < megabytes; ++i) file << chunk;
}

// The peak, in KiB, of a process that prepares so much text.
long peak_of_prepare(const fs::path& folder, int megabytes) {
  PrepareOptions options;
  options.inputs = {folder / (std::to_string(megabytes) + ".txt")};
  options.output = folder / ("out" + std::to_string(megabytes));
  options.tokenizer = TokenizerKind::bytes;
  options.holdout = 0.1;
  options.quiet = true;
  write_text(options.inputs[0], megabytes);
  const pid_t child = fork();
  if (child == 0) {
    try {
      prepare_corpus(options);
      _exit(0);
    } catch (...) {
      _exit(1);
    }
  }
  int status = 0;
  rusage usage{};
  EXPECT_EQ(wait4(child, &status, 0, &usage), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return usage.ru_maxrss;
}

TEST(PrepareMemory, DoesNotGrowWithTheInput) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer keeps freed memory";
#endif
  const TemporaryFolder folder;
  const long small = peak_of_prepare(folder.path(), 30), large = peak_of_prepare(folder.path(), 120);
  std::printf("    peak %.1f MiB for 30 MB of text, %.1f MiB for 120 MB\n", static_cast<double>(small) / 1024.0,
              static_cast<double>(large) / 1024.0);
  EXPECT_LT(large - small, 8 * 1024);
}

}  // namespace
}  // namespace fulmen
