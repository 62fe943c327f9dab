// Vectors of floats, and transposes of small blocks of them.
//
// Included by files that are compiled once per instruction set, so everything here is theirs alone.
#pragma once

#include "division.h"
#include "unroll.h"

#include <cstdint>

namespace {

#ifndef LOCALMIX_VECTOR_BYTES
#define LOCALMIX_VECTOR_BYTES 16
#endif

constexpr int64_t kLanes = LOCALMIX_VECTOR_BYTES / 4;
typedef float Vector __attribute__((vector_size(LOCALMIX_VECTOR_BYTES), aligned(4)));
typedef float Four __attribute__((vector_size(16), aligned(4)));

inline int64_t whole_vectors(int64_t numbers) { return round_up(numbers, kLanes); }

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// The first numbers of a vector, and zeros.
inline Vector first_of(Vector v, int64_t count) {
  typedef int32_t Lanes __attribute__((vector_size(LOCALMIX_VECTOR_BYTES)));
  Lanes lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < int32_t(count) ? v : Vector{};
}

// The sum of f(0), f(1), ... in four parts: they wait less for one another, and lose fewer digits.
template <typename F>
LOCALMIX_INLINE inline Vector sum_in_parts(int64_t count, F f) {
  Vector parts[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) unrolled<4>([&](auto j) LOCALMIX_INLINE { parts[j] += f(i + j); });
  for (; i < count; ++i) parts[0] += f(i);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// out [column][row] = in [row][column] for four rows, by blocks of four columns.
inline void transpose_four(const float* in, int64_t in_stride, int64_t columns, float* out, int64_t out_stride) {
#ifdef __clang__
#define LOCALMIX_PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
  typedef int32_t Index __attribute__((vector_size(16)));
#define LOCALMIX_PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, Index{i, j, k, l})
#endif
  const int64_t whole = columns - columns % 4;
  for (int64_t c = 0; c < whole; c += 4) {
    Four line[4];
    for (int i = 0; i < 4; ++i) line[i] = *reinterpret_cast<const Four*>(in + i * in_stride + c);
    const Four a = LOCALMIX_PICK(line[0], line[1], 0, 4, 1, 5), b = LOCALMIX_PICK(line[2], line[3], 0, 4, 1, 5);
    const Four d = LOCALMIX_PICK(line[0], line[1], 2, 6, 3, 7), e = LOCALMIX_PICK(line[2], line[3], 2, 6, 3, 7);
    const Four turned[4] = {LOCALMIX_PICK(a, b, 0, 1, 4, 5), LOCALMIX_PICK(a, b, 2, 3, 6, 7),
                            LOCALMIX_PICK(d, e, 0, 1, 4, 5), LOCALMIX_PICK(d, e, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) *reinterpret_cast<Four*>(out + (c + i) * out_stride) = turned[i];
  }
  for (int64_t c = whole; c < columns; ++c)
    for (int64_t i = 0; i < 4; ++i) out[c * out_stride + i] = in[i * in_stride + c];
#undef LOCALMIX_PICK
}

// out [column][row] = in [row][column], by blocks of four.
inline void transpose(
    const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) transpose_four(in + r * in_stride, in_stride, columns, out + r, out_stride);
  for (; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
}

}  // namespace
