// Sums whose weights all positions share, static or of the image: forward, and both gradients.
//
//   y[b, i, c] = bias[c] + sum over taps k of  weight[b, c, k] * x[b, i + k, c]        (zero outside of the map)
//
// A block of 16 channels at a time: rows of it wait in a ring in the first-level cache, padded, as float. A run of
// positions is summed in registers; a number of the map that is read serves every position and tap of the row that
// needs it, so that the sum is bound by arithmetic and not by reading.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "shared_weight.h"
#include "kernels.h"
#include "floats.h"
#include "numbers.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

constexpr int64_t kBlock = 16;

// Positions that are summed at a time: with the taps of a row they fill the registers.
constexpr int kRun = LOCALMIX_VECTOR_BYTES == 64 ? 14 : 7;

// What is not inlined takes its registers through memory.
#define LOCALMIX_INLINE __attribute__((always_inline))

// Calls f with 0, 1, ... Count - 1, as constants: an index into registers must be one.
template <typename F, int... Is>
LOCALMIX_INLINE inline void unroll(F& f, std::integer_sequence<int, Is...>) {
  (f(std::integral_constant<int, Is>()), ...);
}
template <int Count, typename F>
LOCALMIX_INLINE inline void unrolled(F f) {
  unroll(f, std::make_integer_sequence<int, Count>());
}

struct Plan {
  explicit Plan(const SharedWeightProblem& p)
      : blocks((p.channels + kBlock - 1) / kBlock),
        taps(p.kernel_height * p.kernel_width),
        rows(p.dilation_height * (p.kernel_height - 1) + 1),
        columns(p.width + p.dilation_width * (p.kernel_width - 1)),
        top((rows - 1 + p.adjoint) / 2),
        left((columns - p.width + p.adjoint) / 2) {}

  int64_t blocks, taps;
  int64_t rows, columns;  // of the ring: what an output row reaches, and the map with its border
  int64_t top, left;      // of the border; with an odd one the adjoint has the larger half in front
};

// Numbers of a block of channels, and back; the last block may be cut.
template <typename T>
inline void read_block(const T* source, int64_t count, float* target) {
  if (count == kBlock) {
    for (int64_t c = 0; c < kBlock; ++c) target[c] = to_float(source[c]);
  } else {
    for (int64_t c = 0; c < count; ++c) target[c] = to_float(source[c]);
  }
}

template <typename T>
inline void write_block(const float* source, int64_t count, T* target) {
  if (count == kBlock) {
    for (int64_t c = 0; c < kBlock; ++c) target[c] = from_float<T>(source[c]);
  } else {
    for (int64_t c = 0; c < count; ++c) target[c] = from_float<T>(source[c]);
  }
}

// A block of channels of an image, rows of which slide through a ring.
template <typename T>
class Block {
 public:
  Block(const SharedWeightProblem& p, const Plan& plan)
      : p_(p), plan_(plan), data_(plan.rows * plan.columns * kBlock, 0.0f) {}

  void move_to(const T* x, int64_t b, int64_t block, int64_t first_row) {
    x_ = x + b * p_.height * p_.width * p_.channels + block * kBlock;
    count_ = std::min(kBlock, p_.channels - block * kBlock);
    loaded_ = std::max<int64_t>(first_row - plan_.top, 0);
    // a cut block holds no number left from another one
    if (count_ < kBlock) std::fill(data_.begin(), data_.end(), 0.0f);
  }

  // Loads what output row h reaches.
  void reach(int64_t h) {
    for (; loaded_ < std::min(h - plan_.top + plan_.rows, p_.height); ++loaded_) {
      float* target = row(loaded_) + plan_.left * kBlock;
      const T* source = x_ + loaded_ * p_.width * p_.channels;
      // lines of the cache so far apart are not foreseen by the processor: ask for those of the next row
      const T* next = source + (loaded_ + 1 < p_.height ? p_.width * p_.channels : 0);
      for (int64_t i = 0; i < p_.width; ++i) {
        __builtin_prefetch(next + i * p_.channels);
        read_block(source + i * p_.channels, count_, target + i * kBlock);
      }
    }
  }

  // The kernel rows that output row h sees, each with the first float of its first tap.
  const std::vector<std::pair<int64_t, const float*>>& rows_of(int64_t h) {
    rows_.clear();
    for (int64_t a = 0; a < p_.kernel_height; ++a) {
      const int64_t r = h - plan_.top + a * p_.dilation_height;
      if (r >= 0 && r < p_.height) rows_.emplace_back(a, row(r));
    }
    return rows_;
  }

