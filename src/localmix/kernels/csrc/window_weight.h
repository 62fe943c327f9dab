// The kernels whose weights go from each slot of a window to each slot, alike in all windows.
#pragma once

#include "interface.h"

#include <cstdint>

// Some units, each a part of the groups of a window, and part by part; 0 if they are done, 1 if memory ran out. Adds the
// gradients of weight and bias to the sums of a thread, [G, N, N] and [G, N]. `pack` is for some groups, and writes
// [G, N, N] or less of them in the place of `of_weight`.
using WindowWeightKernel =
    int (*)(const WindowWeightProblem*, float* of_weight, float* of_bias, int64_t begin, int64_t end);

struct WindowWeightKernels {
  WindowWeightKernel pack, forward, backward;
};
