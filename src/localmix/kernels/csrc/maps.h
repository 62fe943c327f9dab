// What the kernels with a weight per position share: sizes, rows of a map in scratch, and sums over taps in registers.
#pragma once

#include "conversions.h"
#include "local_weight.h"
#include "floats.h"
#include "numbers.h"
#include "unroll.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace {

// Sizes that every kernel needs, derived once.
struct Shape {
  explicit Shape(const LocalWeightProblem& p)
      : problem(p),
        wide(is_wide(p)),
        turned(p.weight_group_stride != 1 && p.groups > 1),
        lanes(wide && !p.rank ? p.groups : whole_vectors(p.groups)),
        taps(p.kernel_height * p.kernel_width),
        position(wide ? p.groups * whole_vectors(p.dim) : p.dim * lanes),
        top(p.dilation_height * (p.kernel_height - 1) / 2),
        left(p.dilation_width * (p.kernel_width - 1) / 2),
        rows(p.dilation_height * (p.kernel_height - 1) + 1),
        columns(p.width + p.dilation_width * (p.kernel_width - 1)),
        direct(p.dtype == kFloat32 && lanes == p.groups && !turned) {}

  // Few groups of many channels would leave lanes of their vectors empty: then channels are side by side.
  static bool is_wide(const LocalWeightProblem& p) {
    return whole_vectors(p.groups) * p.dim > p.groups * whole_vectors(p.dim);
  }

  const LocalWeightProblem& problem;
  bool wide;         // vectors are of channels, not of groups
  bool turned;       // the weights lie with the taps innermost
  int64_t lanes;     // groups, rounded up to whole vectors where vectors are of groups or a product makes them
  int64_t taps;      // K
  int64_t position;  // floats of one position in scratch: [lanes / kLanes][D][kLanes], or [G][D in whole vectors]
  int64_t top, left;
  int64_t rows;     // rows of the map that one output row reaches
  int64_t columns;  // positions of a scratch row: the map and its border
  bool direct;      // the weights can be read where they lie
};

// Positions of a line that are taken together: their weights stay in the second-level cache.
inline int64_t run_length(const Shape& s) {
  constexpr int64_t floats = 1 << 16;
  return std::max<int64_t>(1, std::min(s.problem.width, floats / (s.taps * s.lanes)));
}

// Positions of a map, [G][D], to scratch, [G][D in whole vectors], and back.
template <typename T>
void spread_wide(const Shape& s, const T* source, int64_t positions, float* target) {
  const int64_t dim = s.problem.dim, whole = whole_vectors(dim);
  if (dim == whole) return to_floats(source, positions * s.position, target);
  for (int64_t n = 0; n < positions * s.problem.groups; ++n, source += dim, target += whole) {
    to_floats(source, dim, target);
    std::fill(target + dim, target + whole, 0.0f);
  }
}

template <typename T>
void gather_wide(const Shape& s, const float* source, int64_t positions, T* target) {
  const int64_t dim = s.problem.dim, whole = whole_vectors(dim);
  if (dim == whole) return from_floats(source, positions * s.position, target);
  for (int64_t n = 0; n < positions * s.problem.groups; ++n, source += whole, target += dim)
    from_floats(source, dim, target);
}

// The same to whichever scratch there is; vectors of groups are [lanes / kLanes][D][kLanes]. Loops over constants are
// shuffles.
template <typename T>
void spread(const Shape& s, const T* source, int64_t positions, float* target) {
  if (s.wide) return spread_wide(s, source, positions, target);
  const int64_t groups = s.problem.groups, cut = groups % kLanes;
  with_dim(s.problem.dim, [&](auto dim) {
    const int64_t each = kLanes * dim;
    UnsetFloats scratch(std::is_same_v<T, float> ? 0 : each);
    for (int64_t i = 0; i < positions; ++i) {
      for (int64_t g = kLanes; g <= groups; g += kLanes, source += each, target += each) {
        const float* from = as_floats(source, each, scratch.data());
        if (dim % 4 == 0) {
          for (int64_t l = 0; l < kLanes; l += 4) transpose_four(from + l * dim, dim, dim, target + l, kLanes);
        } else {
          for (int64_t d = 0; d < dim; ++d)
            for (int64_t l = 0; l < kLanes; ++l) target[d * kLanes + l] = from[l * dim + d];
        }
      }
      if (!cut) continue;
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t l = 0; l < cut; ++l) target[d * kLanes + l] = to_float(source[l * dim + d]);
      source += cut * dim;
      target += each;
    }
  });
}

