// Files that the HDF5 library must not be shown are refused. Every byte of small files is changed, structures hold
// themselves, and other programs' files have forms that are not read.
#include "framework/hdf5_structure.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <hdf5.h>
#include <zlib.h>

#include "framework/files.h"
#include "framework/hdf5.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen::hdf5 {
namespace {

using testing_support::expect_user_error;
using testing_support::TemporaryFolder;
namespace fs = std::filesystem;

class Hdf5Structure : public ::testing::Test {
 protected:
  // A file with a group, datasets of each layout, attributes and a virtual dataset.
  std::string small_file() {
    const fs::path path = folder_ / "small.h5";
    std::vector<double> values = {1, 2, 3, 4, 5, 6};
    const auto tensor = [&](const Shape& shape) { return Tensor(values.data(), DType::fp64, shape); };
    File file = File::create(path);
    Dataset plain = file.create_dataset("/group/plain", DType::fp64, {2, 3});
    plain.write({0, 0}, tensor({2, 3}));
    plain.write_attribute("offset", std::vector<std::int64_t>{1, 2});
    plain.write_attribute("name", std::string("text"));
    Dataset chunked = file.create_extendible("chunked", DType::fp64, 2);
    chunked.append(tensor({5}));
    file.create_virtual("laid over", DType::fp64, {2, 3}, {{"other.h5", "x", {2, 3}, {0, 0}}});
    file.write_number_attribute("loss", 0.5);
    plain.close();
    chunked.close();
    file.close();
    return read_text(path);
  }

  fs::path put(const std::string& bytes) {
    write_text_atomically(folder_ / "x.h5", bytes);
    return folder_ / "x.h5";
  }

  // Reads all that is there. Anything but a UserError fails the test, and a crash ends it.
  static bool accepts(const fs::path& path) {
    bool whole = true;
    const auto attempt = [&](const std::function<void()>& read) {
      try {
        read();
      } catch (const UserError&) {
        whole = false;
      }
    };
    attempt([&] {
      const File file = File::open(path);
      attempt([&] { file.read_number_attribute("loss"); });
      for (const std::string& name : file.dataset_names()) {
        if (name == "/laid over") {
          attempt([&] { file.virtual_map(name); });
          continue;
        }
        attempt([&] {
          const Dataset dataset = file.dataset(name);
          std::vector<double> memory(1 << 12);
          const Shape& shape = dataset.shape();
          if (elements_of(shape) > static_cast<std::int64_t>(memory.size())) return;
          dataset.read(std::vector<std::int64_t>(shape.size(), 0), Tensor(memory.data(), DType::fp64, shape));
          dataset.has_attribute("offset");
          if (name == "/group/plain") dataset.read_attribute("offset");
        });
      }
    });
    return whole;
  }

  TemporaryFolder folder_;
};

TEST_F(Hdf5Structure, WhatThisProgramWritesPasses) {
  small_file();
  EXPECT_TRUE(accepts(folder_ / "small.h5"));
  EXPECT_EQ(File::open(folder_ / "small.h5").dataset_names(),
            (std::vector<std::string>{"/chunked", "/group/plain", "/laid over"}));
}

TEST_F(Hdf5Structure, EveryByteChangedIsReadOrRefused) {
  const std::string whole = small_file();
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (i > 0 && i + 1 < whole.size() && whole[i - 1] == 0 && whole[i] == 0 && whole[i + 1] == 0) continue;  // room
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ (i % 2 == 0 ? 0xff : 0x01));
    const fs::path path = folder_ / "x.h5";
    std::ofstream(path, std::ios::binary) << bytes;
    refused += accepts(path) ? 0 : 1;
  }
  EXPECT_GT(refused, 300);
}

TEST_F(Hdf5Structure, EveryTruncationIsRefused) {
  const std::string whole = small_file();
  for (std::size_t bytes = 1; bytes < whole.size(); bytes += 41) {
    SCOPED_TRACE(bytes);
    const fs::path path = put(whole.substr(0, bytes));
    expect_user_error([&] { File::open(path); }, {"x.h5"});
  }
}

