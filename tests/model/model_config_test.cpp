// Values that a model configuration refuses, and its identity in checkpoints.
#include "model/families/transnormer/config.h"

#include <gtest/gtest.h>

#include "tests/framework/expect_error.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;

TransnormerConfig good() {
  TransnormerConfig config = as<TransnormerConfig>(*preset("tnl3-410m"));
  config.lrpe_layers = {0, 3};
  return config;
}

TEST(ModelConfig, RefusesSizesThatAreMissingOrDoNotFit) {
  EXPECT_NO_THROW(good().validate());
  const auto refused = [](const std::function<void(TransnormerConfig&)>& spoil, const std::vector<std::string>& words) {
    TransnormerConfig config = good();
    spoil(config);
    expect_user_error([&] { config.validate(); }, words);
  };
  expect_user_error([] { TransnormerConfig().validate(); }, {"model.layers", "is not given", "model.preset"});
  refused([](TransnormerConfig& c) { c.variant = "tnl2"; }, {"model.variant", "tnl2", "tnl1"});
  refused([](TransnormerConfig& c) { c.layers = 0; }, {"model.layers", "not given"});
  refused([](TransnormerConfig& c) { c.hidden = 0; }, {"model.hidden"});
  refused([](TransnormerConfig& c) { c.heads = -8; }, {"model.heads", "-8"});
  refused([](TransnormerConfig& c) { c.glu = 0; }, {"model.glu"});
  refused([](TransnormerConfig& c) { c.vocabulary = 0; }, {"model.vocabulary"});
  refused([](TransnormerConfig& c) { c.gate_rank = 0; }, {"model.gate_rank"});
  refused([](TransnormerConfig& c) { c.heads = 7; }, {"model.heads", "7", "1024"});
  refused([](TransnormerConfig& c) { c.lrpe_layers = {0, 25}; }, {"model.lrpe_layers", "25", "24"});
  refused([](TransnormerConfig& c) { c.lrpe_layers = {-1}; }, {"model.lrpe_layers", "-1"});
  refused([](TransnormerConfig& c) { c.pad_id = c.vocabulary; }, {"model.pad_id", "100280"});
  refused([](TransnormerConfig& c) { c.pad_id = -1; }, {"model.pad_id", "-1"});
  refused([](TransnormerConfig& c) { c.norm_epsilon = 0.0; }, {"model.norm_epsilon"});
}

TEST(ModelConfig, TheFirstVariantNeedsNoGateRank) {
  TransnormerConfig config = good();
  config.variant = "tnl1";
  config.gate_rank = 0;
  EXPECT_NO_THROW(config.validate());
  EXPECT_FALSE(config.identity().contains("gate_rank"));
}

TEST(ModelConfig, IdentityIsEverythingThatMakesItThisModelAndNothingElse) {
  const std::map<std::string, std::string> expected = {
      {"family", "transnormer"}, {"variant", "tnl3"},      {"layers", "25"},
      {"hidden", "1024"},        {"heads", "8"},           {"glu", "2816"},
      {"gate_rank", "128"},      {"vocabulary", "100280"}, {"lrpe_layers", "[0, 3]"},
  };
  EXPECT_EQ(good().identity(), expected);
  TransnormerConfig same = good();
  same.preset = "";
  same.initializer_std = 0.5;
  same.pad_id = 3;
  same.lrpe_layers = {3, 0, 3};
  EXPECT_EQ(same.identity(), expected);
}

TEST(ModelConfig, ComesBackFromItsIdentity) {
  for (const std::string& name : preset_names()) {
    const std::shared_ptr<const ModelConfig> known = preset(name);
    EXPECT_EQ(ModelConfig::from_identity(known->identity(), "here")->identity(), known->identity()) << name;
    if (known->family() != TransnormerConfig().family()) continue;
    TransnormerConfig config = as<TransnormerConfig>(*known);
    config.lrpe_layers = std::vector<std::int64_t>{};
    config.norm_epsilon = 1.0 / 3.0;
    const std::shared_ptr<const ModelConfig> read = ModelConfig::from_identity(config.identity(), "here");
    const auto& back = as<TransnormerConfig>(*read);
    EXPECT_EQ(back.identity(), config.identity()) << name;
    EXPECT_EQ(back.lrpe_layers, config.lrpe_layers);
    EXPECT_EQ(back.norm_epsilon, config.norm_epsilon);
  }
}

TEST(ModelConfig, ADamagedIdentityNamesItsSourceAndKey) {
  const auto refused = [](const std::function<void(std::map<std::string, std::string>&)>& spoil,
                          const std::vector<std::string>& words) {
    std::map<std::string, std::string> identity = good().identity();
    spoil(identity);
    std::vector<std::string> all = words;
    all.push_back("step-7");
    expect_user_error([&] { ModelConfig::from_identity(identity, "step-7"); }, all);
  };
  for (const auto& [key, value] : good().identity())
    refused([&key = key](auto& identity) { identity.erase(key); }, {key, "does not say"});
  for (const char* key : {"layers", "hidden", "heads", "glu", "gate_rank", "vocabulary"})
    for (const char* value : {"x", "8x", "1.5", "99999999999999999999"})
      refused([&](auto& identity) { identity[key] = value; }, {key, "expects an integer"});
  for (const char* key : {"layers", "lrpe_layers"})
    refused([&](auto& identity) { identity[key] = ""; }, {key, "has no value"});
  for (const char* value : {"0", "0]"})
    refused([&](auto& identity) { identity["lrpe_layers"] = value; }, {"lrpe_layers", "a list of integers"});
  for (const char* value : {"[", "[0"})
    refused([&](auto& identity) { identity["lrpe_layers"] = value; }, {"lrpe_layers", "malformed YAML"});
  refused([](auto& identity) { identity["lrpe_layers"] = "[0, a]"; }, {"lrpe_layers", "expects an integer"});
  refused([](auto& identity) { identity["norm_epsilon"] = "small"; }, {"norm_epsilon", "expects a number"});
  refused([](auto& identity) { identity["family"] = "mamba"; }, {"model.family", "mamba"});
  refused([](auto& identity) { identity["depth"] = "3"; }, {"unknown key model.depth"});
  refused([](auto& identity) { identity.insert_or_assign("heads", "7"); }, {"model.heads", "7"});
  refused([](auto& identity) { identity.insert_or_assign("layers", "2"); }, {"model.lrpe_layers"});
  refused([](auto& identity) { identity["variant"] = "tnl9"; }, {"model.variant", "tnl9"});
}

}  // namespace
}  // namespace fulmen
