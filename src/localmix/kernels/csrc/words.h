// Factors of products as words of 32 bits: a float each, or two numbers of bfloat16 where the processor has an
// instruction that multiplies pairs of them and adds both products to a float.
//
// Words are kept as floats, moved and transposed like these; no arithmetic but that instruction touches a pair.
#pragma once

#include "conversions.h"
#include "division.h"
#include "unroll.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// Numbers of a word.
template <typename T>
constexpr int64_t kPerWord = 1;
#ifdef __AVX512BF16__
template <>
constexpr int64_t kPerWord<BFloat16> = 2;
#endif

template <typename T>
inline int64_t words_of(int64_t numbers) {
  return divide_up(numbers, kPerWord<T>);
}

// What numbers of T are multiplied as: floats, or pairs of T.
template <typename T>
using Factored = std::conditional_t<kPerWord<T> == 1, float, T>;

// sum + a * b, of each lane; a is the same word for all of them.
template <typename T>
LOCALMIX_INLINE inline Vector add_product(Vector sum, float a, Vector b) {
#ifdef __AVX512BF16__
  if constexpr (kPerWord<T> == 2) return _mm512_dpbf16_ps(sum, as<__m512bh>(_mm512_set1_ps(a)), as<__m512bh>(b));
#endif
  return sum + a * b;
}

// A word of ones.
template <typename T>
inline float one() {
  return kPerWord<T> == 1 ? 1.0f : as<float>(uint32_t(0x3f803f80));
}

// Rows of numbers to rows of words, the last word of a row half empty if it must be.
template <typename T>
inline void to_words(const T* source, int64_t rows, int64_t each, float* target) {
  if constexpr (kPerWord<T> == 1) {
    to_floats(source, rows * each, target);
  } else if (each % 2 == 0) {
    std::memcpy(target, source, rows * each * sizeof(T));
  } else {
    for (int64_t i = 0; i < rows; ++i, source += each, target += words_of<T>(each)) {
      target[each / 2] = 0.0f;
      std::memcpy(target, source, each * sizeof(T));
    }
  }
}

// Two rows of numbers to one of words, in each of them a number of both; the other may be null, for zeros.
template <typename T>
inline void to_words_of_two(const T* row, const T* other, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i)
    target[i] = as<float>(uint32_t(row[i].bits) | (other ? uint32_t(other[i].bits) << 16 : 0u));
}

// Rows of numbers, [rows][count], to rows of words that each hold numbers of several rows, [words of rows][count].
template <typename T>
inline void to_words_of_rows(const T* rows, int64_t number, int64_t count, float* target) {
  for (int64_t i = 0; i < number; i += 2, rows += 2 * count, target += count)
    to_words_of_two(rows, i + 1 < number ? rows + count : nullptr, count, target);
}

// Rows of numbers to one of words, in each of them a number of every row: of the first alone, or of both.
template <typename T>
inline void to_words_across(const T* row, const T* other, int64_t count, float* target) {
  if constexpr (kPerWord<T> == 1) {
    to_floats(row, count, target);
  } else {
    to_words_of_two(row, other, count, target);
  }
}

// Two rows of floats, in whole vectors, rounded to T; either may be null.
template <typename T>
void to_words_of_two(const float* row, const float* other, int64_t count, float* target);

// A row of floats, in whole vectors, to words of neighbors, rounded to T. They may lie in the place of the floats.
template <typename T>
void to_words_of_neighbors(const float* row, int64_t count, float* target);

#ifdef __AVX512BF16__
template <>
inline void to_words_of_two<BFloat16>(const float* row, const float* other, int64_t count, float* target) {
  typedef uint16_t HalvesOfTwo __attribute__((vector_size(64)));
  HalvesOfTwo in_turn;
  for (int i = 0; i < 32; ++i) in_turn[i] = i / 2 + i % 2 * 16;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vector low = row ? load(row + i) : Vector{}, high = other ? load(other + i) : Vector{};
    // those of `row`, then those of `other`
    const __m512i halves = as<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    store(target + i, as<Vector>(_mm512_maskz_permutexvar_epi16(~__mmask32(), as<__m512i>(in_turn), halves)));
  }
}

template <>
inline void to_words_of_neighbors<BFloat16>(const float* row, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    const Vector first = load(row + i), second = load(row + i + kLanes);
    store(target + i / 2, as<Vector>(_mm512_cvtne2ps_pbh(second, first)));
  }
  if (i < count) {
    const __m256bh last = _mm512_cvtneps_pbh(load(row + i));
    std::memcpy(target + i / 2, &last, sizeof last);
  }
}
#endif

}  // namespace
