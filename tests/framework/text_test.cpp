// Spelling help and numbers for people.
#include "framework/text.h"

#include <gtest/gtest.h>

namespace fulmen {
namespace {

TEST(Text, WhatWouldSteerATerminalIsShownAsNumbers) {
  EXPECT_EQ(printable("a\tb\nGrüße 日本"), "a\tb\nGrüße 日本");
  EXPECT_EQ(printable("\x1b[2J\r\a\x7f"), "\\x1b[2J\\x0d\\x07\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\xc2\\x9b31m");  // U+009B: CSI in one character
  EXPECT_EQ(printable("\x9b"
                      "31m \xff \xe2\x82"),
            "\\x9b31m \\xff \\xe2\\x82");  // and in one byte; bytes that are no UTF-8
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
}

TEST(Text, NearestNameFindsWhatWasMeant) {
  const std::vector<std::string> known{"learning_rate", "warmup_steps", "weight_decay", "lr", "eps"};
  EXPECT_EQ(nearest_name("laerning_rate", known), "learning_rate");
  EXPECT_EQ(nearest_name("warmup", known), "");
  EXPECT_EQ(nearest_name("warmup_step", known), "warmup_steps");
  EXPECT_EQ(nearest_name("weight-decay", known), "weight_decay");
  EXPECT_EQ(nearest_name("rl", known), "lr");
  EXPECT_EQ(nearest_name("epz", known), "eps");
  EXPECT_EQ(nearest_name("banana", known), "");
  EXPECT_EQ(nearest_name("x", {"y"}), "");
  EXPECT_EQ(nearest_name("", known), "");
  EXPECT_EQ(nearest_name("lr", {}), "");
  EXPECT_EQ(nearest_name("steps", {"step", "steps"}), "steps");
}

// Words of a file may be as long as the file: comparing two such would take hours.
TEST(Text, NearestNameDoesNotCompareWhatIsVastOrTooDifferent) {
  const std::string vast(std::size_t{1} << 22, 'a');
  EXPECT_EQ(nearest_name(vast, {vast + "b", "a"}), "");
  EXPECT_EQ(nearest_name("a", {vast}), "");
  EXPECT_EQ(nearest_name(std::string(250, 'a'), {std::string(251, 'a')}), std::string(251, 'a'));
}

TEST(Text, HumanNumbers) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536.0 * 1024 * 1024), "1.5 GiB");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(398'980'000), "398.98 M");
  EXPECT_EQ(human_duration(45), "45 s");
  EXPECT_EQ(human_duration(0.25), "250 ms");
  EXPECT_EQ(human_duration(4.25), "4.2 s");
  EXPECT_EQ(human_duration(59.7), "1 min 0 s");
  EXPECT_EQ(human_duration(3 * 3600 + 12 * 60 + 5), "3 h 12 min");
  EXPECT_EQ(human_duration(86400 * 2 + 3600 * 5), "2 d 5 h");
  EXPECT_EQ(with_thousands(173'524'660'224), "173,524,660,224");
  EXPECT_EQ(with_thousands(-1234), "-1,234");
  EXPECT_EQ(with_thousands(-123), "-123");
  EXPECT_EQ(with_thousands(0), "0");
}

TEST(Text, SplitAndJoin) {
  EXPECT_EQ(split("a,b,,c", ','), (std::vector<std::string>{"a", "b", "", "c"}));
  EXPECT_EQ(split("", ','), std::vector<std::string>{""});
  EXPECT_EQ(join({"a", "b"}, ", "), "a, b");
  EXPECT_EQ(join({}, ", "), "");
}

TEST(Text, Utf8) {
  for (const char* good :
       {"", "plain", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"})
    EXPECT_TRUE(is_utf8(good)) << good;
  for (const char* bad : {"\xe9", "caf\xe9 x", "\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82"})
    EXPECT_FALSE(is_utf8(bad));
}

}  // namespace
}  // namespace fulmen
