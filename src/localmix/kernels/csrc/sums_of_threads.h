// Sums of which each thread has its own until all are added. Included by dispatch.cpp alone.
#pragma once

#include "parallel.h"
#include "parts.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace {

// Sums for numbers in parts (heads, or groups), which threads go through part by part. So a thread has few of them, and
// their memory is not that of all numbers for each thread: number `i` of thread `t` is at place `i + t * largest part`,
// where no other thread has one.
class SumsOfThreads {
 public:
  // `each` floats for a number; units are shared by threads as `spread` does, and each is of one part.
  SumsOfThreads(const Parts& numbers, int64_t each, const Parts& units, std::function<int64_t(int64_t)> part_of)
      : numbers_(numbers), units_(units), each_(each), part_of_(std::move(part_of)),
        sums_(unset_scratch((numbers.count + (units.number - 1) * numbers.largest()) * each)) {}

  explicit operator bool() const { return bool(sums_); }

  // The sums of the thread that has units [begin, end), number `i` at `i * each`, and zero for all that it has.
  float* of(int64_t thread, int64_t begin, int64_t end) {
    if (end == units_.count) units_.number = thread + 1;  // the last one knows how many threads there are
    const auto [first, beyond] = numbers_of(begin, end);
    std::fill(at(thread) + first * each_, at(thread) + beyond * each_, 0.0f);
    return at(thread);
  }

  // Calls f(sums, first number, beyond the last) for those of [begin, end), thread by thread, so that as many threads
  // give the same sum.
  template <typename F>
  void for_threads(int64_t begin, int64_t end, F f) const {
    for (int64_t t = 0; t < units_.number; ++t) {
      const auto [first, beyond] = numbers_of(units_.first(t), units_.first(t + 1));
      const int64_t low = std::max(begin, first), high = std::min(end, beyond);
      if (low < high) f(at(t), low, high);
    }
  }

  // Adds numbers [begin, end) of all threads to `target`.
  void add_to(float* target, int64_t begin, int64_t end) const {
    for_threads(begin, end, [&](const float* own, int64_t first, int64_t beyond) {
      for (int64_t i = first * each_; i < beyond * each_; ++i) target[i] += own[i];
    });
  }

 private:
  float* at(int64_t thread) const { return sums_.get() + thread * numbers_.largest() * each_; }

  std::pair<int64_t, int64_t> numbers_of(int64_t begin, int64_t end) const {
    return {numbers_.first(part_of_(begin)), numbers_.first(part_of_(end - 1) + 1)};
  }

  Parts numbers_, units_;
  int64_t each_;
  std::function<int64_t(int64_t)> part_of_;
  Scratch sums_;
};

}  // namespace