// The places of all parts that begin with a signature.
std::vector<std::size_t> places_of(const std::string& bytes, const std::string& signature) {
  std::vector<std::size_t> places;
  for (std::size_t at = bytes.find(signature); at != std::string::npos; at = bytes.find(signature, at + 1))
    places.push_back(at);
  return places;
}

void set_number(std::string& bytes, std::size_t at, std::uint64_t value, std::size_t width = 8) {
  std::memcpy(bytes.data() + at, &value, width);
}

TEST_F(Hdf5Structure, PartsWithinThemselves) {
  const std::string whole = small_file();
  const std::size_t tree = places_of(whole, "TREE").at(0), heap = places_of(whole, "HEAP").at(0);
  const auto open = [&](const std::string& bytes) { File::open(put(bytes)); };
  std::string bytes = whole;  // a tree of names whose child is itself, on the same level and on the next
  set_number(bytes, tree + 32, tree);
  expect_user_error([&] { open(bytes); }, {"x.h5", "damaged"});
  bytes[tree + 5] = 1;
  expect_user_error([&] { open(bytes); }, {"x.h5", "belongs to two others"});
  bytes = whole;  // free space that goes round
  std::uint64_t free = 0, data = 0;
  std::memcpy(&free, whole.data() + heap + 16, 8);
  std::memcpy(&data, whole.data() + heap + 24, 8);
  set_number(bytes, data + free, free);
  expect_user_error([&] { open(bytes); }, {"x.h5", "free space"});
  bytes = whole;  // a name whose object is the root
  std::uint64_t root = 0;
  std::memcpy(&root, whole.data() + 64, 8);
  const std::size_t symbols = places_of(whole, "SNOD").at(0);
  for (int entry = 0; entry < 3; ++entry) {
    std::string one = whole;
    set_number(one, symbols + 8 + static_cast<std::size_t>(entry) * 40 + 8, root);
    set_number(one, symbols + 8 + static_cast<std::size_t>(entry) * 40 + 16, 0, 4);
    expect_user_error([&] { open(one); }, {"x.h5", "has a second name"});
  }
}

TEST_F(Hdf5Structure, ChunksBeyondTheFileOrOfAnotherSize) {
  const std::string whole = small_file();
  for (const std::size_t tree : places_of(whole, "TREE")) {
    if (whole[tree + 4] != 1) continue;
    std::string bytes = whole;
    set_number(bytes, tree + 24, 8, 4);
    expect_user_error([&] { File::open(put(bytes)).dataset("chunked"); }, {"x.h5: chunked", "another size"});
    bytes = whole;
    set_number(bytes, tree + 24 + 8 + 16, whole.size() - 8);
    expect_user_error([&] { File::open(put(bytes)).dataset("chunked"); }, {"x.h5: chunked", "beyond the end"});
    return;
  }
  FAIL() << "no tree of chunks";
}

using Change = std::function<void(hid_t)>;

