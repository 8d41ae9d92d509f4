// HDF5 files: round trips, hyperslabs, strided memory, virtual datasets that survive a move, and damaged files.
#include "framework/hdf5.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hdf5.h>

#include "framework/files.h"
#include "framework/hash.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"
#include "tests/framework/whole_dataset.h"

namespace fulmen::hdf5 {
namespace {

using testing_support::expect_user_error;
using testing_support::read_whole_dataset;
using testing_support::TemporaryFolder;
using testing_support::WholeDataset;
namespace fs = std::filesystem;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

std::vector<double> random_values(std::int64_t n) {
  static std::mt19937_64 generator(std::random_device{}());
  std::vector<double> values(static_cast<std::size_t>(n));
  for (double& value : values) value = std::normal_distribution<double>()(generator);
  return values;
}

Tensor view(std::vector<double>& values, const Shape& shape) { return Tensor(values.data(), DType::fp64, shape); }

class Hdf5 : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

template <class T>
void expect_round_trip(const fs::path& path, const std::vector<T>& written) {
  std::vector<T> copy = written, read(written.size(), T(77));
  const Shape shape{static_cast<std::int64_t>(written.size())};
  File file = File::create(path);
  file.create_dataset("x", dtype_of<T>, shape).write({0}, Tensor(copy.data(), dtype_of<T>, shape));
  file.close();
  const Dataset dataset = File::open(path).dataset("x");
  EXPECT_EQ(dataset.dtype(), dtype_of<T>);
  EXPECT_EQ(dataset.shape(), shape);
  dataset.read({0}, Tensor(read.data(), dtype_of<T>, shape));
  EXPECT_EQ(read, written);
}

TEST_F(Hdf5, EveryElementType) {
  const fs::path path = folder_ / "types.h5";
  expect_round_trip<double>(path, {1.0 / 3.0, -1e300});
  expect_round_trip<float>(path, {1.0f / 3.0f, 1e-40f});
  expect_round_trip<std::int64_t>(path, {std::numeric_limits<std::int64_t>::min(), 5});
  expect_round_trip<std::int32_t>(path, {-7, 5});
  expect_round_trip<std::uint64_t>(path, {~std::uint64_t{0}, 5});
  expect_round_trip<std::uint32_t>(path, {~0u, 5});
  expect_round_trip<std::uint16_t>(path, {65535, 5});
  expect_round_trip<std::uint8_t>(path, {255, 5});
  File file = File::create(path);
  EXPECT_THROW(file.create_dataset("half", DType::bf16, {2}), InternalError);
}

TEST_F(Hdf5, HyperslabsConvertTypes) {
  const Shape shape{7, 9};
  std::vector<double> values = random_values(63);
  File file = File::create(folder_ / "x.h5");
  file.create_dataset("/deep/er/x", DType::fp32, shape).write({0, 0}, view(values, shape));
  const Dataset dataset = file.dataset("/deep/er/x");
  std::vector<double> part(12, nan);
  dataset.read({2, 5}, view(part, {3, 4}));
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 4; ++j) EXPECT_EQ(part[i * 4 + j], static_cast<float>(values[(i + 2) * 9 + j + 5]));
  }
  expect_user_error([&] { dataset.read({5, 0}, view(part, {3, 4})); }, {"/deep/er/x", "[7, 9]", "[3, 4]"});
  expect_user_error([&] { dataset.read({-1, 0}, view(part, {3, 4})); }, {"/deep/er/x"});
  EXPECT_THROW(dataset.read({0}, view(part, {12})), InternalError);
}

