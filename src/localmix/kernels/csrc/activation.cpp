// GELU, in place: x = x * Phi(x), Phi the share of a normal distribution below x.
//
// A quotient of two polynomials takes the place of the error function: what is left is to read and write the numbers.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "activation.h"
#include "interface.h"
#include "kernels.h"
#include "numbers.h"

namespace {

// Phi(x) = 1/2 + x P(x^2) / Q(x^2) up to kEnd, to 7e-9 before rounding, where a float next to 1/2 is exact to 3e-8:
// fitted for the least largest error. Beyond, Phi is 1 to the last digit, and below -kEnd nothing.
constexpr float kEnd = 5.5f;
constexpr float kP[] = {0.39894223f, 0.033851687f, 0.0046772351f, 1.6881851e-4f, 6.3524089e-6f, 2.2753415e-8f};
constexpr float kQ[] = {1.0f, 0.25151950f, 0.028645406f, 0.0018844099f, 7.3646646e-5f, 1.1976317e-6f};

template <typename V>
LOCALMIX_INLINE inline V gelu_of(V x) {
  const V zero = {}, low = zero - kEnd, high = zero + kEnd;
  V t = x < low ? low : x;
  t = t > high ? high : t;
  const V square = t * t;
  V p = zero + kP[5], q = zero + kQ[5];
  unrolled<5>([&](auto i) LOCALMIX_INLINE {
    p = p * square + kP[4 - i];
    q = q * square + kQ[4 - i];
  });
  const V below = t * p / q + 0.5f;
  // no last digit is left where there is nothing, which a large x would make much of
  return x * (x > low ? below > zero ? below : zero : zero);
}

template <typename T>
void gelu(T* x, int64_t count) {
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store(x + i, gelu_of(load(x + i)));
  for (int64_t i = whole; i < count; ++i) x[i] = from_float<T>(gelu_of(to_float(x[i])));
}

int gelu_some(void* x, int64_t dtype, int64_t begin, int64_t end) {
  auto some = [=](auto* numbers) { gelu(numbers + begin, end - begin); };
  dtype == kFloat32    ? some(static_cast<float*>(x))
  : dtype == kBFloat16 ? some(static_cast<BFloat16*>(x))
                       : some(static_cast<Float16*>(x));
  return 0;
}

}  // namespace

LOCALMIX_KERNELS(ActivationKernels, activation, gelu_some)
