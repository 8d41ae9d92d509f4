// Saving and reading on one rank: content, damage and its messages, replacement, moved folders.
#include "checkpoint/checkpoint.h"

#include <cmath>

#include "checkpoint/manifest.h"
#include "framework/files.h"
#include "framework/hash.h"
#include "framework/hdf5.h"
#include "tests/checkpoint/checkpoint_helpers.h"

namespace fulmen {
namespace {

using namespace testing_checkpoint;

TEST(Checkpoint, RoundTripOfDescriptionAndContent) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 500, 3);
  EXPECT_EQ(folder.filename(), "step-00000500");
  const CheckpointReader reader(folder);
  EXPECT_EQ(reader.description().step, 500);
  EXPECT_EQ(reader.description().tokens, 500 * 4096);
  EXPECT_EQ(reader.description().samples, 500 * 8);
  EXPECT_EQ(reader.description().model, a_description(500).model);
  EXPECT_EQ(reader.names().size(), some_tensors().size());
  EXPECT_FALSE(reader.tokenizer_file());
  Generator generator(1);
  expect_content(reader, some_tensors(), 3, generator);
  reader.verify(*make_self_communicator());
}

TEST(Checkpoint, TheFilesCarryShapesAndOffsets) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 1, 3);
  const hdf5::File shard = hdf5::File::open(folder / "shard-00000.h5");
  std::int64_t elements = 0;
  for (const std::string& name : shard.dataset_names()) {
    const hdf5::Dataset dataset = shard.dataset(name);
    EXPECT_EQ(dataset.read_attribute("global_shape").size(), dataset.shape().size());
    EXPECT_EQ(dataset.read_attribute("offset").size(), dataset.shape().size());
    elements += elements_of(dataset.shape());
  }
  std::int64_t expected = 0;
  for (const Logical& logical : some_tensors()) expected += elements_of(logical.shape);
  EXPECT_EQ(elements, expected);
}

TEST(Checkpoint, AMovedFolderReadsFromAnyWorkingFolder) {
  const TemporaryFolder root, elsewhere;
  const fs::path folder = save_alone(root.path(), 1, 4);
  const fs::path moved = elsewhere.path() / "another name";
  fs::rename(folder, moved);
  const fs::path before = fs::current_path();
  Generator generator(2);
  for (const fs::path& working : {root.path(), elsewhere.path(), fs::path("/")}) {
    fs::current_path(working);
    expect_content(CheckpointReader(moved), some_tensors(), 4, generator);
  }
  fs::current_path(elsewhere.path());
  expect_content(CheckpointReader("another name"), some_tensors(), 4, generator);
  fs::current_path(before);
}

TEST(Checkpoint, ParametersThatAreNaNAreReadAsSuch) {
  const TemporaryFolder root;
  const Logical logical{"parameters/x", DType::fp32, {5, 3}};
  OwnedPiece poisoned(logical, whole(logical.shape), DType::fp32, 0);  // never filled
  const fs::path folder = save_checkpoint(root.path(), {}, {poisoned.piece()}, *make_self_communicator());
  OwnedPiece read(logical, {{1, 0}, {2, 3}}, DType::fp64, 0);
  read.piece().memory.as<double>()[0] = 1.0;
  CheckpointReader(folder).read(read.piece());
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(std::isnan(read.piece().memory.as<double>()[i]));
}

// A shard of the right size, listed with the right checksum, but without the piece: only the pieces themselves tell.
TEST(Checkpoint, AMissingPieceIsNotTakenForNaN) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 1, 4);
  const fs::path shard = folder / "shard-00000.h5";
  std::string bytes = read_text(shard);
  const std::string name = "bias";
  for (std::size_t at = bytes.find(name); at != std::string::npos; at = bytes.find(name, at + 1)) bytes[at + 3] = 'z';
  write_text_atomically(shard, bytes);
  const CheckpointReader reader(folder);
  const Logical logical{"parameters/bias", DType::fp64, {11}};
  OwnedPiece piece(logical, whole(logical.shape), DType::fp64, 0);
  expect_mentions(message_of<UserError>([&] { reader.read(piece.piece()); }), {"parameters/bias", "incomplete"});
}

