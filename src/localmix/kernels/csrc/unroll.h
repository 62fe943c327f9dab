// Loops that the compiler has no say in: their counters are constants, so that an array they index stays in registers.
#pragma once

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

}  // namespace
