// A tensor is a view: pointer, dtype, device, shape and strides. Copying one copies no data and owns nothing.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "framework/device.h"
#include "framework/dtype.h"
#include "framework/error.h"
#include "framework/memory.h"

namespace fulmen {

inline constexpr int max_tensor_rank = 5;

// A list of extents, at most max_tensor_rank of them.
using Shape = std::vector<std::int64_t>;
std::int64_t elements_of(const Shape& shape);
std::string to_string(const Shape& shape);  // "[2, 70, 64]"

class Tensor {
 public:
  Tensor() = default;  // null: no data, zero elements
  // A contiguous, row-major view of memory owned elsewhere.
  Tensor(void* data, DType dtype, const Shape& shape, Device device = Device::cpu());

  bool is_null() const { return data_ == nullptr; }
  explicit operator bool() const { return data_ != nullptr; }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int rank() const { return rank_; }
  std::int64_t size(int dimension) const { return shape_[index(dimension)]; }      // negative counts from the end
  std::int64_t stride(int dimension) const { return strides_[index(dimension)]; }  // in elements
  Shape shape() const { return Shape(shape_.begin(), shape_.begin() + rank_); }
  std::int64_t elements() const;
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype_); }
  bool is_contiguous() const;

  // Typed pointer to the first element. Checks the dtype.
  template <class T>
  T* as() const {
    FULMEN_CHECK(is_null() || dtype_ == dtype_of<T>, "tensor holds {}, asked for {}", name_of(dtype_),
                 name_of(dtype_of<T>));
    return static_cast<T*>(data_);
  }

  // Views of the same memory.
  Tensor slice(int dimension, std::int64_t begin, std::int64_t end) const;
  Tensor select(int dimension, std::int64_t position) const;  // drops the dimension
  Tensor reshape(const Shape& shape) const;                   // contiguous tensors only
  Tensor transpose() const;                                   // of a matrix
  // Splits a dimension into [size / inner, inner]; works on strided views.
  Tensor split_dimension(int dimension, std::int64_t inner) const;
  // Dimension d of the view is dimensions[d] of this tensor, or, where that is -1, a new dimension of extent 1. Those
  // that are left out must have the extent 1.
  Tensor rearrange(const std::vector<int>& dimensions) const;
  Tensor flatten() const { return reshape({elements()}); }

  std::string describe() const;  // "fp32 [2, 70, 64] on cpu"

 private:
  std::size_t index(int dimension) const;

  void* data_ = nullptr;
  DType dtype_ = DType::fp32;
  Device device_;
  int rank_ = 0;
  std::array<std::int64_t, max_tensor_rank> shape_{};
  std::array<std::int64_t, max_tensor_rank> strides_{};
};

// A contiguous tensor with memory of its own, zeroed at first. Move-only.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(Device device, DType dtype, const Shape& shape, MemoryKind kind, MemoryLedger& ledger)
      : buffer_(device, static_cast<std::size_t>(elements_of(shape)) * size_of(dtype), kind, ledger),
        view_(buffer_.data(), dtype, shape, device) {}

  const Tensor& view() const { return view_; }
  operator Tensor() const { return view_; }  // NOLINT: an owner is readily seen through

 private:
  Buffer buffer_;
  Tensor view_;
};

}  // namespace fulmen
