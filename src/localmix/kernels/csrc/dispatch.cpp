// What Python calls: picks the instruction set once, and spreads the rows of all images over PyTorch's own threads.

#include "local_weight.h"

#define LOCALMIX_DECLARE(isa)                                                                                        \
  extern "C" int localmix_forward_##isa(                                                                             \
      const LocalWeightProblem*, const void*, const void*, void*, int64_t, int64_t);                                 \
  extern "C" int localmix_backward_x_##isa(                                                                          \
      const LocalWeightProblem*, const void*, const void*, void*, int64_t, int64_t);                                 \
  extern "C" int localmix_backward_weight_##isa(                                                                     \
      const LocalWeightProblem*, const void*, const void*, void*, int64_t, int64_t);

LOCALMIX_DECLARE(generic)
#ifdef LOCALMIX_X86
LOCALMIX_DECLARE(avx2)
LOCALMIX_DECLARE(avx512)
#endif

#define LOCALMIX_PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

using Kernel = int (*)(const LocalWeightProblem*, const void*, const void*, void*, int64_t, int64_t);

struct InstructionSet {
  const char* name;
  Kernel kernels[3];  // forward, backward_x, backward_weight
};

#define LOCALMIX_SET(isa) \
  { #isa, { localmix_forward_##isa, localmix_backward_x_##isa, localmix_backward_weight_##isa } }

InstructionSet choose() {
#ifdef LOCALMIX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return LOCALMIX_SET(avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return LOCALMIX_SET(avx2);
#endif
  return LOCALMIX_SET(generic);
}

const InstructionSet chosen = choose();

// The two functions of the OpenMP runtime that PyTorch has loaded: with them no second thread pool comes to life.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using ThreadNumber = int (*)();
Parallel parallel = nullptr;
ThreadNumber thread_number = nullptr;

struct Job {
  Kernel kernel;
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

}  // namespace

LOCALMIX_PUBLIC const char* localmix_instruction_set() { return chosen.name; }

LOCALMIX_PUBLIC void localmix_use_threads(Parallel run, ThreadNumber number) {
  parallel = run;
  thread_number = number;
}

// Lines [begin, end) of the batch * height rows of all images; 0 if it is done, 1 if memory ran out.
LOCALMIX_PUBLIC int localmix_local_weight(
    int64_t kernel,
    const LocalWeightProblem* problem,
    const void* a,
    const void* b,
    void* out,
    int64_t begin,
    int64_t end,
    int64_t threads) {
  Job job{chosen.kernels[kernel], problem, a, b, out, begin, end - begin, threads, 0};
  if (job.threads > job.lines) job.threads = job.lines;
  if (!parallel || job.threads <= 1) {
    job.threads = 1;
    work(&job);
  } else {
    parallel(work, &job, unsigned(job.threads), 0);
  }
  return job.failed;
}
