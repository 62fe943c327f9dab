// The kernels of activations, which change numbers where they lie.
#pragma once

#include <cstdint>

// Numbers [begin, end) of x, of the type; 0: they are done.
using ActivationKernel = int (*)(void* x, int64_t dtype, int64_t begin, int64_t end);

struct ActivationKernels {
  ActivationKernel gelu;
};
