// Blocks of released and of logical tensors.
#include "infer/hugging_face/tensor_map.h"

#include <algorithm>
#include <numeric>

namespace fulmen {

namespace {

// For each dimension of the released block its logical dimension, or -1 where its extent is 1.
std::vector<int> logical_dimensions(const TensorPart& part) {
  const Shape &released = part.released.extent, &logical = part.logical.extent;
  std::vector<int> order(released.size());
  std::iota(order.begin(), order.end(), 0);
  FULMEN_CHECK(!part.transposed || order.size() >= 2, "{} has nothing to transpose", part.released.tensor);
  if (part.transposed) std::swap(order[order.size() - 1], order[order.size() - 2]);
  std::vector<int> dimensions(released.size(), -1);
  std::size_t next = 0;
  const auto skip_ones = [&] {
    while (next < logical.size() && logical[next] == 1) ++next;
  };
  for (const int d : order) {
    if (released[d] == 1) continue;
    skip_ones();
    FULMEN_CHECK(next < logical.size() && logical[next] == released[d], "{} {} is no block of {} {}",
                 part.released.tensor, to_string(released), part.logical.tensor, to_string(logical));
    dimensions[d] = static_cast<int>(next++);
  }
  skip_ones();
  FULMEN_CHECK(next == logical.size(), "{} {} is no block of {} {}", part.released.tensor, to_string(released),
               part.logical.tensor, to_string(logical));
  return dimensions;
}

bool overlap(const TensorBlock& a, const TensorBlock& b) {
  for (std::size_t d = 0; d < a.offset.size(); ++d)
    if (a.offset[d] + a.extent[d] <= b.offset[d] || b.offset[d] + b.extent[d] <= a.offset[d]) return false;
  return true;
}

// Throws InternalError unless the blocks of a tensor cover each of its elements once.
void check_cover(const std::string& tensor, const Shape& shape, const std::vector<TensorBlock>& blocks) {
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const TensorBlock& block = blocks[i];
    FULMEN_CHECK(block.offset.size() == shape.size() && block.extent.size() == shape.size(),
                 "a block of {} has other dimensions than {}", tensor, to_string(shape));
    for (std::size_t d = 0; d < shape.size(); ++d)
      FULMEN_CHECK(block.offset[d] >= 0 && block.extent[d] > 0 && block.offset[d] + block.extent[d] <= shape[d],
                   "a block {} of {} ends outside {}", to_string(block.extent), tensor, to_string(shape));
    for (std::size_t j = 0; j < i; ++j) FULMEN_CHECK(!overlap(block, blocks[j]), "two blocks of {} overlap", tensor);
    elements += elements_of(block.extent);
  }
  FULMEN_CHECK(elements == elements_of(shape), "{} of the {} elements of {} are mapped", elements, elements_of(shape),
               tensor);
}

}  // namespace

TensorMap::TensorMap(std::vector<ParameterDeclaration> declarations) : declarations_(std::move(declarations)) {
  for (const ParameterDeclaration& declaration : declarations_)
    for (const LogicalTensor& tensor : declaration.tensors) {
      logical_[tensor.name] = tensor.shape;
      narrowest_[tensor.name] = declaration.group.narrowest;
    }
}

TensorBlock TensorMap::whole(const std::string& logical) const {
  const Shape& shape = logical_shape(logical);
  return {logical, std::vector<std::int64_t>(shape.size(), 0), shape};
}

TensorBlock TensorMap::rows(const std::string& logical, std::int64_t begin, std::int64_t count) const {
  TensorBlock block = whole(logical);
  block.offset.at(0) = begin;
  block.extent.at(0) = count;
  return block;
}

TensorBlock TensorMap::item(const std::string& logical, std::int64_t index) const { return rows(logical, index, 1); }

TensorBlock TensorMap::item_rows(const std::string& logical, std::int64_t index, std::int64_t begin,
                                 std::int64_t count) const {
  TensorBlock block = item(logical, index);
  block.offset.at(1) = begin;
  block.extent.at(1) = count;
  return block;
}

void TensorMap::add(const std::string& released, const TensorBlock& logical, bool transposed) {
  Shape extent = logical.extent;
  if (transposed && extent.size() >= 2) std::swap(extent[extent.size() - 1], extent[extent.size() - 2]);
  add({{released, std::vector<std::int64_t>(extent.size(), 0), extent}, logical, transposed});
}

void TensorMap::add_item(const std::string& released, const TensorBlock& logical, bool transposed) {
  FULMEN_CHECK(logical.extent.size() > 1 && logical.extent[0] == 1, "{} is no item", to_string(logical.extent));
  Shape extent(logical.extent.begin() + 1, logical.extent.end());
  if (transposed && extent.size() >= 2) std::swap(extent[extent.size() - 1], extent[extent.size() - 2]);
  add({{released, std::vector<std::int64_t>(extent.size(), 0), extent}, logical, transposed});
}

