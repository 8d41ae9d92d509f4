// Buffers, their ledger, and the arena that stops allocating.
#include "framework/memory.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "framework/execution.h"
#include "tests/framework/expect_error.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;

TEST(Memory, LedgerFollowsBuffers) {
  MemoryLedger ledger;
  {
    const Buffer weights(Device::cpu(), 1000, MemoryKind::weights, ledger);
    {
      Buffer first(Device::cpu(), 500, MemoryKind::workspace, ledger);
      const Buffer moved = std::move(first);
      EXPECT_EQ(first.data(), nullptr);  // NOLINT: what is left after the move is the point
      EXPECT_EQ(ledger.current(MemoryKind::workspace), 500u);
      EXPECT_EQ(ledger.current_total(), 1500u);
    }
    EXPECT_EQ(ledger.current(MemoryKind::workspace), 0u);
    EXPECT_EQ(ledger.peak(MemoryKind::workspace), 500u);
    Buffer a(Device::cpu(), 100, MemoryKind::data, ledger);
    a = Buffer(Device::cpu(), 200, MemoryKind::data, ledger);
    EXPECT_EQ(ledger.current(MemoryKind::data), 200u);
    EXPECT_EQ(ledger.peak(MemoryKind::data), 300u);
  }
  EXPECT_EQ(ledger.current_total(), 0u);
  EXPECT_EQ(ledger.peak_total(), 1500u);
  for (const char* name :
       {"weights", "gradients", "optimizer", "activations", "workspace", "communication", "data", "total"}) {
    EXPECT_NE(ledger.breakdown().find(name), std::string::npos) << name;
  }
  EXPECT_THROW(ledger.remove(MemoryKind::data, 1), InternalError);
}

TEST(Memory, BuffersAreZeroedAndAligned) {
  MemoryLedger ledger;
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{257}, (std::size_t{1} << 20) - 1, std::size_t{1} << 20,
                                  (std::size_t{3} << 20) + 5}) {
    for (int round = 0; round < 2; ++round) {  // the second may get memory that the first has dirtied
      const Buffer buffer(Device::cpu(), bytes, MemoryKind::data, ledger);
      auto* data = static_cast<unsigned char*>(buffer.data());
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 256, 0u);
      EXPECT_TRUE(std::all_of(data, data + bytes, [](unsigned char byte) { return byte == 0; })) << bytes;
      std::fill(data, data + bytes, 0xff);
    }
  }
  const Buffer none(Device::cpu(), 0, MemoryKind::data, ledger);
  EXPECT_EQ(none.data(), nullptr);
}

TEST(Memory, RefusalsAreClear) {
  MemoryLedger ledger;
  const Buffer held(Device::cpu(), 3 << 20, MemoryKind::optimizer, ledger);
  expect_user_error([&] { Buffer(Device::cpu(), std::size_t{1} << 60, MemoryKind::activations, ledger); },
                    {"activations", "PiB", "optimizer", "3.0 MiB", "micro_batch"});
  expect_user_error([&] { Buffer(Device::cuda(0), 16, MemoryKind::weights, ledger); },
                    {"this build has no CUDA support"});
  EXPECT_EQ(ledger.current_total(), std::size_t{3} << 20);
}

// One "step" of nested frames; the sizes depend on the seed alone.
void take_a_step(Arena& arena, unsigned seed) {
  std::mt19937 random(seed);
  const Arena::Frame step(arena);
  const Tensor outer = arena.take(DType::fp32, {1 + static_cast<std::int64_t>(random() % 100'000)});
  std::fill_n(outer.as<float>(), outer.elements(), 1.0f);
  for (int layer = 0; layer < 20; ++layer) {
    const Arena::Frame frame(arena);
    const std::int64_t n = 1 + static_cast<std::int64_t>(random() % 3'000'000);
    const Tensor a = arena.take(DType::fp32, {n});
    const Tensor b = arena.take(DType::fp64, {n / 3 + 1});
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(a.data()) % 256, 0u);
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 256, 0u);
    std::fill_n(a.as<float>(), a.elements(), 2.0f);
    std::fill_n(b.as<double>(), b.elements(), 3.0);
    ASSERT_TRUE(std::all_of(a.as<float>(), a.as<float>() + n, [](float x) { return x == 2.0f; }));
  }
  ASSERT_TRUE(std::all_of(outer.as<float>(), outer.as<float>() + outer.elements(), [](float x) { return x == 1.0f; }));
}

TEST(Arena, IsOneBlockAfterTheFirstRound) {
  for (unsigned seed = 0; seed < 5; ++seed) {
    MemoryLedger ledger;
    Arena arena(Device::cpu(), MemoryKind::workspace, ledger);
    EXPECT_EQ(arena.blocks(), 0u);
    take_a_step(arena, seed);
    EXPECT_GT(arena.blocks(), 0u);
    take_a_step(arena, seed);
    const std::size_t bytes = ledger.current_total();
    for (int round = 0; round < 3; ++round) {
      take_a_step(arena, seed);
      EXPECT_EQ(arena.blocks(), 1u);
      EXPECT_EQ(ledger.current_total(), bytes);
    }
    EXPECT_EQ(ledger.current(MemoryKind::workspace), bytes);
  }
}

TEST(Arena, FramesGiveBackInStackOrder) {
  MemoryLedger ledger;
  Arena arena(Device::cpu(), MemoryKind::workspace, ledger);
  const Tensor kept = arena.take(DType::uint8, {10});
  void* first = nullptr;
  {
    const Arena::Frame frame(arena);
    first = arena.take(DType::uint8, {10}).data();
    EXPECT_NE(first, kept.data());
    arena.take(DType::uint8, {20 << 20});  // a block of its own
  }
  EXPECT_EQ(arena.take(DType::uint8, {10}).data(), first);
  EXPECT_EQ(arena.blocks(), 2u);
  EXPECT_FALSE(arena.take(DType::fp32, {0, 4}).is_null());
}

TEST(Arena, HoldsTheMostThatWasOutAtOnce) {
  constexpr std::int64_t mebibyte = 1 << 20;
  MemoryLedger ledger;
  Arena arena(Device::cpu(), MemoryKind::workspace, ledger);
  const auto step = [&] {
    for (const std::int64_t sizes : {10, 30, 20}) {
      const Arena::Frame frame(arena);
      arena.take(DType::uint8, {sizes * mebibyte});
      arena.take(DType::uint8, {5 * mebibyte});
    }
  };
  step();
  step();
  EXPECT_EQ(arena.blocks(), 1u);
  EXPECT_EQ(ledger.current_total(), 35u * mebibyte);
  // 30, and a least block: a block that is too small is given back before its successor is made.
  EXPECT_EQ(ledger.peak_total(), 38u * mebibyte);
}

}  // namespace
}  // namespace fulmen
