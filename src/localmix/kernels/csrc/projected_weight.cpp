// The same sum with weights that are made of features, used and forgotten:
//
//   weight[b, i, g, k] = bias[g, k] + sum over r of hidden[b, i, r] * projection[g, k, r]
//
// Some positions at a time: a matrix product leaves their weights in the second-level cache, from where they are used
// once. The product is written here since its result must not leave the core that uses it.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "kernels.h"
#include "maps.h"
#include "product.h"

namespace {

constexpr int64_t kScratchFloats = 1 << 16;

// A tap of projection [G, K, R] and bias [G, K] to [depth + 1][lanes], depth the words of R; `rows` is scratch for
// [G][depth].
template <typename T>
void pack_tap(const Shape& s, const T* projection, const T* bias, int64_t k, float* rows, float* target) {
  const auto& p = s.problem;
  const T* source = projection + k * p.rank;
  const int64_t stride = s.taps * p.rank, depth = words_of<T>(p.rank);
  if (s.lanes > p.groups) std::fill_n(target, depth * s.lanes, 0.0f);
  if constexpr (std::is_same_v<T, float>) {
    transpose(source, stride, p.groups, p.rank, target, s.lanes);
  } else {
    for (int64_t g = 0; g < p.groups; ++g) to_words(source + g * stride, 1, p.rank, rows + g * depth);
    transpose(rows, depth, p.groups, depth, target, s.lanes);
  }
  target += depth * s.lanes;
  std::fill_n(target, s.lanes, 0.0f);
  for (int64_t g = 0; bias && g < p.groups; ++g) target[g] = to_float(bias[g * s.taps + k]);
}

// Scratch of `pack_tap`.
template <typename T>
UnsetFloats rows_of_tap(const Shape& s) {
  return UnsetFloats(std::is_same_v<T, float> ? 0 : s.problem.groups * words_of<T>(s.problem.rank));
}

// projection [G, K, R] and bias [G, K] to [K][depth + 1][lanes], taps [begin, end).
template <typename T>
void pack(const LocalWeightProblem& p, const void* projection, const void* bias, void* packed, int64_t begin,
          int64_t end) {
  const Shape s(p);
  UnsetFloats rows = rows_of_tap<T>(s);
  for (int64_t k = begin; k < end; ++k)
    pack_tap(s, static_cast<const T*>(projection), static_cast<const T*>(bias), k, rows.data(),
             static_cast<float*>(packed) + k * (words_of<T>(p.rank) + 1) * s.lanes);
}

// Positions that are taken together: some lines, or a part of one.
struct Patch {
  int64_t first, last;   // of the lines of all images
  int64_t left, right;
};

// Makes the weights of a patch.
template <typename T>
class Weights {
 public:
  Weights(const Shape& shape, const HiddenWeights& given, int64_t positions)
      : shape_(shape),
        given_(given),
        depth_(words_of<T>(shape.problem.rank)),
        features_(positions * depth_),
        rows_(given.packed ? UnsetFloats() : rows_of_tap<T>(shape)),
        tap_(given.packed ? 0 : (depth_ + 1) * shape.lanes),
        weights_(positions * shape.taps * shape.lanes),
        targets_(positions) {}

  // [positions of the patch][K][lanes] = features [positions][R] @ projection + bias, where the tap is inside of the map.
  const float* make(const Patch& patch) {
    const auto& p = shape_.problem;
    Patch inside{0, 0, 0, 0};  // of the patch, the columns for which a column of the kernel is
    for (int64_t c = 0; c < p.kernel_width; ++c) {
      const int64_t back = shape_.left - c * p.dilation_width;
      const int64_t left = std::max(patch.left, back), right = std::min(patch.right, p.width + back);
      if (left >= right) continue;
      if (left != inside.left || right != inside.right) read(patch, inside = {patch.first, patch.last, left, right});
      for (int64_t a = 0; a < p.kernel_height; ++a) make_tap(inside, a, a * p.kernel_width + c);
    }
    return weights_.data();
  }

