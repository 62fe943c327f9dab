// Sums with a weight of its own at every position: forward, and both gradients.
//
//   y[b, i, g, d] = sum over taps k of  weight[b, i, g, k] * x[b, i + k, g, d]        (zero outside of the map)
//
// The weights are the traffic: G * K of them for C = G * D inputs. They are read once, in order, straight into
// registers. The inputs are few and used K times: rows of them wait in scratch, padded, as float, with the groups
// innermost, so that one vector of weights serves the D channels of its groups without a shuffle.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "kernels.h"
#include "maps.h"

namespace {

// The weights of some positions as float [count][K][lanes]: where they lie if that is how they lie, else in `scratch`.
template <typename T>
const float* weights_at(const Shape& s, const T* weight, int64_t position, int64_t count, float* scratch) {
  const int64_t groups = s.problem.groups, each = groups * s.taps;
  const T* source = weight + position * each;
  if (s.direct) return reinterpret_cast<const float*>(source);
  UnsetFloats numbers(s.turned ? each : 0);
  for (int64_t i = 0; i < count; ++i, source += each) {
    float* target = scratch + i * s.taps * s.lanes;
    if (s.turned) {
      transpose(as_floats(source, each, numbers.data()), s.taps, groups, s.taps, target, s.lanes);
    } else if (s.lanes == groups) {
      to_floats(source, each, target);
    } else {
      for (int64_t k = 0; k < s.taps; ++k) to_floats(source + k * groups, groups, target + k * s.lanes);
    }
  }
  return scratch;
}

template <typename T>
void put_weights(const Shape& s, const float* weight, int64_t count, T* target) {
  const int64_t groups = s.problem.groups, each = groups * s.taps;
  UnsetFloats numbers(s.turned ? each : 0);
  for (int64_t i = 0; i < count; ++i, weight += s.taps * s.lanes, target += each) {
    if (s.turned) {
      write_as_floats(target, each, numbers.data(), [&](float* to) {
        transpose(weight, s.lanes, s.taps, groups, to, s.taps);
      });
    } else if (s.lanes == groups) {
      from_floats(weight, each, target);
    } else {
      for (int64_t k = 0; k < s.taps; ++k) from_floats(weight + k * s.lanes, groups, target + k * groups);
    }
  }
}

// Scratch for the weights of a run of positions, none if they can be used where they lie.
Floats scratch_of_weights(const Shape& s) {
  return Floats(s.direct ? 0 : run_length(s) * s.taps * s.lanes, 0.0f);
}

template <typename T>
void forward(const LocalWeightProblem& p, const void* x_, const void* weight_, void* y_, int64_t begin, int64_t end) {
  const Shape s(p);
  const T *x = static_cast<const T*>(x_), *weight = static_cast<const T*>(weight_);
  T* y = static_cast<T*>(y_);
  const int64_t run = run_length(s);
  SlidingRows<T> rows(s, x, false);
  const std::vector<Taps> columns = columns_inside(s);
  Floats scratch = scratch_of_weights(s);
  UnsetFloats sums(run * s.position);
  for (int64_t line = begin; line < end; ++line) {
    rows.move_to(line);
    const Taps lines = taps_inside(line % p.height, p.height, s.top, p.kernel_height, p.dilation_height);
    for (int64_t i = 0; i < p.width; i += run) {
      const int64_t position = line * p.width + i, count = std::min(run, p.width - i);
      const float* w = weights_at(s, weight, position, count, scratch.data());
      sum_taps(s, w, rows.inputs.data(), i * s.position, lines, &columns[i], sums.data(), count);
      gather(s, sums.data(), count, y + position * p.groups * p.dim);
    }
  }
}

template <typename T>
void backward_x(
    const LocalWeightProblem& p, const void* gradient_, const void* weight_, void* of_x_, int64_t begin, int64_t end) {
  const Shape s(p);
  const T *gradient = static_cast<const T*>(gradient_), *weight = static_cast<const T*>(weight_);
  T* of_x = static_cast<T*>(of_x_);
  const int64_t channels = p.groups * p.dim, image = p.height * p.width * channels, run = run_length(s);
  Ring ring(s);
  Floats scratch = scratch_of_weights(s), g(run * s.position, 0.0f);
  std::vector<float*> inputs(s.taps);
  for (int64_t line = begin; line < end;) {
    // the rows [first, last) of one image are ours; output rows further off reach into them
    const int64_t b = line / p.height, first = line % p.height, last = std::min(p.height, first + end - line);
    line += last - first;
    for (int64_t r = 0; r < s.rows; ++r) ring.clear(r);
    for (int64_t h = first + s.top - s.rows + 1; h < last + s.top; ++h) {
      if (h >= 0 && h < p.height) {
        ring.point(h, first, last, inputs);
        for (int64_t i = 0; i < p.width; i += run) {
          const int64_t position = (b * p.height + h) * p.width + i, count = std::min(run, p.width - i);
          spread(s, gradient + position * channels, count, g.data());
          const float* w = weights_at(s, weight, position, count, scratch.data());
          scatter_taps(s, w, inputs.data(), i * s.position, g.data(), count);
        }
      }
      // no later output row reaches row h - top
      if (h - s.top >= first) {
        ring.write(h - s.top, of_x + b * image);
        ring.clear(h - s.top);
      }
    }
  }
}

template <typename T>
void backward_weight(
    const LocalWeightProblem& p, const void* gradient_, const void* x_, void* of_weight_, int64_t begin, int64_t end) {
  const Shape s(p);
  const T *gradient = static_cast<const T*>(gradient_), *x = static_cast<const T*>(x_);
  T* of_weight = static_cast<T*>(of_weight_);
  const int64_t run = run_length(s);
  SlidingRows<T> rows(s, x);
  Floats scratch = scratch_of_weights(s), g(run * s.position, 0.0f);
  for (int64_t line = begin; line < end; ++line) {
    rows.move_to(line);
    for (int64_t i = 0; i < p.width; i += run) {
      const int64_t position = line * p.width + i, count = std::min(run, p.width - i);
      spread(s, gradient + position * p.groups * p.dim, count, g.data());
      T* target = of_weight + position * p.groups * s.taps;
      float* w = s.direct ? reinterpret_cast<float*>(target) : scratch.data();
      dot_taps(s, w, rows.inputs.data(), i * s.position, g.data(), count);
      if (!s.direct) put_weights(s, w, count, target);
    }
  }
}

}  // namespace

LOCALMIX_KERNEL(forward)
LOCALMIX_KERNEL(backward_x)
LOCALMIX_KERNEL(backward_weight)
