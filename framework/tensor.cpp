// Views: shapes, strides and what can be made of them without moving data.
#include "framework/tensor.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace fulmen {

std::int64_t elements_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor::Tensor(void* data, DType dtype, const Shape& shape, Device device)
    : data_(data), dtype_(dtype), device_(device), rank_(static_cast<int>(shape.size())) {
  FULMEN_CHECK(shape.size() <= max_tensor_rank, "{} has more than {} dimensions", to_string(shape), max_tensor_rank);
  std::int64_t stride = 1;
  for (int d = rank_ - 1; d >= 0; --d) {
    FULMEN_CHECK(shape[d] >= 0, "{} has a negative extent", to_string(shape));
    shape_[d] = shape[d];
    strides_[d] = stride;
    stride *= shape[d];
  }
}

std::size_t Tensor::index(int dimension) const {
  const int d = dimension < 0 ? dimension + rank_ : dimension;
  FULMEN_CHECK(d >= 0 && d < rank_, "dimension {} of {}", dimension, describe());
  return static_cast<std::size_t>(d);
}

std::int64_t Tensor::elements() const {
  if (is_null()) return 0;
  return std::accumulate(shape_.begin(), shape_.begin() + rank_, std::int64_t{1}, std::multiplies<>());
}

bool Tensor::is_contiguous() const {
  if (elements() <= 1) return true;
  std::int64_t expected = 1;
  for (int d = rank_ - 1; d >= 0; --d) {
    if (shape_[d] == 1) continue;
    if (strides_[d] != expected) return false;
    expected *= shape_[d];
  }
  return true;
}

Tensor Tensor::slice(int dimension, std::int64_t begin, std::int64_t end) const {
  const auto d = index(dimension);
  FULMEN_CHECK(0 <= begin && begin <= end && end <= shape_[d], "slice [{}, {}) of dimension {} of {}", begin, end,
               dimension, describe());
  Tensor view = *this;
  view.shape_[d] = end - begin;
  if (data_ != nullptr) {
    view.data_ = static_cast<std::byte*>(data_) + begin * strides_[d] * static_cast<std::int64_t>(size_of(dtype_));
  }
  return view;
}

Tensor Tensor::select(int dimension, std::int64_t position) const {
  const auto d = index(dimension);
  const std::int64_t p = position < 0 ? position + shape_[d] : position;
  FULMEN_CHECK(p >= 0 && p < shape_[d], "position {} in dimension {} of {}", position, dimension, describe());
  Tensor view = slice(dimension, p, p + 1);
  std::copy(view.shape_.begin() + d + 1, view.shape_.end(), view.shape_.begin() + d);
  std::copy(view.strides_.begin() + d + 1, view.strides_.end(), view.strides_.begin() + d);
  --view.rank_;
  return view;
}

Tensor Tensor::transpose() const {
  FULMEN_CHECK(rank_ == 2, "the transpose of {}", describe());
  Tensor view = *this;
  std::swap(view.shape_[0], view.shape_[1]);
  std::swap(view.strides_[0], view.strides_[1]);
  return view;
}

Tensor Tensor::reshape(const Shape& shape) const {
  FULMEN_CHECK(is_contiguous(), "reshape of a strided tensor {}", describe());
  const std::int64_t present =
      std::accumulate(shape_.begin(), shape_.begin() + rank_, std::int64_t{1}, std::multiplies<>());
  FULMEN_CHECK((is_null() && elements_of(shape) == 0) || elements_of(shape) == present, "reshape of {} to {}",
               describe(), to_string(shape));
  return Tensor(data_, dtype_, shape, device_);
}

Tensor Tensor::split_dimension(int dimension, std::int64_t inner) const {
  const auto d = index(dimension);
  FULMEN_CHECK(rank_ < max_tensor_rank, "{} has no room for another dimension", describe());
  FULMEN_CHECK(inner > 0 && shape_[d] % inner == 0, "dimension {} of {} does not split by {}", dimension, describe(),
               inner);
  Tensor view = *this;
  std::copy_backward(shape_.begin() + d, shape_.begin() + rank_, view.shape_.begin() + rank_ + 1);
  std::copy_backward(strides_.begin() + d, strides_.begin() + rank_, view.strides_.begin() + rank_ + 1);
  view.shape_[d] = shape_[d] / inner;
  view.shape_[d + 1] = inner;
  view.strides_[d] = strides_[d] * inner;
  view.strides_[d + 1] = strides_[d];
  ++view.rank_;
  return view;
}

Tensor Tensor::rearrange(const std::vector<int>& dimensions) const {
  FULMEN_CHECK(dimensions.size() <= max_tensor_rank, "{} dimensions for {}", dimensions.size(), describe());
  Tensor view = *this;
  view.rank_ = static_cast<int>(dimensions.size());
  std::int64_t extents = 1;
  for (std::size_t d = 0; d < dimensions.size(); ++d) {
    const bool made = dimensions[d] < 0;
    view.shape_[d] = made ? 1 : shape_[index(dimensions[d])];
    view.strides_[d] = made ? 1 : strides_[index(dimensions[d])];
    extents *= view.shape_[d];
  }
  const std::int64_t present =
      std::accumulate(shape_.begin(), shape_.begin() + rank_, std::int64_t{1}, std::multiplies<>());
  FULMEN_CHECK(extents == present, "{} loses elements as {}", describe(), to_string(view.shape()));
  return view;
}

std::string Tensor::describe() const {
  if (is_null()) return fmt::format("null {} {}", name_of(dtype_), to_string(shape()));
  std::string text = fmt::format("{} {}", name_of(dtype_), to_string(shape()));
  if (!is_contiguous()) {
    text += fmt::format(" strides [{}]", fmt::join(strides_.begin(), strides_.begin() + rank_, ", "));
  }
  return text + (device_.kind == DeviceKind::cpu ? " on cpu" : fmt::format(" on cuda:{}", device_.index));
}

}  // namespace fulmen
