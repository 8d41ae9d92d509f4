// Cross entropy: whole and split over ranks, padding, masked targets, extreme logits.
#include "kernels/cross_entropy.h"

#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

struct Problem {
  std::int64_t tokens, vocabulary;
  Values logits;
  std::vector<std::int32_t> targets;
  std::vector<float> weights;
};

Problem random_problem(std::int64_t tokens, std::int64_t vocabulary, DType dtype, double spread, Random& random) {
  Problem p{tokens, vocabulary, testing::rounded(random.normals(tokens * vocabulary, spread), dtype), {}, {}};
  for (std::int64_t t = 0; t < tokens; ++t) {
    p.targets.push_back(static_cast<std::int32_t>(random.integer(0, vocabulary - 1)));
    p.weights.push_back(t % 4 == 2 ? 0.0f : static_cast<float>(random.uniform(0.5, 2.0)));
  }
  return p;
}

struct Result {
  Values losses, d_logits;
};

// All of it in one call.
Result whole_cross_entropy(const Problem& p, DType dtype, std::int64_t padding, double scale, bool in_place) {
  Host host;
  const Tensor logits = host.poisoned_strided(dtype, p.tokens, p.vocabulary + padding, 2);  // padded columns stay NaN
  testing::write(logits.slice(1, 0, p.vocabulary), p.logits);
  const Tensor d_logits = in_place ? logits : host.poisoned_strided(dtype, p.tokens, p.vocabulary + padding, 3);
  const Tensor losses = host.poisoned(DType::fp64, {p.tokens});
  cross_entropy(host.execution, logits, host.integers<std::int32_t>({p.tokens}, p.targets),
                host.integers<float>({p.tokens}, p.weights), p.vocabulary, host.tensor(DType::fp64, {1}, {scale}),
                losses, d_logits);
  for (const double padded : testing::read(d_logits.slice(1, p.vocabulary, p.vocabulary + padding)))
    EXPECT_EQ(padded, 0.0) << "padding";
  return {testing::read(losses), testing::read(d_logits.slice(1, 0, p.vocabulary))};
}

// The vocabulary cut over `ranks`, each holding `local` columns, some of the last columns padding.
Result split_cross_entropy(const Problem& p, DType dtype, int ranks, std::int64_t padding, double scale,
                           bool in_place) {
  Host host;
  const DType wide = accumulation_dtype(dtype);
  const std::int64_t local = (p.vocabulary + ranks - 1) / ranks + padding;
  const Tensor targets = host.integers<std::int32_t>({p.tokens}, p.targets);
  const Tensor weights = host.integers<float>({p.tokens}, p.weights);
  std::vector<Tensor> logits, maxima, sums;
  std::vector<std::int64_t> first, valid;
  Values maximum(p.tokens, -std::numeric_limits<double>::infinity());
  Values exp_sum(p.tokens, 0.0), target_logit(p.tokens, 0.0);
  for (int rank = 0; rank < ranks; ++rank) {
    first.push_back(std::min(p.vocabulary, rank * local));
    valid.push_back(std::min(local, p.vocabulary - first[rank]));
    logits.push_back(host.poisoned_strided(dtype, p.tokens, local, 2));  // padded columns stay NaN
    for (std::int64_t t = 0; t < p.tokens && valid[rank] > 0; ++t) {
      const auto row = p.logits.begin() + t * p.vocabulary + first[rank];
      testing::write(logits[rank].slice(0, t, t + 1).slice(1, 0, valid[rank]), Values(row, row + valid[rank]));
    }
    maxima.push_back(host.poisoned(wide, {p.tokens})), sums.push_back(host.poisoned(wide, {p.tokens}));
    const Tensor own_target = host.poisoned(wide, {p.tokens});
    cross_entropy_local(host.execution, logits[rank], targets, first[rank], valid[rank], maxima[rank], sums[rank],
                        own_target);
    const Values own_maximum = testing::read(maxima[rank]), own = testing::read(own_target);
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      maximum[t] = std::max(maximum[t], own_maximum[t]);
      target_logit[t] += own[t];
    }
  }
  const Tensor global_maximum = host.tensor(wide, {p.tokens}, maximum);
  for (int rank = 0; rank < ranks; ++rank) {
    cross_entropy_rescale(host.execution, maxima[rank], global_maximum, sums[rank]);
    const Values own = testing::read(sums[rank]);
    for (std::int64_t t = 0; t < p.tokens; ++t) exp_sum[t] += own[t];
  }
  const Tensor global_sum = host.tensor(wide, {p.tokens}, exp_sum);
  const Tensor losses = host.poisoned(DType::fp64, {p.tokens});
  cross_entropy_losses(host.execution, global_maximum, global_sum, host.tensor(wide, {p.tokens}, target_logit), weights,
                       losses);
  Result result{testing::read(losses), Values(p.logits.size(), std::nan(""))};
  for (int rank = 0; rank < ranks; ++rank) {
    const Tensor d_logits = in_place ? logits[rank] : host.poisoned_strided(dtype, p.tokens, local, 3);
    cross_entropy_backward(host.execution, logits[rank], targets, weights, first[rank], valid[rank], global_maximum,
                           global_sum, host.tensor(DType::fp64, {1}, {scale}), d_logits);
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const Values row = testing::read(d_logits.slice(0, t, t + 1));
      std::copy_n(row.begin(), valid[rank], result.d_logits.begin() + t * p.vocabulary + first[rank]);
      for (std::int64_t j = valid[rank]; j < local; ++j) EXPECT_EQ(row[j], 0.0) << "padding";
    }
  }
  return result;
}

