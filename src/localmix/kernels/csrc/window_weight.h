// Plain C interface of the kernels whose weights go from each slot of a window to each slot, alike in all windows.
#pragma once

#include <cstdint>

// Maps lie as [B, H, W, G, D], weight as [G, N, N], and bias as [G, N] in float. What is null is not there or not
// wanted.
struct WindowWeightProblem {
  int64_t batch, height, width, groups, dim;
  int64_t size_height, size_width;      // of a window
  int64_t before_height, before_width;  // empty slots before the map
  int64_t windows;                      // of all images
  int64_t dtype;                        // NumberType
  const void *x, *gradient, *weight;
  const float* bias;
  void *y, *of_x;
  // set by the dispatch: weights of whole windows, as `pack` leaves them, and the parts of the groups
  const float* packed;
  int64_t parts;
};

// Some units, each a part of the groups of a window, and part by part; 0 if they are done, 1 if memory ran out. Adds the gradients of weight and bias to the sums of a thread,
// [G, N, N] and [G, N]. `pack` is for some groups, and writes [G, N, N] or less of them in the place of `of_weight`.
using WindowWeightKernel =
    int (*)(const WindowWeightProblem*, float* of_weight, float* of_bias, int64_t begin, int64_t end);

struct WindowWeightKernels {
  WindowWeightKernel pack, forward, backward;
};
