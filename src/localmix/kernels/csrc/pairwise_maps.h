// What window and neighborhood attention share: a head's channels at a position, read as float and written back.
#pragma once

#include "conversions.h"
#include "floats.h"
#include "kernels.h"
#include "numbers.h"
#include "pairwise_weight.h"
#include "parts.h"

#include <algorithm>
#include <vector>

namespace {

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

// Reads a number of each line of the cache that a head has of a row. A processor waits for few lines at a time while what
// it reads is also copied, and for many while it only reads: then the copy that comes next waits no more.
template <typename T>
inline void touch_row(const PairwiseProblem& p, const PairwiseMap& map, int64_t b, int64_t row, int64_t head) {
  for (int64_t column = 0; column < p.width; ++column) {
    const char* first = reinterpret_cast<const char*>(at<T>(map, b, row, column, head));
    for (int64_t i = 0; i < p.dim * int64_t(sizeof(T)); i += 64) (void)*static_cast<const volatile char*>(first + i);
  }
}

template <typename T>
inline void read(const T* source, int64_t dim, float factor, float* target) {
  to_floats(source, dim, target, [=](auto v) { return v * factor; });
}

template <typename T>
inline void write(const float* source, int64_t dim, float factor, T* target) {
  from_floats(source, dim, target, [=](auto v) { return v * factor; });
}

}  // namespace
