// The transports of the tests of communicators: MPI and host memory, or with FULMEN_TEST_DEVICE=cuda tensors on GPUs.
// With FULMEN_TEST_TRANSPORT=host, the default, all ranks share a GPU; with nccl each has its own. Where GPUs are
// missing, all tests are skipped.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "framework/transfer.h"
#include "tests/mpi_main.h"
#include "tests/parallel/host_tensor.h"

namespace fulmen {

enum class TestTransport : std::uint8_t { mpi, staged, nccl };
TestTransport test_transport();

// All ranks.
Communicator& test_communicator();
// All ranks again; on the host no more elements than this travel at once.
std::unique_ptr<Communicator> test_communicator_in_pieces(std::int64_t largest_count);

// Where the tensors are, and the stream that the operations are given.
const Execution& test_execution();
inline Stream test_stream() { return test_execution().stream; }

// Whether all_reduce and reduce_scatter know the dtype.
bool test_reduces(DType dtype);

// Device memory for tests, kept for use again: allocating it makes the ranks that share a GPU wait for one another.
Buffer take_test_memory(std::size_t bytes);
void give_back_test_memory(Buffer memory);

// The type that a test computes with: the element type itself, float in place of bf16.
template <class T>
using Number = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

// A tensor that holds numbers, on the device of the tests.
template <class T>
class Values {
 public:
  explicit Values(const std::vector<Number<T>>& numbers) : host_(numbers.size()) {
    std::transform(numbers.begin(), numbers.end(), host_.begin(), [](Number<T> x) {
      if constexpr (std::is_same_v<T, BFloat16>)
        return to_bfloat16(x);
      else
        return x;
    });
    const Shape shape = {static_cast<std::int64_t>(numbers.size())};
    const Device device = test_execution().device;
    if (device.kind == DeviceKind::cpu) {
      tensor_ = Tensor(host_.data(), dtype_of<T>, shape);
      return;
    }
    device_memory_ = take_test_memory(host_.size() * sizeof(T));
    tensor_ = Tensor(device_memory_.data(), dtype_of<T>, shape, device);
    copy_to_device(test_execution(), host_.data(), tensor_);
  }
  Values(Values&&) noexcept = default;
  ~Values() {
    if (device_memory_.data() != nullptr) give_back_test_memory(std::move(device_memory_));
  }

  const Tensor& tensor() const { return tensor_; }

  // In the order of the stream of the tests.
  std::vector<Number<T>> read() const {
    std::vector<T> stored(host_.size());
    copy_to_host(test_execution(), tensor_, stored.data());
    std::vector<Number<T>> numbers(stored.size());
    std::transform(stored.begin(), stored.end(), numbers.begin(), [](T x) {
      if constexpr (std::is_same_v<T, BFloat16>)
        return to_float(x);
      else
        return x;
    });
    return numbers;
  }

 private:
  std::vector<T> host_;  // on the CPU the tensor's own memory
  Buffer device_memory_;
  Tensor tensor_;
};

template <class T>
Tensor tensor_of(const Values<T>& values) {
  return values.tensor();
}

}  // namespace fulmen