template <typename T>
void gather(const Shape& s, const float* source, int64_t positions, T* target) {
  if (s.wide) return gather_wide(s, source, positions, target);
  const int64_t groups = s.problem.groups, cut = groups % kLanes;
  with_dim(s.problem.dim, [&](auto dim) {
    const int64_t each = kLanes * dim;
    UnsetFloats scratch(std::is_same_v<T, float> ? 0 : each);
    for (int64_t i = 0; i < positions; ++i) {
      for (int64_t g = kLanes; g <= groups; g += kLanes, source += each, target += each)
        write_as_floats(target, each, scratch.data(), [&](float* to) {
          if (dim % 4 == 0) {
            for (int64_t d = 0; d < dim; d += 4) transpose_four(source + d * kLanes, kLanes, kLanes, to + d, dim);
          } else {
            for (int64_t d = 0; d < dim; ++d)
              for (int64_t l = 0; l < kLanes; ++l) to[l * dim + d] = source[d * kLanes + l];
          }
        });
      if (!cut) continue;
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t l = 0; l < cut; ++l) target[l * dim + d] = from_float<T>(source[d * kLanes + l]);
      source += each;
      target += cut * dim;
    }
  });
}

// Taps [begin, end) of an axis.
struct Taps {
  int64_t begin, end;
};

// Those that find an input from position i of `size`, the first one `before` positions back; the rest is outside.
inline Taps taps_inside(int64_t i, int64_t size, int64_t before, int64_t taps, int64_t dilation) {
  const int64_t missing = std::max<int64_t>(before - i, 0);
  return {divide_up(missing, dilation), std::min(taps, (size - 1 - i + before) / dilation + 1)};
}

// Those of the columns of the kernel, for each position of a line.
inline std::vector<Taps> columns_inside(const Shape& s) {
  const auto& p = s.problem;
  std::vector<Taps> columns(p.width);
  for (int64_t i = 0; i < p.width; ++i)
    columns[i] = taps_inside(i, p.width, s.left, p.kernel_width, p.dilation_width);
  return columns;
}

// A ring of scratch rows, `columns` positions each, that slides down the map; row r lies in slot r modulo `rows`.
class Ring {
 public:
  // Without a border, what is outside of the map is neither set nor cleared.
  explicit Ring(const Shape& shape, bool with_border = true)
      : shape_(shape),
        with_border_(with_border),
        stride_(shape.columns * shape.position),
        data_(shape.rows * stride_) {
    if (with_border) std::fill(data_.begin(), data_.end(), 0.0f);
  }

  // But for its border: of what is read it stays zero, and of sums it is never written.
  void clear(int64_t r) {
    std::fill_n(row(r) + shape_.left * shape_.position, shape_.problem.width * shape_.position, 0.0f);
  }

  template <typename T>
  void read(int64_t r, const T* image) {
    const auto& p = shape_.problem;
    if (r < 0 || r >= p.height) return with_border_ ? clear(r) : void();
    spread(shape_, image + r * p.width * p.groups * p.dim, p.width, row(r) + shape_.left * shape_.position);
  }

  template <typename T>
  void write(int64_t r, T* image) {
    const auto& p = shape_.problem;
    gather(shape_, row(r) + shape_.left * shape_.position, p.width, image + r * p.width * p.groups * p.dim);
  }

  // Where each tap finds its input for the first position of output row h; null outside of rows [first, last).
  template <typename Pointer>
  void point(int64_t h, int64_t first, int64_t last, std::vector<Pointer>& inputs) {
    const auto& p = shape_.problem;
    for (int64_t a = 0, k = 0; a < p.kernel_height; ++a) {
      const int64_t r = h - shape_.top + a * p.dilation_height;
      float* start = row(r);
      for (int64_t c = 0; c < p.kernel_width; ++c, ++k)
        inputs[k] = r >= first && r < last ? start + c * p.dilation_width * shape_.position : nullptr;
    }
  }

 private:
  float* row(int64_t r) { return data_.data() + ((r % shape_.rows + shape_.rows) % shape_.rows) * stride_; }

