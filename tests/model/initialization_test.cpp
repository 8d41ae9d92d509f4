// Initial weights: their statistics, theta's ladder, and that no layout of ranks changes a bit of them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "tests/model/test_model.h"

namespace fulmen {
namespace {

TransnormerConfig six_heads(const std::string& variant) {
  TransnormerConfig config = small_config(variant, {0, 1});
  config.layers = 3;
  config.hidden = 24;
  config.heads = 6;
  config.glu = 11;
  config.vocabulary = 37;
  config.initializer_std = 0.02;
  return config;
}

// Every logical tensor, put together from the pieces of all ranks of a mesh after initialize(seed).
std::map<std::string, std::vector<double>> initial_weights(const TransnormerConfig& config, MeshShape shape,
                                                           std::uint64_t seed, DType dtype = DType::fp64) {
  std::map<std::string, std::vector<double>> tensors;
  const std::vector<StageRange> stages = split_stages(config.layers, shape.pipeline, {});
  for (int rank = 0; rank < shape.ranks(); ++rank) {
    const StageRange& stage = stages[static_cast<std::size_t>(rank / (shape.tensor * shape.sequence * shape.data))];
    PlacedParameters parameters(config, stage, shape, rank, {dtype, dtype});
    parameters.initialize(seed);
    for (const ParameterPiece& piece : parameters.store.pieces(parameters.store.flat_weights())) {
      std::vector<double>& whole_tensor = tensors[piece.tensor];
      whole_tensor.resize(static_cast<std::size_t>(elements_of(piece.global_shape)), NAN);
      const std::int64_t columns = piece.global_shape.back();  // theta's [heads, 1, width] is [heads, width]
      const std::int64_t local_columns = piece.memory.size(-1), first_column = piece.offset.back();
      const testing::Values values = testing::read(piece.memory);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto row = piece.offset[0] + static_cast<std::int64_t>(i) / local_columns;
        const auto column = first_column + static_cast<std::int64_t>(i) % local_columns;
        double& place = whole_tensor.at(static_cast<std::size_t>(row * columns + column));
        EXPECT_TRUE(std::isnan(place) || place == values[i]) << "copies of " << piece.tensor << " differ";
        place = values[i];
      }
    }
  }
  return tensors;
}

TEST(Initialization, DoesNotDependOnTheLayout) {
  for (const char* variant : {"tnl1", "tnl3"}) {
    const TransnormerConfig config = six_heads(variant);
    const auto alone = initial_weights(config, {}, 7);
    for (const MeshShape& shape :
         {MeshShape{.tensor = 2}, MeshShape{.tensor = 3}, MeshShape{.tensor = 3, .data = 2, .pipeline = 3}}) {
      SCOPED_TRACE(variant + (" on " + shape.describe()));
      const auto together = initial_weights(config, shape, 7);
      ASSERT_EQ(together.size(), alone.size());
      for (const auto& [name, values] : alone) {
        const std::vector<double>& other = together.at(name);
        ASSERT_EQ(other.size(), values.size());
        EXPECT_EQ(std::memcmp(other.data(), values.data(), values.size() * sizeof(double)), 0) << name;
      }
    }
  }
}

TEST(Initialization, InSinglePrecisionIsTheRoundedDouble) {
  const TransnormerConfig config = six_heads("tnl3");
  const auto wide = initial_weights(config, {}, 3), narrow = initial_weights(config, {.tensor = 2}, 3, DType::fp32);
  for (const auto& [name, values] : wide) {
    const bool theta = name.ends_with("lrpe.theta");
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(narrow.at(name)[i], theta ? values[i] : static_cast<double>(static_cast<float>(values[i]))) << name;
  }
}

// As an fp32 master's weights are rounded: not straight from the double, which ties could tell apart.
TEST(Initialization, InHalfPrecisionIsTheRoundedSingle) {
  const TransnormerConfig config = six_heads("tnl3");
  const auto single = initial_weights(config, {}, 3, DType::fp32),
             half = initial_weights(config, {.tensor = 2}, 3, DType::bf16);
  for (const auto& [name, values] : single) {
    const bool theta = name.ends_with("lrpe.theta");
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(half.at(name)[i], theta ? values[i] : to_float(to_bfloat16(static_cast<float>(values[i])))) << name;
  }
}

TEST(Initialization, FollowsTheSeedAndTheName) {
  const TransnormerConfig config = six_heads("tnl1");
  const auto first = initial_weights(config, {}, 1), again = initial_weights(config, {}, 1),
             other = initial_weights(config, {}, 2);
  EXPECT_EQ(first, again);
  for (const auto& [name, values] : first) EXPECT_EQ(values == other.at(name), name.ends_with("theta")) << name;
  EXPECT_NE(first.at("model.layers.0.token_mixer.out_proj.weight"),
            first.at("model.layers.1.token_mixer.out_proj.weight"));
  EXPECT_NE(first.at("model.layers.0.channel_mixer.l1.weight"), first.at("model.layers.0.channel_mixer.l2.weight"));
}

TEST(Initialization, IsNormalWithTheGivenDeviation) {
  TransnormerConfig config = six_heads("tnl1");
  config.layers = 1;
  config.lrpe_layers = {0};
  config.hidden = 240;
  config.glu = 311;
  config.vocabulary = 501;
  for (const double deviation : {0.02, 0.5}) {
    config.initializer_std = deviation;
    for (const auto& [name, values] : initial_weights(config, {}, 11)) {
      if (name.ends_with("theta")) continue;
      const auto n = static_cast<double>(values.size());
      double sum = 0.0, squares = 0.0, fourth = 0.0;
      for (const double value : values) {
        const double z = value / deviation;
        sum += z;
        squares += z * z;
        fourth += z * z * z * z;
      }
      EXPECT_LT(std::abs(sum / n), 5.0 / std::sqrt(n)) << name;
      EXPECT_LT(std::abs(squares / n - 1.0), 5.0 * std::sqrt(2.0 / n)) << name;
      EXPECT_LT(std::abs(fourth / n - 3.0), 5.0 * std::sqrt(96.0 / n)) << name;
    }
  }
}

TEST(Initialization, ThetaIsOneLadderAcrossAllHeads) {
  const TransnormerConfig config = six_heads("tnl1");
  const auto weights = initial_weights(config, {.tensor = 3}, 1);
  EXPECT_FALSE(weights.contains("model.layers.2.token_mixer.lrpe.theta"));
  for (const char* name : {"model.layers.0.token_mixer.lrpe.theta", "model.layers.1.token_mixer.lrpe.theta"}) {
    const std::vector<double>& theta = weights.at(name);
    ASSERT_EQ(theta.size(), 24u);
    EXPECT_EQ(theta[0], 1.0);
    for (std::int64_t h = 0; h < 6; ++h)
      for (std::int64_t j = 0; j < 4; ++j) {
        const double expected = std::exp(-2.0 * static_cast<double>(h * 4 + j) / 24.0 * std::log(10000.0));
        EXPECT_NEAR(theta[static_cast<std::size_t>(h * 4 + j)] / expected, 1.0, 1e-13) << h << ", " << j;
      }
  }
}

TEST(Initialization, OnlyAPadRowIsZero) {
  TransnormerConfig config = six_heads("tnl1");
  const auto zero_rows = [&] {
    std::vector<std::int64_t> rows;
    const std::vector<double> embedding = initial_weights(config, {.tensor = 3}, 5).at(tied_embedding_name);
    for (std::int64_t row = 0; row < config.vocabulary; ++row) {
      const auto begin = embedding.begin() + row * config.hidden;
      if (std::all_of(begin, begin + config.hidden, [](double x) { return x == 0.0; })) rows.push_back(row);
    }
    return rows;
  };
  EXPECT_EQ(zero_rows(), std::vector<std::int64_t>{});
  config.pad_id = 0;
  EXPECT_EQ(zero_rows(), std::vector<std::int64_t>{0});
  config.pad_id = 30;
  EXPECT_EQ(zero_rows(), std::vector<std::int64_t>{30});
}

TEST(Initialization, FillsWeightsOfManyRowsInParts) {
  TransnormerConfig config = six_heads("tnl1");
  config.layers = 1;
  config.lrpe_layers = std::vector<std::int64_t>{};
  config.glu = 6;
  config.vocabulary = 50'001;  // more elements than are filled at a time
  const auto alone = initial_weights(config, {}, 1), together = initial_weights(config, {.tensor = 3}, 1);
  const std::vector<double>& embedding = alone.at(tied_embedding_name);
  EXPECT_EQ(embedding, together.at(tied_embedding_name));
  const RandomStream random(1, tied_embedding_name);
  for (const std::size_t index : {std::size_t{0}, std::size_t{1048565}, embedding.size() - 1})
    EXPECT_EQ(embedding[index], 0.02 * random.normal(index));
}

}  // namespace
}  // namespace fulmen
