// Small matrix products whose factors wait in the first-level cache: c [m, n] = a [m, depth] @ b [depth, n].
//
// b and c are rows of whole vectors; a is read number by number, in any strides, so that a transposed a costs nothing.
// Numbers of a type that the processor multiplies in pairs lie in the words of a and b (words.h), c is always of floats.
#pragma once

#include "numbers.h"
#include "unroll.h"
#include "words.h"

#include <algorithm>
#include <type_traits>

namespace {

// Rows of c that are summed in registers at a time, two vectors of each: 16 registers, or 32 in AVX-512.
constexpr int kRows = LOCALMIX_VECTOR_BYTES == 64 ? 12 : 6;

struct Factor {
  const float* data;
  int64_t row, depth;  // strides
};

// Calls f(row, vector), as constants, for each of some sums.
template <int Rows, int Vectors, typename F>
LOCALMIX_INLINE inline void for_sums(F f) {
  unrolled<Rows * Vectors>([&](auto i) LOCALMIX_INLINE {
    f(std::integral_constant<int, i / Vectors>(), std::integral_constant<int, i % Vectors>());
  });
}

template <typename T = float, int Rows, int Vectors>
LOCALMIX_INLINE inline void multiply(
    const Factor& a, int64_t depth, const float* b, int64_t b_stride, Vector (&sums)[Rows][Vectors]) {
  const float* column = a.data;
  for (int64_t k = 0; k < depth; ++k, b += b_stride, column += a.depth) {
    Vector row[Vectors];
    for_sums<1, Vectors>([&](auto, auto v) LOCALMIX_INLINE { row[v] = load(b + v * kLanes); });
    for_sums<Rows, Vectors>([&](auto m, auto v) LOCALMIX_INLINE {
      sums[m][v] = add_product<T>(sums[m][v], column[m * a.row], row[v]);
    });
  }
}

// Calls f(vectors, first number) for the blocks of a row of c, as constants.
template <typename F>
inline void for_vectors(int64_t n, F f) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) f(std::integral_constant<int, 2>(), j);
  for (; j < n; j += kLanes) f(std::integral_constant<int, 1>(), j);
}

// Calls f(rows, vectors, first row, first number of a row) for the blocks of c, as constants. Without AVX-512 they are up to
// four vectors wide: with few registers that costs the fewest loads, and no vector is left over whose sums would wait.
template <typename F>
inline void for_products(int64_t m, int64_t n, F f) {
  auto columns = [&](auto vectors, int64_t first) {
    int64_t i = 0;
    auto blocks = [&](auto size) {
      for (; i + size <= m; i += size) f(size, vectors, i, first);
    };
    blocks(std::integral_constant<int, kLanes == 16 ? kRows : 2 * kRows / vectors>());
    if constexpr (vectors < 3) blocks(std::integral_constant<int, 4>());
    blocks(std::integral_constant<int, 2>());
    blocks(std::integral_constant<int, 1>());
  };
  if constexpr (kLanes == 16) return for_vectors(n, columns);
  for (int64_t j = 0, rest = n / kLanes, some; rest > 0; j += some * kLanes, rest -= some) {
    some = rest == 5 || rest == 6 ? 3 : std::min<int64_t>(rest, 4);
    unrolled<4>([&](auto i) {
      if (some == i + 1) columns(std::integral_constant<int, i + 1>(), j);
    });
  }
}

// The same, but the last blocks go back over rows that were done rather than take few rows, whose sums wait for one
// another: f must not mind to do a row twice.
template <typename F>
inline void for_whole_products(int64_t m, int64_t n, F f) {
  for_vectors(n, [&](auto vectors, int64_t first) {
    int64_t i = 0;
    while (i < m) {
      const int64_t rest = m - i;
      auto block = [&](auto size, int64_t beyond) {
        if (m < size || rest <= beyond) return false;
        f(size, vectors, std::min(i, m - size), first);
        i += size;
        return true;
      };
      constexpr int third = kRows / 3;
      if (block(std::integral_constant<int, 3 * third>(), 2 * third)) continue;
      if (block(std::integral_constant<int, 2 * third>(), third)) continue;
      if (block(std::integral_constant<int, third>(), 0)) continue;
      block(std::integral_constant<int, 1>(), 0);
    }
  });
}

// c = a @ b, or c += a @ b
template <typename T = float>
inline void product(const Factor& a, int64_t m, int64_t depth, const float* b, int64_t b_stride, int64_t n, float* c,
             int64_t c_stride, bool add = false) {
  for_products(m, n, [&](auto rows, auto vectors, int64_t i, int64_t j) {
    Vector sums[rows][vectors];
    for_sums<rows, vectors>([&](auto r, auto v) LOCALMIX_INLINE { sums[r][v] = Vector{}; });
    multiply<T>(Factor{a.data + i * a.row, a.row, a.depth}, depth, b + j, b_stride, sums);
    for_sums<rows, vectors>([&](auto r, auto v) LOCALMIX_INLINE {
      float* target = c + (i + r) * c_stride + j + v * kLanes;
      store(target, add ? load(target) + sums[r][v] : sums[r][v]);
    });
  });
}

}  // namespace
