// Sums over a window with a weight from each slot to each slot, alike in all windows: forward, and all gradients.
//
//   y[i, g, d] = bias[g, i] + sum over the slots j of the window of i of  weight[g, i, j] * x[j, g, d]
//
// A group of some windows at a time is a product of two small matrices in the first-level cache; there is no partition
// and no padding. Of a group of few channels several windows are taken together, whose channels fill some vectors. A cut
// window holds fewer positions: it takes the rows and columns of its slots.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "window_weight.h"
#include "conversions.h"
#include "floats.h"
#include "kernels.h"
#include "numbers.h"
#include "parts.h"
#include "product.h"
#include "unroll.h"
#include "windows.h"
#include "words.h"

#include <algorithm>
#include <cstring>
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

// Calls f(first window, windows, first group, beyond the last) with all units [begin, end).
template <typename F>
void for_units(const WindowWeightProblem& p, int64_t begin, int64_t end, int64_t many, F f) {
  const Parts parts{p.groups, p.parts};
  while (begin < end) {
    const int64_t part = begin / p.windows, first = begin % p.windows;
    const int64_t last = std::min(p.windows, first + end - begin);
    for_windows(p, first, last, many, [&](const Window* window, int64_t count) {
      f(window, count, parts.first(part), parts.first(part + 1));
    });
    begin += last - first;
  }
}

// Of channels of the windows that are taken together: so many are full where groups have 3, 6, 12 or 24, as in the
// networks.
constexpr int64_t kVectors = 3;

// A group of some windows. Maps and weights are read as words (words.h), their products are floats.
template <typename T>
class Group {
 public:
  Group(const WindowWeightProblem& p, bool backward)
      : many(std::max<int64_t>(1, kVectors * kLanes / p.dim)),
        p_(p),
        slots_(p.size_height * p.size_width),
        n_(std::min(p.size_height, p.height) * std::min(p.size_width, p.width)),
        columns_(whole_vectors(many * p.dim)),
        line_(whole_vectors(n_ + 1)),
        slot_(n_),
        place_(n_),
        x(n_ * columns_ / kPerWord<T>, 0.0f),
        gradient(backward ? n_ * columns_ / kPerWord<T> : 0, 0.0f),
        y_(n_ * columns_, 0.0f),
        stacked_(kPerWord<T> == 1 ? 0 : words_of<T>(n_) * columns_),
        cut_(n_ * words_of<T>(n_)),
        transposed_(backward ? words_of<T>(many * p.dim) * line_ : 0, 0.0f),
        of_weight_(backward ? n_ * line_ : 0) {}

  // Makes these windows, which hold the same slots, the ones that all else is about.
  void move_to(const Window* first, int64_t count) {
    window_ = first;
    count_ = count;
    positions_ = first->positions;
    first->for_positions([&](int64_t i, int64_t r, int64_t c) {
      slot_[i] = first->slot(p_, r, c);
      place_[i] = (r * p_.width + c) * p_.groups * p_.dim;
    });
  }

  // Numbers of a map as lines of words, one for each position; a word that is not full is filled by zero.
  void read(int64_t group, const void* map, Floats& lines) const {
    auto number = [&](int64_t column) { return reinterpret_cast<char*>(lines.data()) + column * sizeof(T); };
    with_dim(p_.dim, [&](auto dim) {
      for_positions(group, [&](int64_t at, int64_t column) {
        const T* source = static_cast<const T*>(map) + at;
        if constexpr (kPerWord<T> == 1) {
          to_floats(source, dim, lines.data() + column);
        } else {
          std::memcpy(number(column), source, dim * sizeof(T));
        }
      });
    });
    const int64_t columns = count_ * p_.dim;
    if (columns % kPerWord<T>)
      for (int64_t i = 0; i < positions_; ++i) std::memset(number(i * columns_ + columns), 0, sizeof(T));
  }

  void write(int64_t group, void* map) const {
    with_dim(p_.dim, [&](auto dim) {
      for_positions(group, [&](int64_t at, int64_t column) {
        from_floats(y_.data() + column, dim, static_cast<T*>(map) + at);
      });
    });
  }

  // y = weight @ lines, or its transpose @ lines
  void mix(int64_t group, bool transpose, const Floats& lines) {
    const Factor weight = factor(group, transpose);
    product<Factored<T>>(weight, positions_, words_of<T>(positions_), stacked(lines), columns_,
                         whole_vectors(count_ * p_.dim), y_.data(), columns_);
  }

  void add_bias(int64_t group) {
    for (int64_t i = 0; i < positions_; ++i) {
      const float bias = p_.bias[group * slots_ + slot_[i]];
      for (int64_t d = 0; d < count_ * p_.dim; ++d) y_[i * columns_ + d] += bias;
    }
  }

