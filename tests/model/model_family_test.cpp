// Families side by side: which keys a configuration has, what belongs to another family, and presets of several. The
// second family is of this test alone.
#include "model/model_family.h"

#include <gtest/gtest.h>

#include "model/branch.h"
#include "model/model_section.h"
#include "tests/framework/expect_error.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;

struct OtherConfig final : ModelConfig {
  std::int64_t channels = 0;
  std::int64_t pool_keys = 16;

  OtherConfig() { norm_epsilon = 0.25; }
  std::string family() const override { return "other"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<OtherConfig>(*this); }
  void bind(Schema& schema) override {
    schema.add("model.channels", channels, {0, 64}, "Channels.");
    schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Epsilon.");
    schema.add("model.pool.keys", pool_keys, {1, 64}, "Keys.");
  }
  void check_shares(int) const override {}
  EmbeddingSpec embedding() const override { return {"embedding"}; }
  HeadSpec head() const override { return {{}, "embedding"}; }
  std::vector<Branch> layer(std::int64_t) const override { return {}; }

 private:
  void validate_family() const override { require_positive("channels", channels); }
  void add_identity(std::map<std::string, std::string>& identity) const override {
    identity["channels"] = std::to_string(channels);
  }
};

ModelFamily other_family() {
  OtherConfig small;
  small.preset = "other-small";
  small.layers = 2;
  small.hidden = 8;
  small.vocabulary = 11;
  small.channels = 5;
  return {std::make_shared<const OtherConfig>(), {std::make_shared<const OtherConfig>(small)}};
}

class ModelFamilies : public ::testing::Test {
 protected:
  // As launch/run_configuration.cpp reads the section, without the others.
  static std::shared_ptr<const ModelConfig> read(const std::string& text,
                                                 const std::vector<std::string>& overrides = {}) {
    const auto word = [&](const char* name) { return given_word(name, text, "a.yaml", overrides); };
    Schema schema;
    const ModelSection section(schema, word("model.family"), word("model.preset"));
    schema.parse(text, "a.yaml", overrides);
    return section.validated();
  }
  static void refused(const std::string& text, const std::vector<std::string>& words) {
    expect_user_error([&] { read(text); }, words);
  }

  AdditionalFamily other_{other_family()};
  const std::string first_ = model_families().front().name();
};

TEST_F(ModelFamilies, TheFamilyOrThePresetsFamilyDecidesWhichKeysThereAre) {
  const auto spelled = read("model: {channels: 3, layers: 1, hidden: 4, vocabulary: 9, family: other}");
  EXPECT_EQ(as<OtherConfig>(*spelled).channels, 3);
  EXPECT_EQ(spelled->norm_epsilon, 0.25) << "the family's own default";
  const auto by_preset = read("model: {pool: {keys: 7}, preset: other-small}");
  EXPECT_EQ(as<OtherConfig>(*by_preset).channels, 5);
  EXPECT_EQ(as<OtherConfig>(*by_preset).pool_keys, 7);
  EXPECT_EQ(by_preset->preset, "other-small");
  const auto neither = read("model: {layers: 1, hidden: 4, vocabulary: 9, heads: 2, glu: 8}");
  EXPECT_EQ(neither->family(), first_);
}

TEST_F(ModelFamilies, OverridesDecideTheFamilyToo) {
  const std::string text = "model: {layers: 1, hidden: 4, vocabulary: 9}";
  EXPECT_EQ(read(text, {"model.family=other", "model.channels=2"})->family(), "other");
  EXPECT_EQ(read(text, {"model={family: other, channels: 2}"})->family(), "other");
  EXPECT_EQ(read("model: {preset: other-small}", {"model={channels: 2}"})->family(), "other");
  EXPECT_EQ(read("model: {preset: other-small}", {"model.preset=" + preset_names().front()})->family(), first_);
}

TEST_F(ModelFamilies, KeysOfAnotherFamilyAreRefusedWithTheirFamily) {
  refused("model:\n  layers: 1\n  channels: 3",
          {"a.yaml:3", "model.channels belongs to the family other", "this model is " + first_});
  refused("model: {pool: {keys: 3}}", {"model.pool belongs to the family other"});
  refused("model: {family: other, heads: 3}", {"model.heads belongs to the families " + first_, "this model is other"});
  refused("model: {family: other, chanels: 3}", {"unknown key model.chanels", "model.channels"});
}

TEST_F(ModelFamilies, UnknownAndContradictingNamesAreRefused) {
  refused("model: {family: othr}", {"model.family", "'othr'", "did you mean other"});
  refused("model: {family: x}", {"model.family", "'x'", "known: " + first_, ", other"});
  refused("model: {preset: other-smal}", {"model.preset", "did you mean other-small"});
  refused("model: {preset: other-small, family: " + first_ + "}", {"model.family", "other-small is of other"});
  refused("model: {family: [other]}", {"model.family", "a list"});
}

TEST_F(ModelFamilies, AnIdentityIsASectionModelAndComesBack) {
  const std::map<std::string, std::string> identity = preset("other-small")->identity();
  EXPECT_EQ(identity.at("family"), "other");
  EXPECT_EQ(ModelConfig::from_identity(identity, "here")->identity(), identity);
  std::string text = "model:\n";
  for (const auto& [key, value] : identity) text += fmt::format("  {}: {}\n", key, value);
  EXPECT_EQ(read(text)->identity(), identity);
}

TEST_F(ModelFamilies, EachHasItsTableInTheReference) {
  const std::string text = model_reference();
  const auto own = text.find("### The family `other`"), first = text.find("### The family `" + first_ + "`");
  ASSERT_NE(own, std::string::npos);
  ASSERT_LT(first, own);
  EXPECT_LT(text.find("| `model.layers` "), first);
  EXPECT_GT(text.find("| `model.channels` "), own);
  EXPECT_NE(text.find("| `model.norm_epsilon` | number | `0.25` "), std::string::npos);
  EXPECT_EQ(text.find("| `model.layers` "), text.rfind("| `model.layers` ")) << "once for all families";
}

}  // namespace
}  // namespace fulmen
