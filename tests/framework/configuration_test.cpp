// The configuration schema: what it reads, what it refuses and with which words, and what it writes back.
#include "framework/configuration.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include <gtest/gtest.h>

#include "framework/text.h"
#include "tests/framework/expect_error.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;

struct Configuration {
  std::string preset = "tiny";
  std::string path;
  std::int64_t steps = 0;
  std::int64_t tokens = 0;
  std::int64_t micro_batch = 1;
  double lr = 3e-4;
  std::vector<double> betas{0.9, 0.95};
  double eps = 1e-8;
  std::string schedule = "cosine";
  std::int64_t sequence = 1;
  bool async = false;
  bool shuffle = true;
  std::optional<std::int64_t> threads;
  std::optional<std::vector<std::int64_t>> stages;
  std::string directory = "runs/demo";

  Schema schema() {
    Schema s;
    s.add("model.preset", preset, "The model's preset.");
    s.add("data.path", path, "The corpus.");
    s.add("data.shuffle", shuffle, "Whether samples are shuffled.");
    s.add("parallel.sequence", sequence, {1, 1024}, "Ranks along the sequence.");
    s.add("parallel.stages", stages, {1, 100}, "Layers of each stage.");
    s.add("train.steps", steps, {0, 1'000'000'000}, "Updates to do.");
    s.add("train.tokens", tokens, {0, std::numeric_limits<std::int64_t>::max()}, "Tokens to train on.");
    s.add("train.micro_batch", micro_batch, {1, 4096}, "Sequences per rank and pass.");
    s.add("train.optimizer.lr", lr, {0.0, 10.0}, "The peak learning rate.");
    s.add("train.optimizer.betas", betas, 2, {0.0, 1.0}, "Decay of the moments.");
    s.add("train.optimizer.eps", eps, {std::numeric_limits<double>::min()}, "Added to the root | of the variance.");
    s.add("train.schedule.kind", schedule, {{"constant"}, {"cosine"}, {"wsd"}, {"rsqrt", "nobody asked for it"}},
          "How the learning rate goes.");
    s.add("checkpoint.async", async, "Write checkpoints while training goes on.");
    s.add("run.threads", threads, {1, 4096}, "Threads of each rank.");
    s.add_path("run.directory", directory, "Where everything goes.");
    s.require("data.path");
    s.require("train.micro_batch");
    s.built_up_to("parallel.sequence", 1, "sequence parallelism comes later");
    s.built_only_false("checkpoint.async", "checkpoints are written in the step");
    s.check("train.steps", [this] {
      return steps > 0 && tokens > 0 ? std::string("give train.steps or train.tokens, not both") : std::string();
    });
    return s;
  }
};

constexpr const char* least = "data:\n  path: corpus\ntrain:\n  micro_batch: 4\n";

void expect_refused(const std::string& text, const std::vector<std::string>& words,
                    const std::vector<std::string>& overrides = {}) {
  Configuration configuration;
  Schema schema = configuration.schema();
  SCOPED_TRACE(text + join(overrides, " "));
  expect_user_error([&] { schema.parse(text, "a.yaml", overrides); }, words);
}

// The result of `schema` for the least configuration with one override.
Configuration with(const std::string& setting) {
  Configuration configuration;
  configuration.schema().parse(least, "a.yaml", {setting});
  return configuration;
}

TEST(Configuration, ReadsEveryKind) {
  Configuration c;
  Schema schema = c.schema();
  schema.parse(R"(# a comment
model: {preset: 385m}
data: {path: "my corpus: the first", shuffle: false}
parallel:
  stages: [3, 2, 1]
train:
  tokens: 20e9
  micro_batch: 8
  optimizer: {lr: 1e-3, betas: [0.8, 0.99], eps: 1.0e-6}
  schedule:
    kind: wsd
run: {threads: 3}
)",
               "a.yaml");
  EXPECT_EQ(c.preset, "385m");
  EXPECT_EQ(c.path, "my corpus: the first");
  EXPECT_FALSE(c.shuffle);
  EXPECT_EQ(c.stages, (std::vector<std::int64_t>{3, 2, 1}));
  EXPECT_EQ(c.tokens, 20'000'000'000);
  EXPECT_EQ(c.micro_batch, 8);
  EXPECT_EQ(c.lr, 1e-3);
  EXPECT_EQ(c.betas, (std::vector<double>{0.8, 0.99}));
  EXPECT_EQ(c.eps, 1e-6);
  EXPECT_EQ(c.schedule, "wsd");
  EXPECT_EQ(c.threads, 3);
  EXPECT_EQ(c.steps, 0);
  EXPECT_TRUE(schema.given("train.optimizer.lr"));
  EXPECT_FALSE(schema.given("train.steps"));
  EXPECT_THROW(schema.given("train.stepz"), InternalError);
}

TEST(Configuration, OverridesWinAndMayHoldAnyYaml) {
  Configuration c;
  Schema schema = c.schema();
  schema.parse(std::string(least) + "run: {threads: 2}\n", "a.yaml",
               {"train.micro_batch=16", "train.micro_batch=32", "parallel.stages=[1, 2]", "run.threads=auto",
                "train.optimizer={lr: 0.5, eps: 1}", "data.path=a=b"});
  EXPECT_EQ(c.micro_batch, 32);
  EXPECT_EQ(c.stages, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(c.threads, std::nullopt);
  EXPECT_EQ(c.lr, 0.5);
  EXPECT_EQ(c.eps, 1.0);
  EXPECT_EQ(c.path, "a=b");
  EXPECT_TRUE(schema.given("train.optimizer.eps"));
}

TEST(Configuration, IntegersAndNumbersInAllTheirForms) {
  EXPECT_EQ(with("train.tokens=1.5e6").tokens, 1'500'000);
  EXPECT_EQ(with("train.tokens=+7").tokens, 7);
  EXPECT_EQ(with("train.tokens=9223372036854775807").tokens, std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(with("train.optimizer.lr=1").lr, 1.0);
  EXPECT_EQ(with("train.optimizer.lr=.5").lr, 0.5);
  for (const char* wrong :
       {"1.5", "1_000", "1.5e0", "many", "0x10", "[1]", "{a: 1}", "9223372036854775808", "1e30", "''"}) {
    expect_refused(least, {"--set train.tokens=", "train.tokens", "expects an integer"},
                   {std::string("train.tokens=") + wrong});
  }
  for (const char* wrong : {"fast", "1,5", "1e400", "true", "nan", "[1]"}) {
    expect_refused(least, {"train.optimizer.lr"}, {std::string("train.optimizer.lr=") + wrong});
  }
  for (const char* wrong : {".inf", "-.inf", "inf", "nan", "-1"}) {
    expect_refused(least, {"train.optimizer.lr", "out of range", "0 to 10"},
                   {std::string("train.optimizer.lr=") + wrong});
  }
  expect_refused(least, {"train.optimizer.eps", "0 is out of range", "above 0"}, {"train.optimizer.eps=0"});
}

TEST(Configuration, PathsKnowTheHomeFolder) {
  const std::string home = std::getenv("HOME") == nullptr ? "" : std::getenv("HOME");
  setenv("HOME", "/home/mara", 1);
  EXPECT_EQ(with("run.directory=~/runs").directory, "/home/mara/runs");
  EXPECT_EQ(with("model.preset=~/runs").preset, "~/runs") << "text that is no path";
  expect_refused(std::string(least) + "run:\n  directory: ~noah\n", {"a.yaml:6", "run.directory", "~noah", "in full"});
  if (!home.empty()) setenv("HOME", home.c_str(), 1);
}

TEST(Configuration, WrongTypesNameFileLineAndKey) {
  const std::string start = least;  // four lines
  expect_refused(start + "  steps: many\n", {"a.yaml:5", "train.steps", "expects an integer", "'many'"});
  expect_refused(start + "  steps:\n    a: 1\n", {"a.yaml:5", "train.steps", "expects an integer", "a section"});
  expect_refused(start + "  steps:\n", {"a.yaml:5", "train.steps", "has no value"});
  expect_refused(start + "  steps: [1, 2]\n", {"a.yaml:5", "train.steps", "a list"});
  expect_refused(start + "  steps: -1\n", {"a.yaml:5", "train.steps", "-1 is out of range", "0 to 1000000000"});
  expect_refused(start + "  optimizer: 7\n", {"a.yaml:5", "train.optimizer is a section", "'7'"});
  expect_refused(start + "  optimizer: [1]\n", {"a.yaml:5", "train.optimizer is a section", "a list"});
  expect_refused(start + "  optimizer: {betas: [0.9]}\n", {"a.yaml:5", "train.optimizer.betas", "2 numbers", "got 1"});
  expect_refused(start + "  optimizer: {betas: 0.9}\n", {"a.yaml:5", "betas", "2 numbers"});
  expect_refused(start + "  optimizer: {betas: [0.9, 1.1]}\n", {"a.yaml:5", "1.1 is out of range", "0 to 1"});
  expect_refused(start + "run: {threads: some}\n", {"a.yaml:5", "run.threads", "auto or an integer"});
  expect_refused(start + "run: {threads: 0}\n", {"a.yaml:5", "run.threads", "0 is out of range", "1 to 4096"});
  expect_refused(start + "parallel: {stages: 3}\n", {"a.yaml:5", "parallel.stages", "auto or a list of integers"});
  expect_refused(start + "parallel: {stages: [1, x]}\n", {"a.yaml:5", "parallel.stages", "an integer", "'x'"});
  expect_refused("data: {path: x, shuffle: yes}\n", {"a.yaml:1", "data.shuffle", "true or false"});
  expect_refused("data: {path: [x]}\n", {"a.yaml:1", "data.path", "expects text"});
  expect_refused("data: {path: ~}\n", {"a.yaml:1", "data.path", "has no value"});
}

TEST(Configuration, UnknownKeysNameTheNearest) {
  const std::string start = least;
  expect_refused(start + "  optimizer: {rl: 1}\n",
                 {"a.yaml:5", "unknown key train.optimizer.rl", "train.optimizer.lr?"});
  expect_refused(start + "  optimiser: {lr: 1}\n", {"a.yaml:5", "unknown key train.optimiser", "train.optimizer?"});
  expect_refused(start + "  stpes: 5\n", {"unknown key train.stpes", "did you mean train.steps?"});
  expect_refused(start + "  betas: [0.9, 0.9]\n", {"unknown key train.betas", "did you mean train.optimizer.betas?"});
  expect_refused(start + "  sequence: 1\n", {"unknown key train.sequence", "did you mean parallel.sequence?"});
  expect_refused(start + "modle: {preset: x}\n", {"a.yaml:5", "unknown key modle", "did you mean model?"});
  expect_refused(start + "  banana: 1\n", {"unknown key train.banana", "known there:", "micro_batch", "optimizer"});
  expect_refused(start + "banana: 1\n", {"unknown key banana", "known there:", "data", "train"});
  expect_refused(start + "  steps.x: 1\n", {"unknown key train.steps.x"});
  expect_refused(least, {"--set trian.steps=1", "unknown key trian.steps", "train.steps?"}, {"trian.steps=1"});
}

TEST(Configuration, ChoicesAndThingsNotBuilt) {
  expect_refused(least, {"train.schedule.kind", "'cosin' is not a known word", "did you mean cosine?", "constant"},
                 {"train.schedule.kind=cosin"});
  expect_refused(least, {"train.schedule.kind", "'rsqrt' is not built yet", "nobody asked for it", "wsd"},
                 {"train.schedule.kind=rsqrt"});
  expect_refused(least, {"parallel.sequence", "2 is not built yet", "sequence parallelism comes later"},
                 {"parallel.sequence=2"});
  expect_refused(least, {"parallel.sequence", "0 is out of range"}, {"parallel.sequence=0"});
  expect_refused(least, {"checkpoint.async", "true is not built yet", "written in the step"},
                 {"checkpoint.async=true"});
  EXPECT_EQ(with("parallel.sequence=1").sequence, 1);
  EXPECT_FALSE(with("checkpoint.async=false").async);
}

TEST(Configuration, MissingKeysAndChecks) {
  expect_refused("train: {micro_batch: 4}\n", {"a.yaml", "data.path is missing", "The corpus."});
  expect_refused("", {"a.yaml", "data.path is missing"});
  expect_refused("data: {path: x}\ntrain:\n", {"train.micro_batch is missing", "integer, 1 to 4096"});
  expect_refused(std::string(least) + "  steps: 3\n  tokens: 5\n", {"a.yaml:5", "train.steps", "not both"});
  expect_refused(std::string(least) + "  tokens: 5\n", {"--set train.steps=3", "not both"}, {"train.steps=3"});
}

TEST(Configuration, MalformedYaml) {
  expect_refused("data: {path: x\ntrain: 3\n", {"a.yaml:", "malformed YAML"});
  expect_refused("data:\n  path: x\n   train: 3\n", {"a.yaml:3:", "malformed YAML"});
  expect_refused("data:\n\tpath: x\n", {"a.yaml:2", "malformed YAML", "tabs"});
  expect_refused("data: {path: *nowhere}\n", {"a.yaml:1", "malformed YAML"});
  expect_refused("- a\n- b\n", {"a.yaml", "expects sections of keys", "a list"});
  expect_refused("just words\n", {"a.yaml", "expects sections of keys"});
  expect_refused("? [a, b]\n: 1\n", {"a.yaml:1", "a key is a list"});
  expect_refused("data: {path: x}\n---\ntrain: {micro_batch: 1}\n", {"a.yaml:2", "more than one YAML document"});
  expect_refused("\"\",", {"a.yaml:1", "more than one YAML document"});  // yaml-cpp finds documents without an end
}

TEST(Configuration, DuplicatesAreRefused) {
  expect_refused(std::string(least) + "  micro_batch: 5\n", {"a.yaml:5", "'micro_batch' is given twice"});
  expect_refused(std::string(least) + "data: {shuffle: true}\n", {"a.yaml:5", "'data' is given twice"});
  expect_refused(std::string(least) + "train.micro_batch: 5\n", {"a.yaml:5", "train.micro_batch is given twice"});
}

TEST(Configuration, OverridesMustBePairs) {
  expect_refused(least, {"--set train.steps", "expects key=value"}, {"train.steps"});
  expect_refused(least, {"--set =5", "expects key=value"}, {"=5"});
  expect_refused(least, {"--set train.steps=", "train.steps", "has no value"}, {"train.steps="});
  expect_refused(least, {"--set parallel.stages=[1", "malformed YAML"}, {"parallel.stages=[1"});
}

TEST(Configuration, ResolvedReadsBackAsTheSame) {
  Configuration c;
  Schema schema = c.schema();
  schema.parse(least, "a.yaml",
               {"train.optimizer.lr=0.1", "train.optimizer.betas=[0.3333333333333333, 1e-300]",
                "parallel.stages=[2, 1]", "train.tokens=20e9", "model.preset='~'"});
  c.directory = "a: \"b\" # c\n\\d ü";
  const std::string text = schema.resolved();
  EXPECT_NE(text.find("  optimizer:\n    lr: 0.1\n"), std::string::npos) << text;
  EXPECT_NE(text.find("run:\n  threads: auto\n"), std::string::npos) << text;

  Configuration again;
  Schema second = again.schema();
  second.parse(text, "resolved.yaml");
  EXPECT_EQ(again.lr, 0.1);
  EXPECT_EQ(again.betas, c.betas);
  EXPECT_EQ(again.stages, c.stages);
  EXPECT_EQ(again.tokens, c.tokens);
  EXPECT_EQ(again.preset, "~");
  EXPECT_EQ(again.directory, c.directory);
  EXPECT_EQ(again.threads, std::nullopt);
  EXPECT_EQ(second.resolved(), text);
  EXPECT_EQ(flatten_yaml(text, "resolved.yaml"), schema.flat());
  EXPECT_EQ(schema.flat().size(), schema.keys().size());
  EXPECT_EQ(schema.flat().at("train.optimizer.lr"), "0.1");
}

TEST(Configuration, FlattenRefusesWhatResolvedNeverWrites) {
  EXPECT_TRUE(flatten_yaml("", "a.yaml").empty());
  expect_user_error([] { flatten_yaml("a: [[1]]", "a.yaml"); }, {"a.yaml:1", "inside a list"});
  expect_user_error([] { flatten_yaml("[1]", "a.yaml"); }, {"a.yaml", "expects sections"});
  expect_user_error([] { flatten_yaml("a: [1", "a.yaml"); }, {"a.yaml", "malformed"});
}

TEST(Configuration, MarkdownHasATablePerSection) {
  Configuration c;
  const std::string text = c.schema().markdown();
  for (const char* words :
       {"## `model`\n", "## `train`\n", "| key | type | default | allowed | meaning |",
        "| `data.path` | text | must be given |",
        "| `train.steps` | integer | `0` | 0 to 1000000000 | Updates to do. |",
        "rsqrt (not built yet: nobody asked for it)", "above 1 not built yet: sequence parallelism comes later",
        "true not built yet: checkpoints are written in the step", "`[0.9, 0.95]`", "| `auto` |", "root \\| of",
        "above 0"}) {
    EXPECT_NE(text.find(words), std::string::npos) << words << "\nis not in\n" << text;
  }
  EXPECT_EQ(std::count(text.begin(), text.end(), '#'), 2 * 6);
}

TEST(Configuration, ClashingKeysAreADefect) {
  Schema schema;
  std::int64_t a = 0, b = 0;
  schema.add("train.steps", a, {}, "");
  EXPECT_THROW(schema.add("train.steps", b, {}, ""), InternalError);
  EXPECT_THROW(schema.add("train", b, {}, ""), InternalError);
  EXPECT_THROW(schema.add("train.steps.more", b, {}, ""), InternalError);
  EXPECT_THROW(schema.require("train.step"), InternalError);
}

}  // namespace
}  // namespace fulmen