 private:
  // The features of the positions inside, one after the other, and where their weights begin.
  void read(const Patch& patch, const Patch& inside) {
    const auto& p = shape_.problem;
    const int64_t each = shape_.taps * shape_.lanes, count = inside.right - inside.left;
    float* target = features_.data();
    for (int64_t line = inside.first, n = 0; line < inside.last; ++line) {
      const T* source = static_cast<const T*>(given_.hidden) + (line * p.width + inside.left) * p.rank;
      to_words(source, count, p.rank, target);
      target += count * depth_;
      int64_t position = (line - patch.first) * (patch.right - patch.left) + inside.left - patch.left;
      for (int64_t i = 0; i < count; ++i) targets_[n++] = weights_.data() + position++ * each;
    }
  }

  // The weights of a tap in row a of the kernel, for the lines that it does not lead out of the map.
  void make_tap(const Patch& inside, int64_t a, int64_t k) {
    const auto& p = shape_.problem;
    const int64_t back = shape_.top - a * p.dilation_height, size = (depth_ + 1) * shape_.lanes;
    const float* packed = given_.packed ? given_.packed + k * size : nullptr;
    for (int64_t line = inside.first; line < inside.last;) {
      const int64_t image = line / p.height * p.height, stop = std::min(inside.last, image + p.height);
      const int64_t from = std::max(line, image + back), to = std::min(stop, image + p.height + back);
      line = stop;
      if (from >= to) continue;
      if (!packed) {
        pack_tap(shape_, static_cast<const T*>(given_.projection), static_cast<const T*>(given_.bias), k,
                 rows_.data(), tap_.data());
        packed = tap_.data();
      }
      const int64_t count = inside.right - inside.left;
      multiply_tap((from - inside.first) * count, (to - from) * count, packed, k * shape_.lanes);
    }
  }

  void multiply_tap(int64_t first, int64_t positions, const float* packed, int64_t at) {
    const int64_t depth = depth_, lanes = shape_.lanes;
    const float* features = features_.data() + first * depth;
    float* const* targets = targets_.data() + first;
    for_whole_products(positions, lanes, [=](auto rows, auto vectors, int64_t i, int64_t j) {
      Vector sums[rows][vectors];
      for_sums<rows, vectors>([&](auto r, auto v) LOCALMIX_INLINE {
        sums[r][v] = load(packed + depth * lanes + j + v * kLanes);
      });
      multiply<T>(Factor{features + i * depth, depth, 1}, depth, packed + j, lanes, sums);
      for_sums<rows, vectors>([&](auto r, auto v) LOCALMIX_INLINE {
        store(targets[i + r] + at + j + v * kLanes, sums[r][v]);
      });
    });
  }

  const Shape& shape_;
  const HiddenWeights& given_;
  int64_t depth_;  // words of the features of a position
  UnsetFloats features_, rows_, tap_, weights_;
  std::vector<float*> targets_;
};

template <typename T>
void projected_forward(
    const LocalWeightProblem& p, const void* x_, const void* weights_, void* y_, int64_t begin, int64_t end) {
  const Shape s(p);
  T* y = static_cast<T*>(y_);
  // As many positions as leave their weights in the second-level cache; or as there are features, since then reading
  // the projection, once for all of them, costs no more than those.
  const int64_t fitting = std::max({kScratchFloats / (s.taps * s.lanes), p.rank, int64_t(kRows)});
  const int64_t lines = equal_part(end - begin, fitting / p.width), part = equal_part(p.width, fitting);
  Weights<T> weights(s, *static_cast<const HiddenWeights*>(weights_), lines * part);
  SlidingRows<T> rows(s, static_cast<const T*>(x_), false);
  const std::vector<Taps> columns = columns_inside(s);
  UnsetFloats sums(part * s.position);
  for (int64_t first = begin; first < end; first += lines)
    for (int64_t left = 0; left < p.width; left += part) {
      const Patch patch{first, std::min(first + lines, end), left, std::min(left + part, p.width)};
      const float* weight = weights.make(patch);
      const int64_t count = patch.right - left;
      for (int64_t line = first; line < patch.last; ++line, weight += count * s.taps * s.lanes) {
        if (left == 0) rows.move_to(line);
        const Taps inside = taps_inside(line % p.height, p.height, s.top, p.kernel_height, p.dilation_height);
        sum_taps(s, weight, rows.inputs.data(), left * s.position, inside, &columns[left], sums.data(), count);
        gather(s, sums.data(), count, y + (line * p.width + left) * p.groups * p.dim);
      }
    }
}

}  // namespace

LOCALMIX_KERNEL(pack)
LOCALMIX_KERNEL(projected_forward)