  // of_weight [i][j] += gradient[i] . x[j], and of_bias [i] += gradient[i] . 1
  void add_to_sums(int64_t group, float* of_weight, float* of_bias) {
    const int64_t stride = columns_ / kPerWord<T>, words = words_of<T>(count_ * p_.dim);
    transpose(x.data(), stride, positions_, words, transposed_.data(), line_);
    for (int64_t d = 0; d < words; ++d) transposed_[d * line_ + positions_] = one<T>();
    product<Factored<T>>(Factor{gradient.data(), stride, 1}, positions_, words, transposed_.data(), line_,
                         whole_vectors(positions_ + 1), of_weight_.data(), line_);
    for (int64_t i = 0; i < positions_; ++i) {
      const float* from = &of_weight_[i * line_];
      const int64_t slot = group * slots_ + slot_[i];
      if (of_bias) of_bias[slot] += from[positions_];
      if (!of_weight) continue;
      float* target = of_weight + slot * slots_;
      if (window_->whole) {
        for (int64_t j = 0; j < positions_; ++j) target[j] += from[j];
      } else {
        for (int64_t j = 0; j < positions_; ++j) target[slot_[j]] += from[j];
      }
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

  // Lines in words of positions.
  const float* stacked(const Floats& lines) {
    if constexpr (kPerWord<T> == 1) {
      return lines.data();
    } else {
      to_words_of_rows(reinterpret_cast<const T*>(lines.data()), positions_, columns_, stacked_.data());
      return stacked_.data();
    }
  }

  // The weights of the slots that the windows hold, or their transpose, in words of those that are summed over.
  Factor factor(int64_t group, bool transpose) {
    const int64_t words = words_of<T>(slots_);
    if (window_->whole) {
      const float* packed = p_.packed + group * slots_ * words;
      return transpose ? Factor{packed, 1, slots_} : Factor{packed, words, 1};
    }
    const T* weight = static_cast<const T*>(p_.weight) + group * slots_ * slots_;
    const int64_t depth = words_of<T>(positions_);
    auto at = [&](int64_t row, int64_t d) {
      return weight[transpose ? slot_[d] * slots_ + slot_[row] : slot_[row] * slots_ + slot_[d]];
    };
    for (int64_t row = 0; row < positions_; ++row)
      for (int64_t d = 0; d < depth; ++d) {
        float& word = cut_[row * depth + d];
        if constexpr (kPerWord<T> == 1) {
          word = to_float(at(row, d));
        } else {
          const uint32_t high = 2 * d + 1 < positions_ ? at(row, 2 * d + 1).bits : 0;
          word = as<float>(at(row, 2 * d).bits | high << 16);
        }
      }
    return {cut_.data(), depth, 1};
  }

  const WindowWeightProblem& p_;
  // slots of a window; most positions of one; whole vectors of channels of the windows, and of positions and one more
  int64_t slots_, n_, columns_, line_;
  const Window* window_ = nullptr;
  int64_t count_ = 0, positions_ = 0;
  std::vector<int64_t> slot_, place_;  // of each position; the place on the map from that of the first one on

 public:
  Floats x, gradient;  // lines of words, [position][window][dim]

 private:
  Floats y_;  // the same as floats
  Floats stacked_, cut_, transposed_, of_weight_;
};

// Weights [G, N, N] in words of those that are summed over, for groups [begin, end): [G][N][words] or, of a backward
// pass, the transpose as [G][words][N].
template <typename T>
void pack(const WindowWeightProblem& p, float* packed, float*, int64_t begin, int64_t end) {
  const int64_t slots = p.size_height * p.size_width, words = words_of<T>(slots);
  for (int64_t g = begin; g < end; ++g) {
    const T* weight = static_cast<const T*>(p.weight) + g * slots * slots;
    float* target = packed + g * slots * words;
    if (!p.gradient) {
      to_words(weight, slots, slots, target);
      continue;
    }
    for (int64_t i = 0; i < slots; i += kPerWord<T>, weight += kPerWord<T> * slots, target += slots)
      to_words_across(weight, i + 1 < slots ? weight + slots : nullptr, slots, target);
  }
}

template <typename T>
void forward(const WindowWeightProblem& p, float*, float*, int64_t begin, int64_t end) {
  Group<T> group(p, false);
  for_units(p, begin, end, group.many, [&](const Window* first, int64_t count, int64_t low, int64_t high) {
    group.move_to(first, count);
    for (int64_t g = low; g < high; ++g) {
      group.read(g, p.x, group.x);
      group.mix(g, false, group.x);
      if (p.bias) group.add_bias(g);
      group.write(g, p.y);
    }
  });
}

template <typename T>
void backward(const WindowWeightProblem& p, float* of_weight, float* of_bias, int64_t begin, int64_t end) {
  Group<T> group(p, true);
  for_units(p, begin, end, group.many, [&](const Window* first, int64_t count, int64_t low, int64_t high) {
    group.move_to(first, count);
    for (int64_t g = low; g < high; ++g) {
      group.read(g, p.gradient, group.gradient);
      if (of_weight || of_bias) {
        group.read(g, p.x, group.x);
        group.add_to_sums(g, of_weight, of_bias);
      }
      if (p.of_x) {
        group.mix(g, true, group.gradient);
        group.write(g, p.of_x);
      }
    }
  });
}

}  // namespace

LOCALMIX_KERNELS(
    WindowWeightKernels, window_weight, LOCALMIX_RUN(pack), LOCALMIX_RUN(forward), LOCALMIX_RUN(backward))
