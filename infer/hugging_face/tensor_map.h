// How the tensors of a Hugging Face folder ("released") and the logical tensors of a checkpoint lie in each other. It
// is one list of blocks, read in both directions.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/parameter.h"

namespace fulmen {

// A hyperslab of a tensor.
struct TensorBlock {
  std::string tensor;
  std::vector<std::int64_t> offset;
  Shape extent;
};

// Two blocks with the same elements. Apart from extents of 1, which may stand anywhere, both have the same extents in
// the same order. `transposed` swaps the last two dimensions of the released block.
struct TensorPart {
  TensorBlock released, logical;
  bool transposed = false;
};

// A released tensor that repeats another, such as the head of a model that ties it to the embedding. Import: it may be
// absent, and must otherwise be equal.
struct TensorRepeat {
  std::string released;
  std::string original;  // released, too
  bool written = true;   // by export
};

class TensorMap {
 public:
  explicit TensorMap(std::vector<ParameterDeclaration> declarations);

  // Blocks of a logical tensor.
  TensorBlock whole(const std::string& logical) const;
  // A range of the first dimension.
  TensorBlock rows(const std::string& logical, std::int64_t begin, std::int64_t count) const;
  // From a stack [items, rows, columns]: all rows of an item, or some.
  TensorBlock item(const std::string& logical, std::int64_t index) const;
  TensorBlock item_rows(const std::string& logical, std::int64_t index, std::int64_t begin, std::int64_t count) const;

  // A released tensor that holds this block and nothing else. It has the block's own dimensions (transposed: the last
  // two of them swapped), or, for an item of a stack, the item's.
  void add(const std::string& released, const TensorBlock& logical, bool transposed = false);
  void add_item(const std::string& released, const TensorBlock& logical, bool transposed = false);
  // Any block of a released tensor. Its shape is where its blocks end.
  void add(TensorPart part);
  // Each logical tensor that is not in the map yet, whole, under its own name or another.
  void add_others(const std::function<std::string(const std::string&)>& released_name = {});
  void add_repeat(TensorRepeat repeat);
  // Released tensors that hold no parameter (slopes, frequencies), by the end of their names. Import passes over them
  // with a line that names them; export does not write them.
  void pass_over(const std::string& name_end);

  // Throws InternalError unless the blocks cover each logical and each released tensor once.
  void check() const;

  const std::vector<ParameterDeclaration>& declarations() const { return declarations_; }
  const std::vector<TensorRepeat>& repeats() const { return repeats_; }
  // In the order in which export writes them.
  const std::vector<std::string>& released() const { return released_; }
  const Shape& released_shape(const std::string& released) const;
  bool has_released(const std::string& released) const { return shape_of_.contains(released); }
  std::vector<TensorPart> parts_of_released(const std::string& released) const;
  std::vector<TensorPart> parts_of_logical(const std::string& logical) const;
  const Shape& logical_shape(const std::string& logical) const;
  // The narrowest dtype of a released tensor: the widest that a parameter of it asks for.
  DType narrowest(const std::string& released) const;
  // The entry of pass_over that a name ends with, or null.
  const std::string* passed_over(const std::string& released) const;

 private:
  std::vector<ParameterDeclaration> declarations_;
  std::map<std::string, Shape> logical_;
  std::map<std::string, DType> narrowest_;
  std::vector<TensorPart> parts_;
  std::vector<std::string> released_;
  std::map<std::string, Shape> shape_of_;                           // of released tensors
  std::map<std::string, std::vector<std::size_t>> with_, holding_;  // parts by released and by logical name
  std::vector<TensorRepeat> repeats_;
  std::vector<std::string> passed_over_;
};

// The part's share of the hyperslab of a logical tensor at `offset`, in `memory`. It is the same memory with the
// released tensor's dimensions, and where it lies there. Null memory: nothing.
struct ReleasedPiece {
  std::vector<std::int64_t> offset;
  Tensor memory;
};
ReleasedPiece released_piece(const TensorPart& part, const std::vector<std::int64_t>& offset, const Tensor& memory);

}  // namespace fulmen
