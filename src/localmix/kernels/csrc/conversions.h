// Numbers of 16 bits, read as floats and rounded back: one at a time, a vector of them, and many that lie in order.
//
// Included by files that are compiled once per instruction set, so everything here is theirs alone.
#pragma once

#include "numbers.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The same arithmetic serves one number, as float and uint32_t, a vector of them, as Vector and Words, and four.
typedef uint32_t Words __attribute__((vector_size(LOCALMIX_VECTOR_BYTES), aligned(4)));
typedef uint32_t FourWords __attribute__((vector_size(16), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LOCALMIX_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint16_t FourHalves __attribute__((vector_size(8), aligned(2), may_alias));

// Numbers of 16 bits in memory as words, and back.
#if defined(__AVX512F__) && LOCALMIX_VECTOR_BYTES == 64
// All lanes, by a mask of which nothing is left: without one GCC warns of what lanes that are left out would hold.
constexpr __mmask16 kAll = 0xffff;
inline Words read_words(const void* p) {
  return Words(_mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(static_cast<const __m256i*>(p))));
}
inline void write_words(void* p, Words words) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(kAll, __m512i(words)));
}
#else
#if defined(__AVX2__) && LOCALMIX_VECTOR_BYTES == 32
inline Words read_words(const void* p) {
  return Words(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
#else
inline Words read_words(const void* p) { return __builtin_convertvector(*static_cast<const Halves*>(p), Words); }
#endif
inline void write_words(void* p, Words words) { *static_cast<Halves*>(p) = __builtin_convertvector(words, Halves); }
#endif

template <typename To, typename From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// From 16 bits, in the lower half of a word, and to them.
template <typename T>
struct Format;

template <>
struct Format<BFloat16> {
  template <typename Float, typename Word>
  static Float widen(Word bits) {
    return as<Float>(bits << 16);
  }

  template <typename Word, typename Float>
  static Word round(Float v) {
    const Word bits = as<Word>(v);
    const Word nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // ties to even
    return v == v ? nearest : Word{} + 0x7fc0u;
  }
};

template <>
struct Format<Float16> {
  template <typename Float, typename Word>
  static Float widen(Word bits) {
    // the exponent is moved by a multiplication, which also makes subnormals right; infinities and NaN keep theirs
    const Word sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
    const Word moved = as<Word>(as<Float>(rest) * as<float>(uint32_t(127 + 112) << 23));
    return as<Float>(((bits & 0x7c00u) == 0x7c00u ? rest | 0x7f800000u : moved) | sign);
  }

  template <typename Word, typename Float>
  static Word round(Float v) {
    const Word bits = as<Word>(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Word odd = (magnitude >> 13) & 1u;
    Word result = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
    // subnormal: adding 0.5 leaves the rounded bits at the bottom of the mantissa
    result = magnitude < 0x38800000u ? as<Word>(as<Float>(magnitude) + 0.5f) - 0x3f000000u : result;
    result = magnitude >= 0x477ff000u ? Word{} + 0x7c00u : result;  // rounds to 65536 or beyond
    result = magnitude > 0x7f800000u ? Word{} + 0x7e00u : result;
    return result | sign;
  }
};

inline float to_float(float v) { return v; }
template <typename T>
inline float to_float(T v) {
  return Format<T>::template widen<float>(uint32_t(v.bits));
}

template <typename T>
inline T from_float(float v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return {uint16_t(Format<T>::template round<uint32_t>(v))};
  }
}

// A vector of numbers, and back.
template <typename T>
inline Vector load(const T* p) {
  return Format<T>::template widen<Vector>(read_words(p));
}
template <typename T>
inline void store(T* p, Vector v) {
  write_words(p, Format<T>::template round<Words>(v));
}

#if defined(__AVX512F__) && LOCALMIX_VECTOR_BYTES == 64
inline Vector load(const Float16* p) {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(Float16* p, Vector v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && LOCALMIX_VECTOR_BYTES == 32
inline Vector load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store(Float16* p, Vector v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// Four numbers, and back.
inline Four load_four(const float* p) { return *reinterpret_cast<const Four*>(p); }
inline void store_four(float* p, Four v) { *reinterpret_cast<Four*>(p) = v; }
template <typename T>
inline Four load_four(const T* p) {
  const FourHalves* halves = reinterpret_cast<const FourHalves*>(p);  // GCC's auto would forget that they lie anywhere
  return Format<T>::template widen<Four>(__builtin_convertvector(*halves, FourWords));
}
template <typename T>
inline void store_four(T* p, Four v) {
  *reinterpret_cast<FourHalves*>(p) = __builtin_convertvector(Format<T>::template round<FourWords>(v), FourHalves);
}

// Calls f with the less than four numbers from `begin` to `end`, not in a loop: a compiler would make vectors of it,
// whose preparations take longer than all of them.
template <typename F>
inline void for_rest(int64_t begin, int64_t end, F f) {
  if (begin + 0 < end) f(begin + 0);
  if (begin + 1 < end) f(begin + 1);
  if (begin + 2 < end) f(begin + 2);
}

// Calls change(numbers), of Vector, Four or float, on numbers in order.
template <typename T, typename F>
inline void to_floats(const T* source, int64_t count, float* target, F change) {
  const int64_t vectors = count - count % kLanes, fours = count - count % 4;
  for (int64_t i = 0; i < vectors; i += kLanes) store(target + i, change(load(source + i)));
  for (int64_t i = vectors; i < fours; i += 4) store_four(target + i, change(load_four(source + i)));
  for_rest(fours, count, [&](int64_t i) { target[i] = change(to_float(source[i])); });
}

template <typename T>
inline void to_floats(const T* source, int64_t count, float* target) {
  to_floats(source, count, target, [](auto v) { return v; });
}

// And back.
template <typename T, typename F>
inline void from_floats(const float* source, int64_t count, T* target, F change) {
  const int64_t vectors = count - count % kLanes, fours = count - count % 4;
  for (int64_t i = 0; i < vectors; i += kLanes) store(target + i, change(load(source + i)));
  for (int64_t i = vectors; i < fours; i += 4) store_four(target + i, change(load_four(source + i)));
  for_rest(fours, count, [&](int64_t i) { target[i] = from_float<T>(change(source[i])); });
}

template <typename T>
inline void from_floats(const float* source, int64_t count, T* target) {
  from_floats(source, count, target, [](auto v) { return v; });
}

// Numbers in order as floats: where they lie if they are floats, else in `scratch`.
template <typename T>
inline const float* as_floats(const T* source, int64_t count, float* scratch) {
  if constexpr (std::is_same_v<T, float>) {
    return source;
  } else {
    to_floats(source, count, scratch);
    return scratch;
  }
}

// What write(floats) puts into `count` floats becomes numbers in order; without a detour if they are floats.
template <typename T, typename F>
inline void write_as_floats(T* target, int64_t count, float* scratch, F write) {
  if constexpr (std::is_same_v<T, float>) {
    write(target);
  } else {
    write(scratch);
    from_floats(scratch, count, target);
  }
}

}  // namespace
