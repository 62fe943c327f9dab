// Exponentials of vectors, for weights that are a softmax.
#pragma once

#include "numbers.h"

namespace {

// e^x for x <= 0, to about an ulp: zero from -87.3 on, NaN of NaN.
template <typename V>
inline V exponential(V x) {
  typedef int32_t Bits __attribute__((vector_size(sizeof(V)), aligned(4)));
  // x = n ln 2 + r: adding 1.5 * 2^23 rounds to whole numbers, and leaves n in the low bits
  const V shifted = x * 1.44269504088896341f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V y = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  y = y * r + 1.0f / 120.0f;
  y = y * r + 1.0f / 24.0f;
  y = y * r + 1.0f / 6.0f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(V));
  bits = (bits << 23) + 0x3f800000;  // 2^n
  V power;
  std::memcpy(&power, &bits, sizeof(V));
  const V zero = {};
  return x < -87.3f ? zero : y * power;
}

template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

}  // namespace
