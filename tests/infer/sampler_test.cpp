// Sampling: greedy, the distribution, top-k and top-p against their definitions, repeatability, and logits that are no
// numbers.
#include "infer/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "framework/error.h"
#include "tests/framework/expected_errors.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;

template <class T>
Tensor view(std::vector<T>& logits) {
  return Tensor(logits.data(), dtype_of<T>, {static_cast<std::int64_t>(logits.size())});
}

template <class T>
std::vector<T> random_logits(std::size_t n, std::uint64_t seed, double ties = 0.0) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0, 2);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<T> logits(n);
  for (T& x : logits) x = static_cast<T>(uniform(generator) < ties ? 1.0 : normal(generator));
  return logits;
}

std::vector<double> probabilities(const std::vector<double>& logits, double temperature) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (const double x : logits) p.push_back(std::exp((x - largest) / temperature));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  return p;
}

// Ids by falling logit, for equal logits the smaller id first.
std::vector<std::size_t> order_of(const std::vector<double>& logits) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  return order;
}

TEST(Sampler, TemperatureZeroTakesTheLargestAndOfTiesTheFirst) {
  const Sampler greedy({.temperature = 0.0, .top_k = 0, .top_p = 1.0, .seed = 0});
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<float> logits = random_logits<float>(501, seed);
    const auto expected = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(greedy.sample(view(logits), static_cast<std::int64_t>(seed)), expected);
  }
  std::vector<double> ties{1, 5, 2, 5, 5};
  EXPECT_EQ(greedy.sample(view(ties), 9), 1);
}

TEST(Sampler, FollowsTheDistribution) {
  std::vector<double> logits = random_logits<double>(12, 3);
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const std::vector<double> expected = probabilities(logits, temperature);
    const Sampler sampler({.temperature = temperature, .top_k = 0, .top_p = 1.0, .seed = 17});
    std::vector<double> found(logits.size(), 0.0);
    constexpr int draws = 40000;
    for (int i = 0; i < draws; ++i) found[static_cast<std::size_t>(sampler.sample(view(logits), i))] += 1.0 / draws;
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 5 * std::sqrt(0.25 / draws)) << i;
  }
}

TEST(Sampler, TopKAndTopPKeepJustTheirTokens) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    std::vector<double> logits = random_logits<double>(40, seed, 0.4);
    const std::vector<double> p = probabilities(logits, 0.8);
    const std::vector<std::size_t> order = order_of(logits);
    const auto top_k = static_cast<std::int64_t>(seed % 3 == 0 ? 0 : seed);
    const double top_p = seed % 2 == 0 ? 1.0 : 0.1 * static_cast<double>(seed % 9) + 0.05;
    const std::size_t k = top_k == 0 ? order.size() : static_cast<std::size_t>(top_k);
    double among_k = 0.0, sum = 0.0;
    for (std::size_t i = 0; i < k; ++i) among_k += p[order[i]];
    std::set<std::int64_t> allowed;
    for (std::size_t i = 0; i < k && sum < top_p * among_k * (1 - 1e-12); ++i) {
      allowed.insert(static_cast<std::int64_t>(order[i]));
      sum += p[order[i]];
    }
    const Sampler sampler({.temperature = 0.8, .top_k = top_k, .top_p = top_p, .seed = seed});
    std::set<std::int64_t> found;
    for (int i = 0; i < 4000; ++i) found.insert(sampler.sample(view(logits), i));
    for (const std::int64_t token : found) EXPECT_TRUE(allowed.contains(token)) << token << " with seed " << seed;
    for (const std::int64_t token : allowed) {
      const bool rare = p[static_cast<std::size_t>(token)] / sum < 0.005;
      EXPECT_TRUE(rare || found.contains(token)) << token << " with seed " << seed;
    }
  }
}

TEST(Sampler, TiesAtTheEdgeGoToTheSmallerId) {
  std::vector<float> logits(50, 2.5F);
  for (const SamplingOptions& options : {SamplingOptions{1.0, 3, 1.0, 5}, SamplingOptions{1.0, 0, 0.06, 5}}) {
    const Sampler sampler(options);
    std::set<std::int64_t> found;
    for (int i = 0; i < 200; ++i) found.insert(sampler.sample(view(logits), i));
    EXPECT_EQ(found, (std::set<std::int64_t>{0, 1, 2}));
  }
}

