// Documents that would take the machine are refused at once, whoever reads them; what people write is not.
#include "framework/document_limits.h"

#include <ctime>
#include <filesystem>
#include <functional>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "framework/configuration.h"
#include "framework/files.h"
#include "framework/json_document.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;
using testing_support::TemporaryFolder;

std::string repeated(const std::string& text, std::size_t times) {
  std::string all;
  for (std::size_t i = 0; i < times; ++i) all += text;
  return all;
}

// Seconds of the processor, which other programs do not lengthen.
double seconds_of(const std::function<void()>& work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

void expect_yaml_refused(const std::string& text, const std::string& word) {
  EXPECT_LT(seconds_of([&] { expect_user_error([&] { flatten_yaml(text, "x.yaml"); }, {"x.yaml", word}); }), 20.0);
}

void expect_json_refused(const std::string& text, const std::string& word) {
  EXPECT_LT(seconds_of([&] { expect_user_error([&] { parse_json_object(text, "x.json"); }, {"x.json", word}); }), 20.0);
}

TEST(DocumentLimits, NestingOfYaml) {
  const std::size_t deepest = deepest_nesting;
  EXPECT_EQ(flatten_yaml("a: [1, 2]\n", "x.yaml").at("a"), "[1, 2]");
  std::string sections;
  for (std::size_t level = 0; level + 1 < deepest; ++level) sections += repeated(" ", level) + "s:\n";
  EXPECT_EQ(flatten_yaml(sections + repeated(" ", deepest - 1) + "a: 1\n", "x.yaml").size(), 1u);
  expect_yaml_refused(sections + repeated(" ", deepest - 1) + "s:\n" + repeated(" ", deepest) + "a: 1\n", "64 deep");
  expect_yaml_refused("a: " + repeated("[", 300'000), "64 deep");
  expect_yaml_refused("a: " + repeated("{b: ", 300'000), "64 deep");
  expect_yaml_refused(repeated("- ", 300'000), "64 deep");
  expect_yaml_refused(repeated("? ", 300'000), "64 deep");
}

TEST(DocumentLimits, AliasesOfYaml) {
  EXPECT_EQ(flatten_yaml("a: &it {b: 1}\nc: *it\n", "x.yaml").at("c.b"), "1");
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) bomb += fmt::format("a{}: &a{} [{}]\n", i, i, repeated(fmt::format("*a{}, ", i - 1), 10));
  expect_yaml_refused(bomb, "aliases counted");
  expect_yaml_refused("a: &a {b: *a}\n", "alias of the value that it stands in");
  expect_yaml_refused("&a {b: [*a]}\n", "alias of the value that it stands in");
  std::string chain = "a0: &a0 [x]\n";
  for (int i = 1; i < 100; ++i) chain += fmt::format("a{}: &a{} [*a{}]\n", i, i, i - 1);
  expect_yaml_refused(chain, "64 deep");
}

TEST(DocumentLimits, SizesOfYaml) {
  expect_yaml_refused("a: [" + repeated("0,", most_values) + "0]\n", "1000000 values");
  expect_yaml_refused(repeated(" ", longest_document + 1), "bytes of YAML");
}

TEST(DocumentLimits, Json) {
  const std::size_t inside = deepest_nesting - 1;
  EXPECT_EQ(parse_json_object("{\"a\":" + repeated("[", inside) + repeated("]", inside) + "}", "x.json").size(), 1u);
  expect_json_refused("{\"a\":" + repeated("[", inside + 1) + repeated("]", inside + 1) + "}", "64 deep");
  expect_json_refused("{\"a\":" + repeated("[", 300'000), "64 deep");
  expect_json_refused(repeated("{\"a\":", 300'000), "64 deep");
  expect_json_refused("{\"a\":[" + repeated("0,", most_values) + "0]}", "1000000 values");
  expect_json_refused("{\"a\":1" + repeated(" ", longest_document) + "}", "bytes of JSON");
  expect_json_refused("{\"a\": 1, \"a\": 2}", "comes twice");
}

// A file is not read into memory to find out that it is too long. This file takes no room on the disk.
TEST(DocumentLimits, Files) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "long.yaml", "a: 1\n");
  std::filesystem::resize_file(folder / "long.yaml", std::uintmax_t{1} << 40);
  expect_user_error([&] { read_document(folder / "long.yaml"); }, {"long.yaml", "16.0 MiB"});
  expect_user_error([&] { read_text(folder / "long.yaml"); }, {"long.yaml", "larger"});
}

}  // namespace
}  // namespace fulmen
