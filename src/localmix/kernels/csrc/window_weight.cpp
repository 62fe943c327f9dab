// Sums over a window with a weight from each slot to each slot, alike in all windows: forward, and all gradients.
//
//   y[i, g, d] = bias[g, i] + sum over the slots j of the window of i of  weight[g, i, j] * x[j, g, d]
//
// A window and group at a time is a product of two small matrices in the first-level cache; there is no partition and
// no padding. A cut window holds fewer positions: it takes the rows and columns of its slots.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "window_weight.h"
#include "conversions.h"
#include "floats.h"
#include "kernels.h"
#include "numbers.h"
#include "product.h"
#include "windows.h"

namespace {

// A group of a window as float.
template <typename T>
class Group {
 public:
  explicit Group(const WindowWeightProblem& p, bool backward)
      : p_(p),
        slots_(p.size_height * p.size_width),
        n_(std::min(p.size_height, p.height) * std::min(p.size_width, p.width)),
        dim_(whole_vectors(p.dim)),
        line_(whole_vectors(n_)),
        x(n_ * dim_, 0.0f),
        y(n_ * dim_, 0.0f),
        cut_(n_ * n_),
        transposed_(backward ? p.dim * line_ : 0, 0.0f),
        of_weight_(backward ? n_ * line_ : 0) {}

  void read(const Window& w, int64_t group, const void* map, Floats& target) const {
    float* out = target.data();
    for (int64_t i = 0; i < w.positions; ++i, out += dim_) {
      const T* source = static_cast<const T*>(map) + place(w, group, i);
      to_floats(source, p_.dim, out);
    }
  }

  void write(const Window& w, int64_t group, const Floats& source, void* map) const {
    const float* in = source.data();
    for (int64_t i = 0; i < w.positions; ++i, in += dim_) {
      T* target = static_cast<T*>(map) + place(w, group, i);
      from_floats(in, p_.dim, target);
    }
  }

  // out = weight @ in, or its transpose @ in
  void mix(const Window& w, int64_t group, bool transpose, const Floats& in, Floats& out) {
    const float* weight = p_.weight + group * slots_ * slots_;
    int64_t stride = slots_;
    if (!w.whole) {
      for (int64_t i = 0; i < w.positions; ++i)
        for (int64_t j = 0; j < w.positions; ++j)
          cut_[i * w.positions + j] = weight[w.slot(p_, i) * slots_ + w.slot(p_, j)];
      weight = cut_.data();
      stride = w.positions;
    }
    const Factor a{weight, transpose ? 1 : stride, transpose ? stride : 1};
    product(a, w.positions, w.positions, in.data(), dim_, dim_, out.data(), dim_);
  }

  void add_bias(const Window& w, int64_t group) {
    for (int64_t i = 0; i < w.positions; ++i) {
      const float bias = p_.bias[group * slots_ + w.slot(p_, i)];
      for (int64_t d = 0; d < p_.dim; ++d) y[i * dim_ + d] += bias;
    }
  }

  // sums [i][j] += y[i] . x[j], y being its gradient
  void add_to_weight(const Window& w, int64_t group, float* sums) {
    sums += group * slots_ * slots_;
    transpose(x.data(), dim_, w.positions, p_.dim, transposed_.data(), line_);
    product(Factor{y.data(), dim_, 1}, w.positions, p_.dim, transposed_.data(), line_, whole_vectors(w.positions),
            of_weight_.data(), line_);
    for (int64_t i = 0; i < w.positions; ++i) {
      float* target = sums + w.slot(p_, i) * slots_;
      const float* from = &of_weight_[i * line_];
      if (w.whole) {
        for (int64_t j = 0; j < w.positions; ++j) target[j] += from[j];
      } else {
        for (int64_t j = 0; j < w.positions; ++j) target[w.slot(p_, j)] += from[j];
      }
    }
  }

  void add_to_bias(const Window& w, int64_t group, float* sums) const {
    for (int64_t i = 0; i < w.positions; ++i) {
      float sum = 0;
      for (int64_t d = 0; d < p_.dim; ++d) sum += y[i * dim_ + d];
      sums[group * slots_ + w.slot(p_, i)] += sum;
    }
  }

 private:
  int64_t place(const Window& w, int64_t group, int64_t position) const {
    const int64_t row = w.top + position / w.columns, column = w.left + position % w.columns;
    return (((w.b * p_.height + row) * p_.width + column) * p_.groups + group) * p_.dim;
  }

  const WindowWeightProblem& p_;
  int64_t slots_, n_, dim_, line_;  // of a window; most positions of one; whole vectors of channels and of positions

 public:
  Floats x, y;  // [position][dim]

 private:
  Floats cut_, transposed_, of_weight_;
};

template <typename T>
void forward(const WindowWeightProblem& p, float*, float*, int64_t begin, int64_t end) {
  Group<T> group(p, false);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Window w(p, unit);
    for (int64_t g = 0; g < p.groups; ++g) {
      group.read(w, g, p.x, group.x);
      group.mix(w, g, false, group.x, group.y);
      if (p.bias) group.add_bias(w, g);
      group.write(w, g, group.y, p.y);
    }
  }
}

template <typename T>
void backward(const WindowWeightProblem& p, float* of_weight, float* of_bias, int64_t begin, int64_t end) {
  Group<T> group(p, true);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Window w(p, unit);
    for (int64_t g = 0; g < p.groups; ++g) {
      group.read(w, g, p.gradient, group.y);
      if (of_bias) group.add_to_bias(w, g, of_bias);
      if (of_weight) {
        group.read(w, g, p.x, group.x);
        group.add_to_weight(w, g, of_weight);
      }
      if (p.of_x) {
        group.mix(w, g, true, group.y, group.x);
        group.write(w, g, group.x, p.of_x);
      }
    }
  }
}

}  // namespace

LOCALMIX_KERNELS(WindowWeightKernels, window_weight, LOCALMIX_RUN(forward), LOCALMIX_RUN(backward))