// The index names every file that is read: what its manifest does not list, and what is no shard, is not opened.
TEST(Checkpoint, TheIndexLeadsToListedShardsOnly) {
  const TemporaryFolder root;
  const Logical logical{"parameters/x", DType::fp64, {4}};
  OwnedPiece piece(logical, whole(logical.shape), DType::fp64, 0);
  piece.fill(1);
  const fs::path folder = save_checkpoint(root.path(), a_description(1), {piece.piece()}, *make_self_communicator());
  const auto refusal_of = [&](const std::vector<hdf5::VirtualSource>& sources) {
    {
      hdf5::File index = hdf5::File::create(folder / "parameters.h5");
      index.create_virtual("/parameters/x", DType::fp64, {4}, sources);
      index.close();
    }
    CheckpointManifest manifest = read_manifest(folder);
    for (FileRecord& record : manifest.files) record = record_file(folder, record.file);
    write_manifest(folder, manifest);
    const CheckpointReader reader(folder);
    reader.verify(*make_self_communicator());
    return message_of<UserError>([&] { reader.read(piece.piece()); });
  };
  fs::copy_file(folder / "shard-00000.h5", root.path() / "shard-00000.h5");
  for (const char* file : {"../shard-00000.h5", ".", "parameters.h5", "other.h5"})
    expect_mentions(refusal_of({{file, "/parameters/x", {4}, {0}}}), {"parameters/x", file, "no shard", "lists"});
  expect_mentions(
      refusal_of({{"shard-00000.h5", "/parameters/x", {2}, {0}}, {"shard-00000.h5", "/parameters/x", {2}, {2}}}),
      {"parameters/x", "shard-00000.h5", "[4]", "[2]"});
  expect_mentions(refusal_of({{"shard-00000.h5", "/parameters/x", {3}, {0}}}), {"parameters/x", "missing"});
  expect_mentions(refusal_of({{"shard-00000.h5", "/parameters/y", {4}, {0}}}), {"parameters/x", "/parameters/y"});

  // A shard that is itself a map over something else.
  {
    hdf5::File shard = hdf5::File::create(folder / "shard-00000.h5");
    shard.create_virtual("/parameters/x", DType::fp64, {4}, {{".", "/parameters/x", {4}, {0}}});
    shard.close();
  }
  expect_mentions(refusal_of({{"shard-00000.h5", "/parameters/x", {4}, {0}}}), {"shard-00000.h5", "virtual"});
}

TEST(Checkpoint, AFlippedBitInAnyFileIsFound) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 1, 5);
  Generator generator(3);
  for (const char* file : {"shard-00000.h5", "parameters.h5"}) {
    const auto size = static_cast<std::int64_t>(fs::file_size(folder / file));
    for (int i = 0; i < 8; ++i) {
      const auto byte = static_cast<std::uint64_t>(between(generator, size / 2, size - 1));
      const CheckpointReader reader(folder);
      flip_bit(folder / file, byte);
      expect_mentions(message_of<UserError>([&] { reader.verify(*make_self_communicator()); }),
                      {file, "damaged", "checksum", "->"});
      flip_bit(folder / file, byte);
    }
  }
  CheckpointReader(folder).verify(*make_self_communicator());
}

TEST(Checkpoint, TruncatedMissingAndForeignFiles) {
  const TemporaryFolder root;
  for (const char* file : {"shard-00000.h5", "parameters.h5"}) {
    const fs::path folder = save_alone(root.path(), 1, 5);
    const auto size = fs::file_size(folder / file);
    const auto open = [&] { const CheckpointReader reader(folder); };
    fs::resize_file(folder / file, size - 1);
    expect_mentions(message_of<UserError>(open), {file, "cut short"});
    fs::resize_file(folder / file, size + 1);
    expect_mentions(message_of<UserError>(open), {file, "another file"});
    fs::remove(folder / file);
    expect_mentions(message_of<UserError>(open), {file, "cannot be read"});
  }
  const fs::path folder = save_alone(root.path(), 1, 5);
  write_text_atomically(folder / "parameters.h5", std::string(fs::file_size(folder / "parameters.h5"), 'x'));
  expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(folder); }),
                  {"parameters.h5", "not an HDF5 file"});
}

TEST(Checkpoint, AShardOfAnotherCheckpointIsFound) {
  const TemporaryFolder root;
  const fs::path one = save_alone(root.path(), 1, 5), two = save_alone(root.path(), 2, 5);
  Generator generator(1);
  const auto pieces = dealt_pieces(some_tensors(), 0, 1, 6, 77);  // the same split, other values: the same size
  save_checkpoint(two, a_description(2), views(pieces), *make_self_communicator(),
                  {.exact_folder = true, .extra_files = {}});
  fs::copy_file(two / "shard-00000.h5", one / "shard-00000.h5", fs::copy_options::overwrite_existing);
  const CheckpointReader reader(one);
  expect_mentions(message_of<UserError>([&] { reader.verify(*make_self_communicator()); }),
                  {"shard-00000.h5", "damaged"});
}

TEST(Checkpoint, WrongNamesAndShapes) {
  const TemporaryFolder root;
  const CheckpointReader reader(save_alone(root.path(), 1, 5));
  std::vector<float> memory(40, NAN);
  const Tensor one(memory.data(), DType::fp32, {1});
  expect_mentions(message_of<UserError>([&] {
                    reader.read({"parameters/biass", {}, {0}, one});
                  }),
                  {"parameters/biass", "it has parameters/bias"});
  expect_mentions(message_of<UserError>([&] {
                    reader.read({"parameters/bias", {12}, {0}, one});
                  }),
                  {"parameters/bias", "[11]", "[12]"});
  EXPECT_THROW(reader.read({"parameters/bias", {}, {11}, one}), UserError);
  EXPECT_THROW(reader.shape("parameters/nothing"), UserError);
  EXPECT_FALSE(reader.has("parameters/nothing"));
}