  const Shape& shape_;
  bool with_border_;
  int64_t stride_;
  UnsetFloats data_;
};

// The rows that an output row reaches, while output rows are taken one after the other.
template <typename T>
class SlidingRows {
 public:
  SlidingRows(const Shape& shape, const T* x, bool with_border = true)
      : inputs(shape.taps), shape_(shape), x_(x), ring_(shape, with_border), line_(-2), loaded_(0) {}

  // Makes `inputs` those of a line of the batch * height lines.
  void move_to(int64_t line) {
    const auto& p = shape_.problem;
    const int64_t b = line / p.height, h = line % p.height;
    if (line != line_ + 1 || h == 0) loaded_ = h - shape_.top;
    line_ = line;
    for (; loaded_ < h - shape_.top + shape_.rows; ++loaded_)
      ring_.read(loaded_, x_ + b * p.height * p.width * p.groups * p.dim);
    ring_.point(h, h - shape_.top, h - shape_.top + shape_.rows, inputs);
  }

  std::vector<const float*> inputs;  // of each tap, for the first position of the line

 private:
  const Shape& shape_;
  const T* x_;
  Ring ring_;
  int64_t line_, loaded_;  // the line we are at; rows of its image that are in, counted from the top
};

// Calls f(vectors, channels, first float, first group) for blocks of one position that fit into registers: some vectors
// of groups, and some of their channels. Fewer than eight sums would wait for one another. The floats of a block and
// vector are one stretch of scratch: spread over more lines of the cache, those of 7 x 7 positions would not fit.
template <typename F>
inline void for_blocks(const Shape& s, F f) {
  const int64_t dim = s.problem.dim;
  int64_t d = 0;
  auto channels = [&](auto vectors, auto dims) {
    for (; dim - d >= dims; d += dims) {
      int64_t v = 0;
      for (; v + vectors * kLanes <= s.lanes; v += vectors * kLanes) f(vectors, dims, v * dim + d * kLanes, v);
      constexpr std::integral_constant<int, vectors < 3 ? 1 : 2> half;
      for (; v + half * kLanes <= s.lanes; v += half * kLanes) f(half, dims, v * dim + d * kLanes, v);
      for (; v < s.lanes; v += kLanes) f(std::integral_constant<int, 1>(), dims, v * dim + d * kLanes, v);
    }
  };
  channels(std::integral_constant<int, 1>(), std::integral_constant<int, 12>());
  channels(std::integral_constant<int, 1>(), std::integral_constant<int, 8>());
  channels(std::integral_constant<int, 2>(), std::integral_constant<int, 6>());
  channels(std::integral_constant<int, 2>(), std::integral_constant<int, 4>());
  channels(std::integral_constant<int, 4>(), std::integral_constant<int, 3>());
  channels(std::integral_constant<int, 4>(), std::integral_constant<int, 1>());
}

// The same for vectors of channels: of a group, some of its vectors at a time, or the taps shared out among sums that do
// not wait for one another. Calls f(vectors, sums of each, group, first float).
template <typename F>
inline void for_channels(const Shape& s, F f) {
  const int64_t whole = whole_vectors(s.problem.dim);
  for (int64_t g = 0; g < s.problem.groups; ++g) {
    int64_t d = 0;
    auto channels = [&](auto vectors, auto shares) {
      for (; whole - d >= vectors * kLanes; d += vectors * kLanes) f(vectors, shares, g, g * whole + d);
    };
    channels(std::integral_constant<int, 8>(), std::integral_constant<int, 1>());
    channels(std::integral_constant<int, 4>(), std::integral_constant<int, 2>());
    channels(std::integral_constant<int, 2>(), std::integral_constant<int, 4>());
    channels(std::integral_constant<int, 1>(), std::integral_constant<int, 4>());
  }
}

