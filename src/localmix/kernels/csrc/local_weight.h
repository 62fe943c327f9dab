// Plain C interface of the kernels with a weight of its own at every position.
#pragma once

#include <cstdint>

enum LocalWeightType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// x and y lie as [B, H, W, G, D]; weight as [B, H, W, ...] with G * K numbers at each position.
struct LocalWeightProblem {
  int64_t batch, height, width, groups, dim;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t weight_group_stride, weight_tap_stride;
  int64_t dtype;
};
