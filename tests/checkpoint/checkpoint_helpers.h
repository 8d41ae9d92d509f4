// Logical tensors whose every element is known from its place, and random ways to cut them.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "framework/random.h"
#include "tests/framework/expected_errors.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen::testing_checkpoint {

namespace fs = std::filesystem;

using testing_support::expect_mentions;
using testing_support::message_of;
using testing_support::TemporaryFolder;

struct Logical {
  std::string name;
  DType dtype;
  Shape shape;
};

inline std::vector<Logical> some_tensors() {
  return {{"parameters/model.embed_tokens.weight", DType::fp32, {37, 29}},
          {"parameters/model.layers.0.token_mixer.qkvu_proj.weight", DType::fp64, {4, 6, 10}},
          {"parameters/model.layers.0.token_mixer.lrpe.theta", DType::fp32, {3, 1, 5}},
          {"parameters/bias", DType::fp64, {11}},
          {"parameters/one", DType::fp32, {1}},
          {"optimizer/exp_avg/model.embed_tokens.weight", DType::fp32, {37, 29}},
          {"optimizer/exp_avg_sq/model.embed_tokens.weight", DType::fp64, {37, 29}}};
}

inline std::int64_t flat_index(const Shape& shape, const std::vector<std::int64_t>& place) {
  std::int64_t index = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) index = index * shape[d] + place[d];
  return index;
}

// Exact in fp32, so that conversions compare exactly.
inline double value_at(const std::string& name, std::int64_t index, std::uint64_t seed) {
  return static_cast<float>(RandomStream(seed, name).normal(static_cast<std::uint64_t>(index)));
}

// Calls f(place) for each place of a shape.
template <class F>
void for_each_place(const Shape& shape, F&& f) {
  std::vector<std::int64_t> place(shape.size(), 0);
  for (std::int64_t i = 0; i < elements_of(shape); ++i) {
    std::int64_t rest = i;
    for (std::size_t d = shape.size(); d-- > 0; rest /= shape[d]) place[d] = rest % shape[d];
    f(place);
  }
}

struct Box {
  std::vector<std::int64_t> offset;
  Shape shape;
};

// A piece in memory of its own: a strided view into a larger, poisoned array.
class OwnedPiece {
 public:
  OwnedPiece(const Logical& logical, const Box& box, DType memory_dtype, std::int64_t padding)
      : logical_(logical), box_(box), padding_(padding) {
    Shape enclosing = box.shape;
    for (std::int64_t& extent : enclosing) extent += 2 * padding;
    if (memory_dtype == DType::fp32) {
      floats_.assign(static_cast<std::size_t>(elements_of(enclosing)), std::numeric_limits<float>::quiet_NaN());
    } else {
      doubles_.assign(static_cast<std::size_t>(elements_of(enclosing)), std::numeric_limits<double>::quiet_NaN());
    }
    void* data = memory_dtype == DType::fp32 ? static_cast<void*>(floats_.data()) : static_cast<void*>(doubles_.data());
    Tensor view(data, memory_dtype, enclosing);
    for (int d = 0; d < view.rank(); ++d) {
      view = view.slice(d, padding, padding + box.shape[static_cast<std::size_t>(d)]);
    }
    piece_ = {logical.name, logical.shape, box.offset, view};
  }

  const TensorPiece& piece() const { return piece_; }

  void fill(std::uint64_t seed) {
    visit([&](double expected, auto& cell) { cell = static_cast<std::remove_reference_t<decltype(cell)>>(expected); },
          seed);
  }

  // The cells that differ from what they should hold, NaN included, plus cells written outside the piece.
  std::int64_t wrong(std::uint64_t seed) {
    std::int64_t count = 0;
    visit([&](double expected, auto& cell) { count += !(static_cast<double>(cell) == expected); }, seed);
    std::int64_t not_nan = 0;
    for (const float x : floats_) not_nan += !std::isnan(x);
    for (const double x : doubles_) not_nan += !std::isnan(x);
    return count + std::abs(not_nan - elements_of(box_.shape));
  }

 private:
  template <class F>
  void visit(F&& f, std::uint64_t seed) {
    Shape enclosing = box_.shape;
    for (std::int64_t& extent : enclosing) extent += 2 * padding_;
    for_each_place(box_.shape, [&](const std::vector<std::int64_t>& place) {
      std::vector<std::int64_t> global = place, inner = place;
      for (std::size_t d = 0; d < place.size(); ++d) global[d] += box_.offset[d], inner[d] += padding_;
      const double expected = value_at(logical_.name, flat_index(logical_.shape, global), seed);
      const auto i = static_cast<std::size_t>(flat_index(enclosing, inner));
      if (!floats_.empty()) f(expected, floats_[i]);
      if (!doubles_.empty()) f(expected, doubles_[i]);
    });
  }