  int64_t count() const { return count_; }

 private:
  float* row(int64_t r) { return data_.data() + r % plan_.rows * plan_.columns * kBlock; }

  const SharedWeightProblem& p_;
  const Plan& plan_;
  Floats data_;
  std::vector<std::pair<int64_t, const float*>> rows_;
  const T* x_ = nullptr;
  int64_t count_ = 0, loaded_ = 0;
};

// The width of the kernel as a constant where it is a usual one and not dilated, else 0.
template <typename F>
inline void with_width(const SharedWeightProblem& p, F f) {
  switch (p.dilation_width == 1 ? p.kernel_width : 0) {
    case 3: return f(std::integral_constant<int, 3>());
    case 5: return f(std::integral_constant<int, 5>());
    case 7: return f(std::integral_constant<int, 7>());
    case 9: return f(std::integral_constant<int, 9>());
    case 11: return f(std::integral_constant<int, 11>());
    default: return f(std::integral_constant<int, 0>());
  }
}

// sums [run] += taps of a kernel row * x, for a vector of channels.
template <int Run, int Width>
LOCALMIX_INLINE inline void add_row(
    const SharedWeightProblem& p, const float* x, const float* taps, Vector (&sums)[Run]) {
  if constexpr (Width > 0) {
    Vector tap[Width];
    unrolled<Width>([&](auto k) LOCALMIX_INLINE { tap[k] = load(taps + k * kBlock); });
    unrolled<Run + Width - 1>([&](auto i) LOCALMIX_INLINE {
      const Vector number = load(x + i * kBlock);
      unrolled<Width>([&](auto k) LOCALMIX_INLINE {
        if constexpr (i - k >= 0 && i - k < Run) sums[i - k] += tap[k] * number;
      });
    });
  } else {
    for (int64_t k = 0; k < p.kernel_width; ++k) {
      const Vector tap = load(taps + k * kBlock);
      const float* at = x + k * p.dilation_width * kBlock;
      unrolled<Run>([&](auto i) LOCALMIX_INLINE { sums[i] += tap * load(at + i * kBlock); });
    }
  }
}

template <typename T>
void pack(const SharedWeightProblem& p, const void* weight_, const void*, const void*, void* packed_, int64_t begin,
          int64_t end) {
  const Plan plan(p);
  const T* weight = static_cast<const T*>(weight_);
  float* packed = static_cast<float*>(packed_);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % plan.blocks, n = unit / plan.blocks;
    const int64_t count = std::min(kBlock, p.channels - block * kBlock);
    const T* source = weight + (n * p.channels + block * kBlock) * plan.taps;
    float* target = packed + unit * plan.taps * kBlock;
    std::fill_n(target, plan.taps * kBlock, 0.0f);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t k = 0; k < plan.taps; ++k) target[k * kBlock + c] = to_float(source[c * plan.taps + k]);
    if (p.adjoint)
      for (int64_t k = 0; k < plan.taps / 2; ++k)
        std::swap_ranges(target + k * kBlock, target + (k + 1) * kBlock, target + (plan.taps - 1 - k) * kBlock);
  }
}

template <typename T>
void forward(const SharedWeightProblem& p, const void* x_, const void* packed_, const void* bias_, void* y_,
             int64_t begin, int64_t end) {
  const Plan plan(p);
  const T *x = static_cast<const T*>(x_), *bias = static_cast<const T*>(bias_);
  const float* packed = static_cast<const float*>(packed_);
  T* y = static_cast<T*>(y_);
  Block<T> map(p, plan);
  Floats line(p.width * kBlock);
  float start[kBlock] = {};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % plan.blocks, strip = unit / plan.blocks % p.strips, b = unit / plan.blocks / p.strips;
    const int64_t first = p.height * strip / p.strips, last = p.height * (strip + 1) / p.strips;
    const float* taps = packed + ((p.weights > 1 ? b : 0) * plan.blocks + block) * plan.taps * kBlock;
    map.move_to(x, b, block, first);
    if (bias) read_block(bias + block * kBlock, map.count(), start);
    with_width(p, [&](auto width) {
      for (int64_t h = first; h < last; ++h) {
        map.reach(h);
        const auto& rows = map.rows_of(h);
        for (int64_t v = 0; v < kBlock; v += kLanes) {
          int64_t i = 0;
          auto runs = [&](auto run) {
            for (; i + run <= p.width; i += run) {
              Vector sums[run];
              unrolled<run>([&](auto j) LOCALMIX_INLINE { sums[j] = load(start + v); });
              for (const auto& [a, row] : rows)
                add_row<run, width>(p, row + i * kBlock + v, taps + a * p.kernel_width * kBlock + v, sums);
              unrolled<run>([&](auto j) LOCALMIX_INLINE { store(&line[(i + j) * kBlock + v], sums[j]); });
            }
          };
          runs(std::integral_constant<int, kRun>());
          runs(std::integral_constant<int, 7>());
          runs(std::integral_constant<int, 4>());
          runs(std::integral_constant<int, 1>());
        }
        T* target = y + (b * p.height + h) * p.width * p.channels + block * kBlock;
        for (int64_t i = 0; i < p.width; ++i) write_block(&line[i * kBlock], map.count(), target + i * p.channels);
      }
    });
  }
}

