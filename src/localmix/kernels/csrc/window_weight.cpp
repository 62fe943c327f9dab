// Sums over a window with a weight from each slot to each slot, alike in all windows: forward, and all gradients.
//
//   y[i, g, d] = bias[g, i] + sum over the slots j of the window of i of  weight[g, i, j] * x[j, g, d]
//
// A group of some windows at a time is a product of two small matrices in the first-level cache; there is no partition
// and no padding. Of a group of few channels so many windows are taken together that their channels fill a vector. A cut
// window holds fewer positions: it takes the rows and columns of its slots.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "window_weight.h"
#include "conversions.h"
#include "floats.h"
#include "kernels.h"
#include "numbers.h"
#include "product.h"
#include "unroll.h"
#include "windows.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace {

// Calls f(first window, windows) with all windows [begin, end), of those that hold the same slots `many` at a time.
template <typename F>
void for_windows(const WindowWeightProblem& p, int64_t begin, int64_t end, int64_t many, F f) {
  std::vector<Window> windows;
  windows.reserve(end - begin);
  for (int64_t unit = begin; unit < end; ++unit) windows.emplace_back(p, unit);
  if (many > 1)
    std::stable_sort(windows.begin(), windows.end(), [](const Window& a, const Window& b) {
      return std::tie(a.row, a.column, a.rows, a.columns) < std::tie(b.row, b.column, b.rows, b.columns);
    });
  const Window *next = windows.data(), *beyond = next + windows.size();
  while (next < beyond) {
    const Window* const first = next++;
    while (next < beyond && next - first < many && next->is_like(*first)) ++next;
    f(first, next - first);
  }
}

// A group of some windows as float.
template <typename T>
class Group {
 public:
  explicit Group(const WindowWeightProblem& p, bool backward)
      : many(std::max<int64_t>(1, kLanes / p.dim)),
        p_(p),
        slots_(p.size_height * p.size_width),
        n_(std::min(p.size_height, p.height) * std::min(p.size_width, p.width)),
        columns_(whole_vectors(many * p.dim)),
        line_(whole_vectors(n_)),
        slot_(n_),
        place_(n_),
        x(n_ * columns_, 0.0f),
        y(n_ * columns_, 0.0f),
        cut_(n_ * n_),
        transposed_(backward ? many * p.dim * line_ : 0, 0.0f),
        of_weight_(backward ? n_ * line_ : 0) {}

  // Makes these windows, which hold the same slots, the ones that all else is about.
  void move_to(const Window* first, int64_t count) {
    window_ = first;
    count_ = count;
    positions_ = first->positions;
    for (int64_t i = 0; i < positions_; ++i) {
      slot_[i] = first->slot(p_, i);
      place_[i] = (i / first->columns * p_.width + i % first->columns) * p_.groups * p_.dim;
    }
  }

  void read(int64_t group, const void* map, Floats& target) const {
    with_dim(p_.dim, [&](auto dim) {
      for_positions(group, [&](int64_t at, int64_t column) {
        to_floats(static_cast<const T*>(map) + at, dim, target.data() + column);
      });
    });
  }

  void write(int64_t group, const Floats& source, void* map) const {
    with_dim(p_.dim, [&](auto dim) {
      for_positions(group, [&](int64_t at, int64_t column) {
        from_floats(source.data() + column, dim, static_cast<T*>(map) + at);
      });
    });
  }

  // out = weight @ in, or its transpose @ in
  void mix(int64_t group, bool transpose, const Floats& in, Floats& out) {
    const float* weight = p_.weight + group * slots_ * slots_;
    int64_t stride = slots_;
    if (!window_->whole) {
      for (int64_t i = 0; i < positions_; ++i)
        for (int64_t j = 0; j < positions_; ++j) cut_[i * positions_ + j] = weight[slot_[i] * slots_ + slot_[j]];
      weight = cut_.data();
      stride = positions_;
    }
    const Factor a{weight, transpose ? 1 : stride, transpose ? stride : 1};
    product(a, positions_, positions_, in.data(), columns_, columns_, out.data(), columns_);
  }