void TensorMap::add(TensorPart part) {
  logical_shape(part.logical.tensor);
  logical_dimensions(part);
  const TensorBlock& block = part.released;
  auto [found, first] = shape_of_.try_emplace(block.tensor, block.extent.size(), 0);
  if (first) released_.push_back(block.tensor);
  for (std::size_t d = 0; d < std::min(block.offset.size(), found->second.size()); ++d)
    found->second[d] = std::max(found->second[d], block.offset[d] + block.extent[d]);
  with_[block.tensor].push_back(parts_.size());
  holding_[part.logical.tensor].push_back(parts_.size());
  parts_.push_back(std::move(part));
}

void TensorMap::add_others(const std::function<std::string(const std::string&)>& released_name) {
  for (const ParameterDeclaration& declaration : declarations_)
    for (const LogicalTensor& tensor : declaration.tensors)
      if (!holding_.contains(tensor.name))
        add(released_name ? released_name(tensor.name) : tensor.name, whole(tensor.name));
}

void TensorMap::add_repeat(TensorRepeat repeat) { repeats_.push_back(std::move(repeat)); }

void TensorMap::pass_over(const std::string& name_end) { passed_over_.push_back(name_end); }

void TensorMap::check() const {
  for (const auto& [logical, shape] : logical_) {
    std::vector<TensorBlock> blocks;
    for (const TensorPart& part : parts_of_logical(logical)) blocks.push_back(part.logical);
    check_cover(logical, shape, blocks);
  }
  for (const auto& [released, shape] : shape_of_) {
    std::vector<TensorBlock> blocks;
    for (const TensorPart& part : parts_of_released(released)) blocks.push_back(part.released);
    check_cover(released, shape, blocks);
  }
  for (const TensorRepeat& repeat : repeats_)
    FULMEN_CHECK(has_released(repeat.original) && !has_released(repeat.released), "{} cannot repeat {}",
                 repeat.released, repeat.original);
}

const Shape& TensorMap::released_shape(const std::string& released) const { return shape_of_.at(released); }

std::vector<TensorPart> TensorMap::parts_of_released(const std::string& released) const {
  std::vector<TensorPart> parts;
  if (const auto found = with_.find(released); found != with_.end())
    for (const std::size_t part : found->second) parts.push_back(parts_[part]);
  return parts;
}

std::vector<TensorPart> TensorMap::parts_of_logical(const std::string& logical) const {
  std::vector<TensorPart> parts;
  if (const auto found = holding_.find(logical); found != holding_.end())
    for (const std::size_t part : found->second) parts.push_back(parts_[part]);
  return parts;
}

const Shape& TensorMap::logical_shape(const std::string& logical) const {
  const auto found = logical_.find(logical);
  FULMEN_CHECK(found != logical_.end(), "the model has no tensor {}", logical);
  return found->second;
}

DType TensorMap::narrowest(const std::string& released) const {
  DType widest = DType::bf16;
  for (const TensorPart& part : parts_of_released(released)) {
    const DType asked = narrowest_.at(part.logical.tensor);
    if (size_of(asked) > size_of(widest)) widest = asked;
  }
  return widest;
}

const std::string* TensorMap::passed_over(const std::string& released) const {
  const auto found = std::ranges::find_if(passed_over_, [&](const auto& end) { return released.ends_with(end); });
  return found == passed_over_.end() ? nullptr : &*found;
}

ReleasedPiece released_piece(const TensorPart& part, const std::vector<std::int64_t>& offset, const Tensor& memory) {
  const TensorBlock &logical = part.logical, &released = part.released;
  Tensor common = memory;
  std::vector<std::int64_t> from_block(offset.size());  // where the common elements begin in the logical block
  for (std::size_t d = 0; d < offset.size(); ++d) {
    const auto dimension = static_cast<int>(d);
    const std::int64_t begin = std::max(offset[d], logical.offset[d]);
    const std::int64_t end = std::min(offset[d] + memory.size(dimension), logical.offset[d] + logical.extent[d]);
    if (begin >= end) return {};
    common = common.slice(dimension, begin - offset[d], end - offset[d]);
    from_block[d] = begin - logical.offset[d];
  }
  const std::vector<int> dimensions = logical_dimensions(part);
  ReleasedPiece piece{released.offset, common.rearrange(dimensions)};
  for (std::size_t d = 0; d < dimensions.size(); ++d)
    if (dimensions[d] >= 0) piece.offset[d] += from_block[static_cast<std::size_t>(dimensions[d])];
  return piece;
}

}  // namespace fulmen
