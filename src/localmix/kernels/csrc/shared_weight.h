// Plain C interface of the kernels whose weights all positions share.
#pragma once

#include <cstdint>

// Maps lie as [B, H, W, C], weight as [B or 1, C, K]. Channels are taken in blocks of 16, a line of the cache.
struct SharedWeightProblem {
  int64_t batch, height, width, channels;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t weights;  // 1, or one of each image
  int64_t adjoint;  // the gradient of x: taps in reverse order
  int64_t dtype;    // NumberType
  int64_t strips;   // parts of an image; for the gradient of the weights, shares of the images
};

// Some units, 0 if they are done, 1 if memory ran out:
//   pack(weight, -, -, packed [B or 1][blocks][K][16]), by blocks
//   forward(x, packed, bias or null, y), by blocks of strips
//   backward_weight(x, gradient, -, sums [shares][blocks][K + 1][16]), by blocks of shares; the last row is of the bias
using SharedWeightKernel = int (*)(
    const SharedWeightProblem*, const void*, const void*, const void*, void*, int64_t begin, int64_t end);

struct SharedWeightKernels {
  SharedWeightKernel pack, forward, backward_weight;
};