TEST_F(Hdf5, StridedMemory) {
  // A view of a view of [4, 6, 8, 3]: strided in every dimension but one, then in the last as well.
  std::vector<double> memory = random_values(4 * 6 * 8 * 3);
  const Tensor whole = view(memory, {4, 6, 8, 3});
  const Tensor strided = whole.slice(0, 1, 3).slice(1, 2, 5).slice(2, 3, 7).slice(3, 0, 2);
  const Tensor columns = whole.select(3, 1).slice(2, 1, 4);
  const Tensor split = view(memory, {24, 24}).slice(1, 4, 16).split_dimension(1, 3).select(2, 2);
  File file = File::create(folder_ / "x.h5");
  int number = 0;
  for (const Tensor& source : {strided, columns, split}) {
    const std::string name = std::to_string(number++);
    file.create_dataset(name, DType::fp64, source.shape()).write(std::vector<std::int64_t>(source.rank(), 0), source);
    const Dataset dataset = file.dataset(name);
    std::vector<double> contiguous(static_cast<std::size_t>(source.elements()), nan);
    dataset.read(std::vector<std::int64_t>(source.rank(), 0), view(contiguous, source.shape()));

    std::vector<double> expected;
    const std::function<void(const Tensor&)> gather = [&](const Tensor& t) {
      if (t.rank() == 0) return expected.push_back(*t.as<double>());
      for (std::int64_t i = 0; i < t.size(0); ++i) gather(t.select(0, i));
    };
    gather(source);
    EXPECT_EQ(contiguous, expected) << source.describe();

    // Reading back into the strided place changes nothing else.
    const std::vector<double> before = memory;
    const std::function<void(const Tensor&)> poison = [&](const Tensor& t) {
      if (t.rank() == 0) return void(*t.as<double>() = nan);
      for (std::int64_t i = 0; i < t.size(0); ++i) poison(t.select(0, i));
    };
    poison(source);
    dataset.read(std::vector<std::int64_t>(source.rank(), 0), source);
    EXPECT_EQ(memory, before) << source.describe();
  }
}

TEST_F(Hdf5, ScalarsAndEmptyDatasets) {
  File file = File::create(folder_ / "x.h5");
  std::vector<double> one{2.5}, got{nan};
  file.create_dataset("loss", DType::fp64, {}).write({}, view(one, {}));
  file.dataset("loss").read({}, view(got, {}));
  EXPECT_EQ(got[0], 2.5);
  got[0] = nan;
  file.dataset("loss").read({}, view(got, {1}));
  EXPECT_EQ(got[0], 2.5);
  file.create_dataset("row", DType::fp64, {1}).write({0}, view(one, {}));
  file.create_dataset("none", DType::fp64, {0, 4});
  EXPECT_EQ(file.dataset("none").shape(), (Shape{0, 4}));
  file.dataset("none").read({0, 0}, view(got, {0, 4}));
}

TEST_F(Hdf5, AppendGrowsInPieces) {
  const fs::path path = folder_ / "tokens.h5";
  std::vector<std::uint16_t> written;
  {
    File file = File::create(path);
    Dataset tokens = file.create_extendible("/tokens", DType::uint16, 64);
    EXPECT_EQ(tokens.shape(), Shape{0});
    for (const std::int64_t n : {1, 0, 63, 64, 200, 7}) {
      std::vector<std::uint16_t> piece(static_cast<std::size_t>(n));
      for (auto& token : piece) token = static_cast<std::uint16_t>(written.size() * 31 + (&token - piece.data()));
      tokens.append(Tensor(piece.data(), DType::uint16, {n}));
      written.insert(written.end(), piece.begin(), piece.end());
      EXPECT_EQ(tokens.shape(), Shape{static_cast<std::int64_t>(written.size())});
    }
  }
  const Dataset tokens = File::open(path).dataset("/tokens");  // the file stays open while a dataset of it is
  ASSERT_EQ(tokens.shape(), Shape{335});
  std::vector<std::int32_t> read(335, -1);
  tokens.read({0}, Tensor(read.data(), DType::int32, {335}));
  EXPECT_TRUE(std::equal(read.begin(), read.end(), written.begin()));
}

TEST_F(Hdf5, Attributes) {
  const fs::path path = folder_ / "x.h5";
  {
    File file = File::create(path);
    Dataset dataset = file.create_dataset("x", DType::fp32, {2});
    dataset.write_attribute("offset", std::vector<std::int64_t>{0, std::int64_t{1} << 40});
    dataset.write_attribute("offset", std::vector<std::int64_t>{3});
    dataset.write_attribute("empty", std::vector<std::int64_t>{});
    dataset.write_attribute("name", std::string("größe"));
    file.write_number_attribute("loss", 0.1);
    file.close();
  }
  const File file = File::open(path);
  const Dataset dataset = file.dataset("x");
  EXPECT_TRUE(dataset.has_attribute("offset"));
  EXPECT_FALSE(dataset.has_attribute("shape"));
  EXPECT_EQ(dataset.read_attribute("offset"), std::vector<std::int64_t>{3});
  EXPECT_EQ(dataset.read_attribute("empty"), std::vector<std::int64_t>{});
  expect_user_error([&] { dataset.read_attribute("shape"); }, {"x.h5: x", "no attribute 'shape'"});
  expect_user_error([&] { dataset.read_attribute("name"); }, {"'name' is not a number"});
  EXPECT_TRUE(file.has_attribute("loss"));
  EXPECT_EQ(file.read_number_attribute("loss"), 0.1);
  expect_user_error([&] { file.read_number_attribute("gain"); }, {"x.h5", "no attribute 'gain'"});
}

