// Plain passes over memory.
#include "kernels/elementwise.h"

#include "framework/threads.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

constexpr std::int64_t sizes[] = {0, 1, 7, 63, 64, 65, 1000, 16384, 50001};

TEST(Elementwise, FillZero) {
  for (const std::int64_t size : sizes) {
    for (const DType dtype : testing::test_dtypes()) {
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
  EXPECT_EQ(testing::read_integers<std::int64_t>(counts), std::vector<std::int64_t>(3, 0));
}

TEST(Elementwise, AddAndScale) {
  std::uint64_t stream = 50000;
  for (const std::int64_t size : sizes) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const Values a = testing::rounded(random.normals(size), dtype), b = testing::rounded(random.normals(size), dtype);
      Values sum(size), scaled(size);
      for (std::int64_t i = 0; i < size; ++i) sum[i] = a[i] + b[i], scaled[i] = -1.7 * a[i];
      const Tensor out = host.poisoned(dtype, {size}), x = host.tensor(dtype, {size}, a);
      const double tolerance = dtype == DType::fp64 ? 1e-15 : dtype == DType::fp32 ? 1e-7 : 4e-3;
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

TEST(Elementwise, AddScaled) {
  std::uint64_t stream = 50500;
  for (const std::int64_t size : sizes) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const Values a = testing::rounded(random.normals(size), dtype), b = testing::rounded(random.normals(size), dtype);
      Values expected(size);
      for (std::int64_t i = 0; i < size; ++i) expected[i] = 1.5 * a[i] - 0.25 * b[i];
      const Tensor out = host.poisoned(dtype, {size}), x = host.tensor(dtype, {size}, a);
      const double tolerance = dtype == DType::fp64 ? 1e-15 : dtype == DType::fp32 ? 1e-6 : 1e-2;
      add_scaled(host.execution, x, 1.5, host.tensor(dtype, {size}, b), -0.25, out);
      testing::expect_close(out, expected, tolerance, "add scaled");
      add_scaled(host.execution, x, 1.5, host.tensor(dtype, {size}, b), -0.25, x);
      testing::expect_close(x, expected, tolerance, "add scaled in place");
    }
  }
}

TEST(Elementwise, AddToKeepsStrides) {
  Random random(50300);
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t width : {1, 8, 13, 640}) {
      for (const std::int64_t offset : testing::slice_offsets) {
        SCOPED_TRACE(fmt::format("{} width {} at {}", name_of(dtype), width, offset));
        Host host;
        const std::int64_t rows = 211;
        const Values a = testing::rounded(random.normals(rows * width), dtype);
        const Values b = testing::rounded(random.normals(rows * width), dtype);
        Values sum(a.size());
        for (std::size_t i = 0; i < a.size(); ++i)
          sum[i] = dtype == DType::fp64 ? a[i] + b[i] : static_cast<float>(a[i]) + static_cast<float>(b[i]);
        const testing::Sliced out(host, dtype, width, offset, a);
        add_to(host.execution, out, host.strided(dtype, rows, width, 3, b));
        EXPECT_EQ(testing::read(out.part), testing::rounded(sum, dtype));
        out.expect_margins_untouched();
      }
    }
  }
}

// For every number of parts, in their order, to the bit; out is poisoned memory, or the part in the middle.
template <class Sum>
void expect_sum_of_parts(std::int64_t size, DType dtype, int count, std::uint64_t stream) {
  Random random(stream);
  Host host;
  std::vector<Sum> sum(static_cast<std::size_t>(size));
  std::vector<Tensor> parts;
  for (int p = 0; p < count; ++p) {
    const Values values = testing::rounded(random.normals(size), dtype);
    for (std::size_t i = 0; i < sum.size(); ++i)
      sum[i] = p == 0 ? static_cast<Sum>(values[i]) : sum[i] + static_cast<Sum>(values[i]);
    parts.push_back(host.tensor(dtype, {size}, values));
  }
  const Values expected = testing::rounded(Values(sum.begin(), sum.end()), dtype);
  const Tensor out = host.poisoned(dtype, {size});
  sum_parts(host.execution, parts, out);
  EXPECT_EQ(testing::read(out), expected);
  const Tensor middle = parts[static_cast<std::size_t>(count / 2)];
  sum_parts(host.execution, parts, middle);
  EXPECT_EQ(testing::read(middle), expected);
}

