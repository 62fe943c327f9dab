// What Python calls: picks the instruction set once, and spreads the rows of all images over PyTorch's own threads.

#include "activation.h"
#include "division.h"
#include "interface.h"
#include "local_weight.h"
#include "pairwise_weight.h"
#include "parallel.h"
#include "parts.h"
#include "shared_weight.h"
#include "sums_of_threads.h"
#include "window_weight.h"

#include <algorithm>
#include <cstring>
#ifdef LOCALMIX_X86
#include <cpuid.h>
#endif

#define LOCALMIX_DECLARE(name) \
  extern "C" int name(const LocalWeightProblem*, const void*, const void*, void*, int64_t, int64_t);
#define LOCALMIX_DECLARE_IN_PAIRS(isa)                \
  LOCALMIX_DECLARE(localmix_pack_##isa)               \
  LOCALMIX_DECLARE(localmix_projected_forward_##isa)  \
  LOCALMIX_DECLARE(localmix_turn_##isa)               \
  LOCALMIX_DECLARE(localmix_projected_backward_##isa) \
  LOCALMIX_DECLARE(localmix_unpack_##isa)             \
  extern "C" const PairwiseKernels localmix_window_##isa; \
  extern "C" const WindowWeightKernels localmix_window_weight_##isa;
#define LOCALMIX_DECLARE_ALL(isa)                  \
  LOCALMIX_DECLARE(localmix_forward_##isa)         \
  LOCALMIX_DECLARE(localmix_backward_x_##isa)      \
  LOCALMIX_DECLARE(localmix_backward_weight_##isa) \
  LOCALMIX_DECLARE_IN_PAIRS(isa)                   \
  extern "C" const PairwiseKernels localmix_neighborhood_##isa; \
  extern "C" const SharedWeightKernels localmix_shared_##isa;      \
  extern "C" const ActivationKernels localmix_activation_##isa;

LOCALMIX_DECLARE_ALL(generic)
#ifdef LOCALMIX_X86
LOCALMIX_DECLARE_ALL(avx2)
LOCALMIX_DECLARE_ALL(avx512)
#ifdef LOCALMIX_AVX512_BF16
LOCALMIX_DECLARE_IN_PAIRS(avx512_bf16)
#endif
#endif

namespace {

struct Kernels {
  LocalWeightKernels local_weight;
  const PairwiseKernels *window, *neighborhood;
  const SharedWeightKernels* shared;
  const WindowWeightKernels* window_weight;
  const ActivationKernels* activation;
};

// Kernels of `isa`, but those that may multiply pairs of numbers, which are of `name`, a set that contains it.
#define LOCALMIX_SET(name, isa, lanes)                                                                         \
  {                                                                                                            \
    {#name, lanes, localmix_forward_##isa, localmix_backward_x_##isa, localmix_backward_weight_##isa,          \
     localmix_pack_##name, localmix_projected_forward_##name, localmix_turn_##name,                            \
     localmix_projected_backward_##name, localmix_unpack_##name},                                              \
        &localmix_window_##name, &localmix_neighborhood_##isa, &localmix_shared_##isa,                         \
        &localmix_window_weight_##name, &localmix_activation_##isa                                             \
  }

#ifdef LOCALMIX_X86
// Clang's __builtin_cpu_supports did not know this name for long.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#ifdef LOCALMIX_X86
#ifdef LOCALMIX_EMULATED
bool has_avx512() { return true; }
[[maybe_unused]] bool has_avx512_bf16() { return true; }
#else
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
[[maybe_unused]] bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
#endif

// The sets that this processor has, the best one first.
struct Choice {
  Kernels kernels;
  bool (*runs_here)();
};

const Choice choices[] = {
#ifdef LOCALMIX_X86
#ifdef LOCALMIX_AVX512_BF16
    {LOCALMIX_SET(avx512_bf16, avx512, 16), has_avx512_bf16},
#endif
    {LOCALMIX_SET(avx512, avx512, 16), has_avx512},
    {LOCALMIX_SET(avx2, avx2, 8),
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
     }},
#endif
    {LOCALMIX_SET(generic, generic, 4), [] { return true; }},
};

// The best one, or the one of that name; null if this processor has it not.
const Kernels* choose(const char* name) {
#ifdef LOCALMIX_X86
  __builtin_cpu_init();
#endif
  for (const Choice& choice : choices)
    if (choice.runs_here() && (!name || !std::strcmp(name, choice.kernels.local_weight.name))) return &choice.kernels;
  return nullptr;
}

const Kernels* chosen = choose(nullptr);

int spread(LocalWeightKernel kernel, const LocalWeightProblem* problem, const void* a, const void* b, void* out,
           int64_t first, int64_t last, int64_t threads) {
  return spread(last - first, threads, [=](int64_t begin, int64_t end, int64_t) {
    return kernel(problem, a, b, out, first + begin, first + end);
  });
}

constexpr int64_t kMostLanes = 16;  // of a vector of any instruction set

// As many that a thread which comes late is waited for little.
int64_t wanted_units(int64_t threads) { return threads > 1 ? 4 * threads : 1; }

// Parts of the blocks of channels: few enough blocks that the rows a part has waiting stay in the second-level cache,
// and as many parts as `units` of work need, of two blocks at least, which the processor fetches together; or some more,
// so that threads that share an image have the same to do.
int64_t parts_of_channels(const SharedWeightProblem* p, int64_t units, int64_t threads) {
  constexpr int64_t floats = 1 << 17;
  const int64_t blocks = divide_up(p->channels, kSharedBlock);
  const int64_t rows = p->dilation_height * (p->kernel_height - 1) + 2;
  const int64_t row = (p->width + p->dilation_width * (p->kernel_width - 1)) * kSharedBlock;
  const int64_t fitting = std::max<int64_t>(1, floats / (rows * row)), least = divide_up(blocks, fitting);
  const int64_t parts = std::max(least, std::min(units, (blocks + 1) / 2)), even = round_up(parts, threads);
  return p->batch % threads && even <= blocks ? even : parts;
}

}  // namespace

const char* localmix_interface() { return LOCALMIX_INTERFACE; }

const char* localmix_instruction_set() { return chosen->local_weight.name; }

int localmix_is_amd() {
#ifdef LOCALMIX_X86
  unsigned most, vendor[3];
  if (__get_cpuid(0, &most, &vendor[0], &vendor[2], &vendor[1]))
    return !std::memcmp(vendor, "AuthenticAMD", 12) || !std::memcmp(vendor, "HygonGenuine", 12);
#endif
  return 0;
}

int localmix_use_instruction_set(const char* name) {
  const Kernels* named = choose(name);
  if (named) chosen = named;
  return !named;
}

void localmix_use_threads(Parallel run, Number number, Number of) {
  parallel = run;
  thread_number = number;
  number_of_threads = of;
}

int localmix_local_weight(
    int64_t kernel,
    const LocalWeightProblem* problem,
    const void* a,
    const void* b,
    void* out,
    int64_t begin,
    int64_t end,
    int64_t threads) {
  const LocalWeightKernels& set = chosen->local_weight;
  const LocalWeightKernel kernels[] = {set.forward, set.backward_x, set.backward_weight};
  return spread(kernels[kernel], problem, a, b, out, begin, end, threads);
}

int localmix_projected_local_weight(
    const LocalWeightProblem* problem,
    const void* x,
    const void* hidden,
    const void* projection,
    const void* bias,
    void* y,
    int64_t threads) {
  const int64_t taps = problem->kernel_height * problem->kernel_width;
  const LocalWeightKernels& set = chosen->local_weight;
  const int64_t lanes = round_up(problem->groups, set.lanes);
  const int64_t lines = problem->batch * problem->height, share = divide_up(lines, threads) * problem->width;
  Scratch packed;
  // A thread that takes its positions all together uses a tap once: it has it in its own cache if it packs it itself.
  if (share > problem->rank) {
    packed = unset_scratch(taps * (problem->rank + 1) * lanes);
    if (!packed || spread(set.pack, problem, projection, bias, packed.get(), 0, taps, threads)) return 1;
  }
  const HiddenWeights weights{hidden, projection, bias, packed.get()};
  return spread(set.projected_forward, problem, x, &weights, y, 0, lines, threads);
}

int localmix_projected_local_weight_backward(
    const LocalWeightProblem* problem, ProjectedGradients* gradients, int64_t threads) {
  const int64_t taps = problem->kernel_height * problem->kernel_width, lines = problem->batch * problem->height;
  const LocalWeightKernels& set = chosen->local_weight;
  const int64_t lanes = round_up(problem->groups, set.lanes);
  const int64_t rank = round_up(problem->rank, set.lanes);
  const int64_t each = taps * (problem->rank + 1) * lanes;
  const bool summed = gradients->of_projection || gradients->of_bias;
  threads = std::max<int64_t>(std::min(threads, lines), 1);
  // in one piece, which the allocator keeps for the next call; not set to zero, which would be one thread's work
  const int64_t packed = gradients->of_x ? round_up(each, kMostLanes) : 0;
  const int64_t turned = gradients->of_hidden ? round_up(taps * lanes * rank, kMostLanes) : 0;
  const Scratch all = unset_scratch(packed + turned + (summed ? each * threads : 0));
  if (!all) return 1;
  float *turned_at = all.get() + packed, *sums = turned_at + turned;
  gradients->packed = all.get();
  gradients->turned = turned_at;
  gradients->sums = sums;
  gradients->threads = 0;
  const int unready = spread(taps, threads, [&](int64_t begin, int64_t end, int64_t) {
    return (packed && set.pack(problem, gradients->projection, gradients->bias, all.get(), begin, end)) ||
           (turned && set.turn(problem, gradients->projection, nullptr, turned_at, begin, end));
  });
  const int failed = unready || spread(lines, threads, [&](int64_t begin, int64_t end, int64_t thread) {
    if (end == lines) gradients->threads = thread + 1;  // the last one knows how many there are
    return set.projected_backward(problem, gradients, nullptr, summed ? sums + thread * each : nullptr, begin, end);
  });
  // in the order of the threads, so that as many threads give the same sum
  return failed || (summed && spread(taps, threads, [&](int64_t begin, int64_t end, int64_t) {
    return set.unpack(problem, gradients, nullptr, nullptr, begin, end);
  }));
}

int localmix_pairwise_weight(
    int64_t is_neighborhood, int64_t is_backward, PairwiseProblem* problem, int64_t threads) {
  const PairwiseKernels& set = *(is_neighborhood ? chosen->neighborhood : chosen->window);
  const PairwiseKernel kernel = is_backward ? set.backward : set.forward;
  const int64_t heads = problem->heads, units = heads * problem->places, size = set.size(problem);
  threads = std::max<int64_t>(std::min(threads, units), 1);
  // a line shares most of its keys with the next one, a window none
  const int64_t together = is_neighborhood ? problem->height : 1;
  problem->parts = std::min(heads, divide_up(threads * together, problem->places));
  Scratch packed;
  if (problem->bias) {
    packed = unset_scratch(size + kMostLanes);  // a vector is read whole of which the last biases are the first numbers
    if (!packed) return 1;
    spread(heads, threads, [&](int64_t begin, int64_t end, int64_t) {
      return set.pack(problem, packed.get(), begin, end), 0;
    });
  }
  const PairwiseBias bias{packed.get(), nullptr};
  if (!is_backward || !problem->of_bias)
    return spread(units, threads, [&](int64_t begin, int64_t end, int64_t) {
      return kernel(problem, &bias, begin, end);
    });
  const Parts parts{heads, problem->parts};
  SumsOfThreads sums(parts, size / heads, {units, threads}, [=](int64_t unit) {
    return parts.part_of(unit / problem->places);
  });
  if (!sums) return 1;
  const int failed = spread(units, threads, [&](int64_t begin, int64_t end, int64_t thread) {
    const PairwiseBias own{packed.get(), sums.of(thread, begin, end)};
    return kernel(problem, &own, begin, end);
  });
  return failed || spread(heads, threads, [&](int64_t begin, int64_t end, int64_t) {
    sums.for_threads(begin, end, [&](const float* own, int64_t first, int64_t beyond) {
      set.unpack(problem, own, first, beyond);
    });
    return 0;
  });
}

int localmix_shared_weight(
    SharedWeightProblem* problem, const void* x, const void* weight, const void* bias, void* y, int64_t threads) {
  const int64_t blocks = divide_up(problem->channels, kSharedBlock);
  const int64_t taps = problem->kernel_height * problem->kernel_width, packs = problem->weights * blocks;
  // enough units for every thread, of lines enough to be worth the rows that are read around them
  const int64_t wanted = wanted_units(threads);
  problem->parts = parts_of_channels(problem, divide_up(wanted, problem->batch), threads);
  const int64_t units = problem->batch * problem->parts;
  problem->strips = std::max<int64_t>(1, std::min(divide_up(wanted, units), problem->height / 16));
  // not set to zero, which would be one thread's work: what is packed fills it
  const Scratch packed = unset_scratch(packs * taps * kSharedBlock);
  const SharedWeightKernels& set = *chosen->shared;
  const int failed = !packed || spread(packs, threads, [&](int64_t begin, int64_t end, int64_t) {
    return set.pack(problem, weight, nullptr, nullptr, packed.get(), begin, end);
  });
  return failed || spread(units * problem->strips, threads, [&](int64_t begin, int64_t end, int64_t) {
    return set.forward(problem, x, packed.get(), bias, y, begin, end);
  });
}

int localmix_shared_weight_backward(
    SharedWeightProblem* problem, const void* x, const void* gradient, float* of_weight, float* of_bias,
    int64_t threads) {
  const int64_t channels = problem->channels, weights = problem->weights;
  const int64_t blocks = divide_up(channels, kSharedBlock);
  const int64_t taps = problem->kernel_height * problem->kernel_width, each = (taps + 1) * kSharedBlock;
  const bool own = weights > 1 || problem->batch == 1;
  const int64_t wanted = wanted_units(threads);
  problem->parts = parts_of_channels(problem, own ? divide_up(wanted, problem->batch) : wanted, threads);
  const int64_t shares =
      own ? problem->batch : std::min(problem->batch, round_up(divide_up(wanted, problem->parts), threads));
  problem->strips = shares;
  const Scratch sums = scratch(shares * blocks * each);
  if (!sums) return 1;
  const int failed = spread(shares * problem->parts, threads, [&](int64_t begin, int64_t end, int64_t) {
    return chosen->shared->backward_weight(problem, x, gradient, nullptr, sums.get(), begin, end);
  });
  // in the order of the shares, so that as many threads give the same sum
  spread(channels, threads, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t c = begin; c < end; ++c) {
      const float* from = sums.get() + c / kSharedBlock * each + c % kSharedBlock;
      for (int64_t share = 0; share < shares; ++share, from += blocks * each) {
        float* target = of_weight + ((weights > 1 ? share : 0) * channels + c) * taps;
        for (int64_t k = 0; k < taps; ++k) target[k] = (own || !share ? 0 : target[k]) + from[k * kSharedBlock];
        of_bias[c] = (share ? of_bias[c] : 0) + from[taps * kSharedBlock];
      }
    }
    return 0;
  });
  return failed;
}

int localmix_window_weight(
    WindowWeightProblem* problem, float* of_weight, float* of_bias, int64_t threads) {
  const WindowWeightKernels& set = *chosen->window_weight;
  const int64_t slots = problem->size_height * problem->size_width, groups = problem->groups;
  Scratch packed;
  if (problem->dtype == kFloat32) {
    problem->packed = static_cast<const float*>(problem->weight);
  } else if (!problem->gradient || problem->of_x) {
    packed = unset_scratch(groups * slots * slots);
    if (!packed || spread(groups, threads, [&](int64_t begin, int64_t end, int64_t) {
          return set.pack(problem, packed.get(), nullptr, begin, end);
        }))
      return 1;
    problem->packed = packed.get();
  }
  // parts of two lines of the cache at least, so that threads seldom write to the same one
  const int64_t most = std::min(groups, divide_up(groups * problem->dim, 32));
  problem->parts = std::min(most, divide_up(wanted_units(threads), problem->windows));
  const int64_t units = problem->parts * problem->windows;
  if (!problem->gradient)
    return spread(units, threads, [&](int64_t begin, int64_t end, int64_t) {
      return set.forward(problem, nullptr, nullptr, begin, end);
    });
  threads = std::max<int64_t>(std::min(threads, units), 1);
  const Parts parts{groups, problem->parts};
  auto part_of = [=](int64_t unit) { return unit / problem->windows; };
  SumsOfThreads weights(parts, of_weight ? slots * slots : 0, {units, threads}, part_of);
  SumsOfThreads biases(parts, of_bias ? slots : 0, {units, threads}, part_of);
  if (!weights || !biases) return 1;
  const int failed = spread(units, threads, [&](int64_t begin, int64_t end, int64_t thread) {
    float *own_weights = weights.of(thread, begin, end), *own_biases = biases.of(thread, begin, end);
    return set.backward(problem, of_weight ? own_weights : nullptr, of_bias ? own_biases : nullptr, begin, end);
  });
  return failed || spread(groups, threads, [&](int64_t begin, int64_t end, int64_t) {
    weights.add_to(of_weight, begin, end);
    biases.add_to(of_bias, begin, end);
    return 0;
  });
}

int localmix_gelu(void* x, int64_t dtype, int64_t count, int64_t threads) {
  constexpr int64_t each = 1 << 12;  // numbers of a unit of work: whole vectors
  return spread(divide_up(count, each), threads, [=](int64_t begin, int64_t end, int64_t) {
    return chosen->activation->gelu(x, dtype, begin * each, std::min(end * each, count));
  });
}
