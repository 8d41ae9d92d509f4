// Rows of batches, and the thread that prepares them ahead of use.
#include "data/batch_loader.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "data/sampling_order.h"
#include "framework/error.h"
#include "framework/text.h"

namespace fulmen {

double Batch::target_count() const { return std::accumulate(weights.begin(), weights.end(), 0.0); }

Batch make_batch(std::int64_t batch, std::int64_t length) { return make_batch(batch, length, 0, length); }

Batch make_batch(std::int64_t batch, std::int64_t sample_length, std::int64_t slice_begin, std::int64_t slice_end) {
  FULMEN_CHECK(batch >= 1 && 0 <= slice_begin && slice_begin < slice_end && slice_end <= sample_length,
               "a batch of {} rows of tokens [{}, {}) of {}", batch, slice_begin, slice_end, sample_length);
  Batch made;
  made.batch = batch;
  made.length = slice_end - slice_begin;
  made.sample_length = sample_length;
  made.slice_begin = slice_begin;
  const auto elements = static_cast<std::size_t>(batch * made.length);
  made.tokens.resize(elements);
  made.targets.resize(elements);
  made.weights.resize(elements);
  made.positions.resize(elements);
  made.segments = {0};
  made.tokens_before.assign(static_cast<std::size_t>(batch), slice_begin);
  made.tokens_after.assign(static_cast<std::size_t>(batch), sample_length - slice_end);
  return made;
}

void fill_row(const CorpusReader& corpus, std::int64_t sample, bool reset_state_at_documents, Batch& batch,
              std::int64_t row) {
  const std::int64_t length = batch.length;
  const std::int64_t first = row * length;
  FULMEN_CHECK(row >= 0 && row < batch.batch && batch.segments.back() == first, "row {} is not the next of {}", row,
               batch.batch);
  const std::int64_t sample_begin = sample * batch.sample_length, sample_end = sample_begin + batch.sample_length;
  const std::int64_t begin = sample_begin + batch.slice_begin, end = begin + length;
  std::vector<std::int32_t> stream(static_cast<std::size_t>(length + 1));
  corpus.read(begin, stream);
  std::copy(stream.begin(), stream.end() - 1, batch.tokens.begin() + first);
  std::copy(stream.begin() + 1, stream.end(), batch.targets.begin() + first);
  std::fill_n(batch.weights.begin() + first, length, 1.0F);
  std::iota(batch.positions.begin() + first, batch.positions.begin() + first + length, batch.slice_begin);
  if (reset_state_at_documents) {
    std::int64_t first_document = sample_begin,
                 next_document = sample_end;  // of the slice's first token; after its last
    for (const std::int64_t start : corpus.document_starts(sample_begin, sample_end + 1)) {
      if (start <= begin) first_document = start;
      if (start >= end) next_document = std::min(next_document, start);
      if (start > begin && start <= end) batch.weights[static_cast<std::size_t>(first + start - begin - 1)] = 0.0F;
      if (start > begin && start < end) batch.segments.push_back(first + start - begin);
    }
    batch.tokens_before[static_cast<std::size_t>(row)] = begin - first_document;
    batch.tokens_after[static_cast<std::size_t>(row)] = next_document - end;
  }
  batch.segments.push_back(first + length);
  if (row + 1 == batch.batch) batch.order = stable_order(batch.tokens);
}

struct BatchLoader::State {
  BatchLoaderOptions options;
  CorpusReader corpus;
  SamplingOrder order;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> ready;
  std::exception_ptr failure;
  bool stopping = false;
  std::thread thread;  // last: it uses all of the above

  State(const std::filesystem::path& folder, const BatchLoaderOptions& given)
      : options(given), corpus(folder), order(checked_samples(folder), given.seed, given.shuffle) {
    FULMEN_CHECK(options.micro_batch >= 1 && options.data_ranks >= 1 && options.global_batch >= 1 &&
                     options.global_batch % (options.data_ranks * options.micro_batch) == 0,
                 "a global batch of {} over {} data ranks in micro-batches of {}", options.global_batch,
                 options.data_ranks, options.micro_batch);
    FULMEN_CHECK(options.data_rank >= 0 && options.data_rank < options.data_ranks && options.first_sample >= 0 &&
                     options.read_ahead >= 1,
                 "data rank {} of {}, first sample {}, read-ahead {}", options.data_rank, options.data_ranks,
                 options.first_sample, options.read_ahead);
    if (options.slice_end == 0) options.slice_end = options.sequence_length;
    thread = std::thread([this] { run(); });
  }

  ~State() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    changed.notify_all();
    thread.join();
  }

  std::int64_t checked_samples(const std::filesystem::path& folder) const {
    const std::int64_t samples = corpus.samples(options.sequence_length);
    if (samples >= 1) return samples;
    throw UserError(
        folder.string(),
        fmt::format("the corpus is shorter than one sample: it holds {} tokens, and a sequence length of {} "
                    "needs {}",
                    with_thousands(corpus.tokens()), with_thousands(options.sequence_length),
                    with_thousands(options.sequence_length + 1)),
        "make the sequence length smaller, or the corpus larger");
  }

  bool stopped() {
    const std::lock_guard lock(mutex);
    return stopping;
  }

  // The first place in the sampling order of micro-batch m of this rank, counted from the first step.
  std::int64_t first_place(std::int64_t m) const {
    const std::int64_t per_rank = options.global_batch / options.data_ranks;
    const std::int64_t per_step = per_rank / options.micro_batch;
    return options.first_sample + m / per_step * options.global_batch + options.data_rank * per_rank +
           m % per_step * options.micro_batch;
  }

  void run() {
    try {
      for (std::int64_t m = 0; produce(m); ++m) {
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    changed.notify_all();
  }

  // False when the loader is being destroyed.
  bool produce(std::int64_t m) {
    Batch batch = make_batch(options.micro_batch, options.sequence_length, options.slice_begin, options.slice_end);
    for (std::int64_t row = 0; row < options.micro_batch; ++row) {
      if (stopped()) return false;
      fill_row(corpus, order.at(first_place(m) + row), options.reset_state_at_documents, batch, row);
    }
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return stopping || ready.size() < static_cast<std::size_t>(options.read_ahead); });
    if (stopping) return false;
    ready.push_back(std::move(batch));
    lock.unlock();
    changed.notify_all();
    return true;
  }
};

BatchLoader::BatchLoader(const std::filesystem::path& corpus, const BatchLoaderOptions& options)
    : state_(std::make_unique<State>(corpus, options)) {}
BatchLoader::~BatchLoader() = default;

Batch BatchLoader::next() {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&] { return !state.ready.empty() || state.failure; });
  if (state.ready.empty()) std::rethrow_exception(state.failure);
  Batch batch = std::move(state.ready.front());
  state.ready.pop_front();
  lock.unlock();
  state.changed.notify_all();
  return batch;
}

}  // namespace fulmen