TEST(Elementwise, SumParts) {
  std::uint64_t stream = 50500;
  for (const std::int64_t size : {std::int64_t{0}, std::int64_t{1}, std::int64_t{65}, std::int64_t{50001}}) {
    for (const DType dtype : testing::test_dtypes()) {
      for (int count = 1; count <= most_parts; ++count) {
        SCOPED_TRACE(fmt::format("{} parts of {} {}", count, size, name_of(dtype)));
        if (dtype == DType::fp64)
          expect_sum_of_parts<double>(size, dtype, count, ++stream);
        else
          expect_sum_of_parts<float>(size, dtype, count, ++stream);
      }
    }
  }
}

// The narrower of the two: its values survive a conversion either way.
DType narrower(DType a, DType b) { return size_of(a) < size_of(b) ? a : b; }

TEST(Elementwise, CopyConvertsAndKeepsStrides) {
  Random random(51000);
  for (const DType from : testing::test_dtypes()) {
    for (const DType to : testing::test_dtypes()) {
      Host host;
      const Values single = testing::rounded(random.normals(3 * 5 * 7), DType::fp32);
      const Values values = testing::rounded(single, narrower(from, to));
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
  EXPECT_EQ(testing::read_integers<std::int32_t>(copied), (std::vector<std::int32_t>{1, 2, 3, 4, 5, 6}));
}

TEST(Elementwise, SumOfSquaresIsTheSameOnAnyNumberOfThreads) {
  const int threads = compute_threads();
  for (const DType dtype : testing::test_dtypes()) {
    Random random(52000);
    Host host;
    host.execution.deterministic = true;
    const Values values = testing::rounded(random.normals(300003), dtype);
    const Tensor x = host.tensor(dtype, {300003}, values);
    long double expected = 2.5;
    for (const double value : values) expected += static_cast<long double>(value) * value;
    Values results;
    for (const int count : {1, 2, 3, 1}) {
      set_compute_threads(count);
      const Tensor total = host.tensor(DType::fp64, {1}, {2.5});
      add_sum_of_squares(host.execution, x, total);
      results.push_back(testing::read(total)[0]);
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
    host.execution.deterministic = true;
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
      results.push_back(testing::read(total)[0]);
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
  EXPECT_THROW(add_to(host.execution, x, host.poisoned(DType::fp32, {4, 3})), InternalError);
  EXPECT_THROW(add_to(host.execution, x, host.poisoned(DType::fp64, {4, 4})), InternalError);
  EXPECT_THROW(scale(host.execution, x.slice(1, 0, 2), 2.0), InternalError);
  EXPECT_THROW(copy(host.execution, host.integers<std::int32_t>({1}, {1}), host.poisoned(DType::fp32, {1})),
               InternalError);
}

// Numbers without a random generator's cost, for long vectors.
Values pattern(std::int64_t count, DType dtype) {
  Values values(count);
  for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<double>(i * 2654435761 % 1021 - 510) / 256.0;
  return testing::rounded(values, dtype);
}

// Slices of a vector that begin anywhere, and a slice that more than fills every thread of a GPU.
TEST(Elementwise, SlicesOfAnyAlignment) {
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t offset : {0, 1, 3, 8}) {
      for (const std::int64_t size : {5, 1024, 3000, 300001}) {
        SCOPED_TRACE(fmt::format("{} [{}] at {}", name_of(dtype), size, offset));
        Host host;
        const Values all = pattern(size + 16, dtype);
        const Tensor whole = host.tensor(dtype, {size + 16}, all);
        const Tensor x = whole.slice(0, offset, offset + size);
        Values expected = all;
        for (std::int64_t i = offset; i < offset + size; ++i) expected[i] *= 4;
        scale(host.execution, x, 2.0);
        add(host.execution, x, x, x);
        EXPECT_EQ(testing::read(whole), expected);
        long double squares = 0;
        for (std::int64_t i = offset; i < offset + size; ++i)
          squares += static_cast<long double>(expected[i]) * expected[i];
        const Tensor total = host.tensor(DType::fp64, {1}, {0.0});
        add_sum_of_squares(host.execution, x, total);
        EXPECT_NEAR(testing::read(total)[0] / static_cast<double>(squares), 1.0, 1e-13);
      }
    }
  }
}

TEST(Elementwise, SumsOfLongVectors) {
  const std::int64_t size = testing::on_gpu() ? 9000017 : 1000017;
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    const Values values = pattern(size, dtype);
    long double squares = 0, sum = 0;
    double magnitude = 0;
    for (const double value : values)
      squares += static_cast<long double>(value) * value, sum += value, magnitude += std::abs(value);
    const Tensor x = host.tensor(dtype, {size}, values);
    const Tensor total = host.tensor(DType::fp64, {1}, {0.0}), again = host.tensor(DType::fp64, {1}, {0.0});
    add_sum_of_squares(host.execution, x, total);
    add_sum_of_squares(host.execution, x, again);
    EXPECT_NEAR(testing::read(total)[0] / static_cast<double>(squares), 1.0, 1e-13);
    EXPECT_EQ(testing::read(again), testing::read(total));
    if (dtype != DType::fp64) continue;
    const Tensor plain = host.tensor(DType::fp64, {1}, {0.0});
    add_sum(host.execution, x, plain);
    EXPECT_NEAR(testing::read(plain)[0], static_cast<double>(sum), 1e-14 * magnitude);
  }
}

// Gradients of any size: fp32 would overflow or underflow in the squares.
TEST(Elementwise, SumOfSquaresOfExtremes) {
  for (const DType dtype : testing::test_dtypes()) {
    for (const double size : {1e-25, 1e25}) {
      Host host;
      const Values values = testing::rounded(Values(1000, size), dtype);
      const Tensor total = host.tensor(DType::fp64, {1}, {0.0});
      add_sum_of_squares(host.execution, host.tensor(dtype, {1000}, values), total);
      EXPECT_NEAR(testing::read(total)[0] / (1000 * values[0] * values[0]), 1.0, 1e-13);
    }
  }
}

TEST(Elementwise, CopyRoundsAndKeepsWhatIsNotFinite) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Random random(54000);
  for (const DType from : testing::test_dtypes()) {
    for (const DType to : testing::test_dtypes()) {
      for (const std::int64_t count : {4, 1000, 300003}) {
        Host host;
        Values values = testing::rounded(random.normals(count), from);
        values[0] = infinity, values[1] = -infinity, values[2] = 0.0, values[3] = -0.0;
        const Tensor target = host.poisoned(to, {count});
        copy(host.execution, host.tensor(from, {count}, values), target);
        EXPECT_EQ(testing::read(target), testing::rounded(values, to));
        EXPECT_TRUE(std::signbit(testing::read(target)[3]));
        const Tensor nan = host.tensor(to, {5}, Values(5, 1.0));
        copy(host.execution, host.poisoned(from, {5}), nan);
        for (const double value : testing::read(nan)) EXPECT_TRUE(std::isnan(value));
      }
    }
  }
}

