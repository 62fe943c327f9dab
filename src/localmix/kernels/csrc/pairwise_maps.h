// What window and neighborhood attention share: a head's channels at a position, read as float and written back.
#pragma once

#include "floats.h"
#include "numbers.h"
#include "pairwise_weight.h"
#include "local_weight.h"

#include <algorithm>
#include <new>
#include <vector>

namespace {

inline int64_t whole_vectors(int64_t numbers) { return (numbers + kLanes - 1) / kLanes * kLanes; }

template <typename T>
inline const T* at(const PairwiseMap& map, int64_t b, int64_t row, int64_t column, int64_t head) {
  const int64_t* s = map.strides;
  return static_cast<const T*>(map.data) + b * s[0] + row * s[1] + column * s[2] + head * s[3];
}

// Of a result, which lies densely.
template <typename T>
inline T* at(const PairwiseProblem& p, void* result, int64_t b, int64_t row, int64_t column, int64_t head) {
  return static_cast<T*>(result) + (((b * p.height + row) * p.width + column) * p.heads + head) * p.dim;
}

template <typename T>
inline void read(const T* source, int64_t dim, float factor, float* target) {
  for (int64_t d = 0; d < dim; ++d) target[d] = to_float(source[d]) * factor;
}

template <typename T>
inline void write(const float* source, int64_t dim, float factor, T* target) {
  for (int64_t d = 0; d < dim; ++d) target[d] = from_float<T>(source[d] * factor);
}

using TypedPairwiseKernel = void (*)(const PairwiseProblem&, const PairwiseBias&, int64_t, int64_t);

template <TypedPairwiseKernel F32, TypedPairwiseKernel BF16, TypedPairwiseKernel F16>
int run(const PairwiseProblem* p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  try {
    (p->dtype == kFloat32 ? F32 : p->dtype == kBFloat16 ? BF16 : F16)(*p, *bias, begin, end);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

#define LOCALMIX_NAME_(name, isa) localmix_##name##_##isa
#define LOCALMIX_NAME(name, isa) LOCALMIX_NAME_(name, isa)

// What an instruction set has, under one name.
#define LOCALMIX_PAIRWISE_KERNELS(name)                                                                           \
  extern "C" {                                                                                                    \
  extern const PairwiseKernels LOCALMIX_NAME(name, LOCALMIX_ISA);                                                 \
  const PairwiseKernels LOCALMIX_NAME(name, LOCALMIX_ISA) = {                                                     \
      run<forward<float>, forward<BFloat16>, forward<Float16>>,                                                   \
      run<backward<float>, backward<BFloat16>, backward<Float16>>, packed_size, pack, unpack};                    \
  }
