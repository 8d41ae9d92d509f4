// Results that a layer keeps of a micro-batch between its forward and backward pass, and results that are made again.
#pragma once

#include <cstdint>
#include <string_view>

#include "framework/tensor.h"

namespace fulmen {

// parallel.recompute: what the backward pass makes again instead of keeping it.
enum class Recompute : std::uint8_t {
  none,
  selective,  // what is large for the operations it took: attention and elementwise results
  full,       // everything but the hidden state that enters each layer
};
std::string_view name_of(Recompute recompute);
Recompute parse_recompute(std::string_view name);

// Up to which Recompute a tensor of a stash stays in memory from forward to backward.
enum class Keep : std::uint8_t {
  always,    // under every Recompute: what backward_weight reads
  products,  // not under full: outputs of matrix products, and what is too small to be worth making again
  all,       // under none only
  remade,    // never: the backward pass writes it again where its gradient stood
  never,     // scratch memory of the forward pass, which no backward pass reads
};
bool keeps(Recompute recompute, Keep keep);

// A tensor of a branch's stash, to which the stage gives memory. That is its own for as long as the micro-batch is in
// flight, or scratch memory of the pass through its layer. Scratch memory is gone at backward_weight.
struct StashTensor {
  Tensor* view;
  DType dtype;
  Shape shape;
  Keep keep;
};

}  // namespace fulmen
