// Shared by the kernel tests: tensors filled from double-precision values, outputs poisoned with NaN, comparisons that
// NaN never passes, finite differences. With FULMEN_TEST_DEVICE=cuda the tests run on GPU 0, or are all skipped where
// there is none.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "framework/execution.h"
#include "framework/gpu.h"

namespace fulmen::testing {

using Values = std::vector<double>;

// Fresh inputs in every run. FULMEN_TEST_SEED repeats a run; a failure prints it.
inline std::uint64_t run_seed() {
  static const std::uint64_t seed = [] {
    const char* const given = std::getenv("FULMEN_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::uint64_t{std::random_device{}()};
  }();
  return seed;
}

// Under a sanitizer, which slows a test a hundredfold: the same kernels on the same shapes, fewer times.
inline bool few_repetitions() { return std::getenv("FULMEN_TEST_FEW_REPETITIONS") != nullptr; }

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

// Where the tests run: FULMEN_TEST_DEVICE is cpu (the default) or cuda, which is GPU 0.
inline Device test_device() {
  static const Device device = [] {
    const char* const given = std::getenv("FULMEN_TEST_DEVICE");
    const std::string name = given != nullptr ? given : "cpu";
    FULMEN_CHECK(name == "cpu" || name == "cuda", "FULMEN_TEST_DEVICE is '{}', expected cpu or cuda", name);
    return name == "cuda" ? Device::cuda(0) : Device::cpu();
  }();
  return device;
}
inline bool on_gpu() { return test_device().kind == DeviceKind::cuda; }

// In a test that has nothing to say about a GPU.
#define FULMEN_CPU_ONLY(reason) \
  if (::fulmen::testing::on_gpu()) GTEST_SKIP() << (reason)

// The dtypes in which kernels compute on the device of the tests.
inline const std::vector<DType>& test_dtypes() {
  static const std::vector<DType> dtypes =
      on_gpu() ? std::vector{DType::fp64, DType::fp32, DType::bf16} : std::vector{DType::fp64, DType::fp32};
  return dtypes;
}

// The stream, arena and ledger of all tests on the GPU. Never destroyed: the CUDA runtime may be gone by then.
inline ExecutionResources& gpu_resources() {
  static ExecutionResources& resources = *new ExecutionResources(test_device());
  return resources;
}

namespace detail {

// Skips all tests of the program where the GPU that they should run on is missing. CTest looks for the line it prints.
class DeviceEnvironment final : public ::testing::Environment {
 public:
  void SetUp() override {
    if (!on_gpu()) return;
    const std::string reason = gpu::unavailable_reason();
    if (reason.empty()) return;
    std::printf("No test was run, no GPU: %s\n", reason.c_str());
    GTEST_SKIP() << reason;
  }
};
inline ::testing::Environment* const device_environment = ::testing::AddGlobalTestEnvironment(new DeviceEnvironment);

template <class F>
decltype(auto) dispatch_floating(DType dtype, F&& f) {
  return dtype == DType::bf16 ? f(BFloat16{}) : dispatch_fp32_fp64(dtype, f);
}

template <class T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return to_bfloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

template <class T>
double as_double(T value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return to_float(value);
  else
    return static_cast<double>(value);
}

// The elements between a strided tensor's first and last, both included: what passes between host and device.
inline std::size_t span_of(const Tensor& x) {
  if (x.elements() == 0) return 0;
  std::int64_t last = 0;
  for (int i = 0; i < x.rank(); ++i) last += (x.size(i) - 1) * x.stride(i);
  return static_cast<std::size_t>(last) + 1;
}

template <class T>
std::vector<T> copy_of_span(const Tensor& x) {
  std::vector<T> host(span_of(x));
  if (x.device().kind == DeviceKind::cpu) {
    std::copy_n(x.as<T>(), host.size(), host.data());
  } else {
    gpu::copy(gpu_resources().execution().stream, host.data(), x.as<T>(), host.size() * sizeof(T));
    gpu::synchronize(gpu_resources().execution().stream);
  }
  return host;
}

inline void copy_bytes_to(const Tensor& x, const void* host, std::size_t bytes) {
  if (x.device().kind == DeviceKind::cpu) {
    if (bytes > 0) std::memcpy(x.data(), host, bytes);
  } else {
    gpu::copy(gpu_resources().execution().stream, x.data(), host, bytes);
    gpu::synchronize(gpu_resources().execution().stream);
  }
}

}  // namespace detail

// Rounds to the tensor's dtype. Other memory within a strided tensor stays.
inline void write(const Tensor& x, const Values& values) {
  ASSERT_EQ(static_cast<std::size_t>(x.elements()), values.size());
  if (x.elements() == 0) return;
  detail::dispatch_floating(x.dtype(), [&]<class T>(T) {
    std::vector<T> host = detail::copy_of_span<T>(x);
    std::size_t i = 0;
    for_each_offset(
        x, [&](std::int64_t offset) { host[static_cast<std::size_t>(offset)] = detail::from_double<T>(values[i++]); });
    detail::copy_bytes_to(x, host.data(), host.size() * sizeof(T));
  });
}

inline Values read(const Tensor& x) {
  Values values;
  if (x.elements() == 0) return values;
  detail::dispatch_floating(x.dtype(), [&]<class T>(T) {
    const std::vector<T> host = detail::copy_of_span<T>(x);
    for_each_offset(
        x, [&](std::int64_t offset) { values.push_back(detail::as_double(host[static_cast<std::size_t>(offset)])); });
  });
  return values;
}

template <class T>
std::vector<T> read_integers(const Tensor& x) {
  std::vector<T> values;
  const std::vector<T> host = detail::copy_of_span<T>(x);
  for_each_offset(x, [&](std::int64_t offset) { values.push_back(host[static_cast<std::size_t>(offset)]); });
  return values;
}

// The values as the dtype can hold them: what a kernel really sees.
inline Values rounded(Values values, DType dtype) {
  detail::dispatch_floating(dtype, [&]<class T>(T) {
    for (double& value : values) value = detail::as_double(detail::from_double<T>(value));
  });
  return values;
}

// Owns the tensors of a test and what a kernel needs to run, on the device of the tests.
class Host {
 public:
  Host() {
    if (!on_gpu()) own_ = std::make_unique<ExecutionResources>(Device::cpu());
    execution = resources().execution();
  }

  // Contiguous, every element NaN.
  Tensor poisoned(DType dtype, const Shape& shape) {
    FULMEN_CHECK(is_floating(dtype), "{} knows no NaN", name_of(dtype));
    const Tensor x = allocate(dtype, shape);
    const std::vector<unsigned char> ones(x.bytes(), 0xff);  // a NaN in each of the dtypes
    detail::copy_bytes_to(x, ones.data(), ones.size());
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
    const Tensor x = allocate(dtype_of<T>, shape);
    FULMEN_CHECK(static_cast<std::size_t>(x.elements()) == values.size(), "{} values for {}", values.size(),
                 x.describe());
    detail::copy_bytes_to(x, values.data(), x.bytes());
    return x;
  }

  Execution execution;

 private:
  ExecutionResources& resources() { return own_ ? *own_ : gpu_resources(); }
  Tensor allocate(DType dtype, const Shape& shape) {
    tensors_.emplace_back(test_device(), dtype, shape, MemoryKind::workspace, resources().ledger());
    return tensors_.back().view();
  }

  std::unique_ptr<ExecutionResources> own_;  // on the CPU
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
inline double tolerance_of(DType dtype) { return dtype == DType::fp64 ? 1e-12 : dtype == DType::bf16 ? 1e-2 : 1e-5; }

inline double weighted_sum(const Values& weights, const Values& values) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) sum += weights[i] * values[i];
  return sum;
}

// d f / d x by five-point differences, x (fp64) being nudged in place.
inline Values finite_differences(const Tensor& x, double step, const std::function<double()>& f) {
  Values gradient;
  for_each_offset(x, [&](std::int64_t offset) {
    const Tensor element(x.as<double>() + offset, DType::fp64, {1}, x.device());
    const double middle = read(element)[0];
    const auto at = [&](double steps) {
      write(element, {middle + steps * step});
      return f();
    };
    gradient.push_back((8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step));
    write(element, {middle});
  });
  return gradient;
}

}  // namespace fulmen::testing
