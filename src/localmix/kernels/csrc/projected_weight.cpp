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

// projection [G, K, R] and bias [G, K] to [K][R + 1][lanes], taps [begin, end).
template <typename T>
void pack(const LocalWeightProblem& p, const void* projection_, const void* bias_, void* packed_, int64_t begin,
          int64_t end) {
  const Shape s(p);
  const T *projection = static_cast<const T*>(projection_), *bias = static_cast<const T*>(bias_);
  Floats rows(p.groups * p.rank);
  for (int64_t k = begin; k < end; ++k) {
    float* target = static_cast<float*>(packed_) + k * (p.rank + 1) * s.lanes;
    std::fill_n(target, (p.rank + 1) * s.lanes, 0.0f);
    for (int64_t g = 0; g < p.groups; ++g) {
      const T* source = projection + (g * s.taps + k) * p.rank;
      for (int64_t r = 0; r < p.rank; ++r) rows[g * p.rank + r] = to_float(source[r]);
      if (bias) target[p.rank * s.lanes + g] = to_float(bias[g * s.taps + k]);
    }
    transpose(rows.data(), p.rank, p.groups, p.rank, target, s.lanes);
  }
}

// weights [positions][K][lanes] = features [positions][R] @ projection + bias, tap by tap.
inline void make_weights(
    const Shape& s, const float* features, const float* packed, int64_t positions, float* weights) {
  const int64_t rank = s.problem.rank, stride = s.taps * s.lanes;
  for (int64_t k = 0; k < s.taps; ++k, packed += (rank + 1) * s.lanes, weights += s.lanes)
    for_products(positions, s.lanes, [&](auto rows, auto vectors, int64_t i, int64_t j) {
      Vector sums[rows][vectors];
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) sums[r][v] = load(packed + rank * s.lanes + j + v * kLanes);
      multiply(Factor{features + i * rank, rank, 1}, rank, packed + j, s.lanes, sums);
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) store(weights + (i + r) * stride + j + v * kLanes, sums[r][v]);
    });
}

template <typename T>
void projected_forward(
    const LocalWeightProblem& p, const void* x_, const void* weights_, void* y_, int64_t begin, int64_t end) {
  const Shape s(p);
  const auto* given = static_cast<const HiddenWeights*>(weights_);
  const T *x = static_cast<const T*>(x_), *hidden = static_cast<const T*>(given->hidden);
  T* y = static_cast<T*>(y_);
  const int64_t last = end * p.width, each = s.taps * s.lanes;
  const int64_t fitting = std::max<int64_t>(kScratchFloats / each / kRows, 1) * kRows;
  const int64_t chunk = std::min(fitting, round_up((end - begin) * p.width, kRows));
  SlidingRows<T> rows(s, x);
  Floats features(chunk * p.rank, 0.0f), weights(chunk * each), sums(chunk * s.position);
  for (int64_t first = begin * p.width; first < last; first += chunk) {
    const int64_t beyond = std::min(first + chunk, last);
    for (int64_t n = 0; n < (beyond - first) * p.rank; ++n) features[n] = to_float(hidden[first * p.rank + n]);
    make_weights(s, features.data(), given->packed, beyond - first, weights.data());
    for (int64_t position = first; position < beyond;) {
      // as many of them as lie on one line
      const int64_t i = position % p.width, count = std::min(beyond - position, p.width - i);
      if (i == 0 || position == begin * p.width) rows.move_to(position / p.width);
      sum_taps(s, &weights[(position - first) * each], rows.inputs.data(), i * s.position, sums.data(), count);
      gather(s, sums.data(), count, y + position * p.groups * p.dim);
      position += count;
    }
  }
}

}  // namespace

LOCALMIX_KERNEL(pack)
LOCALMIX_KERNEL(projected_forward)