TEST(CrossEntropy, EqualsTheOracleHoweverItIsSplit) {
  std::uint64_t stream = 90000;
  for (const std::int64_t vocabulary : {1, 2, 17, 64, 300}) {
    for (const int ranks : {1, 2, 3, 8}) {  // 1: whole, in one call
      for (const DType dtype : testing::test_dtypes()) {
        Random random(++stream);
        const Problem p = random_problem(random.integer(1, 30), vocabulary, dtype, 3.0, random);
        const auto actual = ranks == 1 ? whole_cross_entropy(p, dtype, stream % 3, 0.37, stream % 2 == 0)
                                       : split_cross_entropy(p, dtype, ranks, stream % 3, 0.37, stream % 2 == 0);
        const double tolerance = testing::tolerance_of(dtype);
        const std::string what = fmt::format("vocabulary {} on {} ranks", vocabulary, ranks);
        testing::expect_close(actual.losses, reference::cross_entropy(p.logits, p.targets, p.weights, vocabulary),
                              testing::tolerance_of(accumulation_dtype(dtype)), "losses: " + what, 1.0);
        testing::expect_close(actual.d_logits,
                              reference::cross_entropy_backward(p.logits, p.targets, p.weights, vocabulary, 0.37),
                              tolerance, "d_logits: " + what, 1.0);
      }
    }
  }
}

TEST(CrossEntropy, MaskedRowsAreExactlyZeroAndExtremesStayFinite) {
  Random random(91000);
  for (const DType dtype : testing::test_dtypes()) {
    for (const double size : {1e4, 1e30}) {
      Problem p = random_problem(40, 50, dtype, size, random);
      p.weights[0] = 0;
      for (const auto& actual :
           {split_cross_entropy(p, dtype, 2, 1, 2.0, false), whole_cross_entropy(p, dtype, 6, 2.0, false)}) {
        for (std::int64_t t = 0; t < p.tokens; ++t) {
          EXPECT_TRUE(std::isfinite(actual.losses[t]));
          for (std::int64_t j = 0; j < p.vocabulary; ++j) {
            const double d = actual.d_logits[t * p.vocabulary + j];
            EXPECT_TRUE(std::isfinite(d));
            EXPECT_TRUE(p.weights[t] != 0 || d == 0.0);
          }
          EXPECT_TRUE(p.weights[t] != 0 || actual.losses[t] == 0.0);
        }
        testing::expect_close(actual.losses, reference::cross_entropy(p.logits, p.targets, p.weights, p.vocabulary),
                              testing::tolerance_of(accumulation_dtype(dtype)), "losses");
      }
    }
  }
}

