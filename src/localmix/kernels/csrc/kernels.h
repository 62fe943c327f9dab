// How a kernel, a template over the type in memory, becomes a plain function of its instruction set.
#pragma once

#include "local_weight.h"
#include "conversions.h"

#include <new>

namespace {

// Runs the kernel for the type that the problem has; 0 if it is done, 1 if memory ran out.
template <auto F32, auto BF16, auto F16, typename Problem, typename... Rest>
int run(const Problem* p, Rest... rest) {
  try {
    (p->dtype == kFloat32 ? F32 : p->dtype == kBFloat16 ? BF16 : F16)(*p, rest...);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

#define LOCALMIX_NAME_(name, isa) localmix_##name##_##isa
#define LOCALMIX_NAME(name, isa) LOCALMIX_NAME_(name, isa)
#define LOCALMIX_RUN(name) run<name<float>, name<BFloat16>, name<Float16>>

// A kernel with weights of its own at every position, under a name of its own.
#define LOCALMIX_KERNEL(name)                                                                                     \
  extern "C" int LOCALMIX_NAME(name, LOCALMIX_ISA)(                                                               \
      const LocalWeightProblem* p, const void* a, const void* b, void* out, int64_t begin, int64_t end) {         \
    return LOCALMIX_RUN(name)(p, a, b, out, begin, end);                                                          \
  }

// All that an instruction set has for a kind of weight, under one name.
#define LOCALMIX_KERNELS(type, name, ...)                \
  extern "C" {                                           \
  extern const type LOCALMIX_NAME(name, LOCALMIX_ISA);   \
  const type LOCALMIX_NAME(name, LOCALMIX_ISA) = {__VA_ARGS__}; \
  }