  Logical logical_;
  Box box_;
  std::int64_t padding_;
  std::vector<float> floats_;
  std::vector<double> doubles_;
  TensorPiece piece_;
};

using Generator = std::mt19937_64;

inline std::int64_t between(Generator& generator, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(generator);
}

// Cuts a shape by random straight cuts, recursively.
inline std::vector<Box> random_split(const Shape& shape, int cuts, Generator& generator) {
  std::vector<Box> boxes{{std::vector<std::int64_t>(shape.size(), 0), shape}};
  for (int i = 0; i < cuts; ++i) {
    const auto which = static_cast<std::size_t>(between(generator, 0, static_cast<std::int64_t>(boxes.size()) - 1));
    const auto d = static_cast<std::size_t>(between(generator, 0, static_cast<std::int64_t>(shape.size()) - 1));
    if (boxes[which].shape[d] < 2) continue;
    const std::int64_t cut = between(generator, 1, boxes[which].shape[d] - 1);
    Box rest = boxes[which];
    rest.offset[d] += cut;
    rest.shape[d] -= cut;
    boxes[which].shape[d] = cut;
    boxes.push_back(rest);
  }
  return boxes;
}

inline Box random_box(const Shape& shape, Generator& generator) {
  Box box;
  for (const std::int64_t extent : shape) {
    box.offset.push_back(between(generator, 0, extent - 1));
    box.shape.push_back(between(generator, 1, extent - box.offset.back()));
  }
  return box;
}

inline Box whole(const Shape& shape) { return {std::vector<std::int64_t>(shape.size(), 0), shape}; }

// This rank's pieces of a random split of every tensor; all ranks derive the same split from the seed.
inline std::vector<std::unique_ptr<OwnedPiece>> dealt_pieces(const std::vector<Logical>& tensors, int rank, int ranks,
                                                             std::uint64_t split_seed, std::uint64_t value_seed) {
  Generator generator(split_seed);
  std::vector<std::unique_ptr<OwnedPiece>> pieces;
  for (const Logical& logical : tensors) {
    const int cuts = static_cast<int>(between(generator, 0, 9));
    for (const Box& box : random_split(logical.shape, cuts, generator)) {
      const std::int64_t owner = between(generator, 0, ranks - 1), padding = between(generator, 0, 2);
      if (owner != rank) continue;
      pieces.push_back(std::make_unique<OwnedPiece>(logical, box, logical.dtype, padding));
      pieces.back()->fill(value_seed);
    }
  }
  return pieces;
}

inline std::vector<TensorPiece> views(const std::vector<std::unique_ptr<OwnedPiece>>& pieces) {
  std::vector<TensorPiece> result;
  for (const auto& piece : pieces) result.push_back(piece->piece());
  return result;
}

// Reads each tensor whole and in random hyperslabs, in both dtypes, and compares.
inline void expect_content(const CheckpointReader& reader, const std::vector<Logical>& tensors,
                           std::uint64_t value_seed, Generator& generator) {
  for (const Logical& logical : tensors) {
    ASSERT_TRUE(reader.has(logical.name)) << logical.name;
    EXPECT_EQ(reader.shape(logical.name), logical.shape) << logical.name;
    EXPECT_EQ(reader.dtype(logical.name), logical.dtype) << logical.name;
    for (int i = 0; i < 4; ++i) {
      const Box box = i == 0 ? whole(logical.shape) : random_box(logical.shape, generator);
      OwnedPiece piece(logical, box, i % 2 == 0 ? DType::fp32 : DType::fp64, between(generator, 0, 2));
      reader.read(piece.piece());
      EXPECT_EQ(piece.wrong(value_seed), 0)
          << logical.name << " " << to_string(box.offset) << " " << to_string(box.shape);
    }
  }
}

inline CheckpointDescription a_description(std::int64_t step) {
  return {step,
          step * 4096,
          step * 8,
          {{"family", "transnormer"}, {"hidden", "64"}, {"lrpe_layers", "[0]"}},
          "model:\n  preset: tiny\ntrain:\n  steps: 1000\n  optimizer:\n    betas: [0.9, 0.95]\n"};
}

// One rank saves whole tensors.
inline fs::path save_alone(const fs::path& root, std::int64_t step, std::uint64_t value_seed,
                           const SaveOptions& options = {}) {
  const auto communicator = make_self_communicator();
  const auto pieces = dealt_pieces(some_tensors(), 0, 1, value_seed + 1, value_seed);
  return save_checkpoint(root, a_description(step), views(pieces), *communicator, options);
}

inline void flip_bit(const fs::path& file, std::uint64_t byte) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(byte));
  const int before = stream.get();
  stream.seekp(static_cast<std::streamoff>(byte));
  stream.put(static_cast<char>(before ^ 0x10));
  ASSERT_TRUE(stream.good()) << file;
}

inline std::vector<std::string> entries_of(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace fulmen::testing_checkpoint
