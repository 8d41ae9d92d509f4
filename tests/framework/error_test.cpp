// Messages and exit codes of errors; dtypes; threads.
#include "framework/error.h"

#include <sched.h>

#include <cerrno>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "framework/as_error.h"
#include "framework/dtype.h"
#include "framework/threads.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

TEST(Errors, ThePlaceIsOneLineWhateverItsName) {
  EXPECT_STREQ(UserError("a\nfulmen: error: b", "is away", "look").what(), "a\\nfulmen: error: b: is away\n  -> look");
}

TEST(Error, UserErrorNamesPlaceFaultAndRemedy) {
  EXPECT_STREQ(UserError("a.yaml:3", "unknown key x", "did you mean y?").what(),
               "a.yaml:3: unknown key x\n  -> did you mean y?");
  EXPECT_STREQ(UserError("a.yaml", "is empty").what(), "a.yaml: is empty");
  EXPECT_STREQ(UserError("", "is empty", "fill it").what(), "is empty\n  -> fill it");
  EXPECT_EQ(UserError("", "x").code(), ExitCode::user);
}

TEST(Error, ExitCodes) {
  EXPECT_EQ(InternalError("x").code(), ExitCode::internal);
  EXPECT_EQ(DivergedError("x").code(), ExitCode::diverged);
  EXPECT_EQ(static_cast<int>(ExitCode::stopped), 75);
}

TEST(Error, CheckTellsConditionPlaceAndValues) {
  const int a = 1, b = 2;
  FULMEN_CHECK(a < b, "never");
  try {
    FULMEN_CHECK(a == b, "{} is not {}", a, b);
    FAIL() << "the check passed";
  } catch (const InternalError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("1 is not 2"), std::string::npos);
    EXPECT_NE(message.find("a == b"), std::string::npos);
    EXPECT_NE(message.find("error_test.cpp"), std::string::npos);
  }
}

TEST(Error, WhatTheFileSystemRefusesIsTheUsers) {
  testing_support::TemporaryFolder folder;
  std::filesystem::create_directories(folder.path() / "place" / "inner");
  try {
    std::filesystem::remove(folder.path() / "place");
    FAIL();
  } catch (const std::exception& exception) {
    const Error error = as_error(exception);
    EXPECT_EQ(error.code(), ExitCode::user);
    const std::string message = error.what();
    EXPECT_EQ(message.find((folder.path() / "place").string() + ": "), 0u) << message;
    EXPECT_NE(message.find("Directory not empty\n  -> "), std::string::npos) << message;
  }
  EXPECT_EQ(as_error(DivergedError("loss")).code(), ExitCode::diverged);
  EXPECT_STREQ(as_error(DivergedError("loss")).what(), "loss");
  EXPECT_STREQ(as_error(std::logic_error("reason")).what(), "unexpected: reason");
  EXPECT_EQ(as_error(std::bad_alloc()).code(), ExitCode::internal);
}

TEST(Error, SystemErrorQuotesTheReason) {
  try {
    errno = ENOENT;
    throw_system_error("opening x");
    FAIL();
  } catch (const InternalError& error) {
    EXPECT_STREQ(error.what(), "opening x: No such file or directory");
  }
}

TEST(DType, NamesSizesAndBack) {
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16, DType::fp16, DType::int64, DType::int32,
                            DType::uint64, DType::uint32, DType::uint16, DType::uint8}) {
    EXPECT_EQ(parse_dtype(name_of(dtype)), dtype);
  }
  EXPECT_EQ(size_of(DType::fp64), 8u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(dtype_of<std::uint8_t>), 1u);
  EXPECT_TRUE(is_floating(DType::bf16));
  EXPECT_FALSE(is_floating(DType::uint16));
  EXPECT_THROW(parse_dtype("fp31"), InternalError);
}

TEST(DType, DispatchChoosesTheType) {
  EXPECT_EQ(dispatch_fp32_fp64(DType::fp32, [](auto zero) { return sizeof(zero); }), 4u);
  EXPECT_EQ(dispatch_fp32_fp64(DType::fp64, [](auto zero) { return sizeof(zero); }), 8u);
  EXPECT_THROW(dispatch_fp32_fp64(DType::bf16, [](auto zero) { return sizeof(zero); }), InternalError);
}

TEST(Threads, FollowTheAffinityMask) {
  EXPECT_GE(host_cores(), 1);
  EXPECT_GE(available_cores(), 1);
  EXPECT_LE(available_cores(), host_cores());

  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++core) {
    if (CPU_ISSET(core, &before)) CPU_SET(core, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(available_cores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);

  set_compute_threads(3);
  EXPECT_EQ(compute_threads(), 3);
  set_compute_threads(1);
  EXPECT_EQ(compute_threads(), 1);
  EXPECT_THROW(set_compute_threads(0), InternalError);
}

}  // namespace
}  // namespace fulmen
