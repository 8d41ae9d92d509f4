// Checks of the arguments of every communicator, and the transfers of a rank to itself. Internal to parallel/.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace fulmen {

// Throw InternalError when a tensor is not on the device, not contiguous, or does not fit its counterpart.
void check_operand(const Tensor& tensor, const char* operation, Device device = Device::cpu());
void check_reduce_scatter(const Tensor& input, const Tensor& output, int ranks, Device device = Device::cpu());
void check_all_gather(const Tensor& input, const Tensor& output, int ranks, Device device = Device::cpu());
void check_root(int root, int ranks);
void check_transfers(std::span<const Transfer> transfers, int ranks, Device device = Device::cpu());
// Throws InternalError when the stream is another device's: the default stream would not wait for the run's own.
void check_stream(Stream stream, Device device);

// Part `index` of a contiguous tensor cut into equal parts of `part_elements`: a pointer to its first element.
char* part_of(const Tensor& tensor, std::int64_t part_elements, int index);

// Copies a contiguous tensor on the CPU to another of the same bytes; they may be the same memory.
void copy_bytes(const Tensor& from, const Tensor& to);

// The transfers whose peer is `self`, as pairs of a sent tensor and where it is received. The first send goes to the
// first receive, and so on. Throws InternalError when they do not pair up.
std::vector<std::pair<Tensor, Tensor>> transfers_to_self(std::span<const Transfer> transfers, int self);
// Carries them out, on the CPU.
void copy_to_self(std::span<const Transfer> transfers, int self);

}  // namespace fulmen
