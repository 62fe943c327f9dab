// What Python calls: picks the instruction set once, and spreads the rows of all images over PyTorch's own threads.

#include "local_weight.h"

#include <memory>
#include <new>

#define LOCALMIX_DECLARE(name) \
  extern "C" int name(const LocalWeightProblem*, const void*, const void*, void*, int64_t, int64_t);
#define LOCALMIX_DECLARE_ALL(isa)                  \
  LOCALMIX_DECLARE(localmix_forward_##isa)         \
  LOCALMIX_DECLARE(localmix_backward_x_##isa)      \
  LOCALMIX_DECLARE(localmix_backward_weight_##isa) \
  LOCALMIX_DECLARE(localmix_pack_##isa)            \
  LOCALMIX_DECLARE(localmix_projected_forward_##isa)

LOCALMIX_DECLARE_ALL(generic)
#ifdef LOCALMIX_X86
LOCALMIX_DECLARE_ALL(avx2)
LOCALMIX_DECLARE_ALL(avx512)
#endif

#define LOCALMIX_PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

#define LOCALMIX_SET(isa, lanes)                                                                            \
  {                                                                                                         \
    #isa, lanes, localmix_forward_##isa, localmix_backward_x_##isa, localmix_backward_weight_##isa,         \
        localmix_pack_##isa, localmix_projected_forward_##isa                                               \
  }

LocalWeightKernels choose() {
#ifdef LOCALMIX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return LOCALMIX_SET(avx512, 16);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return LOCALMIX_SET(avx2, 8);
#endif
  return LOCALMIX_SET(generic, 4);
}

const LocalWeightKernels chosen = choose();

// The two functions of the OpenMP runtime that PyTorch has loaded: with them no second thread pool comes to life.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using ThreadNumber = int (*)();
Parallel parallel = nullptr;
ThreadNumber thread_number = nullptr;

struct Job {
  LocalWeightKernel kernel;
  const LocalWeightProblem* problem;
  const void *a, *b;
  void* out;
  int64_t begin, lines, threads;
  int failed;
};

void work(void* data) {
  Job& job = *static_cast<Job*>(data);
  const int64_t t = job.threads > 1 ? thread_number() : 0;
  const int64_t begin = job.begin + job.lines * t / job.threads, end = job.begin + job.lines * (t + 1) / job.threads;
  if (begin < end && job.kernel(job.problem, job.a, job.b, job.out, begin, end))
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
}

int spread(LocalWeightKernel kernel, const LocalWeightProblem* problem, const void* a, const void* b, void* out,
           int64_t begin, int64_t end, int64_t threads) {
  Job job{kernel, problem, a, b, out, begin, end - begin, threads, 0};
  if (job.threads > job.lines) job.threads = job.lines;
  if (!parallel || job.threads <= 1) {
    job.threads = 1;
    work(&job);
  } else {
    parallel(work, &job, unsigned(job.threads), 0);
  }
  return job.failed;
}

}  // namespace

LOCALMIX_PUBLIC const char* localmix_instruction_set() { return chosen.name; }

LOCALMIX_PUBLIC void localmix_use_threads(Parallel run, ThreadNumber number) {
  parallel = run;
  thread_number = number;
}

// Lines [begin, end) of the batch * height rows of all images; 0 if it is done, 1 if memory ran out.
LOCALMIX_PUBLIC int localmix_local_weight(
    int64_t kernel,  // 0 forward, 1 backward_x, 2 backward_weight
    const LocalWeightProblem* problem,
    const void* a,
    const void* b,
    void* out,
    int64_t begin,
    int64_t end,
    int64_t threads) {
  const LocalWeightKernel kernels[] = {chosen.forward, chosen.backward_x, chosen.backward_weight};
  return spread(kernels[kernel], problem, a, b, out, begin, end, threads);
}

// y for all lines; bias may be null. 0 if it is done, 1 if memory ran out.
LOCALMIX_PUBLIC int localmix_projected_local_weight(
    const LocalWeightProblem* problem,
    const void* x,
    const void* hidden,
    const void* projection,
    const void* bias,
    void* y,
    int64_t threads) {
  const int64_t taps = problem->kernel_height * problem->kernel_width;
  const int64_t lanes = (problem->groups + chosen.lanes - 1) / chosen.lanes * chosen.lanes;
  const std::unique_ptr<float[]> packed(new (std::nothrow) float[taps * (problem->rank + 1) * lanes]);
  if (!packed || spread(chosen.pack, problem, projection, bias, packed.get(), 0, taps, threads)) return 1;
  const HiddenWeights weights{hidden, packed.get()};
  return spread(chosen.projected_forward, problem, x, &weights, y, 0, problem->batch * problem->height, threads);
}
