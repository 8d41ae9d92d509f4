// A family of declarations with all that a placement can say: experts, a pool, copies of key heads, a norm's gain.
#pragma once

#include <algorithm>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "model/parameter.h"
#include "model/parameter_pieces.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen::placement_family {

constexpr int layers = 2;

inline double initial_value(const RandomStream& random, std::int64_t index) {
  return random.normal(static_cast<std::uint64_t>(index));
}

// q, k and v: eight heads of queries, two of keys and values, which may be fewer than the tensor ranks.
inline ParameterDeclaration declare_projection(const std::string& prefix) {
  ParameterDeclaration qkv = declare_weight(prefix + "qkv", {24, 12}, initial_value, 0, 8);
  qkv.tensors = {{prefix + "q", {24, 12}, initial_value},
                 {prefix + "k", {6, 12}, initial_value},
                 {prefix + "v", {6, 12}, initial_value}};
  qkv.segments = {{prefix + "q", 0, 24, 8}, {prefix + "k", 0, 6, 2, true}, {prefix + "v", 0, 6, 2, true}};
  return qkv;
}

// A short convolution over the heads' channels and the channels of one group, which all ranks hold.
inline ParameterDeclaration declare_convolution(const std::string& prefix) {
  ParameterDeclaration convolution = declare_vector(prefix + "convolution", {16, 1, 4}, initial_value, 8);
  convolution.tensors = {{prefix + "convolution.x", {16, 1, 4}, initial_value},
                         {prefix + "convolution.b", {3, 1, 4}, initial_value}};
  convolution.segments = {{prefix + "convolution.x", 0, 16, 8}, {prefix + "convolution.b", 0, 3, 1, true}};
  return convolution;
}

inline ParameterDeclaration declare_gate_and_up(const std::string& prefix) {
  ParameterDeclaration stack = declare_stack(prefix + "experts.up", {4, 14, 12}, initial_value, 0, 7, Axis::expert);
  stack.segments = {{prefix + "experts.up", 0, 7, 7}, {prefix + "experts.up", 7, 7, 7}};
  return stack;
}

inline std::vector<ParameterDeclaration> declare_layer(std::int64_t layer) {
  const std::string prefix = fmt::format("{}.", layer);
  std::vector<ParameterDeclaration> list;
  list.push_back(declare_vector(prefix + "gain", {12}, initial_value, 0));
  list.back().place(Axis::tensor, AxisPlacement::with_tokens);
  list.push_back(declare_vector(prefix + "decay", {8}, initial_value, 8));
  list.push_back(declare_projection(prefix));
  list.push_back(declare_vector(prefix + "bias", {5}, initial_value, 0));
  list.back().place(Axis::tensor, AxisPlacement::replicated_partial);
  list.push_back(declare_convolution(prefix));
  list.push_back(declare_weight(prefix + "out", {12, 24}, initial_value, 1, 8));
  list.push_back(declare_weight(prefix + "router", {4, 12}, initial_value, 0, 0));
  list.back().place(Axis::tensor, AxisPlacement::with_tokens);
  list.push_back(declare_gate_and_up(prefix));
  list.push_back(declare_stack(prefix + "experts.down", {4, 12, 7}, initial_value, 1, 7, Axis::expert));
  for (ParameterDeclaration& declaration : list) declaration.layer = layer;
  return list;
}

// For a pipeline of one or two stages with as many layers each.
inline std::vector<ParameterDeclaration> declare_family(int stages, int stage) {
  std::vector<ParameterDeclaration> list;
  list.push_back(declare_weight("embedding", {37, 12}, initial_value, 0, 37));
  list.back().padded = true;
  list.push_back(declare_pool("pool", {16, 8}, initial_value, 1, Axis::memory));
  list.back().group.clip_group = "pool";
  list.back().group.learning_rate_scale = 3.0;
  if (stages > 1)
    for (ParameterDeclaration& declaration : list) {
      declaration.place(Axis::pipeline, AxisPlacement::shared);
      declaration.shared_stages = {0, stages - 1};
    }
  for (int layer = stage * layers / stages; layer < (stage + 1) * layers / stages; ++layer)
    std::ranges::move(declare_layer(layer), std::back_inserter(list));
  if (stage + 1 < stages) return list;
  list.push_back(declare_vector("final.gain", {12}, initial_value, 0));
  list.back().place(Axis::tensor, AxisPlacement::with_tokens);
  return list;
}

inline std::map<std::string, Shape> logical_tensors() {
  std::map<std::string, Shape> shapes;
  for (const ParameterDeclaration& declaration : declare_family(1, 0))
    for (const LogicalTensor& tensor : declaration.tensors) shapes[tensor.name] = tensor.shape;
  return shapes;
}

// Calls f(tensor's place, element) for each element of a piece.
template <class F>
void for_each_element(const ParameterPiece& piece, F&& f) {
  std::int64_t local = 0;
  testing::for_each_offset(
      piece.memory, [&](std::int64_t offset) { f(global_index(piece, local++), piece.memory.as<double>()[offset]); });
}

}  // namespace fulmen::placement_family
