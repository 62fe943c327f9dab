// Vectors of floats, and the two 16-bit types that are read into them and rounded out of them.
//
// Included by files that are compiled once per instruction set, so everything here is theirs alone.
#pragma once

#include "division.h"

#include <cstdint>
#include <cstring>

namespace {

#ifndef LOCALMIX_VECTOR_BYTES
#define LOCALMIX_VECTOR_BYTES 16
#endif

constexpr int64_t kLanes = LOCALMIX_VECTOR_BYTES / 4;
typedef float Vector __attribute__((vector_size(LOCALMIX_VECTOR_BYTES), aligned(4)));

inline int64_t whole_vectors(int64_t numbers) { return round_up(numbers, kLanes); }

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// out [column][row] = in [row][column] for four rows, by blocks of four columns.
inline void transpose_four(const float* in, int64_t in_stride, int64_t columns, float* out, int64_t out_stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
#ifdef __clang__
#define LOCALMIX_PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
  typedef int32_t Index __attribute__((vector_size(16)));
#define LOCALMIX_PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, Index{i, j, k, l})
#endif
  int64_t c = 0;
  for (; c + 4 <= columns; c += 4) {
    Four line[4];
    for (int i = 0; i < 4; ++i) line[i] = *reinterpret_cast<const Four*>(in + i * in_stride + c);
    const Four a = LOCALMIX_PICK(line[0], line[1], 0, 4, 1, 5), b = LOCALMIX_PICK(line[2], line[3], 0, 4, 1, 5);
    const Four d = LOCALMIX_PICK(line[0], line[1], 2, 6, 3, 7), e = LOCALMIX_PICK(line[2], line[3], 2, 6, 3, 7);
    const Four turned[4] = {LOCALMIX_PICK(a, b, 0, 1, 4, 5), LOCALMIX_PICK(a, b, 2, 3, 6, 7),
                            LOCALMIX_PICK(d, e, 0, 1, 4, 5), LOCALMIX_PICK(d, e, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) *reinterpret_cast<Four*>(out + (c + i) * out_stride) = turned[i];
  }
  for (; c < columns; ++c)
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

inline float to_float(float v) { return v; }

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t to_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

inline float to_float(BFloat16 v) { return from_bits(uint32_t(v.bits) << 16); }

inline float to_float(Float16 v) {
  // the exponent is moved by a multiplication, which also makes subnormals right; infinities and NaN keep theirs
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t rest = uint32_t(v.bits & 0x7fffu) << 13;
  float magnitude = from_bits(rest) * from_bits(uint32_t(127 + 112) << 23);
  if ((v.bits & 0x7c00u) == 0x7c00u) magnitude = from_bits(rest | 0x7f800000u);
  return from_bits(to_bits(magnitude) | sign);
}

template <typename T>
T from_float(float v);

template <>
inline float from_float<float>(float v) {
  return v;
}

template <>
inline BFloat16 from_float<BFloat16>(float v) {
  const uint32_t bits = to_bits(v);
  if (v != v) return {0x7fc0};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
}

template <>
inline Float16 from_float<Float16>(float v) {
  const uint32_t bits = to_bits(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65536 or beyond
  if (magnitude < 0x38800000u) {
    // subnormal: adding 0.5 leaves the rounded bits at the bottom of the mantissa
    const float rounded = from_bits(magnitude) + 0.5f;
    return {uint16_t(sign | (to_bits(rounded) - 0x3f000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

}  // namespace
