// How a kernel, a template over the type in memory, becomes a plain function of its instruction set.
#pragma once

#include "local_weight.h"
#include "numbers.h"

#include <new>

namespace {

using TypedKernel = void (*)(const LocalWeightProblem&, const void*, const void*, void*, int64_t, int64_t);

template <TypedKernel F32, TypedKernel BF16, TypedKernel F16>
int run(const LocalWeightProblem* p, const void* a, const void* b, void* out, int64_t begin, int64_t end) {
  try {
    (p->dtype == kFloat32 ? F32 : p->dtype == kBFloat16 ? BF16 : F16)(*p, a, b, out, begin, end);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

#define LOCALMIX_NAME_(name, isa) localmix_##name##_##isa
#define LOCALMIX_NAME(name, isa) LOCALMIX_NAME_(name, isa)
#define LOCALMIX_KERNEL(name)                                                                                     \
  extern "C" int LOCALMIX_NAME(name, LOCALMIX_ISA)(                                                               \
      const LocalWeightProblem* p, const void* a, const void* b, void* out, int64_t begin, int64_t end) {         \
    return run<name<float>, name<BFloat16>, name<Float16>>(p, a, b, out, begin, end);                             \
  }
