// Sums with a weight of its own at every position: forward, and both gradients.
//
//   y[b, i, g, d] = sum over taps k of  weight[b, i, g, k] * x[b, i + k, g, d]        (zero outside of the map)
//
// The weights are the traffic: G * K of them for C = G * D inputs. They are read once, in order, straight into
// registers. The inputs are few and used K times: rows of them wait in scratch, padded, as float, with the groups
// innermost, so that one vector of weights serves the D channels of its groups without a shuffle.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "local_weight.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

namespace {

#ifndef LOCALMIX_VECTOR_BYTES
#define LOCALMIX_VECTOR_BYTES 16
#endif

constexpr int64_t kLanes = LOCALMIX_VECTOR_BYTES / 4;
typedef float Vector __attribute__((vector_size(LOCALMIX_VECTOR_BYTES), aligned(4)));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

inline float to_float(float v) { return v; }

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t to_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

inline float to_float(BFloat16 v) { return from_bits(uint32_t(v.bits) << 16); }

inline float to_float(Float16 v) {
  // the exponent is moved by a multiplication, which also makes subnormals right; infinities and NaN keep theirs
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t rest = uint32_t(v.bits & 0x7fffu) << 13;
  float magnitude = from_bits(rest) * from_bits(uint32_t(127 + 112) << 23);
  if ((v.bits & 0x7c00u) == 0x7c00u) magnitude = from_bits(rest | 0x7f800000u);
  return from_bits(to_bits(magnitude) | sign);
}

template <typename T>
T from_float(float v);

template <>
inline float from_float<float>(float v) {
  return v;
}

template <>
inline BFloat16 from_float<BFloat16>(float v) {
  const uint32_t bits = to_bits(v);
  if (v != v) return {0x7fc0};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
}

template <>
inline Float16 from_float<Float16>(float v) {
  const uint32_t bits = to_bits(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65536 or beyond
  if (magnitude < 0x38800000u) {
    // subnormal: adding 0.5 leaves the rounded bits at the bottom of the mantissa
    const float rounded = from_bits(magnitude) + 0.5f;
    return {uint16_t(sign | (to_bits(rounded) - 0x3f000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Sizes that every kernel needs, derived once.
struct Shape {
  explicit Shape(const LocalWeightProblem& p)
      : problem(p),
        lanes(round_up(p.groups, kLanes)),
        taps(p.kernel_height * p.kernel_width),
        position(p.dim * lanes),
        top(p.dilation_height * (p.kernel_height - 1) / 2),
        left(p.dilation_width * (p.kernel_width - 1) / 2),
        rows(p.dilation_height * (p.kernel_height - 1) + 1),
        columns(p.width + p.dilation_width * (p.kernel_width - 1)) {
    offsets.reserve(taps);
    for (int64_t a = 0; a < p.kernel_height; ++a)
      for (int64_t c = 0; c < p.kernel_width; ++c) offsets.push_back({a * p.dilation_height, c * p.dilation_width});
    direct = p.dtype == kFloat32 && lanes == p.groups && p.weight_group_stride == 1 && p.weight_tap_stride == p.groups;
  }

  struct Offset {
    int64_t row, column;
  };

  const LocalWeightProblem& problem;
  int64_t lanes;     // groups, rounded up to whole vectors
  int64_t taps;      // K
  int64_t position;  // floats of one position in scratch: [D][lanes]
  int64_t top, left;
  int64_t rows;     // rows of the map that one output row reaches
  int64_t columns;  // positions of a scratch row: the map and its border
  std::vector<Offset> offsets;
  bool direct;  // the weights can be read where they lie
};

// A ring of scratch rows [columns][D][lanes] that slides down the map; row r lies in slot r modulo `rows`.
class Ring {
 public:
  explicit Ring(const Shape& shape)
      : shape_(shape), stride_(shape.columns * shape.position), data_(shape.rows * stride_, 0.0f) {}

  float* row(int64_t r) { return data_.data() + ((r % shape_.rows + shape_.rows) % shape_.rows) * stride_; }
  void clear(int64_t r) { std::fill_n(row(r), stride_, 0.0f); }

  template <typename T>
  void read(int64_t r, const T* image) {
    const auto& p = shape_.problem;
    if (r < 0 || r >= p.height) return clear(r);
    const T* source = image + r * p.width * p.groups * p.dim;
    float* target = row(r) + shape_.left * shape_.position;
    for (int64_t i = 0; i < p.width; ++i, source += p.groups * p.dim, target += shape_.position)
      for (int64_t d = 0; d < p.dim; ++d)
        for (int64_t g = 0; g < p.groups; ++g) target[d * shape_.lanes + g] = to_float(source[g * p.dim + d]);
  }

  template <typename T>
  void write(int64_t r, T* image) {
    const auto& p = shape_.problem;
    T* target = image + r * p.width * p.groups * p.dim;
    const float* source = row(r) + shape_.left * shape_.position;
    for (int64_t i = 0; i < p.width; ++i, target += p.groups * p.dim, source += shape_.position)
      for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t d = 0; d < p.dim; ++d) target[g * p.dim + d] = from_float<T>(source[d * shape_.lanes + g]);
  }

 private:
  const Shape& shape_;
  int64_t stride_;
  std::vector<float> data_;
};

// The weights of one position as float [K][lanes]: where they lie if that is how they lie, else in `scratch`.
template <typename T>
const float* weights_at(const Shape& s, const T* weight, int64_t position, float* scratch) {
  const T* source = weight + position * s.problem.groups * s.taps;
  if (s.direct) return reinterpret_cast<const float*>(source);
  for (int64_t k = 0; k < s.taps; ++k)
    for (int64_t g = 0; g < s.problem.groups; ++g)
      scratch[k * s.lanes + g] =
          to_float(source[k * s.problem.weight_tap_stride + g * s.problem.weight_group_stride]);
  return scratch;
}

// One vector of groups, `Dims` of their channels: y = sum over taps. Columns of x begin at `inputs[k]`.
template <int Dims>
inline void sum_taps(const Shape& s, const float* weight, const float* const* inputs, int64_t at, float* y) {
  Vector sums[Dims] = {};
  for (int64_t k = 0; k < s.taps; ++k) {
    const Vector w = load(weight + k * s.lanes);
    const float* x = inputs[k] + at;
    for (int d = 0; d < Dims; ++d) sums[d] += w * load(x + d * s.lanes);
  }
  for (int d = 0; d < Dims; ++d) store(y + d * s.lanes, sums[d]);
}

// x += w * y for one vector of groups and `Dims` of their channels, into each tap's column.
template <int Dims>
inline void scatter_taps(const Shape& s, const float* weight, float* const* inputs, int64_t at, const float* y) {
  Vector g[Dims];
  for (int d = 0; d < Dims; ++d) g[d] = load(y + d * s.lanes);
  for (int64_t k = 0; k < s.taps; ++k) {
    if (!inputs[k]) continue;
    const Vector w = load(weight + k * s.lanes);
    float* x = inputs[k] + at;
    for (int d = 0; d < Dims; ++d) store(x + d * s.lanes, load(x + d * s.lanes) + w * g[d]);
  }
}

// weight (+)= sum over `Dims` channels of x * y for one vector of groups, for each tap.
template <int Dims>
inline void dot_taps(const Shape& s, float* weight, const float* const* inputs, int64_t at, const float* y, bool add) {
  Vector g[Dims];
  for (int d = 0; d < Dims; ++d) g[d] = load(y + d * s.lanes);
  for (int64_t k = 0; k < s.taps; ++k) {
    const float* x = inputs[k] + at;
    Vector sum = g[0] * load(x);
    for (int d = 1; d < Dims; ++d) sum += g[d] * load(x + d * s.lanes);
    store(weight + k * s.lanes, add ? load(weight + k * s.lanes) + sum : sum);
  }
}

// Calls f(constant, first channel) for blocks of channels that fit into registers.
template <typename F>
inline void for_blocks(int64_t dim, F f) {
  int64_t d = 0;
  for (; dim - d >= 12; d += 12) f(std::integral_constant<int, 12>(), d);
  for (; dim - d >= 6; d += 6) f(std::integral_constant<int, 6>(), d);
  for (; dim - d >= 3; d += 3) f(std::integral_constant<int, 3>(), d);
  for (; d < dim; ++d) f(std::integral_constant<int, 1>(), d);
}

template <typename T>
void forward(const LocalWeightProblem& p, const void* x_, const void* weight_, void* y_, int64_t begin, int64_t end) {
  const Shape s(p);
  const T *x = static_cast<const T*>(x_), *weight = static_cast<const T*>(weight_);
  T* y = static_cast<T*>(y_);
  const int64_t image = p.height * p.width * p.groups * p.dim;
  Ring ring(s);
  std::vector<float> packed(s.taps * s.lanes, 0.0f), sums(s.position, 0.0f);
  std::vector<const float*> inputs(s.taps);
  int64_t loaded = 0;  // rows of the ring that are in, counted from the top of the current image
  for (int64_t line = begin; line < end; ++line) {
    const int64_t b = line / p.height, h = line % p.height;
    if (line == begin || h == 0) loaded = h - s.top;
    for (; loaded < h - s.top + s.rows; ++loaded) ring.read(loaded, x + b * image);
    for (int64_t i = 0; i < p.width; ++i) {
      for (int64_t k = 0; k < s.taps; ++k)
        inputs[k] = ring.row(h - s.top + s.offsets[k].row) + (i + s.offsets[k].column) * s.position;
      const float* w = weights_at(s, weight, line * p.width + i, packed.data());
      for (int64_t v = 0; v < s.lanes; v += kLanes)
        for_blocks(p.dim, [&](auto dims, int64_t d) {
          sum_taps<dims>(s, w + v, inputs.data(), d * s.lanes + v, sums.data() + d * s.lanes + v);
        });
      T* target = y + (line * p.width + i) * p.groups * p.dim;
      for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t d = 0; d < p.dim; ++d) target[g * p.dim + d] = from_float<T>(sums[d * s.lanes + g]);
    }
  }
}

// The gradient of y at one position as float [D][lanes].
template <typename T>
void gradient_at(const Shape& s, const T* gradient, int64_t position, float* scratch) {
  const T* source = gradient + position * s.problem.groups * s.problem.dim;
  for (int64_t d = 0; d < s.problem.dim; ++d)
    for (int64_t g = 0; g < s.problem.groups; ++g) scratch[d * s.lanes + g] = to_float(source[g * s.problem.dim + d]);
}

template <typename T>
void backward_x(
    const LocalWeightProblem& p, const void* gradient_, const void* weight_, void* of_x_, int64_t begin, int64_t end) {
  const Shape s(p);
  const T *gradient = static_cast<const T*>(gradient_), *weight = static_cast<const T*>(weight_);
  T* of_x = static_cast<T*>(of_x_);
  const int64_t image = p.height * p.width * p.groups * p.dim;
  Ring ring(s);
  std::vector<float> packed(s.taps * s.lanes, 0.0f), g(s.position, 0.0f);
  std::vector<float*> inputs(s.taps);
  for (int64_t line = begin; line < end;) {
    // the rows [first, last) of one image are ours; output rows further off reach into them
    const int64_t b = line / p.height, first = line % p.height, last = std::min(p.height, first + end - line);
    line += last - first;
    for (int64_t r = 0; r < s.rows; ++r) ring.clear(r);
    for (int64_t h = first + s.top - s.rows + 1; h < last + s.top; ++h) {
      if (h >= 0 && h < p.height) {
        for (int64_t i = 0; i < p.width; ++i) {
          for (int64_t k = 0; k < s.taps; ++k) {
            const int64_t r = h - s.top + s.offsets[k].row;
            const bool ours = r >= first && r < last;
            inputs[k] = ours ? ring.row(r) + (i + s.offsets[k].column) * s.position : nullptr;
          }
          const int64_t position = (b * p.height + h) * p.width + i;
          const float* w = weights_at(s, weight, position, packed.data());
          gradient_at(s, gradient, position, g.data());
          for (int64_t v = 0; v < s.lanes; v += kLanes)
            for_blocks(p.dim, [&](auto dims, int64_t d) {
              scatter_taps<dims>(s, w + v, inputs.data(), d * s.lanes + v, g.data() + d * s.lanes + v);
            });
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
  const int64_t image = p.height * p.width * p.groups * p.dim;
  Ring ring(s);
  std::vector<float> packed(s.taps * s.lanes, 0.0f), g(s.position, 0.0f);
  std::vector<const float*> inputs(s.taps);
  int64_t loaded = 0;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t b = line / p.height, h = line % p.height;
    if (line == begin || h == 0) loaded = h - s.top;
    for (; loaded < h - s.top + s.rows; ++loaded) ring.read(loaded, x + b * image);
    for (int64_t i = 0; i < p.width; ++i) {
      for (int64_t k = 0; k < s.taps; ++k)
        inputs[k] = ring.row(h - s.top + s.offsets[k].row) + (i + s.offsets[k].column) * s.position;
      gradient_at(s, gradient, line * p.width + i, g.data());
      T* target = of_weight + (line * p.width + i) * p.groups * s.taps;
      float* w = s.direct ? reinterpret_cast<float*>(target) : packed.data();
      for (int64_t v = 0; v < s.lanes; v += kLanes)
        for_blocks(p.dim, [&](auto dims, int64_t d) {
          dot_taps<dims>(s, w + v, inputs.data(), d * s.lanes + v, g.data() + d * s.lanes + v, d > 0);
        });
      if (!s.direct)
        for (int64_t k = 0; k < s.taps; ++k)
          for (int64_t j = 0; j < p.groups; ++j)
            target[k * p.weight_tap_stride + j * p.weight_group_stride] = from_float<T>(w[k * s.lanes + j]);
    }
  }
}

using Kernel = void (*)(const LocalWeightProblem&, const void*, const void*, void*, int64_t, int64_t);

int run(Kernel f32, Kernel bf16, Kernel f16, const LocalWeightProblem* p, const void* a, const void* b, void* out,
        int64_t begin, int64_t end) {
  try {
    (p->dtype == kFloat32 ? f32 : p->dtype == kBFloat16 ? bf16 : f16)(*p, a, b, out, begin, end);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

#define LOCALMIX_NAME_(name, isa) localmix_##name##_##isa
#define LOCALMIX_NAME(name, isa) LOCALMIX_NAME_(name, isa)
#define LOCALMIX_KERNEL(name)                                                                                   \
  extern "C" int LOCALMIX_NAME(name, LOCALMIX_ISA)(const LocalWeightProblem* p, const void* a, const void* b,     \
                                                   void* out, int64_t begin, int64_t end) {                      \
    return run(name<float>, name<BFloat16>, name<Float16>, p, a, b, out, begin, end);                            \
  }

LOCALMIX_KERNEL(forward)
LOCALMIX_KERNEL(backward_x)
LOCALMIX_KERNEL(backward_weight)
