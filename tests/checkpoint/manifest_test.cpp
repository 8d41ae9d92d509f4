// The content of a manifest comes back; each way in which a manifest can be wrong has its message.
#include "checkpoint/manifest.h"

#include <yaml-cpp/yaml.h>

#include "framework/files.h"
#include "model/model_config.h"
#include "tests/checkpoint/checkpoint_helpers.h"

namespace fulmen {
namespace {

using namespace testing_checkpoint;

std::string with_change(const fs::path& file, const std::string& from, const std::string& to) {
  std::string text = read_text(file);
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from << " in\n" << text;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

// As another program would have written it: of version 1, without a checksum of itself.
std::string without_seal(std::string text) {
  text.resize(text.rfind('\n', text.size() - 2) + 1);
  const std::size_t version = text.find("version: 2");
  return version == std::string::npos ? text : text.replace(version, 10, "version: 1");
}

void replace_in(const fs::path& file, const std::string& from, const std::string& to) {
  write_text_atomically(file, without_seal(with_change(file, from, to)));
}

// A valid checkpoint whose manifest is then edited; the message with which opening it is refused.
std::string refusal_after(const std::string& from, const std::string& to) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 5, 1);
  replace_in(folder / manifest_file, from, to);
  return message_of<UserError>([&] { const CheckpointReader reader(folder); });
}

TEST(Manifest, RoundTrip) {
  const TemporaryFolder folder;
  CheckpointManifest manifest;
  manifest.description = {500,
                          1'000'000'000'000,
                          123456,
                          {{"family", "transnormer"},
                           {"layers", "24"},
                           {"lrpe_layers", "[0, 1]"},
                           {"odd", "true"},
                           {"none", "null"},
                           {"colon", "a: b"}},
                          "run:\n  name: \"0123\"\n  note: 'x: y'\nlist: [1, 2]\n"};
  manifest.files = {{"parameters.h5", 123, "8f4e1c02a7b93d56"}, {"shard-00000.h5", 1ULL << 40, "0000000000000001"}};
  manifest.description.tokenizer = {"bytes", 256};
  write_manifest(folder.path(), manifest);
  EXPECT_NE(read_text(folder.path() / manifest_file).find("lrpe_layers: [0, 1]"), std::string::npos);
  const CheckpointManifest back = read_manifest(folder.path());
  EXPECT_EQ(back.description.step, 500);
  EXPECT_EQ(back.description.tokens, 1'000'000'000'000);
  EXPECT_EQ(back.description.samples, 123456);
  EXPECT_EQ(back.description.model, manifest.description.model);
  EXPECT_EQ(back.description.tokenizer.kind, "bytes");
  EXPECT_EQ(back.description.tokenizer.end_of_document, 256);
  ASSERT_EQ(back.files.size(), 2U);
  EXPECT_EQ(back.files[1].file, "shard-00000.h5");
  EXPECT_EQ(back.files[1].bytes, 1ULL << 40);
  EXPECT_EQ(back.files[1].xxh3, "0000000000000001");
  const YAML::Node configuration = YAML::Load(back.description.configuration);
  EXPECT_EQ(configuration["run"]["name"].Scalar(), "0123");
  EXPECT_EQ(configuration["run"]["note"].Scalar(), "x: y");
  EXPECT_EQ(configuration["list"][1].as<int>(), 2);
}

TEST(Manifest, AnEmptyConfigurationStaysEmpty) {
  const TemporaryFolder folder;
  write_manifest(folder.path(), {{}, {{"parameters.h5", 1, "00"}}});
  EXPECT_EQ(read_manifest(folder.path()).description.configuration, "");
}

// As earlier programs wrote them.
TEST(Manifest, AListOfTheModelMayBeInQuotes) {
  const TemporaryFolder folder;
  write_manifest(folder.path(), {{.model = {{"lrpe_layers", "[0, 1]"}}}, {{"parameters.h5", 1, "00"}}});
  replace_in(folder.path() / manifest_file, "[0, 1]", "\"[0, 1]\"");
  EXPECT_EQ(read_manifest(folder.path()).description.model.at("lrpe_layers"), "[0, 1]");
}

TEST(Manifest, AnotherFormat) {
  expect_mentions(refusal_after("fulmen-checkpoint", "fulmen-corpus"),
                  {"manifest.yaml", "'fulmen-corpus'", "'fulmen-checkpoint'"});
}

TEST(Manifest, ANewerVersion) {
  expect_mentions(refusal_after("version: 2", "version: 3"), {"manifest.yaml", "version 3", "version 2", "newer"});
}

TEST(Manifest, Damages) {
  expect_mentions(refusal_after("step: 5", "step: five"), {"'step'", "damaged"});
  expect_mentions(refusal_after("step: 5", "step: -5"), {"'step'", "negative"});
  expect_mentions(refusal_after("lrpe_layers: [0]", "lrpe_layers: [[0]]"), {"'model'", "scalars"});
  expect_mentions(refusal_after("lrpe_layers: [0]", "lrpe_layers: {0: 1}"), {"'model'", "scalars"});
  expect_mentions(refusal_after("tokens:", "tokeens:"), {"'tokens'", "damaged"});
  expect_mentions(refusal_after("format:", "format"), {"manifest.yaml:", "malformed YAML", "older checkpoint"});
  expect_mentions(refusal_after("file: parameters.h5", "file: ../parameters.h5"), {"../parameters.h5"});
  expect_mentions(refusal_after("file: shard-00000.h5", "file: parameters.h5"), {"parameters.h5"});
}

TEST(Manifest, NumbersBeyondCounting) {
  for (const char* key : {"step: 5", "samples: 40", "tokens: 20480"}) {
    const std::string name = std::string(key).substr(0, std::string(key).find(':'));
    expect_mentions(refusal_after(key, name + ": 9223372036854775807"), {"'" + name + "'", "damaged"});
    expect_mentions(refusal_after(key, name + ": 99999999999999999999"), {"'" + name + "'", "damaged"});
  }
}

TEST(Manifest, ModelsBeyondTheConfigurationsRanges) {
  const std::map<std::string, std::string> model = {{"family", "transnormer"}, {"variant", "tnl1"},   {"layers", "2"},
                                                    {"hidden", "64"},          {"heads", "4"},        {"glu", "96"},
                                                    {"vocabulary", "128"},     {"lrpe_layers", "[0]"}};
  EXPECT_EQ(ModelConfig::from_identity(model, "x")->hidden, 64);
  for (const char* key : {"layers", "hidden", "heads", "glu", "vocabulary"})
    for (const char* value : {"4611686018427387904", "9223372036854775807", "9223372036854775808", "-1", "0"}) {
      std::map<std::string, std::string> changed = model;
      changed[key] = value;
      expect_mentions(message_of<UserError>([&] { ModelConfig::from_identity(changed, "x"); }), {"x", key});
    }
}

TEST(Manifest, NestingAndAliases) {
  expect_mentions(refusal_after("step: 5", "step: " + std::string(300'000, '[') + std::string(300'000, ']')),
                  {"manifest.yaml", "64 deep"});
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) {
    bomb += fmt::format("a{}: &a{} [", i, i);
    for (int j = 0; j < 10; ++j) bomb += fmt::format("*a{}, ", i - 1);
    bomb += "]\n";
  }
  expect_mentions(refusal_after("step: 5", bomb + "step: 5"), {"manifest.yaml", "aliases"});
}

// A digit that changes on the disk, or under somebody's fingers, is not obeyed.
TEST(Manifest, NoDigitChangesUnnoticed) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 5, 1);
  const std::string whole = read_text(folder / manifest_file);
  EXPECT_TRUE(CheckpointReader(folder).unprotected().empty());
  const std::vector<std::pair<std::string, std::string>> changes = {
      {"step: 5", "step: 6"},       {"samples: 40", "samples: 41"},         {"tokens: 20480", "tokens: 20481"},
      {"hidden: 64", "hidden: 65"}, {"version: 2", "version: 1"},           {"steps: 1000", "steps: 1001"},
      {"bytes: ", "bytes: 1"},      {"family: tr", "note: 1\n  family: tr"}};
  for (const auto& [from, to] : changes) {
    write_text_atomically(folder / manifest_file, with_change(folder / manifest_file, from, to));
    expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(folder); }),
                    {"manifest.yaml", "checksum", "older checkpoint"});
    write_text_atomically(folder / manifest_file, whole);
  }
  // The last line is not optional.
  std::string cut = whole;
  cut.resize(cut.rfind('\n', cut.size() - 2) + 1);
  for (const std::string& text : {cut, whole + "more: 1\n"}) {
    write_text_atomically(folder / manifest_file, text);
    expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(folder); }),
                    {"manifest.yaml", "does not end with its checksum"});
  }
}