TEST(CrossEntropy, WeightZeroMasksEvenNaN) {
  Host host;
  const Tensor logits = host.poisoned(DType::fp32, {1, 4}), d_logits = host.poisoned(DType::fp32, {1, 4});
  const Tensor targets = host.integers<std::int32_t>({1}, {2}), weights = host.integers<float>({1}, {0.0f});
  const Tensor maximum = host.poisoned(DType::fp32, {1}), exp_sum = host.poisoned(DType::fp32, {1});
  const Tensor target_logit = host.poisoned(DType::fp32, {1}), losses = host.poisoned(DType::fp64, {1});
  cross_entropy_local(host.execution, logits, targets, 0, 4, maximum, exp_sum, target_logit);
  cross_entropy_losses(host.execution, maximum, exp_sum, target_logit, weights, losses);
  cross_entropy_backward(host.execution, logits, targets, weights, 0, 4, maximum, exp_sum,
                         host.tensor(DType::fp64, {1}, {1.0}), d_logits);
  EXPECT_EQ(testing::read(losses), Values{0.0});
  EXPECT_EQ(testing::read(d_logits), Values(4, 0.0));
}

TEST(CrossEntropy, UnmaskedNaNReachesTheLoss) {
  Host host;
  const Tensor logits = host.tensor(DType::fp32, {1, 3}, {1.0, std::nan(""), 2.0});
  const Tensor targets = host.integers<std::int32_t>({1}, {0}), weights = host.integers<float>({1}, {1.0f});
  const Tensor maximum = host.poisoned(DType::fp32, {1}), exp_sum = host.poisoned(DType::fp32, {1});
  const Tensor target_logit = host.poisoned(DType::fp32, {1}), losses = host.poisoned(DType::fp64, {1});
  cross_entropy_local(host.execution, logits, targets, 0, 3, maximum, exp_sum, target_logit);
  cross_entropy_losses(host.execution, maximum, exp_sum, target_logit, weights, losses);
  EXPECT_TRUE(std::isnan(testing::read(losses)[0]));
}

TEST(CrossEntropy, InOneCallWhatIsNotFinite) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t columns : {8, 100, 5000}) {
      const auto loss_of = [&](double base, double special, float weight) {
        Problem p{1, columns, Values(columns, base), {0}, {weight}};
        p.logits[columns / 2] = special;
        return whole_cross_entropy(p, dtype, 0, 1.0, true);
      };
      testing::expect_close(loss_of(2.0, -infinity, 1.0f).losses, {std::log(columns - 1.0)}, 1e-6, "minus infinity");
      for (const double special : {std::nan(""), infinity})
        EXPECT_TRUE(std::isnan(loss_of(2.0, special, 1.0f).losses[0])) << special;
      EXPECT_TRUE(std::isnan(loss_of(-infinity, -infinity, 1.0f).losses[0]));
      const Result masked = loss_of(2.0, std::nan(""), 0.0f);
      EXPECT_EQ(masked.losses, Values{0.0});
      EXPECT_EQ(masked.d_logits, Values(columns, 0.0));
    }
  }
}

TEST(CrossEntropy, BackwardEqualsFiniteDifferences) {
  Random random(92000);
  Host host;
  const Problem p = random_problem(6, 11, DType::fp64, 2.0, random);
  const Tensor logits = host.tensor(DType::fp64, {6, 11}, p.logits), d_logits = host.poisoned(DType::fp64, {6, 11});
  const Tensor targets = host.integers<std::int32_t>({6}, p.targets), weights = host.integers<float>({6}, p.weights);
  const Tensor maximum = host.poisoned(DType::fp64, {6}), exp_sum = host.poisoned(DType::fp64, {6});
  const Tensor target_logit = host.poisoned(DType::fp64, {6}), losses = host.poisoned(DType::fp64, {6});
  const auto loss = [&] {
    cross_entropy_local(host.execution, logits, targets, 0, 11, maximum, exp_sum, target_logit);
    cross_entropy_losses(host.execution, maximum, exp_sum, target_logit, weights, losses);
    return 0.7 * testing::weighted_sum(Values(6, 1.0), testing::read(losses));
  };
  loss();
  cross_entropy_backward(host.execution, logits, targets, weights, 0, 11, maximum, exp_sum,
                         host.tensor(DType::fp64, {1}, {0.7}), d_logits);
  const Values expected = testing::finite_differences(logits, 1e-3, loss);
  testing::expect_close(d_logits, expected, 1e-8, "d_logits");
  cross_entropy(host.execution, logits, targets, weights, 11, host.tensor(DType::fp64, {1}, {0.7}), losses, d_logits);
  testing::expect_close(d_logits, expected, 1e-8, "d_logits in one call");
}

