// Small matrix products whose factors wait in the first-level cache: c [m, n] = a [m, depth] @ b [depth, n].
//
// b and c are rows of whole vectors; a is read number by number, in any strides, so that a transposed a costs nothing.
#pragma once

#include "numbers.h"

#include <type_traits>

namespace {

// Rows of c that are summed in registers at a time, two vectors of each: 16 registers, or 32 in AVX-512.
constexpr int kRows = LOCALMIX_VECTOR_BYTES == 64 ? 12 : 6;

struct Factor {
  const float* data;
  int64_t row, depth;  // strides
};

template <int Rows, int Vectors>
inline void multiply(const Factor& a, int64_t depth, const float* b, int64_t b_stride, Vector (&sums)[Rows][Vectors]) {
  const float* column = a.data;
  for (int64_t k = 0; k < depth; ++k, b += b_stride, column += a.depth) {
    Vector row[Vectors];
    for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes);
    for (int m = 0; m < Rows; ++m)
      for (int v = 0; v < Vectors; ++v) sums[m][v] += column[m * a.row] * row[v];
  }
}

// Calls f(rows, vectors, first row, first number of a row) for the blocks of c, as constants.
template <typename F>
inline void for_products(int64_t m, int64_t n, F f) {
  auto rows = [&](auto vectors, int64_t first) {
    int64_t i = 0;
    auto blocks = [&](auto size) {
      for (; i + size <= m; i += size) f(size, vectors, i, first);
    };
    blocks(std::integral_constant<int, kRows>());
    blocks(std::integral_constant<int, 4>());
    blocks(std::integral_constant<int, 2>());
    blocks(std::integral_constant<int, 1>());
  };
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) rows(std::integral_constant<int, 2>(), j);
  for (; j < n; j += kLanes) rows(std::integral_constant<int, 1>(), j);
}

// c = a @ b, or c += a @ b
inline void product(const Factor& a, int64_t m, int64_t depth, const float* b, int64_t b_stride, int64_t n, float* c,
                    int64_t c_stride, bool add = false) {
  for_products(m, n, [&](auto rows, auto vectors, int64_t i, int64_t j) {
    Vector sums[rows][vectors] = {};
    multiply(Factor{a.data + i * a.row, a.row, a.depth}, depth, b + j, b_stride, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) {
        float* target = c + (i + r) * c_stride + j + v * kLanes;
        store(target, add ? load(target) + sums[r][v] : sums[r][v]);
      }
  });
}

}  // namespace
