// Plain C interface of the kernels whose weights all positions share.
#pragma once

#include <cstdint>

// Channels are taken in blocks of so many, a line of the cache.
constexpr int64_t kSharedBlock = 16;

// Maps lie as [B, H, W, C], weight as [B or 1, C, K].
struct SharedWeightProblem {
  int64_t batch, height, width, channels;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t weights;  // 1, or one of each image
  int64_t adjoint;  // the gradient of x: taps in reverse order
  int64_t dtype;    // NumberType
  int64_t strips;   // of the rows of an image; for the gradient of the weights, shares of the images
  int64_t parts;    // of the blocks of channels
};

// Some units, 0 if they are done, 1 if memory ran out:
//   pack(weight, -, -, packed [B or 1][blocks][K][16]), by blocks
//   forward(x, packed, bias or null, y), by parts of strips
//   backward_weight(x, gradient, -, sums [shares][blocks][K + 1][16]), by parts of shares; the last row is of the bias
using SharedWeightKernel = int (*)(
    const SharedWeightProblem*, const void*, const void*, const void*, void*, int64_t begin, int64_t end);

struct SharedWeightKernels {
  SharedWeightKernel pack, forward, backward_weight;
};
