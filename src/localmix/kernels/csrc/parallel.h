// Work on the threads of the OpenMP runtime that PyTorch has loaded, and scratch for it. Included by dispatch.cpp alone.
#pragma once

#include "parts.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace {

// Functions of the OpenMP runtime that PyTorch has loaded: with them no second thread pool comes to life.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();
Parallel parallel = nullptr;
Number thread_number = nullptr, number_of_threads = nullptr;

// Floats that begin with a line of the cache; null if there is no memory.
struct FreeFloats {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t(64)); }
};
using Scratch = std::unique_ptr<float[], FreeFloats>;

Scratch unset_scratch(int64_t floats) {
  return Scratch(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t(64), std::nothrow)));
}

Scratch scratch(int64_t floats) {
  Scratch zeros = unset_scratch(floats);
  if (zeros) std::memset(zeros.get(), 0, floats * sizeof(float));
  return zeros;
}

// Units of work [begin, end) for each thread, by a function that gives 0 if it is done.
template <typename F>
struct Job {
  F& run;  // (begin, end, thread)
  int64_t units, threads;
  int failed;
};

template <typename F>
void work(void* data) {
  auto& job = *static_cast<Job<F>*>(data);
  // inside another parallel region the runtime gives fewer threads than it was asked for
  const int64_t t = job.threads > 1 ? thread_number() : 0, threads = job.threads > 1 ? number_of_threads() : 1;
  const Parts units{job.units, threads};
  const int64_t begin = units.first(t), end = units.first(t + 1);
  if (begin < end && job.run(begin, end, t)) __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
}

template <typename F>
int spread(int64_t units, int64_t threads, F run) {
  Job<F> job{run, units, parallel ? std::max<int64_t>(std::min(threads, units), 1) : 1, 0};
  if (job.threads == 1) {
    work<F>(&job);
  } else {
    parallel(work<F>, &job, unsigned(job.threads), 0);
  }
  return job.failed;
}

}  // namespace