TEST_F(Hdf5, NamesAndExistence) {
  File file = File::create(folder_ / "x.h5");
  for (const char* name : {"/parameters/b", "/parameters/a", "/loss", "/optimizer/exp_avg/a"}) {
    file.create_dataset(name, DType::fp32, {1});
  }
  EXPECT_EQ(file.dataset_names(),
            (std::vector<std::string>{"/loss", "/optimizer/exp_avg/a", "/parameters/a", "/parameters/b"}));
  EXPECT_TRUE(file.exists("/optimizer/exp_avg/a"));
  EXPECT_TRUE(file.exists("loss"));
  EXPECT_FALSE(file.exists("/optimizer/exp_avg_sq/a"));
  expect_user_error([&] { file.dataset("/none/x"); }, {"x.h5", "/none/x"});
  expect_user_error([&] { file.dataset("/parameters"); }, {"/parameters", "dataset"});
  expect_user_error([&] { file.create_dataset("/loss", DType::fp32, {1}); }, {"/loss", "cannot be created"});
}

// Equal content gives equal bytes, so that checksums of repeated runs agree.
TEST_F(Hdf5, FilesAreReproducible) {
  std::vector<double> values = random_values(100);
  for (const char* name : {"a.h5", "b.h5"}) {
    File file = File::create(folder_ / name);
    Dataset dataset = file.create_dataset("/g/x", DType::fp64, {100});
    dataset.write({0}, view(values, {100}));
    dataset.write_attribute("offset", std::vector<std::int64_t>{0});
    file.flush();
    if (name[0] == 'a') std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  }
  EXPECT_EQ(hash_file(folder_ / "a.h5"), hash_file(folder_ / "b.h5"));
}

// /parameters/w of `whole`: columns [0, 4) in two files by rows, columns [4, 9) in one, column 9 in none.
void write_virtual(const fs::path& folder, const Tensor& whole) {
  std::vector<VirtualSource> sources;
  const auto piece = [&](const std::string& name, std::int64_t r0, std::int64_t r1, std::int64_t c0, std::int64_t c1) {
    const Tensor part = whole.slice(0, r0, r1).slice(1, c0, c1);
    File file = File::create(folder / name);
    file.create_dataset("/parameters/w 100%", DType::fp64, part.shape()).write({0, 0}, part);
    file.close();
    sources.push_back({name, "/parameters/w 100%", part.shape(), {r0, c0}});
  };
  piece("shard-%b.h5", 0, 2, 0, 4);
  piece("shard-1.h5", 2, 6, 0, 4);
  piece("shard-2.h5", 0, 6, 4, 9);
  File file = File::create(folder / "parameters.h5");
  file.create_virtual("/parameters/w", DType::fp64, whole.shape(), sources);
  file.create_virtual("/parameters/none", DType::fp32, {3}, {});
  file.close();
}

