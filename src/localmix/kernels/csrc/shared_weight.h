// The kernels whose weights all positions share.
#pragma once

#include "interface.h"

#include <cstdint>

// Channels are taken in blocks of so many, a line of the cache.
constexpr int64_t kSharedBlock = 16;

// Some units, 0 if they are done, 1 if memory ran out:
//   pack(weight, -, -, packed [B or 1][blocks][K][16]), by blocks
//   forward(x, packed, bias or null, y), by parts of strips
//   backward_weight(x, gradient, -, sums [shares][blocks][K + 1][16]), by parts of shares; the last row is of the bias
using SharedWeightKernel = int (*)(
    const SharedWeightProblem*, const void*, const void*, const void*, void*, int64_t begin, int64_t end);

struct SharedWeightKernels {
  SharedWeightKernel pack, forward, backward_weight;
};
