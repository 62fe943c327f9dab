// Numbers of 16 bits, read as floats and rounded back: one at a time, a vector of them, and many that lie in order.
//
// Included by files that are compiled once per instruction set, so everything here is theirs alone.
#pragma once

#include "numbers.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The same arithmetic serves one number, as float and uint32_t, and a vector of them, as Vector and Words.
typedef uint32_t Words __attribute__((vector_size(LOCALMIX_VECTOR_BYTES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LOCALMIX_VECTOR_BYTES / 2), aligned(2), may_alias));

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
  return Format<T>::template widen<Vector>(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words));
}
template <typename T>
inline void store(T* p, Vector v) {
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(Format<T>::template round<Words>(v), Halves);
}

#if defined(__AVX512F__) && LOCALMIX_VECTOR_BYTES == 64
// With all lanes by a mask, of which nothing is left: without it GCC warns of what lanes left out would hold.
constexpr __mmask16 kAll = 0xffff;
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

// Calls change(number), of float or Vector, on numbers in order.
template <typename T, typename F>
inline void to_floats(const T* source, int64_t count, float* target, F change) {
  const int64_t whole = std::is_same_v<T, float> ? 0 : count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store(target + i, change(load(source + i)));
  for (int64_t i = whole; i < count; ++i) target[i] = change(to_float(source[i]));
}

template <typename T>
inline void to_floats(const T* source, int64_t count, float* target) {
  to_floats(source, count, target, [](auto v) { return v; });
}

template <typename T, typename F>
inline void from_floats(const float* source, int64_t count, T* target, F change) {
  const int64_t whole = std::is_same_v<T, float> ? 0 : count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store(target + i, change(load(source + i)));
  for (int64_t i = whole; i < count; ++i) target[i] = from_float<T>(change(source[i]));
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
