// What every CPU communicator demands of its arguments, and the transfers of a rank to itself. Internal to parallel/.
#pragma once

#include <span>

#include "parallel/communicator.h"

namespace fulmen {

// Throw InternalError when a tensor is not on the CPU, not contiguous, or does not fit its counterpart.
void check_operand(const Tensor& tensor, const char* operation);
void check_reduce_scatter(const Tensor& input, const Tensor& output, int ranks);
void check_all_gather(const Tensor& input, const Tensor& output, int ranks);
void check_root(int root, int ranks);
void check_transfers(std::span<const Transfer> transfers, int ranks);

// Part `index` of a contiguous tensor cut into equal parts of `part_elements`: a pointer to its first element.
char* part_of(const Tensor& tensor, std::int64_t part_elements, int index);

// Copies a contiguous tensor to another of the same bytes; they may be the same memory.
void copy_bytes(const Tensor& from, const Tensor& to);

// Carries out the transfers whose peer is `self`: the first send goes to the first receive, and so on. Throws
// InternalError when they do not pair up.
void copy_to_self(std::span<const Transfer> transfers, int self);

}  // namespace fulmen