TEST(Checkpoint, SavingOverACheckpointReplacesIt) {
  const TemporaryFolder root;
  save_alone(root.path(), 7, 1);
  const fs::path folder = save_alone(root.path(), 7, 2);
  Generator generator(1);
  expect_content(CheckpointReader(folder), some_tensors(), 2, generator);
  EXPECT_EQ(entries_of(root.path()), std::vector<std::string>{"step-00000007"});
}

TEST(Checkpoint, LeftoversOfAnEarlierAttemptGo) {
  const TemporaryFolder root;
  fs::create_directories(root.path() / "step-00000007.partial");
  write_text_atomically(root.path() / "step-00000007.partial" / "shard-00009.h5", "half");
  fs::create_directories(root.path() / "step-00000007");  // a folder without a manifest does not exist
  write_text_atomically(root.path() / "step-00000007" / "shard-00009.h5", "half");
  const fs::path folder = save_alone(root.path(), 7, 2);
  EXPECT_EQ(entries_of(folder), (std::vector<std::string>{"manifest.yaml", "parameters.h5", "shard-00000.h5"}));
  EXPECT_EQ(entries_of(root.path()), std::vector<std::string>{"step-00000007"});
}

TEST(Checkpoint, ASymbolicLinkInTheWayGoesItsTargetStays) {
  const TemporaryFolder root, other;
  const fs::path target = save_alone(other.path(), 7, 1);
  fs::create_directory_symlink(target, root.path() / "step-00000007");
  fs::create_directory_symlink(target, root.path() / "step-00000007.partial");
  const fs::path folder = save_alone(root.path(), 7, 2);
  EXPECT_FALSE(fs::is_symlink(folder));
  Generator generator(1);
  expect_content(CheckpointReader(folder), some_tensors(), 2, generator);
  expect_content(CheckpointReader(target), some_tensors(), 1, generator);
  EXPECT_EQ(entries_of(root.path()), std::vector<std::string>{"step-00000007"});
}

TEST(Checkpoint, ExactFolderAndExtraFiles) {
  const TemporaryFolder root;
  write_text_atomically(root.path() / "tokenizer.model", "a tokenizer");
  SaveOptions options{.exact_folder = true, .extra_files = {root.path() / "tokenizer.model"}};
  const fs::path folder = save_alone(root.path() / "deep" / "imported/", 0, 2, options);
  EXPECT_EQ(folder, root.path() / "deep" / "imported");
  const CheckpointReader reader(folder);
  ASSERT_TRUE(reader.tokenizer_file());
  EXPECT_EQ(read_text(*reader.tokenizer_file()), "a tokenizer");
  reader.verify(*make_self_communicator());
  save_alone(folder, 0, 3, options);  // over itself
  Generator generator(1);
  expect_content(CheckpointReader(folder), some_tensors(), 3, generator);

  options.extra_files = {root.path() / "absent"};
  expect_mentions(message_of<UserError>([&] { save_alone(folder, 0, 4, options); }), {"absent", "cannot be read"});
  expect_content(CheckpointReader(folder), some_tensors(), 3, generator);
  EXPECT_EQ(entries_of(root.path() / "deep"), std::vector<std::string>{"imported"});
}

TEST(Checkpoint, ForeignPlacesAreNotOverwritten) {
  const TemporaryFolder root;
  const SaveOptions exact{.exact_folder = true, .extra_files = {}};
  write_text_atomically(root.path() / "thesis.txt", "words");
  expect_mentions(message_of<UserError>([&] { save_alone(root.path(), 0, 1, exact); }), {"other things"});
  expect_mentions(message_of<UserError>([&] { save_alone(root.path() / "thesis.txt", 0, 1, exact); }),
                  {"a file stands"});
  expect_mentions(message_of<UserError>([&] { save_alone(root.path() / "thesis.txt", 0, 1); }), {"thesis.txt"});
  EXPECT_EQ(entries_of(root.path()), std::vector<std::string>{"thesis.txt"});
  EXPECT_EQ(read_text(root.path() / "thesis.txt"), "words");
}

TEST(Checkpoint, NamesThatTheFormatCannotHold) {
  const TemporaryFolder root;
  float value = 1;
  const Tensor memory(&value, DType::fp32, {1});
  for (const char* name : {"", "/parameters/x", "parameters/", "parameters/x@1", "parameters/x\ty"}) {
    EXPECT_THROW(save_checkpoint(root.path(), {}, {{name, {1}, {0}, memory}}, *make_self_communicator()), InternalError)
        << name;
  }
  EXPECT_TRUE(entries_of(root.path()).empty());
}

}  // namespace
}  // namespace fulmen