TEST(Sampler, DependsOnSeedAndPositionAlone) {
  std::vector<float> logits = random_logits<float>(1000, 8);
  const Sampler one({.temperature = 1.0, .top_k = 50, .top_p = 0.9, .seed = 1}), same = one;
  const Sampler other({.temperature = 1.0, .top_k = 50, .top_p = 0.9, .seed = 2});
  int differing = 0;
  for (std::int64_t i = 99; i >= 0; --i) {
    EXPECT_EQ(one.sample(view(logits), i), same.sample(view(logits), i));
    differing += one.sample(view(logits), i) != other.sample(view(logits), i);
  }
  EXPECT_GT(differing, 50);
}

TEST(Sampler, AddingAConstantChangesNothing) {
  std::vector<double> logits = random_logits<double>(100, 6), shifted = logits;
  for (double& x : shifted) x += 1024.0;
  const Sampler sampler({.temperature = 0.7, .top_k = 20, .top_p = 0.95, .seed = 3});
  for (int i = 0; i < 200; ++i) EXPECT_EQ(sampler.sample(view(logits), i), sampler.sample(view(shifted), i));
}

TEST(Sampler, ExtremeTemperaturesAndStridedLogits) {
  std::vector<double> logits = random_logits<double>(100, 6);
  const auto likeliest = static_cast<std::int64_t>(order_of(logits)[0]);
  EXPECT_EQ(Sampler({.temperature = 1e-300, .top_k = 0, .top_p = 1.0, .seed = 3}).sample(view(logits), 0), likeliest);
  const std::int64_t token =
      Sampler({.temperature = 1e300, .top_k = 0, .top_p = 1.0, .seed = 3}).sample(view(logits), 0);
  EXPECT_TRUE(token >= 0 && token < 100);
  const Tensor column = Tensor(logits.data(), DType::fp64, {50, 2}).select(1, 1);
  std::vector<double> copy;
  for (std::size_t i = 1; i < logits.size(); i += 2) copy.push_back(logits[i]);
  const Sampler sampler({.temperature = 1.0, .top_k = 0, .top_p = 0.9, .seed = 3});
  for (int i = 0; i < 50; ++i) EXPECT_EQ(sampler.sample(column, i), sampler.sample(view(copy), i));
}

TEST(Sampler, LogitsThatAreNoNumbersDiverge) {
  for (const SamplingOptions& options :
       {SamplingOptions{0.0, 0, 1.0, 0}, SamplingOptions{1.0, 0, 1.0, 0}, SamplingOptions{1.0, 5, 0.9, 0}}) {
    const Sampler sampler(options);
    for (const float bad : {NAN, -NAN, INFINITY}) {
      for (const std::size_t place : {0, 7, 19}) {
        std::vector<float> logits = random_logits<float>(20, 1);
        logits[place] = bad;
        expect_mentions(message_of<DivergedError>([&] { static_cast<void>(sampler.sample(view(logits), 0)); }),
                        {fmt::format("token {}", place)});
      }
    }
    std::vector<float> impossible(20, -INFINITY);
    EXPECT_THROW(static_cast<void>(sampler.sample(view(impossible), 0)), DivergedError);
    impossible[13] = -1e30F;  // the id that is left
    for (int i = 0; i < 20; ++i) EXPECT_EQ(sampler.sample(view(impossible), i), 13);
  }
}

TEST(Sampler, OptionsOutOfRange) {
  const auto refusal = [](double temperature, std::int64_t top_k, double top_p) {
    return message_of<UserError>([&] { const Sampler sampler({temperature, top_k, top_p, 0}); });
  };
  expect_mentions(refusal(-1.0, 0, 1.0), {"temperature", "-1"});
  expect_mentions(refusal(NAN, 0, 1.0), {"temperature"});
  expect_mentions(refusal(INFINITY, 0, 1.0), {"temperature"});
  expect_mentions(refusal(1.0, -3, 1.0), {"top-k", "-3"});
  expect_mentions(refusal(1.0, 0, 0.0), {"top-p"});
  expect_mentions(refusal(1.0, 0, 1.5), {"top-p", "1.5"});
  expect_mentions(refusal(1.0, 0, NAN), {"top-p"});
}

}  // namespace
}  // namespace fulmen