TEST(Manifest, VersionOneStillOpensAndSaysWhatIsUnprotected) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 5, 1);
  write_text_atomically(folder / manifest_file, without_seal(read_text(folder / manifest_file)));
  const CheckpointReader reader(folder);
  EXPECT_EQ(reader.description().step, 5);
  reader.verify(*make_self_communicator());
  ASSERT_EQ(reader.unprotected().size(), 1u);
  expect_mentions(reader.unprotected()[0], {"manifest", "step", "samples"});
}

TEST(Manifest, TheFoldersNameTellsTheStep) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 5, 1);
  for (const char* name : {"step-00000005.replaced", "a copy", "step-5", "step-0000000x", "step-"}) {
    fs::rename(folder, root.path() / name);
    EXPECT_EQ(CheckpointReader(root.path() / name).description().step, 5) << name;
    EXPECT_EQ(CheckpointReader(root.path() / name / "").description().step, 5) << name;
    fs::rename(root.path() / name, folder);
  }
  for (const char* name : {"step-00000006", "step-00000006.replaced", "step-0"}) {
    fs::rename(folder, root.path() / name);
    expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(root.path() / name / ""); }),
                    {name, "step 5", "step-00000005"});
    EXPECT_FALSE(newest_checkpoint(root.path()));
    fs::rename(root.path() / name, folder);
  }
  expect_mentions(message_of<UserError>([&] {
                    save_alone(root.path() / "step-00000007", 0, 1, {.exact_folder = true, .extra_files = {}});
                  }),
                  {"step-00000007", "step 0"});
}

TEST(Manifest, ACutManifest) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 5, 1);
  const std::string text = read_text(folder / manifest_file);
  for (const double share : {0.0, 0.1, 0.5, 0.8}) {
    write_text_atomically(folder / manifest_file,
                          text.substr(0, static_cast<std::size_t>(share * static_cast<double>(text.size()))));
    expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(folder); }), {"manifest.yaml", "->"});
  }
}

TEST(Manifest, NoManifestNoFolderNoDirectory) {
  const TemporaryFolder root;
  const fs::path folder = save_alone(root.path(), 5, 1);
  fs::remove(folder / manifest_file);
  expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(folder); }),
                  {"no manifest.yaml", "interrupted", folder.string()});
  expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(root.path() / "absent"); }),
                  {"no such folder"});
  expect_mentions(message_of<UserError>([&] { const CheckpointReader reader(folder / "shard-00000.h5"); }),
                  {"not a folder"});
}

}  // namespace
}  // namespace fulmen
