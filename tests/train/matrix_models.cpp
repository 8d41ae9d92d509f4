// The models that layouts are tested with. Sizes that tensor ranks do not divide: glu, ffn, vocabulary.
#include "tests/train/matrix_models.h"

#include <algorithm>

#include "model/families/gla/config.h"
#include "model/families/gpt/config.h"
#include "model/families/llama/config.h"
#include "model/families/minimax/config.h"
#include "model/families/retnet/config.h"
#include "model/families/transnormer/config.h"
#include "tests/kernels/kernel_test.h"
#include "tests/model/toy_family.h"

namespace fulmen {

namespace {

template <class Config>
Config sized(std::int64_t heads, std::int64_t hidden) {
  Config config;
  config.layers = matrix_layers;
  config.heads = heads;
  config.hidden = hidden;
  config.vocabulary = 101;
  config.initializer_std = 0.1;
  return config;
}

template <class Config>
MatrixModel entry(const std::string& name, const Config& config) {
  return {name, std::make_shared<const Config>(config)};
}

MatrixModel transnormer(const std::string& variant, std::int64_t heads) {
  auto config = sized<TransnormerConfig>(heads, (testing::on_gpu() ? 8 : 4) * heads);
  config.variant = variant;
  config.glu = 50;
  config.gate_rank = variant == "tnl3" ? 5 : 0;
  if (variant == "tnl3") config.lrpe_layers = {0, 2};
  return entry(variant, config);
}

MatrixModel toy() {
  auto config = sized<ToyConfig>(6, 24);
  config.items = 6;
  config.inner = 7;
  MatrixModel model = entry("toy", config);
  model.owned_items = 6;
  model.on_gpu = false;
  return model;
}

// Fewer heads of keys than tensor ranks.
MatrixModel llama() {
  auto config = sized<LlamaConfig>(8, 28);
  config.kv_heads = 2;
  config.head_width = 6;
  config.glu = 50;
  return entry("llama", config);
}

MatrixModel gpt(const std::string& name, const std::string& norm_place) {
  auto config = sized<GptConfig>(6, 24);
  config.ffn = 50;
  config.positions = 16;
  config.norm_place = norm_place;
  return entry(name, config);
}

MatrixModel retnet() {
  auto config = sized<RetnetConfig>(6, 24);
  config.value_width = 36;
  config.glu = 50;
  config.head_norm_gain = true;
  config.head_norm_epsilon = 1e-2;  // of the order of the squares: less would amplify rounding where fp32 is compared
  config.scale_embedding = true;
  return entry("retnet", config);
}

MatrixModel gla() {
  auto config = sized<GlaConfig>(6, 24);
  config.key_width = 18;
  config.value_width = 30;
  config.gate_rank = 5;
  config.gate_divisor = 2;
  config.norm_epsilon = 1e-2;  // as RetNet's
  config.glu = 50;
  return entry("gla", config);
}

// Both token mixers, experts whose number no tensor size divides, residuals that are scaled.
MatrixModel minimax() {
  auto config = sized<MinimaxConfig>(8, 28);
  config.kv_heads = 2;
  config.head_width = 4;
  for (std::int64_t layer = 0; layer < matrix_layers; ++layer)
    config.layer_types.push_back(layer % 3 == 1 ? "softmax" : "linear");
  config.experts = 6;
  config.expert_glu = 7;
  config.router_loss = 0.3;
  config.linear_alpha = 1.5, config.softmax_beta = 0.7, config.mlp_alpha = 1.2, config.mlp_beta = 0.9;
  MatrixModel model = entry("minimax", config);
  model.owned_items = 6;
  return model;
}

}  // namespace

bool MatrixModel::allows_tensor(int ranks) const {
  try {
    config->check_shares(ranks);
  } catch (const UserError&) {
    return false;
  }
  return true;
}

const std::vector<MatrixModel>& matrix_models() {
  static const std::vector<MatrixModel> models = {transnormer("tnl1", 6),
                                                  transnormer("tnl3", 8),
                                                  toy(),
                                                  llama(),
                                                  gpt("gpt1", "after"),
                                                  gpt("gpt2", "before"),
                                                  retnet(),
                                                  minimax(),
                                                  gla()};
  return models;
}

const MatrixModel& matrix_model(const std::string& name) {
  const auto found = std::ranges::find(matrix_models(), name, &MatrixModel::name);
  FULMEN_CHECK(found != matrix_models().end(), "no model {} for layouts", name);
  return *found;
}

}  // namespace fulmen