TEST_F(Hdf5, VirtualDatasetsSurviveRenamingAndShowMissingPiecesAsNan) {
  const Shape shape{6, 10};
  std::vector<double> values = random_values(60);
  fs::create_directory(folder_ / "tmp");
  write_virtual(folder_ / "tmp", view(values, shape));
  fs::rename(folder_ / "tmp", folder_ / "step-1");
  const auto check = [&](const fs::path& path, bool second_missing) {
    const auto [found, read] = read_whole_dataset(path, "/parameters/w");
    ASSERT_EQ(found, shape);
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 10; ++j) {
        const double value = read[i * 10 + j];
        if (j == 9 || (second_missing && i >= 2 && j < 4)) {
          EXPECT_TRUE(std::isnan(value)) << i << " " << j;
        } else {
          EXPECT_EQ(value, values[i * 10 + j]) << i << " " << j;
        }
      }
    }
  };
  check(folder_ / "step-1/parameters.h5", false);
  const WholeDataset none = read_whole_dataset(folder_ / "step-1/parameters.h5", "/parameters/none");
  EXPECT_TRUE(std::isnan(none.values.at(0)) && std::isnan(none.values.at(2)));

  // From the folder above, by a relative path.
  const fs::path here = fs::current_path();
  fs::current_path(folder_.path());
  check("step-1/parameters.h5", false);
  fs::current_path(folder_ / "step-1");
  check("parameters.h5", false);
  fs::current_path(here);

  fs::remove(folder_ / "step-1/shard-1.h5");
  check(folder_ / "step-1/parameters.h5", true);

  // The map comes back as it was given, without the sources.
  const File file = File::open(folder_ / "step-1/parameters.h5");
  const VirtualMap map = file.virtual_map("/parameters/w");
  EXPECT_EQ(map.shape, shape);
  EXPECT_EQ(map.dtype, DType::fp64);
  ASSERT_EQ(map.sources.size(), 3u);
  EXPECT_EQ(map.sources[0].file, "shard-%b.h5");
  EXPECT_EQ(map.sources[0].dataset, "/parameters/w 100%");
  EXPECT_EQ(map.sources[1].shape, (Shape{4, 4}));
  EXPECT_EQ(map.sources[1].offset, (std::vector<std::int64_t>{2, 0}));
  expect_user_error([&] { file.virtual_map("/parameters/none"); }, {"/parameters/none", "not a virtual dataset"});
  expect_user_error([&] { file.virtual_map("/parameters/nothing"); }, {"/parameters/nothing"});
  expect_user_error([&] { file.dataset("/parameters/w"); }, {"/parameters/w", "virtual"});
}

