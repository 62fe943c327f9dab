// Numbers in parts: units of work by threads; heads or groups, of which threads that share a window take different ones.
#pragma once

#include "division.h"

namespace {

// [0, count) in so many parts, which differ by one at most.
struct Parts {
  int64_t count, number;

  int64_t first(int64_t part) const { return count * part / number; }
  int64_t part_of(int64_t index) const { return ((index + 1) * number - 1) / count; }
  int64_t largest() const { return divide_up(count, number); }
};

}  // namespace
