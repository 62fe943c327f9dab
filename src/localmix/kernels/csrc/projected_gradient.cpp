// The gradients of the sum whose weights are made of features (projected_weight.cpp): they are made again, some
// positions at a time, used, and give way to their own gradient, which two more products turn into those of the features
// and of the projection.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "kernels.h"
#include "maps.h"
#include "product.h"

namespace {

// Weights that are at hand: more than the second-level cache might hold besides, since three products are faster on
// more positions.
constexpr int64_t kScratchFloats = 3 << 16;

// Weights whose part of the projection, two vectors of each, stays in the first-level cache.
constexpr int64_t kPanelDepth = 224;

// Positions that are taken together, of so many: their weights fit, and no chunk is much smaller than the others.
inline int64_t chunk_length(const Shape& s, int64_t positions) {
  const int64_t fitting = std::max<int64_t>(kScratchFloats / (s.taps * s.lanes) / kRows, 1) * kRows;
  return round_up(equal_part(positions, fitting), kRows);
}

// Calls f(first number, numbers) for panels of hidden features.
template <typename F>
inline void for_panels(const Shape& s, F f) {
  const int64_t all = whole_vectors(s.problem.rank);
  for (int64_t first = 0; first < all; first += 2 * kLanes) f(first, std::min(2 * kLanes, all - first));
}

// weights [positions][K][lanes] = features [positions][depth] @ projection + bias, tap by tap, for the first `taps`.
template <typename T>
void make_weights(const Shape& s, const float* features, const float* packed, int64_t positions, float* weights,
                  int64_t taps) {
  const int64_t depth = words_of<T>(s.problem.rank), stride = s.taps * s.lanes;
  for (int64_t k = 0; k < taps; ++k, packed += (depth + 1) * s.lanes, weights += s.lanes)
    for_products(positions, s.lanes, [&](auto rows, auto vectors, int64_t i, int64_t j) {
      Vector sums[rows][vectors];
      for_sums<rows, vectors>([&](auto r, auto v) LOCALMIX_INLINE {
        sums[r][v] = load(packed + depth * s.lanes + j + v * kLanes);
      });
      multiply<T>(Factor{features + i * depth, depth, 1}, depth, packed + j, s.lanes, sums);
      for_sums<rows, vectors>([&](auto r, auto v) LOCALMIX_INLINE {
        store(weights + (i + r) * stride + j + v * kLanes, sums[r][v]);
      });
    });
}

// Calls f(position, positions) for those of positions [first, beyond), counted from the first, whose inputs on a row of
// the kernel lie on the map. The others have no use for their weights: a quarter of all at 7 x 7 taps and positions.
template <typename F>
inline void for_reaching(const Shape& s, int64_t kernel_row, int64_t first, int64_t beyond, F f) {
  const int64_t height = s.problem.height, width = s.problem.width;
  const int64_t down = kernel_row * s.problem.dilation_height - s.top;
  const int64_t low = std::max<int64_t>(-down, 0), high = std::min(height - down, height), image = height * width;
  for (int64_t start = first - first % image; start < beyond; start += image) {
    const int64_t begin = std::max(first, start + low * width), end = std::min(beyond, start + high * width);
    if (begin < end) f(begin - first, end - begin);
  }
}

// projection [G, K, R] to [R / width][K][words of lanes][width], zero where there is none, taps [begin, end): panels of
// two vectors, the last one perhaps of one.
template <typename T>
void turn(const LocalWeightProblem& p, const void* projection_, const void*, void* turned_, int64_t begin,
          int64_t end) {
  const Shape s(p);
  const T* projection = static_cast<const T*>(projection_);
  float* turned = static_cast<float*>(turned_);
  const int64_t lines = words_of<T>(s.lanes);
  for_panels(s, [&](int64_t first, int64_t width) {
    float* panel = turned + first * s.taps * lines;
    const int64_t count = std::min(width, p.rank - first);
    std::fill_n(panel + begin * lines * width, (end - begin) * lines * width, 0.0f);
    for (int64_t g = 0; g < p.groups; g += kPerWord<T>)
      for (int64_t k = begin; k < end; ++k) {
        const T* source = projection + (g * s.taps + k) * p.rank + first;
        float* target = panel + (k * lines + g / kPerWord<T>) * width;
        to_words_across(source, g + 1 < p.groups ? source + s.taps * p.rank : nullptr, count, target);
      }
  });
}

// The gradient of x for the rows of lines [begin, end): a ring of sums that slides down the maps.
template <typename T>
class SlidingSums {
 public:
  SlidingSums(const Shape& shape, T* of_x, int64_t begin, int64_t end)
      : inputs(shape.taps), shape_(shape), of_x_(of_x), begin_(begin), end_(end), ring_(shape) {}

