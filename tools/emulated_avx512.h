// Stands for the instructions of AVX-512 BF16 that the CPU kernels name, on a machine without them; see check_avx512.sh.
// Vectors of 64 bytes are the compiler's matter: it makes two of AVX2 of each.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace emulated {

typedef float Vector __attribute__((vector_size(64)));
struct Halves {
  uint16_t of[32];
};
struct HalvesOfOne {
  uint16_t of[16];
};

inline float widen(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// To the nearest, ties to even; subnormal numbers become zero.
inline uint16_t narrow(float wide) {
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  if (wide != wide) return 0x7fc0;
  if (!(bits & 0x7f800000u)) return uint16_t(bits >> 16 & 0x8000u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline Vector set1(float value) {
  Vector all;
  for (int i = 0; i < 16; ++i) all[i] = value;
  return all;
}

inline Vector dpbf16(Vector sum, Halves a, Halves b) {
  for (int i = 0; i < 16; ++i)
    for (int half : {2 * i + 1, 2 * i}) sum[i] += widen(a.of[half]) * widen(b.of[half]);
  return sum;
}

inline HalvesOfOne cvtneps(Vector v) {
  HalvesOfOne halves;
  for (int i = 0; i < 16; ++i) halves.of[i] = narrow(v[i]);
  return halves;
}

inline Halves cvtne2ps(Vector high, Vector low) {
  Halves halves;
  for (int i = 0; i < 16; ++i) halves.of[i] = narrow(low[i]), halves.of[16 + i] = narrow(high[i]);
  return halves;
}

inline Halves permutexvar(uint32_t mask, Halves from, Halves halves) {
  Halves picked{};
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1u) picked.of[i] = halves.of[from.of[i] & 31];
  return picked;
}

}  // namespace emulated

#define __m512bh emulated::Halves
#define __m512i emulated::Halves
#define __m256bh emulated::HalvesOfOne
#define _mm512_set1_ps emulated::set1
#define _mm512_dpbf16_ps emulated::dpbf16
#define _mm512_cvtneps_pbh emulated::cvtneps
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps
#define _mm512_maskz_permutexvar_epi16 emulated::permutexvar
#define __AVX512BF16__ 1
