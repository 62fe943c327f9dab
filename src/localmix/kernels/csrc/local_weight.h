// The kernels with a weight of its own at every position.
#pragma once

#include "interface.h"

#include <cstdint>

// The features of all positions, the projection, its bias or null, and the projection as `pack` arranges it for the
// instruction set: null where each thread is to arrange it for itself, tap by tap.
struct HiddenWeights {
  const void *hidden, *projection, *bias;
  const float* packed;
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