// Four outer dimensions that do not join, at sizes that vectors divide and that they do not.
TEST(Elementwise, CopyOfFiveDimensions) {
  Random random(55000);
  for (const DType from : testing::test_dtypes()) {
    for (const DType to : testing::test_dtypes()) {
      for (const std::int64_t width : {3, 8, 64}) {
        Host host;
        const Values values = testing::rounded(random.normals(2 * 3 * 2 * 3 * width), narrower(from, to));
        const auto sliced = [&](DType dtype) {
          return host.poisoned(dtype, {3, 4, 3, 5, width + 8})
              .slice(0, 1, 3)
              .slice(1, 0, 3)
              .slice(2, 1, 3)
              .slice(3, 1, 4)
              .slice(4, 8, 8 + width);
        };
        const Tensor source = sliced(from), target = sliced(to);
        testing::write(source, values);
        copy(host.execution, source, target);
        EXPECT_EQ(testing::read(target), values) << name_of(from) << " to " << name_of(to) << ", width " << width;
      }
    }
  }
}

TEST(Elementwise, CopyOfManyRowsAndOfEverySizeOfElement) {
  Random random(56000);
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    const Values values = testing::rounded(random.normals(testing::many_rows * 8), dtype);
    const testing::Sliced source(host, dtype, 8, 8, values), target(host, dtype, testing::many_rows, 8, 1);
    copy(host.execution, source, target);
    EXPECT_EQ(testing::read(target.part), values);
    target.expect_margins_untouched();
  }
  const auto integers = [&]<class T>(T) {
    Host host;
    std::vector<T> all(6 * 10), expected;
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<T>(i + 1);
    for (const std::size_t row : {1, 2, 3, 4})
      for (std::size_t column = 3; column < 10; ++column) expected.push_back(all[row * 10 + column]);
    const Tensor source = host.integers<T>({6, 10}, all).slice(0, 1, 5).slice(1, 3, 10);
    const Tensor target = host.integers<T>({4, 9}, std::vector<T>(36, T(0)));
    copy(host.execution, source, target.slice(1, 1, 8));
    EXPECT_EQ(testing::read_integers<T>(target.slice(1, 1, 8)), expected);
    EXPECT_EQ(testing::read_integers<T>(target.slice(1, 0, 1)), std::vector<T>(4, T(0)));
    EXPECT_EQ(testing::read_integers<T>(target.slice(1, 8, 9)), std::vector<T>(4, T(0)));
  };
  integers(std::uint8_t{}), integers(std::uint16_t{}), integers(std::int32_t{}), integers(std::int64_t{});
}

}  // namespace
}  // namespace fulmen
