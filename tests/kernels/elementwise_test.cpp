// Plain passes over memory.
#include "kernels/elementwise.h"

#include "framework/threads.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

constexpr std::int64_t sizes[] = {0, 1, 7, 63, 64, 65, 1000, 16384, 50001};
constexpr DType dtypes[] = {DType::fp64, DType::fp32};

TEST(Elementwise, FillZero) {
  for (const std::int64_t size : sizes) {
    for (const DType dtype : dtypes) {
      Host host;
      const Tensor x = host.poisoned(dtype, {size + 2});
      fill_zero(host.execution, x.slice(0, 1, size + 1));
      const Values all = testing::read(x);
      EXPECT_TRUE(std::isnan(all.front()) && std::isnan(all.back()));
      for (std::int64_t i = 1; i <= size; ++i) ASSERT_EQ(all[i], 0.0);
    }
  }
  Host host;
  const Tensor counts = host.integers<std::int64_t>({3}, {1, 2, 3});
  fill_zero(host.execution, counts);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(counts.as<std::int64_t>()[i], 0);
}

TEST(Elementwise, AddAndScale) {
  std::uint64_t stream = 50000;
  for (const std::int64_t size : sizes) {
    for (const DType dtype : dtypes) {
      Random random(++stream);
      Host host;
      const Values a = testing::rounded(random.normals(size), dtype), b = testing::rounded(random.normals(size), dtype);
      Values sum(size), scaled(size);
      for (std::int64_t i = 0; i < size; ++i) sum[i] = a[i] + b[i], scaled[i] = -1.7 * a[i];
      const Tensor out = host.poisoned(dtype, {size}), x = host.tensor(dtype, {size}, a);
      const double tolerance = dtype == DType::fp64 ? 1e-15 : 1e-7;
      add(host.execution, x, host.tensor(dtype, {size}, b), out);
      testing::expect_close(out, sum, tolerance, "add");
      scale(host.execution, x, -1.7);
      testing::expect_close(x, scaled, tolerance, "scale");
      add(host.execution, out, out, out);
      for (double& value : sum) value *= 2;
      testing::expect_close(out, sum, tolerance, "add in place");
    }
  }
}

TEST(Elementwise, CopyConvertsAndKeepsStrides) {
  Random random(51000);
  for (const DType from : dtypes) {
    for (const DType to : dtypes) {
      Host host;
      const Values values = testing::rounded(random.normals(3 * 5 * 7), DType::fp32);
      const Tensor source = host.poisoned(from, {3, 9, 11}).slice(1, 2, 7).slice(2, 3, 10);
      testing::write(source, values);
      const Tensor whole = host.poisoned(to, {5, 5, 8});
      const Tensor target = whole.slice(0, 1, 4).slice(2, 0, 7);
      copy(host.execution, source, target);
      EXPECT_EQ(testing::read(target), values);
      std::int64_t untouched = 0;
      for (const double value : testing::read(whole)) untouched += std::isnan(value);
      EXPECT_EQ(untouched, 5 * 5 * 8 - 3 * 5 * 7);
      const Tensor flat = host.poisoned(to, {105});
      copy(host.execution, host.tensor(from, {105}, values), flat);
      EXPECT_EQ(testing::read(flat), values);
    }
  }
  Host host;
  const Tensor ids = host.integers<std::int32_t>({2, 3}, {1, 2, 3, 4, 5, 6});
  const Tensor copied = host.integers<std::int32_t>({2, 3}, {0, 0, 0, 0, 0, 0});
  copy(host.execution, ids, copied);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(copied.as<std::int32_t>()[i], i + 1);
}

TEST(Elementwise, SumOfSquaresIsTheSameOnAnyNumberOfThreads) {
  const int threads = compute_threads();
  for (const DType dtype : dtypes) {
    Random random(52000);
    Host host;
    const Values values = testing::rounded(random.normals(300003), dtype);
    const Tensor x = host.tensor(dtype, {300003}, values);
    long double expected = 2.5;
    for (const double value : values) expected += static_cast<long double>(value) * value;
    Values results;
    for (const int count : {1, 2, 3, 1}) {
      set_compute_threads(count);
      const Tensor total = host.tensor(DType::fp64, {1}, {2.5});
      add_sum_of_squares(host.execution, x, total);
      results.push_back(*total.as<double>());
      EXPECT_NEAR(static_cast<double>(results.back() / expected), 1.0, 1e-13);
      EXPECT_EQ(results.back(), results.front());
    }
  }
  set_compute_threads(threads);
}

TEST(Elementwise, SumIsTheSameOnAnyNumberOfThreads) {
  const int threads = compute_threads();
  Random random(53000);
  for (const std::int64_t size : sizes) {
    Host host;
    const Values values = random.normals(size);
    const Tensor x = host.tensor(DType::fp64, {size}, values);
    long double expected = -3.0;
    double magnitude = 3.0;
    for (const double value : values) expected += value, magnitude += std::abs(value);
    Values results;
    for (const int count : {1, 2, 3, 1}) {
      set_compute_threads(count);
      const Tensor total = host.tensor(DType::fp64, {1}, {-3.0});
      add_sum(host.execution, x, total);
      results.push_back(*total.as<double>());
      EXPECT_NEAR(results.back(), static_cast<double>(expected), 1e-14 * magnitude);
      EXPECT_EQ(results.back(), results.front());
    }
  }
  set_compute_threads(threads);
}

TEST(Elementwise, RefusesWhatDoesNotFit) {
  Host host;
  const Tensor x = host.poisoned(DType::fp32, {4, 4});
  EXPECT_THROW(add(host.execution, x, host.poisoned(DType::fp32, {4, 3}), x), InternalError);
  EXPECT_THROW(add(host.execution, x, host.poisoned(DType::fp64, {4, 4}), x), InternalError);
  EXPECT_THROW(scale(host.execution, x.slice(1, 0, 2), 2.0), InternalError);
  EXPECT_THROW(copy(host.execution, host.integers<std::int32_t>({1}, {1}), host.poisoned(DType::fp32, {1})),
               InternalError);
}

}  // namespace
}  // namespace fulmen
