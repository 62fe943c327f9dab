// Sums whose weights all positions share, static or of the image: forward, and both gradients.
//
//   y[b, i, c] = bias[c] + sum over taps k of  weight[b, c, k] * x[b, i + k, c]        (zero outside of the map)
//
// Rows of the map wait in a ring in the second-level cache, padded, as float, by blocks of 16 channels. A run of
// positions of two rows is summed in registers; a number of the map that is read serves every position and tap that
// needs it, so that the sum is bound by arithmetic and not by reading.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "kernels.h"
#include "shared_maps.h"

namespace {

// sums [line][run] += taps of a kernel row for each line * a row of x, for a vector of channels; the numbers of x before
// `From` and from `To` on are zero.
template <int Lines, int Width, int From, int To>
LOCALMIX_INLINE inline void add_row(
    const SharedWeightProblem& p, const float* x, const float* const (&taps)[Lines], Vector (*sums)[kRun]) {
  if constexpr (Width > 0) {
    Vector tap[Lines][Width];
    unrolled<Lines * Width>([&](auto n) LOCALMIX_INLINE {
      tap[n / Width][n % Width] = load(taps[n / Width] + n % Width * kBlock);
    });
    unrolled<To - From>([&](auto n) LOCALMIX_INLINE {
      constexpr int i = From + n;
      const Vector number = load(x + i * kBlock);
      unrolled<Width>([&](auto k) LOCALMIX_INLINE {
        unrolled<Lines>([&](auto line) LOCALMIX_INLINE {
          if constexpr (i - k >= 0 && i - k < kRun) sums[line][i - k] += tap[line][k] * number;
        });
      });
    });
  } else {
    for (int64_t k = 0; k < p.kernel_width; ++k) {
      const Vector tap = load(taps[0] + k * kBlock);
      const float* at = x + k * p.dilation_width * kBlock;
      unrolled<kRun>([&](auto i) LOCALMIX_INLINE { sums[0][i] += tap * load(at + i * kBlock); });
    }
  }
}

// A run of positions of each line, for a vector of channels: y[line] in steps of `stride` floats.
template <int Lines, int Width, int From, int To>
__attribute__((noinline)) void sum_run(const SharedWeightProblem& p, const View& view, int64_t at, const float* taps,
                                       const float* start, float* const (&y)[kLines], int64_t stride) {
  Vector sums[Lines][kRun];
  unrolled<Lines * kRun>([&](auto n) LOCALMIX_INLINE { sums[n / kRun][n % kRun] = load(start); });
  const Seen* seen = view.rows.data();
  auto tap_row = [&](int line) { return taps + seen->tap_row[line] * p.kernel_width * kBlock; };
  if constexpr (Lines == 1) {
    for (int64_t n = 0; n < view.both; ++n, ++seen) add_row<1, Width, From, To>(p, seen->x + at, {tap_row(0)}, sums);
  } else {
    for (int64_t n = 0; n < view.before; ++n, ++seen) add_row<1, Width, From, To>(p, seen->x + at, {tap_row(0)}, sums);
    for (int64_t n = 0; n < view.both; ++n, ++seen)
      add_row<2, Width, From, To>(p, seen->x + at, {tap_row(0), tap_row(1)}, sums);
    for (int64_t n = 0; n < view.after; ++n, ++seen)
      add_row<1, Width, From, To>(p, seen->x + at, {tap_row(1)}, sums + 1);
  }
  unrolled<Lines * kRun>([&](auto n) LOCALMIX_INLINE {
    store(y[n / kRun] + n % kRun * stride, sums[n / kRun][n % kRun]);
  });
}

// A run from position i on for channels [v, v + kLanes) of the block; at the sides of the map, numbers known to be zero
// are left out.
template <int Lines, int Width>
void sum_at(const SharedWeightProblem& p, const View& view, int64_t i, int64_t v, const float* taps,
            const float* start, float* const (&y)[kLines], int64_t stride) {
  constexpr int border = (Width - 1) / 2, last = kRun + Width - 1;
  auto run = [&](auto from, auto to) {
    sum_run<Lines, Width, from, to>(p, view, i * kBlock + v, taps + v, start + v, y, stride);
  };
  constexpr std::integral_constant<int, 0> all;
  constexpr std::integral_constant<int, last> end;
  if constexpr (Width == 0) {
    run(all, all);
  } else {
    constexpr std::integral_constant<int, border> from;
    constexpr std::integral_constant<int, last - border> to;
    const bool is_first = i == 0, is_last = i + kRun == p.width;
    is_first && is_last ? run(from, to) : is_first ? run(from, end) : is_last ? run(all, to) : run(all, end);
  }
}

template <typename T>
void pack(const SharedWeightProblem& p, const void* weight_, const void*, const void*, void* packed_, int64_t begin,
          int64_t end) {
  const Plan plan(p);
  const T* weight = static_cast<const T*>(weight_);
  Floats rows(std::is_same_v<T, float> ? 0 : kBlock * plan.taps);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % plan.blocks, n = unit / plan.blocks;
    const int64_t count = std::min(kBlock, p.channels - block * kBlock);
    const T* source = weight + (n * p.channels + block * kBlock) * plan.taps;
    float* target = static_cast<float*>(packed_) + unit * plan.taps * kBlock;
    if (count < kBlock) std::fill_n(target, plan.taps * kBlock, 0.0f);
    if constexpr (std::is_same_v<T, float>) {
      transpose(source, plan.taps, count, plan.taps, target, kBlock);
    } else {
      to_floats(source, count * plan.taps, rows.data());
      transpose(rows.data(), plan.taps, count, plan.taps, target, kBlock);
    }
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
  Window<T> map(p, plan);
  const int64_t length = std::max<int64_t>(p.width, kRun) * kBlock;
  Floats line(kLines * length);
  float start[kBlock] = {};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit % p.parts, strip = unit / p.parts % p.strips, b = unit / p.parts / p.strips;
    const int64_t first = p.height * strip / p.strips, last = p.height * (strip + 1) / p.strips;
    map.move_to(x, b, part, first);
    with_width(p, [&](auto width, auto most) {
      for (int64_t h = first; h < last; h += most) {
        const int64_t lines = std::min<int64_t>(most, last - h);
        map.reach(h + lines - 1);
        for (int64_t j = 0; j < map.blocks(); ++j) {
          const int64_t block = plan.first_block(p, part) + j, count = map.channels(j);
          const float* taps = packed + ((p.weights > 1 ? b : 0) * plan.blocks + block) * plan.taps * kBlock;
          T* target = y + (b * p.height + h) * p.width * p.channels + block * kBlock;
          if (bias) read_block(bias + block * kBlock, count, start);
          const View& view = map.seen(h, lines, j);
          // straight to where they belong, if they are whole floats there
          const bool direct = std::is_same_v<T, float> && count == kBlock && p.width >= kRun;
          float* sums = direct ? reinterpret_cast<float*>(target) : line.data();
          const int64_t stride = direct ? p.channels : kBlock, next = direct ? p.width * p.channels : length;
          for (int64_t v = 0; v < kBlock; v += kLanes)
            for_runs(p, [&](int64_t i) {
              float* out[kLines];
              for (int64_t l = 0; l < kLines; ++l) out[l] = sums + l * next + i * stride + v;
              if (lines == most) {
                sum_at<most, width>(p, view, i, v, taps, start, out, stride);
              } else {
                sum_at<1, width>(p, view, i, v, taps, start, out, stride);
              }
            });
          for (int64_t l = 0; l < lines && !direct; ++l)
            for (int64_t i = 0; i < p.width; ++i)
              write_block(sums + l * next + i * kBlock, count, target + (l * p.width + i) * p.channels);
        }
      }
    });
  }
}