inline void sum_taps_of_channels(const Shape& s, const float* weight, const float* const* inputs, int64_t at, Taps rows,
                                 const Taps* columns, float* y, int64_t count) {
  const int64_t across = s.problem.kernel_width, step = s.problem.dilation_width * s.position;
  for_channels(s, [&](auto vectors, auto shares, int64_t g, int64_t block) {
    for (int64_t i = 0; i < count; ++i) {
      const Taps inside = columns[i];
      Vector sums[shares][vectors] = {};
      for (int64_t a = rows.begin; a < rows.end; ++a) {
        const float* x = inputs[a * across] + at + i * s.position + inside.begin * step + block;
        const float* w = weight + (i * s.taps + a * across + inside.begin) * s.lanes + g;
        auto take = [&](auto taps) LOCALMIX_INLINE {
          unrolled<taps * vectors>([&](auto n) LOCALMIX_INLINE {
            constexpr int tap = n / vectors, v = n % vectors;
            sums[tap][v] += w[tap * s.lanes] * load(x + tap * step + v * kLanes);
          });
          x += taps * step;
          w += taps * s.lanes;
        };
        int64_t c = inside.begin;
        for (; c + shares <= inside.end; c += shares) take(shares);
        for (; c < inside.end; ++c) take(std::integral_constant<int, 1>());
      }
      unrolled<vectors>([&](auto v) LOCALMIX_INLINE {
        for (int n = 1; n < shares; ++n) sums[0][v] += sums[n][v];
        store(y + i * s.position + block + v * kLanes, sums[0][v]);
      });
    }
  });
}

inline void scatter_taps_of_channels(
    const Shape& s, const float* weight, float* const* inputs, int64_t at, const float* y, int64_t count) {
  for_channels(s, [&](auto vectors, auto, int64_t g, int64_t block) {
    for (int64_t i = 0; i < count; ++i) {
      const float* weights = weight + i * s.taps * s.lanes + g;
      Vector of_y[vectors];
      unrolled<vectors>([&](auto v) LOCALMIX_INLINE { of_y[v] = load(y + i * s.position + block + v * kLanes); });
      for (int64_t k = 0; k < s.taps; ++k) {
        if (!inputs[k]) continue;
        float* x = inputs[k] + at + i * s.position + block;
        const float w = weights[k * s.lanes];
        unrolled<vectors>([&](auto v) LOCALMIX_INLINE {
          store(x + v * kLanes, load(x + v * kLanes) + w * of_y[v]);
        });
      }
    }
  });
}

// The sums of the lanes of four vectors.
inline Four sums_of_lanes(const Vector (&vectors)[4]) {
  float lanes[4][4], turned[4][4];
  for (int i = 0; i < 4; ++i) {
    float all[kLanes];
    store(all, vectors[i]);
    Four sum = {};
    for (int64_t l = 0; l < kLanes; l += 4) sum += *reinterpret_cast<const Four*>(all + l);
    *reinterpret_cast<Four*>(lanes[i]) = sum;
  }
  transpose_four(lanes[0], 4, 4, turned[0], 4);
  Four sum = {};
  for (int i = 0; i < 4; ++i) sum += *reinterpret_cast<const Four*>(turned[i]);
  return sum;
}

inline void dot_taps_of_channels(
    const Shape& s, float* weight, const float* const* inputs, int64_t at, const float* y, int64_t count) {
  const int64_t whole = whole_vectors(s.problem.dim);
  for (int64_t i = 0; i < count; ++i, weight += s.taps * s.lanes) {
    for (int64_t g = 0; g < s.problem.groups; ++g) {
      const float* of_y = y + i * s.position + g * whole;
      for (int64_t k = 0; k < s.taps; k += 4) {
        const int64_t taps = std::min<int64_t>(4, s.taps - k);
        const float* x[4];
        for (int64_t n = 0; n < 4; ++n) x[n] = inputs[k + std::min(n, taps - 1)] + at + i * s.position + g * whole;
        Vector sums[4] = {};
        for (int64_t d = 0; d < whole; d += kLanes) {
          const Vector number = load(of_y + d);
          unrolled<4>([&](auto n) LOCALMIX_INLINE { sums[n] += number * load(x[n] + d); });
        }
        const Four dots = sums_of_lanes(sums);
        for (int64_t n = 0; n < taps; ++n) weight[(k + n) * s.lanes + g] = dots[n];
      }
    }
    for (int64_t k = 0; k < s.taps && s.lanes > s.problem.groups; ++k)
      std::fill(weight + k * s.lanes + s.problem.groups, weight + (k + 1) * s.lanes, 0.0f);
  }
}

// A block goes through all positions of a run before the next one comes: its inputs, 7 x 7 of them, then stay in the
// first-level cache, and each position brings one column of new ones.

constexpr int64_t kAhead = 512;  // floats

