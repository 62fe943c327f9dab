// Plain C interface of the kernels with a weight of its own at every position.
#pragma once

#include "number_type.h"

#include <cstdint>

// x and y lie as [B, H, W, G, D]; weight as [B, H, W, ...] with G * K numbers at each position, or, to be made of them,
// hidden as [B, H, W, R] and projection as [G, K, R].
struct LocalWeightProblem {
  int64_t batch, height, width, groups, dim;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t weight_group_stride, weight_tap_stride;
  int64_t rank;
  int64_t dtype;  // NumberType
};

// The features of all positions, the projection, its bias or null, and the projection as `pack` arranges it for the
// instruction set: null where each thread is to arrange it for itself, tap by tap.
struct HiddenWeights {
  const void *hidden, *projection, *bias;
  const float* packed;
};

// What the backward pass of weights that are made of features reads, `projection` as `pack` and as `turn` have arranged
// it, and writes; null for a gradient that is not needed, and for what is read for it alone.
struct ProjectedGradients {
  const void *gradient, *x, *hidden, *projection, *bias;
  void *of_x, *of_hidden, *of_projection, *of_bias;
  const float *packed, *turned;
  const float* sums;  // of projection and bias, [threads][K][R + 1][lanes]
  int64_t threads;
};

// What a kernel computes for some of its lines, taps for `pack`, `turn` and `unpack`; 0 if it is done, 1 if memory ran out.
using LocalWeightKernel =
    int (*)(const LocalWeightProblem*, const void*, const void*, void*, int64_t begin, int64_t end);

// The kernels of an instruction set:
//   forward(x, weight, y), backward_x(gradient, weight, of_x), backward_weight(gradient, x, of_weight),
//   pack(projection, bias or null, packed), projected_forward(x, HiddenWeights, y), turn(projection, null, turned),
//   projected_backward(ProjectedGradients, null, sums of the thread or null), unpack(ProjectedGradients, null, null)
struct LocalWeightKernels {
  const char* name;
  int64_t lanes;  // of a vector: packed is [K][R + 1][G rounded up to lanes]
  LocalWeightKernel forward, backward_x, backward_weight, pack, projected_forward, turn, projected_backward, unpack;
};
