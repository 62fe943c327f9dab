// The kernels whose weights are the softmax of dot products.
#pragma once

#include "interface.h"

#include <cstdint>

// The biases of all heads as an instruction set wants them, and sums of a thread for their gradients.
struct PairwiseBias {
  const float* packed;
  float* sums;
};

// Some units, each a head of a place; 0 if it is done, 1 if memory ran out.
using PairwiseKernel = int (*)(const PairwiseProblem*, const PairwiseBias*, int64_t begin, int64_t end);

// How many floats the bias is when packed; how that of some heads is packed, and unpacked from sums, added to of_bias.
using PairwiseSize = int64_t (*)(const PairwiseProblem*);
using PairwisePack = void (*)(const PairwiseProblem*, float* packed, int64_t begin, int64_t end);
using PairwiseUnpack = void (*)(const PairwiseProblem*, const float* sums, int64_t begin, int64_t end);

struct PairwiseKernels {
  PairwiseKernel forward, backward;
  PairwiseSize size;
  PairwisePack pack;
  PairwiseUnpack unpack;
};
