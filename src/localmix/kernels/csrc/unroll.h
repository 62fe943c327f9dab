// Loops that the compiler has no say in: their counters are constants, so that an array they index stays in registers.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

// What is not inlined takes its registers through memory.
#define LOCALMIX_INLINE __attribute__((always_inline))

// What holds many such loops is compiled once, not again for each type of the maps that calls it.
#define LOCALMIX_ONCE __attribute__((noinline))

namespace {

template <typename F, int... Is>
LOCALMIX_INLINE inline void unroll(F& f, std::integer_sequence<int, Is...>) {
  (f(std::integral_constant<int, Is>()), ...);
}

// Calls f with 0, 1, ... Count - 1.
template <int Count, typename F>
LOCALMIX_INLINE inline void unrolled(F f) {
  unroll(f, std::make_integer_sequence<int, Count>());
}

// Calls f with dim, as a constant where it is a usual one: a stride known to the compiler is a shuffle, not a gather.
template <typename F>
inline void with_dim(int64_t dim, F f) {
  switch (dim) {
    case 1: return f(std::integral_constant<int64_t, 1>());
    case 3: return f(std::integral_constant<int64_t, 3>());
    case 4: return f(std::integral_constant<int64_t, 4>());
    case 6: return f(std::integral_constant<int64_t, 6>());
    case 8: return f(std::integral_constant<int64_t, 8>());
    case 12: return f(std::integral_constant<int64_t, 12>());
    case 16: return f(std::integral_constant<int64_t, 16>());
    case 24: return f(std::integral_constant<int64_t, 24>());
    case 32: return f(std::integral_constant<int64_t, 32>());
    default: return f(dim);
  }
}

}  // namespace
