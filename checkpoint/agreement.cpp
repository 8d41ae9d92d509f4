// One outcome for all ranks; texts gathered by sends to rank 0, so that only it holds them all.
#include "checkpoint/agreement.h"

#include <cstdint>
#include <exception>

#include "framework/as_error.h"

namespace fulmen {

namespace {

struct Failure {
  ExitCode code = ExitCode::internal;
  std::string message;
};

// The code travels as the first character of the text.
std::string encode(const Failure& failure) { return static_cast<char>(failure.code) + failure.message; }

[[noreturn]] void throw_again(const std::string& encoded) {
  const auto code = static_cast<ExitCode>(encoded.at(0));
  const std::string message = encoded.substr(1);
  if (code == ExitCode::user) throw UserError({}, message);
  if (code == ExitCode::diverged) throw DivergedError(message);
  throw InternalError(message);
}

Tensor bytes_of(std::string& text) {
  return Tensor(text.data(), DType::uint8, {static_cast<std::int64_t>(text.size())});
}

}  // namespace

void run_agreed(Communicator& communicator, const std::function<void()>& work) {
  Failure failure;
  bool failed = false;
  try {
    work();
  } catch (const std::exception& exception) {
    const Error error = as_error(exception);
    failed = true;
    failure = {error.code(), error.what()};
  }
  const std::int64_t first = communicator.all_reduce(
      static_cast<std::int64_t>(failed ? communicator.rank() : communicator.size()), ReduceOp::min);
  if (first == communicator.size()) return;
  throw_again(communicator.broadcast_text(encode(failure), static_cast<int>(first)));
}

std::vector<std::string> gather_texts(const std::string& text, Communicator& communicator) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  std::int64_t length = static_cast<std::int64_t>(text.size());
  std::vector<std::int64_t> lengths(ranks);
  communicator.all_gather(Tensor(&length, DType::int64, {1}),
                          Tensor(lengths.data(), DType::int64, {static_cast<std::int64_t>(ranks)}), {});

  std::vector<std::string> texts;
  std::vector<Transfer> transfers;
  std::string own = text;
  if (communicator.rank() == 0) {
    texts.resize(ranks);
    texts[0] = text;
    for (std::size_t r = 1; r < ranks; ++r) {
      texts[r].resize(static_cast<std::size_t>(lengths[r]));
      if (lengths[r] > 0) transfers.push_back({Transfer::Direction::receive, static_cast<int>(r), bytes_of(texts[r])});
    }
  } else if (length > 0) {
    transfers.push_back({Transfer::Direction::send, 0, bytes_of(own)});
  }
  communicator.exchange(transfers, {});
  return texts;
}

}  // namespace fulmen