// A dataset that names other files is refused, and nothing that it names is opened: opening a FIFO would wait.
TEST_F(Hdf5, NothingLeadsOutOfAFile) {
  const fs::path path = folder_ / "x.h5", other = folder_ / "other.h5";
  std::vector<double> values = random_values(4);
  {
    File file = File::create(other);
    file.create_dataset("x", DType::fp64, {4}).write({0}, view(values, {4}));
  }
  write_text_atomically(folder_ / "raw", std::string(32, 'x'));
  {
    const Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    const hsize_t four = 4, unlimited = H5S_UNLIMITED, none = 0, one = 1;
    const Handle space(H5Screate_simple(1, &four, nullptr), H5Sclose);
    const auto create = [&](const char* name, const Handle& creation, const Handle& extent) {
      Handle(H5Dcreate2(file.id(), name, H5T_NATIVE_DOUBLE, extent.id(), H5P_DEFAULT, creation.id(), H5P_DEFAULT),
             H5Dclose);
    };
    const Handle external(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    ASSERT_GE(H5Pset_external(external.id(), (folder_ / "raw").c_str(), 0, 32), 0);
    create("stored outside", external, space);
    ASSERT_GE(H5Lcreate_external("other.h5", "/x", file.id(), "linked", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_external("other.h5", "/", file.id(), "group", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_soft("/group/x", file.id(), "by way of it", H5P_DEFAULT, H5P_DEFAULT), 0);
    const Handle over_itself(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    ASSERT_GE(H5Pset_virtual(over_itself.id(), space.id(), ".", "itself", space.id()), 0);
    create("itself", over_itself, space);
    // Sources without end, by numbered names: asked for its shape the library would open them.
    const Handle endless(H5Screate_simple(1, &four, &unlimited), H5Sclose);
    const Handle pattern(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    ASSERT_GE(H5Sselect_hyperslab(endless.id(), H5S_SELECT_SET, &none, &four, &unlimited, &four), 0);
    ASSERT_GE(H5Pset_virtual(pattern.id(), endless.id(), "part-%b.h5", "x", space.id()), 0);
    create("a pattern", pattern, endless);
    const Handle parts(H5Pcreate(H5P_DATASET_CREATE), H5Pclose), some(H5Screate_simple(1, &four, nullptr), H5Sclose);
    const hsize_t two = 2;
    ASSERT_GE(H5Sselect_hyperslab(some.id(), H5S_SELECT_SET, &none, &two, &two, &one), 0);
    ASSERT_GE(H5Pset_virtual(parts.id(), some.id(), "other.h5", "x", some.id()), 0);
    create("parts", parts, space);
  }
  for (const char* name : {"other.h5", "part-0.h5"}) {
    fs::remove(folder_ / name);
    ASSERT_EQ(mkfifo((folder_ / name).c_str(), 0600), 0);
  }
  const File file = File::open(path);
  expect_user_error([&] { file.dataset("stored outside"); }, {"x.h5: stored outside", "external storage"});
  expect_user_error([&] { file.dataset("linked"); }, {"x.h5", "/linked", "link into another file"});
  expect_user_error([&] { file.dataset("group/x"); }, {"x.h5", "/group", "link into another file"});
  expect_user_error([&] { file.exists("linked"); }, {"link into another file"});
  expect_user_error([&] { file.dataset("by way of it"); }, {"by way of it"});
  expect_user_error([&] { file.dataset_names(); }, {"x.h5", "link into another file"});
  for (const char* name : {"itself", "a pattern", "parts"})
    expect_user_error([&] { file.dataset(name); }, {name, "virtual"});
  EXPECT_EQ(file.virtual_map("itself").sources.at(0).file, ".");
  expect_user_error([&] { file.virtual_map("a pattern"); }, {"x.h5: a pattern"});
  expect_user_error([&] { file.virtual_map("parts"); }, {"x.h5: parts"});
}

TEST_F(Hdf5, SizesBeyondCounting) {
  const fs::path path = folder_ / "x.h5";
  {
    const Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    const Handle chunked(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    const hsize_t chunk[2] = {1, 1}, dims[2] = {hsize_t{1} << 40, hsize_t{1} << 40}, many = 2000;
    ASSERT_GE(H5Pset_chunk(chunked.id(), 2, chunk), 0);
    const Handle space(H5Screate_simple(2, dims, nullptr), H5Sclose),
        list(H5Screate_simple(1, &many, nullptr), H5Sclose);
    const Handle vast(
        H5Dcreate2(file.id(), "vast", H5T_NATIVE_DOUBLE, space.id(), H5P_DEFAULT, chunked.id(), H5P_DEFAULT), H5Dclose);
    ASSERT_GE(vast.id(), 0);
    Handle(H5Acreate2(file.id(), "long", H5T_NATIVE_INT, list.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    const std::vector<hsize_t> ones(8, 1);
    const Handle deep(H5Screate_simple(8, ones.data(), nullptr), H5Sclose);
    Handle(H5Dcreate2(file.id(), "deep", H5T_NATIVE_DOUBLE, deep.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
           H5Dclose);
  }
  const File file = File::open(path);
  expect_user_error([&] { file.dataset("vast"); }, {"x.h5: vast", "no file can hold"});
  expect_user_error([&] { file.dataset("deep"); }, {"x.h5: deep", "8 dimensions"});
  expect_user_error([&] { file.read_number_attribute("long"); }, {"'long'", "2000"});
}

TEST_F(Hdf5, MissingForeignAndTruncatedFiles) {
  expect_user_error([&] { File::open(folder_ / "none.h5"); }, {"none.h5", "no such file"});
  expect_user_error([&] { File::open(folder_.path()); }, {folder_.path().string(), "not a file"});
  write_text_atomically(folder_ / "foreign.h5", "once upon a time " + std::string(5000, 'x'));
  expect_user_error([&] { File::open(folder_ / "foreign.h5"); }, {"foreign.h5", "is not an HDF5 file"});
  write_text_atomically(folder_ / "empty.h5", "");
  expect_user_error([&] { File::open(folder_ / "empty.h5"); }, {"empty.h5", "is empty"});
  expect_user_error([&] { File::create(folder_ / "no/x.h5"); }, {"no/x.h5", "cannot be created"});

  const fs::path path = folder_ / "x.h5";
  std::vector<double> values = random_values(10'000);
  {
    File file = File::create(path);
    file.create_dataset("x", DType::fp64, {10'000}).write({0}, view(values, {10'000}));
  }
  const std::string whole = read_text(path);
  const std::size_t half = whole.size() / 2;
  for (const std::size_t bytes : {whole.size() - 1, half, std::size_t{600}, std::size_t{50}, std::size_t{4}}) {
    write_text_atomically(path, whole.substr(0, bytes));
    expect_user_error([&] { File::open(path).dataset("x"); }, {"x.h5"});
  }
  write_text_atomically(path, whole.substr(0, half));
  expect_user_error([&] { File::open(path); }, {"x.h5", "truncated"});
}

TEST_F(Hdf5, ElementsOfOtherTypes) {
  const fs::path path = folder_ / "x.h5";
  {
    const Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    Handle(H5Dcreate2(file.id(), "text", H5T_C_S1, space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
    Handle(H5Dcreate2(file.id(), "short", H5T_STD_I16LE, space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
    Handle(H5Dcreate2(file.id(), "big", H5T_IEEE_F64BE, space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
  }
  const File file = File::open(path);
  expect_user_error([&] { file.dataset("text"); }, {"x.h5: text", "type"});
  expect_user_error([&] { file.dataset("short"); }, {"x.h5: short", "type"});
  EXPECT_EQ(file.dataset("big").dtype(), DType::fp64);
}

// A limit on the size of files stands for a disk that is full.
[[noreturn]] void write_beyond_the_limit(const fs::path& path) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1 << 20, 1 << 20};
  if (setrlimit(RLIMIT_FSIZE, &limit) != 0) std::exit(9);
  try {
    std::vector<double> values = random_values(1 << 20);
    File file = File::create(path);
    file.create_dataset("x", DType::fp64, {1 << 20}).write({0}, view(values, {1 << 20}));
    file.close();
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::exit(2);
  }
  std::exit(0);
}

TEST_F(Hdf5, AFullDiskIsReported) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(write_beyond_the_limit(folder_ / "full.h5"), ::testing::ExitedWithCode(2),
              "full.h5: x: cannot be written .HDF5: File too large.");
}

// Many small datasets, a growing dataset, and disks of every size: all data that is not reported as unwritten reads
// back.
[[noreturn]] void fill_disks_of_every_size(const fs::path& folder) {
  std::signal(SIGXFSZ, SIG_IGN);
  constexpr int datasets = 12;
  constexpr std::int64_t elements = 600, grown = 2000;
  std::vector<double> values = random_values(elements), longer = random_values(grown), read(grown);
  int unreported = 0, whole = 0;
  for (rlim_t bytes = 1024; bytes <= 128 * 1024; bytes += 1024) {
    const fs::path path = folder / fmt::format("{}.h5", bytes);
    const rlimit limit{bytes, RLIM_INFINITY};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) std::exit(9);
    try {
      File file = File::create(path);
      Dataset growing = file.create_extendible("growing", DType::fp64, 300);
      for (int i = 0; i < datasets; ++i) {
        growing.append(view(longer, {grown}).slice(0, i * grown / datasets, (i + 1) * grown / datasets));
        Dataset dataset = file.create_dataset(fmt::format("x{}", i), DType::fp64, {elements});
        dataset.write({0}, view(values, {elements}));
        dataset.close();
      }
      growing.close();
      file.close();
    } catch (const UserError&) {
      continue;
    }
    ++whole;
    try {
      const File file = File::open(path);
      const auto equals = [&](const std::string& name, const std::vector<double>& expected) {
        const auto count = static_cast<std::int64_t>(expected.size());
        file.dataset(name).read({0}, view(read, {grown}).slice(0, 0, count));
        return std::equal(expected.begin(), expected.end(), read.begin());
      };
      bool equal = equals("growing", longer);
      for (int i = 0; i < datasets; ++i) equal = equal && equals(fmt::format("x{}", i), values);
      if (!equal) ++unreported;
    } catch (const UserError&) {
      ++unreported;
    }
  }
  std::fprintf(stderr, "%d unreported, some whole: %d\n", unreported, whole > 10 && whole < 100 ? 1 : 0);
  std::exit(0);
}

TEST_F(Hdf5, NothingIsLostInSilenceOnADiskThatFills) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(fill_disks_of_every_size(folder_.path()), ::testing::ExitedWithCode(0), "0 unreported, some whole: 1");
}

TEST_F(Hdf5, ThreadsMayShareTheLibrary) {
  const auto work = [&](int number) {
    const fs::path path = folder_ / (std::to_string(number) + ".h5");
    for (int round = 0; round < 20; ++round) {
      std::vector<double> values(500, number + 0.5 * round), read(500, nan);
      {
        File file = File::create(path);
        file.create_dataset("x", DType::fp64, {500}).write({0}, view(values, {500}));
      }
      File::open(path).dataset("x").read({0}, view(read, {500}));
      EXPECT_EQ(read, values);
      EXPECT_THROW(File::open(folder_ / "none.h5"), UserError);
    }
  };
  std::thread other(work, 1);
  work(2);
  other.join();
}

}  // namespace
}  // namespace fulmen::hdf5
