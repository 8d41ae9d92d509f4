// Fills rows, one after the other, until the time is up.
#include "data/reader_throughput.h"

#include <chrono>

#include "data/batch_loader.h"
#include "data/sampling_order.h"
#include "framework/error.h"

namespace fulmen {

double bench_reader(const std::filesystem::path& corpus, const ReaderBenchmark& benchmark) {
  using Clock = std::chrono::steady_clock;
  const CorpusReader reader(corpus);
  const std::int64_t samples = reader.samples(benchmark.sequence_length);
  if (samples < 1) {
    throw UserError(corpus.string(), "the corpus is shorter than one sample", "make the sequence length smaller");
  }
  const SamplingOrder order(samples, 1, benchmark.shuffle);
  const Clock::time_point start = Clock::now();
  std::int64_t rows = 0;
  double elapsed = 0.0;
  Batch batch = make_batch(1, benchmark.sequence_length);
  while (elapsed < benchmark.seconds) {
    batch.segments = {0};
    fill_row(reader, order.at(rows++), benchmark.document_starts, batch, 0);
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return static_cast<double>(rows * benchmark.sequence_length) / elapsed;
}

}  // namespace fulmen