  // Makes `inputs` those of a line, the next one or the first of an image, and writes the rows that are done.
  void move_to(int64_t line) {
    const int64_t height = shape_.problem.height, b = line / height, h = line % height;
    if (b != image_) {
      finish();
      image_ = b;
      first_ = next_ = std::max<int64_t>(begin_ - b * height, 0);
      last_ = std::min(end_ - b * height, height);
    }
    write(std::min(h - shape_.top, last_));
    ring_.point(h, first_, last_, inputs);
  }

  void finish() { write(last_); }

  std::vector<float*> inputs;  // of each tap, for the first position of the line; null for rows that are not ours

 private:
  void write(int64_t beyond) {
    for (; next_ < beyond; ++next_) {
      ring_.write(next_, of_x_ + image_ * shape_.problem.height * shape_.problem.width * channels());
      ring_.clear(next_);
    }
  }
  int64_t channels() const { return shape_.problem.groups * shape_.problem.dim; }

  const Shape& shape_;
  T* of_x_;
  int64_t begin_, end_;
  Ring ring_;
  int64_t image_ = -1, first_ = 0, last_ = 0, next_ = 0;  // our rows of the image, and the first that is not written
};

// of_hidden [positions][R] = of_weights [positions][K][lanes] @ projection, some taps at a time: their part of the
// projection waits in the first-level cache for all positions. `of_weights` become words.
template <typename T>
void write_of_hidden(const Shape& s, float* of_weights, const float* turned, int64_t first, int64_t beyond, float* sums,
                     T* of_hidden) {
  const int64_t lanes = words_of<T>(s.lanes), each = s.taps * lanes, rank = s.problem.rank;
  const int64_t stride = whole_vectors(rank), across = s.problem.kernel_width;
  const int64_t some = std::max<int64_t>(1, kPanelDepth / lanes);
  if constexpr (kPerWord<T> == 2) to_words_of_neighbors<T>(of_weights, (beyond - first) * s.taps * s.lanes, of_weights);
  std::fill_n(sums, (beyond - first) * stride, 0.0f);
  for_panels(s, [&](int64_t column, int64_t width) {
    const float* panel = turned + column * each;
    for (int64_t row = 0; row < s.problem.kernel_height; ++row)
      for (int64_t c = 0; c < across; c += some)
        for_reaching(s, row, first, beyond, [&](int64_t i, int64_t positions) {
          const int64_t begin = (row * across + c) * lanes, depth = std::min(some, across - c) * lanes;
          product<T>(Factor{of_weights + i * each + begin, each, 1}, positions, depth, panel + begin * width, width,
                     width, sums + i * stride + column, stride, true);
        });
  });
  for (int64_t i = 0; i < beyond - first; ++i)
    from_floats(sums + i * stride, rank, of_hidden + i * rank);
}

// Features [positions][R] in words of positions, [words of positions][R]; `words` is scratch for them if those of
// `features`, where each word is of one position, are not these.
template <typename T>
const float* words_of_positions(const T* hidden, const float* features, int64_t positions, int64_t rank, float* words) {
  if constexpr (kPerWord<T> == 1) {
    return features;
  } else {
    to_words_of_rows(hidden, positions, rank, words);
    return words;
  }
}

// Rows of words.
struct Rows {
  const float* data;
  int64_t stride, count;
};

// Of rows [i, i + positions) of the weights' gradients, `each` numbers apart, the first `size` numbers, in words of
// positions; `words` is scratch for them. Of a word of two positions one may not be among the rows: it is zero.
template <typename T>
Rows words_of_rows(const float* of_weights, int64_t each, int64_t i, int64_t positions, int64_t size, float* words) {
  if constexpr (kPerWord<T> == 1) {
    return {of_weights + i * each, each, positions};
  } else {
    const int64_t first = i / 2, beyond = words_of<T>(i + positions);
    auto row = [&](int64_t n) { return n >= i && n < i + positions ? of_weights + n * each : nullptr; };
    for (int64_t n = first; n < beyond; ++n)
      to_words_of_two<T>(row(2 * n), row(2 * n + 1), size, words + (n - first) * size);
    return {words, size, beyond - first};
  }
}

// sums [K][R + 1][lanes] of projection and bias by the positions of a chunk, added to those before it; features
// [words of positions][R].
template <typename T>
void add_of_projection(const Shape& s, const float* of_weights, const float* features, int64_t first, int64_t beyond,
                       float* words, float* sums, bool add) {
  const int64_t each = s.taps * s.lanes, rank = s.problem.rank, across = s.problem.kernel_width;
  const int64_t size = across * s.lanes, sums_size = (rank + 1) * s.lanes;
  for (int64_t row = 0; row < s.problem.kernel_height; ++row, of_weights += size, sums += across * sums_size) {
    bool begun = add;
    for_reaching(s, row, first, beyond, [&](int64_t i, int64_t positions) {
      const Rows rows = words_of_rows<T>(of_weights, each, i, positions, size, words);
      const Factor turned{features + i / kPerWord<T> * rank, 1, rank};
      for (int64_t c = 0; c < across; ++c) {
        float *of_tap = sums + c * sums_size, *of_bias = of_tap + rank * s.lanes;
        const int64_t at = c * s.lanes;
        product<T>(turned, rank, rows.count, rows.data + at, rows.stride, s.lanes, of_tap, s.lanes, begun);
        for (int64_t v = 0; v < s.lanes; v += kLanes) {
          const Vector sum = sum_in_parts(positions, [&](int64_t n) { return load(of_weights + (i + n) * each + at + v); });
          store(of_bias + v, begun ? load(of_bias + v) + sum : sum);
        }
      }
      begun = true;
    });
    if (!begun) std::fill_n(sums, across * sums_size, 0.0f);
  }
}

// All gradients for lines [begin, end); those of projection and bias to the sums of the thread.
template <typename T>
void projected_backward(
    const LocalWeightProblem& p, const void* gradients_, const void*, void* sums_, int64_t begin, int64_t end) {
  const Shape s(p);
  const auto& given = *static_cast<const ProjectedGradients*>(gradients_);
  const T *gradient = static_cast<const T*>(given.gradient), *hidden = static_cast<const T*>(given.hidden);
  T *of_x = static_cast<T*>(given.of_x), *of_hidden = static_cast<T*>(given.of_hidden);
  float* sums = static_cast<float*>(sums_);
  const int64_t channels = p.groups * p.dim, each = s.taps * s.lanes;
  const int64_t chunk = chunk_length(s, (end - begin) * p.width);
  SlidingRows<T> rows(s, static_cast<const T*>(given.x));
  SlidingSums<T> rows_of_x(s, of_x, begin, end);
  Floats g(std::min(chunk, p.width) * s.position, 0.0f);
  const int64_t depth = words_of<T>(p.rank), pairs = kPerWord<T> == 1 ? 0 : words_of<T>(chunk);
  UnsetFloats scratch(chunk * depth), all_weights(chunk * each), of_features(chunk * whole_vectors(p.rank));
  UnsetFloats turned(pairs * p.rank), of_rows(pairs * p.kernel_width * s.lanes);
  float *features = scratch.data(), *weights = all_weights.data();
  // positions of lines [first line, last line), which are ours or of the lines around that reach into them
  auto take = [&](int64_t first_line, int64_t last_line, bool ours) {
    const int64_t last = last_line * p.width;
    for (int64_t first = first_line * p.width; first < last; first += chunk) {
      const int64_t beyond = std::min(first + chunk, last);
      to_words(hidden + first * p.rank, beyond - first, p.rank, features);
      for (int64_t row = 0, k = 0; of_x && row < p.kernel_height; ++row, k += p.kernel_width)
        for_reaching(s, row, first, beyond, [&](int64_t i, int64_t positions) {
          make_weights<T>(s, features + i * depth, given.packed + k * (depth + 1) * s.lanes, positions,
                          weights + i * each + k * s.lanes, p.kernel_width);
        });
      for (int64_t position = first; position < beyond;) {
        // as many of them as lie on one line
        const int64_t i = position % p.width, count = std::min(beyond - position, p.width - i);
        float* of_line = weights + (position - first) * each;
        spread(s, gradient + position * channels, count, g.data());
        if (of_x) {
          if (i == 0) rows_of_x.move_to(position / p.width);
          scatter_taps(s, of_line, rows_of_x.inputs.data(), i * s.position, g.data(), count);
        }
        if (ours && (of_hidden || sums)) {
          if (i == 0) rows.move_to(position / p.width);
          // in the place of the weights, which are used
          dot_taps(s, of_line, rows.inputs.data(), i * s.position, g.data(), count);
        }
        position += count;
      }
      if (ours && sums) {
        const float* rows = words_of_positions(hidden + first * p.rank, features, beyond - first, p.rank, turned.data());
        add_of_projection<T>(s, weights, rows, first, beyond, of_rows.data(), sums, first > begin * p.width);
      }
      if (ours && of_hidden)
        write_of_hidden(s, weights, given.turned, first, beyond, of_features.data(), of_hidden + first * p.rank);
    }
  };
  const int64_t above = s.rows - 1 - s.top, start = begin - begin % p.height, h = (end - 1) % p.height;
  if (of_x) take(std::max(start, begin - above), begin, false);
  take(begin, end, true);
  if (of_x) {
    take(end, end + std::min(s.top, p.height - 1 - h), false);
    rows_of_x.finish();
  }
}

// The sums of all threads, in their order, to of_projection [G, K, R] and of_bias [G, K], taps [begin, end).
template <typename T>
void unpack(const LocalWeightProblem& p, const void* gradients_, const void*, void*, int64_t begin, int64_t end) {
  const Shape s(p);
  const auto& given = *static_cast<const ProjectedGradients*>(gradients_);
  T *of_projection = static_cast<T*>(given.of_projection), *of_bias = static_cast<T*>(given.of_bias);
  const int64_t size = (p.rank + 1) * s.lanes;
  Floats whole(size), rows(p.groups * p.rank);
  for (int64_t k = begin; k < end; ++k) {
    const float* own = given.sums + k * size;
    for (int64_t n = 0; n < size; n += kLanes) {
      Vector sum = {};
      for (int64_t t = 0; t < given.threads; ++t) sum += load(own + t * s.taps * size + n);
      store(&whole[n], sum);
    }
    for (int64_t g = 0; of_bias && g < p.groups; ++g)
      of_bias[g * s.taps + k] = from_float<T>(whole[p.rank * s.lanes + g]);
    if (!of_projection) continue;
    if constexpr (std::is_same_v<T, float>) {
      transpose(whole.data(), s.lanes, p.rank, p.groups, of_projection + k * p.rank, s.taps * p.rank);
    } else {
      transpose(whole.data(), s.lanes, p.rank, p.groups, rows.data(), p.rank);
      for (int64_t g = 0; g < p.groups; ++g)
        from_floats(&rows[g * p.rank], p.rank, of_projection + (g * s.taps + k) * p.rank);
    }
  }
}

}  // namespace

LOCALMIX_KERNEL(turn)
LOCALMIX_KERNEL(projected_backward)
LOCALMIX_KERNEL(unpack)