// Rows of `vocabulary` logits, then `padding` columns of NaN, as a slice at `offset`. Against the definition, with each
// row's sum formed once; every fourth row is masked, and holds what must not matter.
// A build that does not vectorise the sum of a long row adds its terms one after the other, which rounds more.
void check_wide(DType dtype, std::int64_t tokens, std::int64_t vocabulary, std::int64_t padding, std::int64_t offset,
                bool in_place, Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {} + {}] at {}", name_of(dtype), tokens, vocabulary, padding, offset));
  constexpr double scale = 0.37;
  Host host;
  Problem p = random_problem(tokens, vocabulary, dtype, 3.0, random);
  Values losses(tokens, 0.0), d_logits(tokens * (vocabulary + padding), 0.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    double* const row = &p.logits[t * vocabulary];
    if (p.weights[t] == 0) {
      row[0] = std::nan("");
      row[vocabulary - 1] = std::numeric_limits<double>::infinity();
      continue;
    }
    const double maximum = *std::max_element(row, row + vocabulary);
    double sum = 0;
    for (std::int64_t j = 0; j < vocabulary; ++j) sum += std::exp(row[j] - maximum);
    losses[t] = p.weights[t] * (std::log(sum) + maximum - row[p.targets[t]]);
    for (std::int64_t j = 0; j < vocabulary; ++j)
      d_logits[t * (vocabulary + padding) + j] =
          scale * p.weights[t] * (std::exp(row[j] - maximum) / sum - (j == p.targets[t] ? 1.0 : 0.0));
  }
  const testing::Sliced logits(host, dtype, tokens, vocabulary + padding, offset);
  testing::write(logits.part.slice(1, 0, vocabulary), p.logits);
  const Tensor targets = host.integers<std::int32_t>({tokens}, p.targets);
  const Tensor weights = host.integers<float>({tokens}, p.weights);
  const DType sums_dtype = accumulation_dtype(dtype);
  const Tensor maximum = host.poisoned(sums_dtype, {tokens}), exp_sum = host.poisoned(sums_dtype, {tokens});
  const Tensor target_logit = host.poisoned(sums_dtype, {tokens}), loss = host.poisoned(DType::fp64, {tokens});
  cross_entropy_local(host.execution, logits, targets, 0, vocabulary, maximum, exp_sum, target_logit);
  cross_entropy_losses(host.execution, maximum, exp_sum, target_logit, weights, loss);
  const testing::Sliced own(host, dtype, tokens, vocabulary + padding, offset);
  const testing::Sliced& target = in_place ? logits : own;
  cross_entropy_backward(host.execution, logits, targets, weights, 0, vocabulary, maximum, exp_sum,
                         host.tensor(DType::fp64, {1}, {scale}), target);
  // The logits are exact in the dtype, so the sums are as good as in fp32.
  testing::expect_close(loss, losses, testing::tolerance_of(sums_dtype), "losses");
  const double tolerance = testing::tolerance_of(dtype) * (dtype == DType::fp32 && vocabulary > 10000 ? 5 : 1);
  testing::expect_close(target, d_logits, tolerance, "d_logits");
  const auto expect_zeros_and_margins = [&](const testing::Sliced& written) {
    written.expect_margins_untouched();
    const Values actual = testing::read(written.part);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t from = p.weights[t] == 0 ? 0 : vocabulary;
      for (std::int64_t j = from; j < vocabulary + padding; ++j)
        ASSERT_EQ(actual[t * (vocabulary + padding) + j], 0.0) << "row " << t << ", column " << j;
    }
  };
  expect_zeros_and_margins(target);
  const testing::Sliced again(host, dtype, tokens, vocabulary + padding, offset);
  const testing::Sliced apart(host, dtype, tokens, vocabulary + padding, offset);
  testing::write(again.part.slice(1, 0, vocabulary), p.logits);
  const Tensor loss_alone = host.poisoned(DType::fp64, {tokens});
  cross_entropy(host.execution, again, targets, weights, vocabulary, {}, loss_alone, {});
  cross_entropy(host.execution, again, targets, weights, vocabulary, host.tensor(DType::fp64, {1}, {scale}), loss,
                in_place ? again : apart);
  EXPECT_EQ(testing::read(loss_alone), testing::read(loss));
  testing::expect_close(loss, losses, testing::tolerance_of(sums_dtype), "losses in one call");
  testing::expect_close(in_place ? again : apart, d_logits, tolerance, "d_logits in one call");
  expect_zeros_and_margins(in_place ? again : apart);
}

