// The newest valid checkpoint is found past broken checkpoints; pruning takes old checkpoints and leftovers, never
// links or strangers.
#include "checkpoint/manifest.h"
#include "framework/files.h"
#include "tests/checkpoint/checkpoint_helpers.h"

namespace fulmen {
namespace {

using namespace testing_checkpoint;

TEST(Retention, TheNewestIsByStepNotByNameOrTime) {
  const TemporaryFolder root;
  EXPECT_FALSE(newest_checkpoint(root.path()));
  EXPECT_FALSE(newest_checkpoint(root.path() / "absent"));
  save_alone(root.path(), 1000, 1);
  save_alone(root.path(), 900, 1);
  save_alone(root.path() / "step-zzz", 100, 1, {.exact_folder = true, .extra_files = {}});
  EXPECT_EQ(newest_checkpoint(root.path()), root.path() / "step-00001000");
  EXPECT_EQ(find_checkpoint(root.path()), root.path() / "step-00001000");
  EXPECT_EQ(find_checkpoint(root.path() / "step-00000900"), root.path() / "step-00000900");
}

TEST(Retention, ARunsFolderStandsForItsCheckpoints) {
  const TemporaryFolder run;
  save_alone(run.path() / "checkpoints", 7, 1);
  EXPECT_EQ(find_checkpoint(run.path()), run.path() / "checkpoints" / "step-00000007");
  fs::remove(run.path() / "checkpoints" / "step-00000007" / manifest_file);
  expect_mentions(message_of<UserError>([&] { find_checkpoint(run.path()); }),
                  {"no valid checkpoint", "step-00000007", "no manifest.yaml"});
}

TEST(Retention, BrokenOnesAreSkippedAndNamed) {
  const TemporaryFolder root;
  const fs::path good = save_alone(root.path(), 1, 1);
  fs::remove(save_alone(root.path(), 2, 1) / manifest_file);
  const fs::path cut = save_alone(root.path(), 3, 1);
  fs::resize_file(cut / "shard-00000.h5", 10);
  fs::create_directories(root.path() / "logs");
  fs::rename(save_alone(root.path(), 4, 1), root.path() / "step-00000004.partial");  // killed just before its rename
  std::vector<std::string> skipped;
  EXPECT_EQ(newest_checkpoint(root.path(), &skipped), good);
  ASSERT_EQ(skipped.size(), 2U);
  expect_mentions(skipped[0], {"step-00000002", "no manifest.yaml"});
  expect_mentions(skipped[1], {"step-00000003", "shard-00000.h5", "cut short"});

  fs::remove_all(good);
  EXPECT_FALSE(newest_checkpoint(root.path()));
  expect_mentions(message_of<UserError>([&] { find_checkpoint(root.path()); }),
                  {"no valid checkpoint", "step-00000002", "step-00000003", "cut short"});
  expect_mentions(message_of<UserError>([&] { find_checkpoint(cut); }), {"cut short"});
  expect_mentions(message_of<UserError>([&] { find_checkpoint(root.path() / "absent"); }), {"no such folder"});
}

TEST(Retention, PruningKeepsTheNewestAndRemovesLeftovers) {
  const TemporaryFolder root, other;
  for (const std::int64_t step : {10, 20, 30, 40}) save_alone(root.path(), step, 1);
  fs::create_directories(root.path() / "step-00000050.partial");
  fs::create_directories(root.path() / "step-00000060");                            // invalid: left for a person to see
  fs::copy(root.path() / "step-00000010", root.path() / "step-00000010-best");      // a person's copy
  fs::copy(root.path() / "step-00000010", root.path() / "step-00000040.replaced");  // a replacement that was cut short
  fs::create_directories(root.path() / "logs.partial");
  const fs::path linked = save_alone(other.path(), 5, 1);
  fs::create_directory_symlink(linked, root.path() / "step-00000005");
  fs::create_directory_symlink(linked, root.path() / "step-00000006.partial");

  prune_checkpoints(root.path(), 0);
  std::vector<std::string> expected{"logs.partial",  "step-00000005",      "step-00000006.partial",
                                    "step-00000010", "step-00000010-best", "step-00000020",
                                    "step-00000030", "step-00000040",      "step-00000060"};
  EXPECT_EQ(entries_of(root.path()), expected);

  prune_checkpoints(root.path(), 2);
  expected = {"logs.partial",  "step-00000005", "step-00000006.partial", "step-00000010-best",
              "step-00000030", "step-00000040", "step-00000060"};
  EXPECT_EQ(entries_of(root.path()), expected);
  EXPECT_TRUE(fs::exists(linked / manifest_file));

  prune_checkpoints(root.path(), 5);
  EXPECT_EQ(entries_of(root.path()), expected);
  prune_checkpoints(root.path() / "absent", 1);
}

TEST(Retention, OneThatSteppedAsideCountsUntilItsSuccessorStands) {
  const TemporaryFolder root;
  save_alone(root.path(), 10, 1);
  fs::rename(save_alone(root.path(), 20, 1), root.path() / "step-00000020.replaced");
  EXPECT_EQ(newest_checkpoint(root.path()), root.path() / "step-00000020.replaced");
  prune_checkpoints(root.path(), 1);
  EXPECT_EQ(newest_checkpoint(root.path()), root.path() / "step-00000020.replaced");
  const fs::path successor = save_alone(root.path(), 20, 2);
  EXPECT_EQ(newest_checkpoint(root.path()), successor);
  prune_checkpoints(root.path(), 1);
  EXPECT_EQ(entries_of(root.path()), std::vector<std::string>{"step-00000020"});
}

TEST(Retention, LaterStepsAreSetAside) {
  const TemporaryFolder root;
  for (const std::int64_t step : {10, 20, 30}) save_alone(root.path(), step, 1);
  EXPECT_EQ(set_aside_checkpoints_after(root.path(), 30), std::nullopt);
  EXPECT_EQ(set_aside_checkpoints_after(root.path() / "absent", 1), std::nullopt);
  EXPECT_EQ(set_aside_checkpoints_after(root.path(), 10), root.path() / "set-aside");
  EXPECT_EQ(entries_of(root.path() / "set-aside"), (std::vector<std::string>{"step-00000020", "step-00000030"}));
  save_alone(root.path(), 20, 2);
  EXPECT_EQ(set_aside_checkpoints_after(root.path(), 10), root.path() / "set-aside-2");
  prune_checkpoints(root.path(), 1);
  EXPECT_EQ(entries_of(root.path()), (std::vector<std::string>{"set-aside", "set-aside-2", "step-00000010"}));
  EXPECT_EQ(newest_checkpoint(root.path()), root.path() / "step-00000010");
}

TEST(Retention, WhoReadsTakesTheNextWhereOneIsDeletedMeanwhile) {
  const TemporaryFolder root;
  const auto self = make_self_communicator();
  save_alone(root.path(), 1, 1);
  std::vector<std::int64_t> read;
  const auto delete_under_way = [&](const CheckpointReader& checkpoint) {
    const std::int64_t step = checkpoint.description().step;
    read.push_back(step);
    if (step == 3) return;
    save_alone(root.path(), step + 1, 1);
    prune_checkpoints(root.path(), 1);
    CheckpointReader(checkpoint.folder());  // what of it is read from here on is not there
  };
  with_checkpoint(root.path(), *self, delete_under_way);
  EXPECT_EQ(read, (std::vector<std::int64_t>{1, 2, 3}));

  // Not where exactly this checkpoint was asked for, nor for another fault.
  const fs::path named = root.path() / "step-00000003";
  int calls = 0;
  expect_mentions(message_of<UserError>([&] {
                    with_checkpoint(named, *self, [&](const CheckpointReader&) {
                      ++calls;
                      fs::remove_all(named);
                      CheckpointReader reader(named);
                    });
                  }),
                  {"step-00000003"});
  save_alone(root.path(), 4, 1);
  expect_mentions(message_of<UserError>([&] {
                    with_checkpoint(root.path(), *self, [&](const CheckpointReader&) {
                      ++calls;
                      throw UserError("here", "another fault");
                    });
                  }),
                  {"another fault"});
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace fulmen
