// How fast samples are read: what `fulmen bench io` reports.
#pragma once

#include <cstdint>
#include <filesystem>

namespace fulmen {

struct ReaderBenchmark {
  std::int64_t sequence_length = 2048;
  bool shuffle = true;
  bool document_starts = true;  // ask for the boundaries too, as training with reset states does
  double seconds = 1.0;         // how long to measure
};

// Tokens per second of one thread that fills rows of one batch from the corpus. The first pass over the pages is part
// of it, so measure twice to see the speed from memory.
double bench_reader(const std::filesystem::path& corpus, const ReaderBenchmark& benchmark);

}  // namespace fulmen