// y = sum over taps of weight * x for `count` positions of a line, the first one at float `at` of the inputs: weight
// [count][K][lanes], y as in scratch. Of the kernel the taps inside of the map are read, `rows` by `columns` of the
// position: no others, neither their weights.
inline void sum_taps(const Shape& s, const float* weight, const float* const* inputs, int64_t at, Taps rows,
                     const Taps* columns, float* y, int64_t count) {
  if (s.wide) return sum_taps_of_channels(s, weight, inputs, at, rows, columns, y, count);
  const int64_t across = s.problem.kernel_width, step = s.problem.dilation_width * s.position;
  for_blocks(s, [&, next = s.problem.dim * kLanes](auto vectors, auto dims, int64_t block, int64_t v) {
    for (int64_t i = 0; i < count; ++i) {
      const Taps inside = columns[i];
      Vector sums[vectors][dims] = {};
      for (int64_t a = rows.begin; a < rows.end; ++a) {
        const float* x = inputs[a * across] + at + i * s.position + inside.begin * step + block;
        const float* w = weight + (i * s.taps + a * across + inside.begin) * s.lanes + v;
        for (int64_t c = inside.begin; c < inside.end; ++c, x += step, w += s.lanes)
          for (int j = 0; j < vectors; ++j) {
            const Vector factor = load(w + j * kLanes);
            // weights for few channels are used faster than memory brings them unasked
            if (dims < 12) __builtin_prefetch(w + j * kLanes + kAhead);
            for (int d = 0; d < dims; ++d) sums[j][d] += factor * load(x + d * kLanes + j * next);
          }
      }
      for (int j = 0; j < vectors; ++j)
        for (int d = 0; d < dims; ++d) store(y + i * s.position + block + d * kLanes + j * next, sums[j][d]);
    }
  });
}

// inputs += weight * y for the positions of a run, into each tap that has an input.
inline void scatter_taps(
    const Shape& s, const float* weight, float* const* inputs, int64_t at, const float* y, int64_t count) {
  if (s.wide) return scatter_taps_of_channels(s, weight, inputs, at, y, count);
  for_blocks(s, [&, next = s.problem.dim * kLanes](auto vectors, auto dims, int64_t block, int64_t v) {
    for (int64_t i = 0; i < count; ++i) {
      const float* weights = weight + i * s.taps * s.lanes + v;
      Vector g[vectors][dims];
      for (int j = 0; j < vectors; ++j)
        for (int d = 0; d < dims; ++d) g[j][d] = load(y + i * s.position + block + d * kLanes + j * next);
      for (int64_t k = 0; k < s.taps; ++k) {
        if (!inputs[k]) continue;
        float* x = inputs[k] + at + i * s.position + block;
        for (int j = 0; j < vectors; ++j) {
          const Vector w = load(weights + k * s.lanes + j * kLanes);
          for (int d = 0; d < dims; ++d) {
            float* target = x + d * kLanes + j * next;
            store(target, load(target) + w * g[j][d]);
          }
        }
      }
    }
  });
}

// weight = sum over the channels of a group of inputs * y for the positions of a run, for each tap.
inline void dot_taps(
    const Shape& s, float* weight, const float* const* inputs, int64_t at, const float* y, int64_t count) {
  if (s.wide) return dot_taps_of_channels(s, weight, inputs, at, y, count);
  for_blocks(s, [&, next = s.problem.dim * kLanes](auto vectors, auto dims, int64_t block, int64_t v) {
    const bool add = block > v * s.problem.dim;  // other channels of these groups are in already
    for (int64_t i = 0; i < count; ++i) {
      float* weights = weight + i * s.taps * s.lanes + v;
      Vector g[vectors][dims];
      for (int j = 0; j < vectors; ++j)
        for (int d = 0; d < dims; ++d) g[j][d] = load(y + i * s.position + block + d * kLanes + j * next);
      for (int64_t k = 0; k < s.taps; ++k) {
        const float* x = inputs[k] + at + i * s.position + block;
        for (int j = 0; j < vectors; ++j) {
          float* target = weights + k * s.lanes + j * kLanes;
          Vector sum = g[j][0] * load(x + j * next);
          for (int d = 1; d < dims; ++d) sum += g[j][d] * load(x + d * kLanes + j * next);
          store(target, add ? load(target) + sum : sum);
        }
      }
    }
  });
}

}  // namespace
