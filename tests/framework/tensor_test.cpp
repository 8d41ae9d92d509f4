// Views: every element that a slice, select or split reaches is the element that index arithmetic says.
#include "framework/tensor.h"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

std::vector<double> counting(std::int64_t n) {
  std::vector<double> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), 0.0);
  return values;
}

// The elements of a view of doubles, in row-major order.
std::vector<double> elements(const Tensor& tensor) {
  if (tensor.rank() == 0) return {*tensor.as<double>()};
  std::vector<double> all;
  for (std::int64_t i = 0; i < tensor.size(0); ++i) {
    const auto part = elements(tensor.select(0, i));
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

TEST(Tensor, ContiguousLayout) {
  auto values = counting(2 * 3 * 5);
  const Tensor t(values.data(), DType::fp64, {2, 3, 5});
  EXPECT_EQ(t.rank(), 3);
  EXPECT_EQ(t.elements(), 30);
  EXPECT_EQ(t.bytes(), 240u);
  EXPECT_EQ(t.size(-1), 5);
  EXPECT_EQ(t.stride(0), 15);
  EXPECT_EQ(t.stride(-1), 1);
  EXPECT_TRUE(t.is_contiguous());
  EXPECT_EQ(elements(t), values);
  EXPECT_EQ(t.describe(), "fp64 [2, 3, 5] on cpu");
  EXPECT_THROW(t.size(3), InternalError);
  EXPECT_THROW(t.as<float>(), InternalError);
  EXPECT_THROW(Tensor(values.data(), DType::fp64, {1, 1, 1, 1, 1, 1}), InternalError);
  EXPECT_THROW(Tensor(values.data(), DType::fp64, {-1}), InternalError);
}

TEST(Tensor, SliceReachesTheRightElements) {
  auto values = counting(4 * 6);
  const Tensor t(values.data(), DType::fp64, {4, 6});
  const Tensor columns = t.slice(1, 2, 5);
  EXPECT_EQ(columns.shape(), (Shape{4, 3}));
  EXPECT_EQ(columns.stride(0), 6);
  EXPECT_FALSE(columns.is_contiguous());
  EXPECT_EQ(elements(columns), (std::vector<double>{2, 3, 4, 8, 9, 10, 14, 15, 16, 20, 21, 22}));
  const Tensor rows = t.slice(-2, 1, 3);
  EXPECT_TRUE(rows.is_contiguous());
  EXPECT_EQ(rows.as<double>(), values.data() + 6);
  EXPECT_EQ(t.slice(0, 2, 2).elements(), 0);
  EXPECT_TRUE(columns.slice(0, 1, 2).is_contiguous());  // one row of it
  EXPECT_THROW(t.slice(1, 2, 7), InternalError);
  EXPECT_THROW(t.slice(1, 3, 2), InternalError);
  EXPECT_THROW(t.slice(1, -1, 2), InternalError);
}

TEST(Tensor, SelectDropsTheDimension) {
  auto values = counting(2 * 3 * 4);
  const Tensor t(values.data(), DType::fp64, {2, 3, 4});
  EXPECT_EQ(elements(t.select(1, 2)), (std::vector<double>{8, 9, 10, 11, 20, 21, 22, 23}));
  EXPECT_EQ(elements(t.select(2, -1)), (std::vector<double>{3, 7, 11, 15, 19, 23}));
  EXPECT_EQ(t.select(0, 1).select(0, 1).select(0, 1).rank(), 0);
  EXPECT_EQ(*t.select(0, 1).select(0, 1).select(0, 1).as<double>(), 17.0);
  EXPECT_THROW(t.select(0, 2), InternalError);
}

TEST(Tensor, ReshapeNeedsContiguousMemoryAndEqualCounts) {
  auto values = counting(24);
  const Tensor t(values.data(), DType::fp64, {4, 6});
  EXPECT_EQ(t.reshape({2, 3, 4}).shape(), (Shape{2, 3, 4}));
  EXPECT_EQ(t.flatten().shape(), Shape{24});
  EXPECT_EQ(t.slice(0, 1, 3).flatten().as<double>(), values.data() + 6);
  EXPECT_THROW(t.reshape({5, 5}), InternalError);
  EXPECT_THROW(t.slice(1, 0, 3).flatten(), InternalError);
  EXPECT_EQ(t.slice(1, 0, 0).reshape({0, 7}).elements(), 0);
}

TEST(Tensor, SplitDimensionWorksOnStridedViews) {
  auto values = counting(3 * 10);
  const Tensor strided = Tensor(values.data(), DType::fp64, {3, 10}).slice(1, 2, 8);  // [3, 6], stride 10
  const Tensor heads = strided.split_dimension(-1, 2);
  EXPECT_EQ(heads.shape(), (Shape{3, 3, 2}));
  EXPECT_EQ(elements(heads), elements(strided));
  EXPECT_EQ(*heads.select(0, 2).select(0, 1).select(0, 1).as<double>(), 25.0);
  const Tensor batches = strided.split_dimension(0, 3);
  EXPECT_EQ(batches.shape(), (Shape{1, 3, 6}));
  EXPECT_EQ(elements(batches), elements(strided));
  EXPECT_THROW(strided.split_dimension(1, 4), InternalError);
  EXPECT_THROW(strided.split_dimension(1, 0), InternalError);
}

TEST(Tensor, NullHasNoElements) {
  const Tensor null;
  EXPECT_TRUE(null.is_null());
  EXPECT_FALSE(static_cast<bool>(null));
  EXPECT_EQ(null.elements(), 0);
  EXPECT_EQ(null.as<float>(), nullptr);
}

TEST(Tensor, OwnedTensorIsZeroedAligned) {
  MemoryLedger ledger;
  OwnedTensor owned(Device::cpu(), DType::fp32, {7, 11}, MemoryKind::weights, ledger);
  const Tensor view = owned;
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data()) % 256, 0u);
  for (std::int64_t i = 0; i < view.elements(); ++i) EXPECT_EQ(view.as<float>()[i], 0.0f);
  EXPECT_EQ(ledger.current(MemoryKind::weights), 7u * 11u * 4u);
  const OwnedTensor moved = std::move(owned);
  EXPECT_EQ(moved.view().data(), view.data());
}

}  // namespace
}  // namespace fulmen
