// Plain C interface of the kernels whose weights are the softmax of dot products.
#pragma once

#include <cstdint>

// [B, H, W, heads, D] wherever it lies: strides of images, rows, columns and heads, channels side by side.
struct PairwiseMap {
  const void* data;
  int64_t strides[4];
};

// What is null is not there or not wanted. Results lie densely.
struct PairwiseProblem {
  int64_t batch, height, width, heads, dim;
  int64_t places;                           // of all images: windows, or lines of neighborhoods
  int64_t size_height, size_width;          // of a window or of a neighborhood
  int64_t before_height, before_width;      // windows: empty slots before the map
  int64_t dilation_height, dilation_width;  // neighborhoods
  int64_t kernel_height, kernel_width;      // windows: 0, or of the neighborhood whose biases go by distance
  int64_t dtype;                            // NumberType
  double scale;
  PairwiseMap query, key, value, gradient;
  const float* bias;  // windows [heads, N, N], by distance [heads, 2 h - 1, 2 w - 1]
  void *output, *of_query, *of_key, *of_value;
  float* of_bias;
  // set by the dispatch: how many places a head goes through one after the other, and the parts of the heads, of which
  // threads take one after the other
  int64_t together, parts;
};

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
