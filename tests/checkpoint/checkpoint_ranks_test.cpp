// Saving from one to four ranks with random splits, and failures of one rank that all must share.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <csignal>
#include <numeric>

#include "checkpoint/agreement.h"
#include "checkpoint/manifest.h"
#include "framework/files.h"
#include "tests/checkpoint/checkpoint_helpers.h"
#include "tests/mpi_main.h"

namespace fulmen {
namespace {

using namespace testing_checkpoint;

// A folder that rank 0 makes and removes and all know.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& communicator) : communicator_(communicator) {
    if (communicator.rank() == 0) folder_ = std::make_unique<TemporaryFolder>();
    path_ = communicator.broadcast_text(folder_ ? folder_->path().string() : "", 0);
  }
  ~SharedFolder() { communicator_.barrier(); }
  const fs::path& path() const { return path_; }

 private:
  Communicator& communicator_;
  std::unique_ptr<TemporaryFolder> folder_;
  fs::path path_;
};

// The message of the error of type E, after checking that every rank has the same.
template <class E, class F>
std::string shared_message(Communicator& communicator, F&& f) {
  std::string message = message_of<E>(f);
  EXPECT_EQ(communicator.broadcast_text(message, 0), message);
  return message;
}

void save_split(const fs::path& root, std::int64_t step, Communicator& communicator, std::uint64_t seed) {
  const auto pieces = dealt_pieces(some_tensors(), communicator.rank(), communicator.size(), seed, seed);
  save_checkpoint(root, a_description(step), views(pieces), communicator);
}

TEST(CheckpointRanks, SavedByAnyNumberOfRanksReadByAll) {
  Communicator& world = test_world();
  const SharedFolder root(world);
  for (int ranks = 1; ranks <= world.size(); ++ranks) {
    std::vector<int> members(static_cast<std::size_t>(ranks));
    std::iota(members.rbegin(), members.rend(), 0);  // in reverse: rank numbers need not be the world's
    std::unique_ptr<Communicator> group;
    if (world.rank() < ranks) group = world.subgroup(members);
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      const std::int64_t step = ranks * 100 + static_cast<std::int64_t>(seed);
      if (group) save_split(root.path(), step, *group, seed);
      world.barrier();
      const CheckpointReader reader(root.path() / fmt::format("step-{:08d}", step));
      reader.verify(world);
      Generator generator(seed * 10 + static_cast<std::uint64_t>(world.rank()));
      expect_content(reader, some_tensors(), seed, generator);
    }
  }
}

TEST(CheckpointRanks, ARankWithoutPiecesWritesNoFile) {
  Communicator& world = test_world();
  const SharedFolder root(world);
  std::vector<std::unique_ptr<OwnedPiece>> pieces;
  if (world.rank() == 2) pieces = dealt_pieces(some_tensors(), 0, 1, 1, 1);
  const fs::path folder = save_checkpoint(root.path(), a_description(1), views(pieces), world);
  EXPECT_EQ(entries_of(folder), (std::vector<std::string>{"manifest.yaml", "parameters.h5", "shard-00002.h5"}));
}

TEST(CheckpointRanks, HolesAndDoubleWritesAreRefusedBeforeAnythingIsWritten) {
  Communicator& world = test_world();
  const SharedFolder root(world);
  const Logical logical{"parameters/x", DType::fp32, {8, 5}};
  const std::int64_t rank = world.rank();
  OwnedPiece part(logical, {{2 * rank, 0}, {2, 5}}, DType::fp32, 1), more(logical, {{4, 3}, {1, 1}}, DType::fp32, 0);
  part.fill(1);
  more.fill(1);
  const auto save = [&](const std::vector<TensorPiece>& pieces) { save_checkpoint(root.path(), {}, pieces, world); };

  std::vector<TensorPiece> holed{part.piece()}, doubled{part.piece()}, unequal{part.piece()};
  if (rank == 3) holed.clear();
  expect_mentions(shared_message<InternalError>(world, [&] { save(holed); }), {"parameters/x", "missing"});
  if (rank == 1) doubled.push_back(more.piece());
  expect_mentions(shared_message<InternalError>(world, [&] { save(doubled); }),
                  {"parameters/x", "overlap", "shard-00001.h5", "shard-00002.h5"});
  if (rank == 2) unequal[0].global_shape = {8, 6};
  expect_mentions(shared_message<InternalError>(world, [&] { save(unequal); }), {"parameters/x", "[8, 5]", "[8, 6]"});
  world.barrier();
  EXPECT_TRUE(entries_of(root.path()).empty());
}

TEST(CheckpointRanks, DamageIsSeenByAllRanks) {
  Communicator& world = test_world();
  const SharedFolder root(world);
  save_split(root.path(), 1, world, 11);
  const fs::path folder = root.path() / "step-00000001";
  const CheckpointReader reader(folder);
  for (const std::string& file : entries_of(folder)) {
    if (file == manifest_file) continue;
    world.barrier();
    if (world.rank() == 0) flip_bit(folder / file, fs::file_size(folder / file) / 2);
    world.barrier();
    expect_mentions(shared_message<UserError>(world, [&] { reader.verify(world); }), {file, "damaged"});
    world.barrier();
    if (world.rank() == 0) flip_bit(folder / file, fs::file_size(folder / file) / 2);
  }
  world.barrier();
  reader.verify(world);
}