// sums [K][16] += over the positions of each line, for a vector of channels and the taps of a row of x: gradient [line],
// each `stride` floats after the one before. A line is summed on its own, so that long sums keep their digits.
template <int Lines, int Width>
LOCALMIX_INLINE inline void add_products(const SharedWeightProblem& p, const float* x, const float* gradient,
                                         int64_t stride, float* const (&sums)[Lines]) {
  auto some = [&](auto count, int64_t k) LOCALMIX_INLINE {
    Vector of_tap[Lines][count] = {};
    const float* at = x + k * p.dilation_width * kBlock;
    const int64_t step = Width > 0 ? kBlock : p.dilation_width * kBlock;
    for (int64_t i = 0; i < p.width; ++i) {
      Vector g[Lines];
      unrolled<Lines>([&](auto line) LOCALMIX_INLINE { g[line] = load(gradient + line * stride + i * kBlock); });
      unrolled<count>([&](auto c) LOCALMIX_INLINE {
        const Vector number = load(at + i * kBlock + c * step);
        unrolled<Lines>([&](auto line) LOCALMIX_INLINE { of_tap[line][c] += g[line] * number; });
      });
    }
    unrolled<Lines * count>([&](auto n) LOCALMIX_INLINE {
      float* target = sums[n / count] + (k + n % count) * kBlock;
      store(target, load(target) + of_tap[n / count][n % count]);
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

// sums [K + 1][16] += over the positions of the lines, by tap and for the bias, for a vector of channels.
template <int Lines, int Width>
void add_lines(const SharedWeightProblem& p, const View& view, int64_t v, const float* gradient, int64_t stride,
               float* sums) {
  float* of_bias = sums + p.kernel_height * p.kernel_width * kBlock + v;
  for (int64_t line = 0; line < Lines; ++line) {
    Vector whole = {};
    for (int64_t i = 0; i < p.width; ++i) whole += load(gradient + line * stride + i * kBlock + v);
    store(of_bias, load(of_bias) + whole);
  }
  const Seen* seen = view.rows.data();
  const float *first = gradient + v, *second = gradient + (Lines - 1) * stride + v;
  auto taps = [&](int line) { return sums + seen->tap_row[line] * p.kernel_width * kBlock + v; };
  if constexpr (Lines == 1) {
    for (int64_t n = 0; n < view.both; ++n, ++seen) add_products<1, Width>(p, seen->x + v, first, stride, {taps(0)});
  } else {
    for (int64_t n = 0; n < view.before; ++n, ++seen) add_products<1, Width>(p, seen->x + v, first, stride, {taps(0)});
    for (int64_t n = 0; n < view.both; ++n, ++seen)
      add_products<2, Width>(p, seen->x + v, first, stride, {taps(0), taps(1)});
    for (int64_t n = 0; n < view.after; ++n, ++seen) add_products<1, Width>(p, seen->x + v, second, stride, {taps(1)});
  }
}

template <typename T>
void backward_weight(const SharedWeightProblem& p, const void* x_, const void* gradient_, const void*, void* sums_,
                     int64_t begin, int64_t end) {
  const Plan plan(p);
  const T *x = static_cast<const T*>(x_), *gradient = static_cast<const T*>(gradient_);
  Window<T> map(p, plan);
  const int64_t stride = p.width * kBlock, next = plan.most_blocks(p) * stride, each = (plan.taps + 1) * kBlock;
  Floats line(kLines * next, 0.0f);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit % p.parts, share = unit / p.parts;
    const int64_t first = p.batch * share / p.strips, last = p.batch * (share + 1) / p.strips;
    const int64_t first_block = plan.first_block(p, part);
    for (int64_t b = first; b < last; ++b) {
      const int64_t n = p.weights > 1 ? b : share;
      float* sums = static_cast<float*>(sums_) + (n * plan.blocks + first_block) * each;
      map.move_to(x, b, part, 0);
      std::fill(line.begin(), line.end(), 0.0f);
      with_width(p, [&](auto width, auto most) {
        for (int64_t h = 0; h < p.height; h += most) {
          const int64_t lines = std::min<int64_t>(most, p.height - h);
          map.reach(h + lines - 1);
          for (int64_t l = 0; l < lines; ++l) {
            const T* source = gradient + (b * p.height + h + l) * p.width * p.channels + first_block * kBlock;
            map.read(source, &line[l * next], stride);
          }
          for (int64_t j = 0; j < map.blocks(); ++j) {
            const View& view = map.seen(h, lines, j);
            for (int64_t v = 0; v < kBlock; v += kLanes) {
              if (lines == most) {
                add_lines<most, width>(p, view, v, &line[j * stride], next, sums + j * each);
              } else {
                add_lines<1, width>(p, view, v, &line[j * stride], next, sums + j * each);
              }
            }
          }
        }
      });
    }
  }
}

}  // namespace

LOCALMIX_KERNELS(
    SharedWeightKernels, shared, LOCALMIX_RUN(pack), LOCALMIX_RUN(forward), LOCALMIX_RUN(backward_weight))