// sums [K + 1][16] += over the positions of a line, by tap and for the bias.
template <int Width, typename T>
inline void add_line(const SharedWeightProblem& p, Block<T>& map, int64_t h, const float* gradient, float* sums) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const auto& rows = map.rows_of(h);
  for (int64_t v = 0; v < kBlock; v += kLanes) {
    Vector whole = {};
    for (int64_t i = 0; i < p.width; ++i) whole += load(gradient + i * kBlock + v);
    float* of_bias = sums + taps * kBlock + v;
    store(of_bias, load(of_bias) + whole);
    for (const auto& seen : rows) {
      const int64_t first = seen.first * p.kernel_width;
      const float* row = seen.second;
      // some taps of the row at a time; each line is summed on its own, so that long sums keep their digits
      auto some = [&](auto count, int64_t k) {
        Vector of_tap[count] = {};
        const float* x = row + k * p.dilation_width * kBlock + v;
        for (int64_t i = 0; i < p.width; ++i, x += kBlock) {
          const Vector g = load(gradient + i * kBlock + v);
          unrolled<count>([&](auto c) LOCALMIX_INLINE { of_tap[c] += g * load(x + c * p.dilation_width * kBlock); });
        }
        unrolled<count>([&](auto c) LOCALMIX_INLINE {
          float* target = sums + (first + k + c) * kBlock + v;
          store(target, load(target) + of_tap[c]);
        });
      };
      if constexpr (Width > 0) {
        some(std::integral_constant<int, Width>(), 0);
      } else {
        int64_t k = 0;
        for (; k + 4 <= p.kernel_width; k += 4) some(std::integral_constant<int, 4>(), k);
        for (; k < p.kernel_width; ++k) some(std::integral_constant<int, 1>(), k);
      }
    }
  }
}

template <typename T>
void backward_weight(const SharedWeightProblem& p, const void* x_, const void* gradient_, const void*, void* sums_,
                     int64_t begin, int64_t end) {
  const Plan plan(p);
  const T *x = static_cast<const T*>(x_), *gradient = static_cast<const T*>(gradient_);
  float* all = static_cast<float*>(sums_);
  Block<T> map(p, plan);
  Floats line(p.width * kBlock, 0.0f);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % plan.blocks, share = unit / plan.blocks;
    const int64_t first = p.batch * share / p.strips, last = p.batch * (share + 1) / p.strips;
    for (int64_t b = first; b < last; ++b) {
      const int64_t n = p.weights > 1 ? b : share;
      float* sums = all + (n * plan.blocks + block) * (plan.taps + 1) * kBlock;
      map.move_to(x, b, block, 0);
      std::fill(line.begin(), line.end(), 0.0f);
      with_width(p, [&](auto width) {
        for (int64_t h = 0; h < p.height; ++h) {
          map.reach(h);
          const T* source = gradient + (b * p.height + h) * p.width * p.channels + block * kBlock;
          for (int64_t i = 0; i < p.width; ++i) read_block(source + i * p.channels, map.count(), &line[i * kBlock]);
          add_line<width>(p, map, h, line.data(), sums);
        }
      });
    }
  }
}

}  // namespace

LOCALMIX_KERNELS(
    SharedWeightKernels, shared, LOCALMIX_RUN(pack), LOCALMIX_RUN(forward), LOCALMIX_RUN(backward_weight))
