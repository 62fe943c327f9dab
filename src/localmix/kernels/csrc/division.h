// Whole numbers divided.
#pragma once

#include <cstdint>

namespace {

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }

// The largest of the parts, as equal as can be and of at most `most`, that `size` falls into; one at least.
inline int64_t equal_part(int64_t size, int64_t most) {
  return divide_up(size, most > 0 ? divide_up(size, most) : size);
}

}  // namespace