// A dataset "x" of 64 elements in a chunk, with what the property lists are changed to; floats are 0, 1, 2, ...
void write_with(const fs::path& path, hid_t type, const Change& access_change, const Change& creation_change) {
  const hsize_t dims = 64;
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose), creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  if (access_change) access_change(access.id());
  ASSERT_GE(H5Pset_chunk(creation.id(), 1, &dims), 0);
  if (creation_change) creation_change(creation.id());
  const Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), H5Fclose);
  const Handle space(H5Screate_simple(1, &dims, nullptr), H5Sclose);
  const Handle dataset(H5Dcreate2(file.id(), "x", type, space.id(), H5P_DEFAULT, creation.id(), H5P_DEFAULT), H5Dclose);
  std::vector<float> values(64);
  std::iota(values.begin(), values.end(), 0.0f);
  ASSERT_GE(H5Dwrite(dataset.id(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
}

TEST_F(Hdf5Structure, FormsThatAreNotReadSayHowTheyAreRewritten) {
  const fs::path path = folder_ / "x.h5";
  write_with(path, H5T_NATIVE_FLOAT,
             [](hid_t access) { H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST); }, {});
  expect_user_error([&] { File::open(path); }, {"x.h5", "newer format", "h5repack --low=0 -f NONE"});
  write_with(path, H5T_NATIVE_INT, {}, [](hid_t creation) { H5Pset_scaleoffset(creation, H5Z_SO_INT, 0); });
  EXPECT_EQ(File::open(path).dataset_names(), std::vector<std::string>{"/x"});
  expect_user_error([&] { File::open(path).dataset("x"); }, {"x.h5: x", "filter 6", "h5repack --low=0 -f NONE"});
  write_with(path, H5T_NATIVE_FLOAT, {}, [](hid_t creation) {
    H5Pset_fletcher32(creation);
    H5Pset_deflate(creation, 6);
  });
  expect_user_error([&] { File::open(path).dataset("x"); }, {"x.h5: x", "another order"});
  const Handle odd(H5Tcopy(H5T_NATIVE_INT), H5Tclose);
  ASSERT_GE(H5Tset_precision(odd.id(), 17), 0);
  write_with(path, odd.id(), {}, {});
  expect_user_error([&] { File::open(path).dataset("x"); }, {"x.h5: x", "do not fill their bytes"});
}

void shuffle(hid_t creation) { H5Pset_shuffle(creation); }
void deflate(hid_t creation) { H5Pset_deflate(creation, 6); }
void fletcher(hid_t creation) { H5Pset_fletcher32(creation); }
void all_three(hid_t creation) { shuffle(creation), deflate(creation), fletcher(creation); }

TEST_F(Hdf5Structure, FilteredChunksAreReadAndUnpackedFirst) {
  const fs::path path = folder_ / "x.h5";
  for (void (*filters)(hid_t) : {shuffle, deflate, fletcher, all_three}) {
    write_with(path, H5T_NATIVE_FLOAT, {}, filters);
    std::vector<float> read(63, -1.0f);
    File::open(path).dataset("x").read({1}, Tensor(read.data(), DType::fp32, {63}));
    for (int i = 0; i < 63; ++i) EXPECT_EQ(read[static_cast<std::size_t>(i)], static_cast<float>(i + 1));
  }
  // A stream that is whole and comes to fewer bytes, or to more, than a chunk: the library would read beyond its
  // buffer.
  write_with(path, H5T_NATIVE_FLOAT, {}, deflate);
  const std::string whole = read_text(path);
  std::size_t tree = 0;
  for (const std::size_t at : places_of(whole, "TREE"))
    if (whole[at + 4] == 1) tree = at;
  ASSERT_NE(tree, 0u);
  std::uint64_t chunk = 0;
  std::memcpy(&chunk, whole.data() + tree + 24 + 8 + 16, 8);
  for (const std::size_t length : {std::size_t{0}, std::size_t{40}, std::size_t{255}, std::size_t{257}}) {
    const std::string shorter(length, 'a');
    std::vector<Bytef> packed(1000);
    uLongf size = packed.size();
    ASSERT_EQ(compress(packed.data(), &size, reinterpret_cast<const Bytef*>(shorter.data()), shorter.size()), Z_OK);
    std::string bytes = whole;
    std::memcpy(bytes.data() + chunk, packed.data(), size);
    set_number(bytes, tree + 24, size, 4);
    std::vector<float> read(64);
    const Dataset dataset = File::open(put(bytes)).dataset("x");
    expect_user_error([&] { dataset.read({0}, Tensor(read.data(), DType::fp32, {64})); },
                      {"x.h5: x", "does not unpack into 256 bytes"});
  }
}

TEST_F(Hdf5Structure, SoftLinksAreFollowedAndEndSomewhere) {
  const fs::path path = folder_ / "links.h5";
  {
    const Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    const Handle group(H5Gcreate2(file.id(), "group", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    const Handle dataset(
        H5Dcreate2(group.id(), "x", H5T_NATIVE_DOUBLE, space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
    ASSERT_GE(H5Lcreate_soft("/group", file.id(), "absolute", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_soft("x", group.id(), "beside", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_soft("round", file.id(), "round", H5P_DEFAULT, H5P_DEFAULT), 0);
  }
  const File file = File::open(path);
  for (const char* name : {"group/x", "absolute/x", "group/beside", "absolute/beside", "/group//x"})
    EXPECT_EQ(file.dataset(name).shape(), Shape{}) << name;
  expect_user_error([&] { file.dataset("round"); }, {"links.h5", "no dataset round"});
}

}  // namespace
}  // namespace fulmen::hdf5
