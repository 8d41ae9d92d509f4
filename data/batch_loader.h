// Micro-batches of a rank, in order, read ahead by a thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "data/batch.h"
#include "data/corpus.h"

namespace fulmen {

struct BatchLoaderOptions {
  std::int64_t sequence_length = 0;
  std::int64_t global_batch = 0;  // samples per step, over all data ranks
  std::int64_t micro_batch = 0;   // samples per micro-batch of one data rank
  int data_ranks = 1;
  int data_rank = 0;
  // The part of every sample that this rank holds: tokens [slice_begin, slice_end); slice_end 0 for the whole.
  std::int64_t slice_begin = 0;
  std::int64_t slice_end = 0;
  std::uint64_t seed = 0;
  bool shuffle = true;
  bool reset_state_at_documents = true;
  std::int64_t first_sample = 0;  // place in the sampling order where the first step begins
  int read_ahead = 8;             // micro-batches
};

// A sample (or the batch's slice of it) as a row of a Batch: tokens [i*S, i*S + S] of the stream. Targets are the
// inputs shifted by a token, before they are sliced. When states are reset at documents, segments mark the documents,
// and a target that is a document's first token has weight 0. The last row makes the batch's order.
void fill_row(const CorpusReader& corpus, std::int64_t sample, bool reset_state_at_documents, Batch& batch,
              std::int64_t row);
// A batch of rows with its arrays sized but the order, segments holding what rows were filled (rows are filled in
// order).
Batch make_batch(std::int64_t batch, std::int64_t length);
// The same for tokens [slice_begin, slice_end) of samples of sample_length.
Batch make_batch(std::int64_t batch, std::int64_t sample_length, std::int64_t slice_begin, std::int64_t slice_end);

// Yields global_batch / (data_ranks * micro_batch) micro-batches a step, for ever. Data rank r of D takes the r-th D-th
// of each global batch. An error in the reading thread is thrown by next().
class BatchLoader {
 public:
  // Throws UserError when the corpus is shorter than one sample.
  BatchLoader(const std::filesystem::path& corpus, const BatchLoaderOptions& options);
  ~BatchLoader();
  Batch next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen
