// The published sizes, exactly, and the configuration file of each.
#include <gtest/gtest.h>

#include <map>

#include "framework/configuration.h"
#include "framework/files.h"
#include "framework/text.h"
#include "model/families/transnormer/config.h"
#include "tests/framework/expect_error.h"
#include "tests/golden.h"

namespace fulmen {
namespace {

// TransNormerLLM's.
const std::map<std::string, std::int64_t> published_counts = {
    {"transnormer-385m", 398'984'192},     {"transnormer-1b", 1'020'266'496},   {"transnormer-3b", 2'911'111'680},
    {"transnormer-7b", 6'836'719'616},     {"transnormer-13b", 12'690'396'160}, {"transnormer-65b", 63'640'182'784},
    {"transnormer-175b", 173'524'660'224}, {"tnl3-410m", 430'367'744},          {"tnl3-15b", 14'833'382'400},
};

// The other families': of the released checkpoints, and of the shapes of the speed comparisons.
const std::map<std::string, std::int64_t> sibling_counts = {
    {"llama-1b", 1'084'295'168},
    {"tinyllama-1.1b", 1'100'048'384},
    {"llama-2-7b", 6'738'415'616},
    {"llama-2-13b", 13'015'864'320},
    {"llama-2-70b", 68'976'648'192},
    {"llama-3-8b", 8'030'261'248},
    {"llama-3.1-70b", 70'553'706'496},
    {"llama-3.2-1b", 1'235'814'400},
    {"gpt-1", 116'534'784},
    {"gpt-2", 124'439'808},
    {"gpt-2-medium", 354'823'168},
    {"gpt-2-large", 774'030'080},
    {"gpt-2-xl", 1'557'611'200},
    {"retnet-1.3b", 1'351'727'104},
    {"retnet-2.7b", 2'722'548'224},
    {"minimax-1b", 1'143'044'096},
    {"gla-1.3b", 1'365'514'240},
};

TEST(Presets, HaveThePublishedParameterCounts) {
  std::map<std::string, std::int64_t> counts = published_counts;
  counts.insert(sibling_counts.begin(), sibling_counts.end());
  const std::vector<std::string> names = preset_names();
  EXPECT_EQ(names.size(), counts.size());
  for (const std::string& name : names) {
    ASSERT_TRUE(counts.contains(name)) << name;
    const std::shared_ptr<const ModelConfig> config = preset(name);
    EXPECT_EQ(config->preset, name);
    EXPECT_NO_THROW(config->validate()) << name;
    EXPECT_EQ(parameter_count(*config), counts.at(name)) << name;
  }
}

TEST(Presets, HaveHeadsOf128AndLrpeInTheFirstLayerOnly) {
  for (const auto& [name, count] : published_counts) {
    const auto& config = as<TransnormerConfig>(*preset(name));
    EXPECT_EQ(config.head_width(), 128) << name;
    EXPECT_TRUE(config.has_lrpe(0)) << name;
    EXPECT_FALSE(config.has_lrpe(1)) << name;
    EXPECT_EQ(config.norm_epsilon, 1e-6) << name;
  }
}

TEST(Presets, AnUnknownNameIsAnsweredWithTheNearest) {
  testing_support::expect_user_error([] { preset("transnormer-358m"); },
                                     {"model.preset", "transnormer-358m", "transnormer-385m"});
  testing_support::expect_user_error([] { preset("x"); }, {"model.preset", "transnormer-1b", "llama-3-8b"});
}

TEST(Presets, EachHasAConfigurationFileThatNamesIt) {
  for (const auto& [name, count] : published_counts) {
    SCOPED_TRACE(name);
    const std::string path = test_data_folder() + "/../../configs/" + name + ".yaml";
    const std::string text = read_text(path);
    const std::map<std::string, std::string> keys = flatten_yaml(text, path);
    ASSERT_TRUE(keys.contains("model.preset"));
    EXPECT_EQ(keys.at("model.preset"), name);
    for (const char* key : {"data.path", "train.global_batch", "train.micro_batch", "run.directory"})
      EXPECT_TRUE(keys.contains(key)) << key;
    EXPECT_NE(text.find(with_thousands(count)), std::string::npos) << "the file tells the parameter count";
    const bool from_memory = name.ends_with("-13b") || name.ends_with("-65b") || name.ends_with("-175b");
    EXPECT_EQ(text.find("from memory") != std::string::npos, from_memory);
  }
}

}  // namespace
}  // namespace fulmen