  void add_bias(int64_t group) {
    for (int64_t i = 0; i < positions_; ++i) {
      const float bias = p_.bias[group * slots_ + slot_[i]];
      for (int64_t d = 0; d < count_ * p_.dim; ++d) y[i * columns_ + d] += bias;
    }
  }

  // sums [i][j] += y[i] . x[j], y being its gradient
  void add_to_weight(int64_t group, float* sums) {
    const int64_t columns = count_ * p_.dim;
    sums += group * slots_ * slots_;
    transpose(x.data(), columns_, positions_, columns, transposed_.data(), line_);
    product(Factor{y.data(), columns_, 1}, positions_, columns, transposed_.data(), line_, whole_vectors(positions_),
            of_weight_.data(), line_);
    for (int64_t i = 0; i < positions_; ++i) {
      float* target = sums + slot_[i] * slots_;
      const float* from = &of_weight_[i * line_];
      if (window_->whole) {
        for (int64_t j = 0; j < positions_; ++j) target[j] += from[j];
      } else {
        for (int64_t j = 0; j < positions_; ++j) target[slot_[j]] += from[j];
      }
    }
  }

  void add_to_bias(int64_t group, float* sums) const {
    for (int64_t i = 0; i < positions_; ++i) {
      float sum = 0;
      for (int64_t d = 0; d < count_ * p_.dim; ++d) sum += y[i * columns_ + d];
      sums[group * slots_ + slot_[i]] += sum;
    }
  }

  const int64_t many;  // windows that are taken together

 private:
  // Calls f(first number on the map, first one of [position][window][dim]) for each position of each window.
  template <typename F>
  void for_positions(int64_t group, F f) const {
    for (int64_t n = 0; n < count_; ++n) {
      const Window& w = window_[n];
      const int64_t start = (((w.b * p_.height + w.top) * p_.width + w.left) * p_.groups + group) * p_.dim;
      for (int64_t i = 0; i < positions_; ++i) f(start + place_[i], i * columns_ + n * p_.dim);
    }
  }

  const WindowWeightProblem& p_;
  // slots of a window; most positions of one; whole vectors of channels of the windows, and of positions
  int64_t slots_, n_, columns_, line_;
  const Window* window_ = nullptr;
  int64_t count_ = 0, positions_ = 0;
  std::vector<int64_t> slot_, place_;  // of each position; the place on the map from that of the first one on

 public:
  Floats x, y;  // [position][window][dim]

 private:
  Floats cut_, transposed_, of_weight_;
};

template <typename T>
void forward(const WindowWeightProblem& p, float*, float*, int64_t begin, int64_t end) {
  Group<T> group(p, false);
  for_windows(p, begin, end, group.many, [&](const Window* first, int64_t count) {
    group.move_to(first, count);
    for (int64_t g = 0; g < p.groups; ++g) {
      group.read(g, p.x, group.x);
      group.mix(g, false, group.x, group.y);
      if (p.bias) group.add_bias(g);
      group.write(g, group.y, p.y);
    }
  });
}

template <typename T>
void backward(const WindowWeightProblem& p, float* of_weight, float* of_bias, int64_t begin, int64_t end) {
  Group<T> group(p, true);
  for_windows(p, begin, end, group.many, [&](const Window* first, int64_t count) {
    group.move_to(first, count);
    for (int64_t g = 0; g < p.groups; ++g) {
      group.read(g, p.gradient, group.y);
      if (of_bias) group.add_to_bias(g, of_bias);
      if (of_weight) {
        group.read(g, p.x, group.x);
        group.add_to_weight(g, of_weight);
      }
      if (p.of_x) {
        group.mix(g, true, group.y, group.x);
        group.write(g, group.x, p.of_x);
      }
    }
  });
}

}  // namespace

LOCALMIX_KERNELS(WindowWeightKernels, window_weight, LOCALMIX_RUN(forward), LOCALMIX_RUN(backward))
