// What the kernel tests share: tensors filled from double-precision values, outputs poisoned with NaN, comparisons that
// NaN never passes, and finite differences.
#pragma once

#include <cmath>
#include <cstdlib>
#include <deque>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "framework/execution.h"

namespace fulmen::testing {

using Values = std::vector<double>;

// Fresh inputs in every run. FULMEN_TEST_SEED repeats one; a failure prints it.
inline std::uint64_t run_seed() {
  static const std::uint64_t seed = [] {
    const char* const given = std::getenv("FULMEN_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::uint64_t{std::random_device{}()};
  }();
  return seed;
}

class Random {
 public:
  explicit Random(std::uint64_t stream) : generator_(run_seed() * 1000003 + stream) {}
  double normal() { return std::normal_distribution<double>()(generator_); }
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator_); }
  std::int64_t integer(std::int64_t first, std::int64_t last) {
    return std::uniform_int_distribution<std::int64_t>(first, last)(generator_);
  }
  Values normals(std::int64_t count, double factor = 1.0) {
    Values values(count);
    for (double& value : values) value = factor * normal();
    return values;
  }

 private:
  std::mt19937_64 generator_;
};

namespace detail {
template <class F>
void for_each_offset(const Tensor& x, int dimension, std::int64_t offset, F& f) {
  if (dimension == x.rank()) return f(offset);
  for (std::int64_t i = 0; i < x.size(dimension); ++i)
    for_each_offset(x, dimension + 1, offset + i * x.stride(dimension), f);
}
}  // namespace detail

// Calls f(offset) for every element in row-major order, whatever the strides.
template <class F>
void for_each_offset(const Tensor& x, F&& f) {
  if (x) detail::for_each_offset(x, 0, 0, f);
}

inline void write(const Tensor& x, const Values& values) {
  ASSERT_EQ(static_cast<std::size_t>(x.elements()), values.size());
  std::size_t i = 0;
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    for_each_offset(x, [&](std::int64_t offset) { x.as<T>()[offset] = static_cast<T>(values[i++]); });
  });
}

inline Values read(const Tensor& x) {
  Values values;
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    for_each_offset(x, [&](std::int64_t offset) { values.push_back(static_cast<double>(x.as<T>()[offset])); });
  });
  return values;
}

// The values as the dtype can hold them: what a kernel really sees.
inline Values rounded(Values values, DType dtype) {
  if (dtype == DType::fp32)
    for (double& value : values) value = static_cast<double>(static_cast<float>(value));
  return values;
}

// Owns the tensors of a test and what a kernel needs to run.
class Host {
 public:
  Host() : arena_(Device::cpu(), MemoryKind::workspace, ledger_) {
    execution.scratch = &arena_;
    execution.ledger = &ledger_;
  }

  // Contiguous, every element NaN.
  Tensor poisoned(DType dtype, const Shape& shape) {
    tensors_.emplace_back(Device::cpu(), dtype, shape, MemoryKind::workspace, ledger_);
    const Tensor x = tensors_.back().view();
    dispatch_fp32_fp64(dtype, [&]<class T>(T) {
      std::fill_n(x.as<T>(), x.elements(), std::numeric_limits<T>::quiet_NaN());
    });
    return x;
  }
  Tensor tensor(DType dtype, const Shape& shape, const Values& values) {
    const Tensor x = poisoned(dtype, shape);
    write(x, values);
    return x;
  }
  // A matrix whose rows lie `gap` elements apart, with NaN between them.
  Tensor poisoned_strided(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t gap) {
    return poisoned(dtype, {rows, columns + gap}).slice(1, gap / 2, gap / 2 + columns);
  }
  Tensor strided(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t gap, const Values& values) {
    const Tensor x = poisoned_strided(dtype, rows, columns, gap);
    write(x, values);
    return x;
  }
  template <class T>
  Tensor integers(const Shape& shape, const std::vector<T>& values) {
    tensors_.emplace_back(Device::cpu(), dtype_of<T>, shape, MemoryKind::workspace, ledger_);
    const Tensor x = tensors_.back().view();
    std::copy(values.begin(), values.end(), x.as<T>());
    return x;
  }

  Execution execution;

 private:
  MemoryLedger ledger_;
  Arena arena_;
  std::deque<OwnedTensor> tensors_;
};

// max|actual - expected| / max|expected|; infinite where anything is not finite or the sizes differ. Inputs being of
// order one, a few values may all come out small by cancellation: `least` stands in for a maximum below it.
inline double relative_error(const Values& actual, const Values& expected, double least) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (actual.size() != expected.size()) return infinity;
  double difference = 0, largest = least;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(actual[i]) || !std::isfinite(expected[i])) return infinity;
    difference = std::max(difference, std::abs(actual[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return difference / largest;
}

inline void expect_close(const Values& actual, const Values& expected, double tolerance, const std::string& what,
                         double least = 0.01) {
  EXPECT_LE(relative_error(actual, expected, least), tolerance) << what << ", FULMEN_TEST_SEED=" << run_seed();
}

inline void expect_close(const Tensor& actual, const Values& expected, double tolerance, const std::string& what,
                         double least = 0.01) {
  expect_close(read(actual), expected, tolerance, what, least);
}

// The tolerance against the reference.
inline double tolerance_of(DType dtype) { return dtype == DType::fp64 ? 1e-12 : 1e-5; }

inline double weighted_sum(const Values& weights, const Values& values) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) sum += weights[i] * values[i];
  return sum;
}

// d f / d x by five-point differences, x being nudged in place.
inline Values finite_differences(const Tensor& x, double step, const std::function<double()>& f) {
  Values gradient;
  for_each_offset(x, [&](std::int64_t offset) {
    double& element = x.as<double>()[offset];
    const double middle = element;
    const auto at = [&](double steps) {
      element = middle + steps * step;
      return f();
    };
    gradient.push_back((8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step));
    element = middle;
  });
  return gradient;
}

}  // namespace fulmen::testing