// Files of this process may not grow beyond `bytes`: a disk that is full for one rank.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    const struct rlimit limit { bytes, previous_.rlim_max };
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, previous_handler_);
  }

 private:
  struct rlimit previous_ {};
  void (*previous_handler_)(int) = nullptr;
};

TEST(CheckpointRanks, ADiskFullOnOneRankFailsAllAndLeavesTheOlderValid) {
  Communicator& world = test_world();
  const SharedFolder root(world);
  save_split(root.path(), 1, world, 11);
  for (int failing = 0; failing < world.size(); ++failing) {
    for (const rlim_t bytes : {rlim_t{0}, rlim_t{100}, rlim_t{3000}}) {
      for (const std::int64_t step : {1, 2}) {  // over the valid checkpoint, and next to it
        std::unique_ptr<FileSizeLimit> limit;
        if (world.rank() == failing) limit = std::make_unique<FileSizeLimit>(bytes);
        const std::string message = shared_message<UserError>(world, [&] { save_split(root.path(), step, world, 12); });
        expect_mentions(message, {"step-0000000", "->", "free"});
      }
    }
  }
  world.barrier();
  EXPECT_EQ(entries_of(root.path()), std::vector<std::string>{"step-00000001"});
  Generator generator(5);
  expect_content(CheckpointReader(root.path() / "step-00000001"), some_tensors(), 11, generator);
  world.barrier();
  save_split(root.path(), 2, world, 13);  // with room again, the same process goes on
  expect_content(CheckpointReader(root.path() / "step-00000002"), some_tensors(), 13, generator);
}

TEST(CheckpointRanks, ASmallDiskFills) {
  Communicator& world = test_world();
  const SharedFolder root(world);
  const fs::path disk = root.path() / "disk";
  std::int64_t mounted = 0;
  if (world.rank() == 0) {
    fs::create_directory(disk);
    mounted = ::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") == 0;
  }
  if (world.all_reduce(mounted, ReduceOp::max) == 0) GTEST_SKIP() << "no permission to mount a small disk";
  for (const std::int64_t rows : {8, 15, 1000}) {  // fits, fits but for the files' own structure, does not fit
    const Logical logical{"parameters/x", DType::fp32, {rows * world.size(), 256}};
    OwnedPiece part(logical, {{rows * world.rank(), 0}, {rows, 256}}, DType::fp32, 0);
    part.fill(1);
    const auto save = [&] { save_checkpoint(disk, a_description(rows), {part.piece()}, world); };
    if (rows == 8) {
      save();
    } else {
      expect_mentions(shared_message<UserError>(world, save), {"step-", "free"});
    }
  }
  world.barrier();
  EXPECT_EQ(entries_of(disk), std::vector<std::string>{"step-00000008"});
  CheckpointReader(disk / "step-00000008").verify(world);
  world.barrier();
  if (world.rank() == 0) {
    EXPECT_EQ(::umount2(disk.c_str(), MNT_DETACH), 0);
  }
}

TEST(CheckpointRanks, AnUnwritablePlaceIsOneErrorOnAllRanks) {
  Communicator& world = test_world();
  for (const char* place : {"/proc/no-place", "/dev/null/below"}) {
    expect_mentions(shared_message<UserError>(world, [&] { save_split(place, 1, world, 1); }), {place});
  }
}

TEST(CheckpointRanks, AgreementTakesTheLowestFailingRanksError) {
  Communicator& world = test_world();
  run_agreed(world, [] {});
  const std::string message = shared_message<UserError>(world, [&] {
    run_agreed(world, [&] {
      if (world.rank() == 2) throw UserError("here", "rank 2's", "do this");
      if (world.rank() == 3) throw InternalError("rank 3's");
    });
  });
  EXPECT_EQ(message, "here: rank 2's\n  -> do this");
  shared_message<InternalError>(world, [&] {
    run_agreed(world, [&] {
      if (world.rank() == 1) throw std::runtime_error("any other");
    });
  });
}

TEST(CheckpointRanks, TextsOfAnyLengthAreGathered) {
  Communicator& world = test_world();
  const auto text_of = [](int rank) {
    return std::string(static_cast<std::size_t>(rank == 1 ? 0 : rank * 70000 + 1), static_cast<char>('a' + rank));
  };
  const std::vector<std::string> texts = gather_texts(text_of(world.rank()), world);
  if (world.rank() != 0) {
    EXPECT_TRUE(texts.empty());
    return;
  }
  ASSERT_EQ(texts.size(), static_cast<std::size_t>(world.size()));
  for (int r = 0; r < world.size(); ++r) EXPECT_EQ(texts[static_cast<std::size_t>(r)], text_of(r));
}

}  // namespace
}  // namespace fulmen