TEST(CrossEntropy, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(93000);
  bool in_place = false;
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t vocabulary : {1, 7, 8, 64, 100, 1024, 5632, 10000}) {
      for (const std::int64_t padding : {0, 3, 8, 24})
        for (const std::int64_t offset : testing::slice_offsets)
          check_wide(dtype, vocabulary > 1000 ? 3 : 11, vocabulary, padding, offset, in_place = !in_place, random);
    }
    for (const std::int64_t padding : {0, 512})
      check_wide(dtype, 5, 64000 - padding, padding, 0, in_place = !in_place, random);
  }
}

TEST(CrossEntropy, ManyRows) {
  Random random(94000);
  for (const DType dtype : testing::test_dtypes()) check_wide(dtype, testing::many_rows, 6, 2, 0, true, random);
}

TEST(CrossEntropy, ARankOfPaddingOnlyAddsNothing) {
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t columns : {0, 5, 64}) {
      Host host;
      const DType sums_dtype = accumulation_dtype(dtype);
      const Tensor logits = host.poisoned(dtype, {3, columns}), d_logits = host.poisoned(dtype, {3, columns});
      const Tensor targets = host.integers<std::int32_t>({3}, {0, 1, 70});
      const Tensor weights = host.integers<float>({3}, {1.0f, 0.0f, 2.0f});
      const Tensor maximum = host.poisoned(sums_dtype, {3}), exp_sum = host.poisoned(sums_dtype, {3});
      const Tensor target_logit = host.poisoned(sums_dtype, {3});
      cross_entropy_local(host.execution, logits, targets, 70, 0, maximum, exp_sum, target_logit);
      EXPECT_EQ(testing::read(maximum), Values(3, -std::numeric_limits<double>::infinity()));
      EXPECT_EQ(testing::read(exp_sum), Values(3, 0.0));
      EXPECT_EQ(testing::read(target_logit), Values(3, 0.0));
      const Tensor global_maximum = host.tensor(sums_dtype, {3}, {1.0, -2.0, 3.0});
      cross_entropy_rescale(host.execution, maximum, global_maximum, exp_sum);
      EXPECT_EQ(testing::read(exp_sum), Values(3, 0.0));
      cross_entropy_backward(host.execution, logits, targets, weights, 70, 0, global_maximum,
                             host.tensor(sums_dtype, {3}, {1.0, 2.0, 3.0}), host.tensor(DType::fp64, {1}, {1.0}),
                             d_logits);
      EXPECT_EQ(testing::read(d_logits), Values(3 * columns, 0.0));
    }
  }
}

// A logit of minus infinity has no share; NaN wherever it stands, and infinity, make the sum NaN.
TEST(CrossEntropy, WhatIsNotFinite) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t columns : {8, 100, 5000}) {
      const DType sums_dtype = accumulation_dtype(dtype);
      const auto sum_of = [&](double base, double special, std::int64_t at) {
        Host host;
        Values row(columns, base);
        row[at] = special;
        const Tensor maximum = host.poisoned(sums_dtype, {1}), exp_sum = host.poisoned(sums_dtype, {1});
        const Tensor target_logit = host.poisoned(sums_dtype, {1});
        cross_entropy_local(host.execution, host.tensor(dtype, {1, columns}, row),
                            host.integers<std::int32_t>({1}, {0}), 0, columns, maximum, exp_sum, target_logit);
        return std::pair(testing::read(maximum)[0], testing::read(exp_sum)[0]);
      };
      for (const std::int64_t at : {std::int64_t{0}, columns / 2, columns - 1}) {
        EXPECT_EQ(sum_of(2.0, -infinity, at), std::pair(2.0, static_cast<double>(columns - 1)));
        EXPECT_TRUE(std::isnan(sum_of(2.0, std::nan(""), at).second));
        EXPECT_EQ(sum_of(2.0, std::nan(""), at).first, 2.0);
        EXPECT_TRUE(std::isnan(sum_of(2.0, infinity, at).second));
        EXPECT_TRUE(std::isnan(sum_of(-infinity, std::nan(""), at).second));
        EXPECT_EQ(sum_of(-infinity, 5.0, at), std::pair(5.0, 1.0));
      }
      EXPECT_TRUE(std::isnan(sum_of(-infinity, -infinity, 0).second));
      EXPECT_TRUE(std::isnan(sum_of(std::nan(""), std::nan(""), 0).second));
    }
  }
}

}  // namespace
}  // namespace fulmen
