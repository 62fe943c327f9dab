// The weights of some rows of queries: scores, their softmax, and the sums that they weigh.
//
// Queries side by side are the lanes of a vector, and some rows of them are taken together: a number of a key or
// value that is read serves each of these rows, scores and sums stay in registers, and the softmax never goes across a
// vector.
#pragma once

#include "neighborhood_maps.h"
#include "product.h"
#include "softmax.h"

namespace {

// Rows of queries that are taken together, and taps and channels whose sums are in registers at a time.
constexpr int kQueryRows = LOCALMIX_VECTOR_BYTES == 64 ? 4 : 3;
constexpr int kTaps = LOCALMIX_VECTOR_BYTES == 64 ? 7 : 4;
constexpr int kChannels = 4;

// Biases as they are added, [heads][blocks][2 h - 1][w][lanes]: zero where a lane has no such tap.
int64_t lines_of(const PairwiseProblem& p) { return (2 * p.size_height - 1) * p.size_width; }
int64_t packed_size(const PairwiseProblem* p) {
  return p->heads * divide_up(p->width, kLanes) * lines_of(*p) * kLanes;
}

// Calls f(place among the packed biases, place among the biases) for each tap of each query in a row of some heads.
template <typename F>
void for_biases(const PairwiseProblem& p, int64_t begin, int64_t end, F f) {
  const Axis columns(p.width, p.size_width, p.dilation_width);
  const int64_t distances = 2 * p.size_width - 1, lines = 2 * p.size_height - 1;
  const int64_t of_head = packed_size(&p) / p.heads;
  for (int64_t c = 0; c < p.width; ++c) {
    const Axis::Step column = columns[c];
    const int64_t block = c / kLanes * lines_of(p) * kLanes + c % kLanes;
    const int64_t first = column.start - column.step + p.size_width - 1;
    for (int64_t h = begin; h < end; ++h)
      for (int64_t down = 0; down < lines; ++down)
        for (int64_t j = 0; j < column.count; ++j)
          f(h * of_head + block + (down * p.size_width + j) * kLanes, (h * lines + down) * distances + first + j);
  }
}

void pack(const PairwiseProblem* p, float* packed, int64_t begin, int64_t end) {
  const int64_t of_head = packed_size(p) / p->heads;
  std::fill(packed + begin * of_head, packed + end * of_head, 0.0f);
  for_biases(*p, begin, end, [&](int64_t place, int64_t bias) { packed[place] = p->bias[bias]; });
}

void unpack(const PairwiseProblem* p, const float* sums, int64_t begin, int64_t end) {
  for_biases(*p, begin, end, [&](int64_t place, int64_t bias) { p->of_bias[bias] += sums[place]; });
}

// Rows of queries that are taken together, and what they see.
struct Lines {
  // Steps that the same rows of queries see, these from `first` on.
  struct Part {
    int64_t begin, end;
    int first, rows;
  };

  Lines(const Axis& axis, int64_t line, int64_t count) : rows(int(count)) {
    for (int i = 0; i < rows; ++i) row[i] = axis[line + i];
    end = row[rows - 1].start + row[rows - 1].count;
    for (int64_t step = row[0].start; step < end;) {
      Part part{step, step, 0, 0};
      while (row[part.first].start + row[part.first].count <= step) ++part.first;
      int64_t until = row[part.first].start + row[part.first].count;
      for (int i = part.first; i < rows; ++i) {
        if (row[i].start <= step) {
          ++part.rows;
        } else {
          until = std::min(until, row[i].start);
        }
      }
      part.end = step = until;
      parts[num_parts++] = part;
    }
  }

  int64_t start() const { return row[0].start; }

  int rows, num_parts = 0;
  int64_t end;
  Axis::Step row[kQueryRows];
  Part parts[2 * kQueryRows];
};

// Calls f with a number of rows, as a constant.
template <typename F>
LOCALMIX_INLINE inline void with_rows(int rows, F f) {
  unrolled<kQueryRows>([&](auto i) LOCALMIX_INLINE {
    if (rows == i + 1) f(std::integral_constant<int, i + 1>());
  });
}

// The queries of a block, or the gradients of their outputs: [row][lane][channel], and [row][channel][lane].
class Queries {
 public:
  explicit Queries(const PairwiseProblem& p)
      : p_(p), dim_(whole_vectors(p.dim)), along_(kQueryRows * kLanes * dim_, 0.0f),
        across_(kQueryRows * p.dim * kLanes, 0.0f) {}

  template <typename T>
  void read_block(const PairwiseMap& map, const Lines& lines, const Block& block, int64_t b, int64_t head,
                  float factor) {
    for (int i = 0; i < lines.rows; ++i) {
      read_positions<T>(p_, map, block, b, lines.row[i].position, head, factor, along_.data() + i * kLanes * dim_);
      transpose(along(i), dim_, block.queries, p_.dim, across_.data() + i * p_.dim * kLanes, kLanes);
    }
  }

  // Whether these are all numbers, neither infinite nor NaN.
  bool is_finite(const Lines& lines) const {
    Vector sum = {};
    for (int64_t i = 0; i < lines.rows * kLanes * dim_; i += kLanes) sum += load(along_.data() + i) * 0.0f;
    bool all = true;
    for (int l = 0; l < kLanes; ++l) all &= sum[l] == 0.0f;
    return all;
  }

  const float* along(int row) const { return along_.data() + row * kLanes * dim_; }
  const float* across(int row) const { return across_.data() + row * p_.dim * kLanes; }

 private:
  const PairwiseProblem& p_;
  int64_t dim_;
  Floats along_, across_;
};

// A number for each query of a block and each of its taps: [row][row of the kernel][tap of the row][lane].
class Weights {
 public:
  explicit Weights(const PairwiseProblem& p)
      : size_(p.size_height * p.size_width * kLanes), weights_(kQueryRows * size_, 0.0f) {}

  float* row(int i) { return weights_.data() + i * size_; }

  // = query . each key that it sees
  LOCALMIX_ONCE void dot(const PairwiseProblem& p, const Lines& lines, const Block& block, const Queries& queries,
                         const Rows& keys) {
    for (int n = 0; n < lines.num_parts; ++n) {
      const Lines::Part& part = lines.parts[n];
      block.with_taps([&](auto tap) LOCALMIX_INLINE {
        with_rows(part.rows, [&](auto rows) LOCALMIX_INLINE {
          for (int64_t step = part.begin; step < part.end; ++step) {
            float* out[rows];
            for (int i = 0; i < rows; ++i) {
              const int row = part.first + i;
              out[i] = this->row(row) + (step - lines.row[row].start) * block.taps * kLanes;
            }
            const float *in = keys.row(step), *q = queries.across(part.first);
            int64_t j = 0;
            auto taps = [&](auto count) LOCALMIX_INLINE {
              if constexpr (count == 1 || !std::decay_t<decltype(tap)>::kIsRare)
                for (; j + count <= block.taps; j += count)
                  dot_taps<rows, count>(p.dim, tap, j, q, in, keys.stride(), out);
            };
            taps(std::integral_constant<int, kTaps>());
            taps(std::integral_constant<int, 3>());
            taps(std::integral_constant<int, 1>());
          }
        });
      });
    }
  }

  // Scores become exponentials of scores plus bias; gives 1 / their sum.
  LOCALMIX_ONCE Vector soften(const PairwiseProblem& p, const Axis::Step& line, const Block& block, int row,
                              const float* bias) {
    float* const w = this->row(row);
    const int64_t taps = line.count * block.taps;
    Vector most = {};
    most -= __builtin_inff();
    const Vector lowest = most;
    if (bias || block.is_ragged) {
      const float* added = bias ? bias + bias_at(p, line, block) : nullptr;
      for (int64_t a = 0; a < line.count; ++a)
        for (int64_t j = 0; j < block.taps; ++j) {
          float* at = w + (a * block.taps + j) * kLanes;
          Vector score = load(at);
          if (added) score += load(added + (a * p.size_width + j) * kLanes);
          if (block.is_ragged) score = block.count > int32_t(j) ? score : lowest;
          store(at, score);
          most = larger(score, most);
        }
    } else {
      for (int64_t k = 0; k < taps; ++k) most = larger(load(w + k * kLanes), most);
    }
    return 1.0f / sum_in_parts(taps, [&](int64_t k) {
      const Vector e = exponential(load(w + k * kLanes) - most);
      store(w + k * kLanes, e);
      return e;
    });
  }

  // y[row][channel][lane] = sum over the taps of weight * value
  LOCALMIX_ONCE void mix(const PairwiseProblem& p, const Lines& lines, const Block& block, const Rows& values,
                         float* y) {
    std::fill_n(y, lines.rows * p.dim * kLanes, 0.0f);
    block.with_taps([&](auto tap) LOCALMIX_INLINE {
      int64_t d = 0;
      auto channels = [&](auto count) LOCALMIX_INLINE {
        if constexpr (count == 1 || !std::decay_t<decltype(tap)>::kIsRare)
          for (; d + count <= p.dim; d += count)
            for (int n = 0; n < lines.num_parts; ++n)
              with_rows(lines.parts[n].rows, [&](auto rows) LOCALMIX_INLINE {
                mix_channels<rows, count>(p, lines, lines.parts[n], block, tap, values, d, y);
              });
      };
      channels(std::integral_constant<int, kChannels>());
      channels(std::integral_constant<int, 1>());
    });
  }

  // Place of the biases of a block, those of the first row of the kernel that the line sees.
  static int64_t bias_at(const PairwiseProblem& p, const Axis::Step& line, const Block& block) {
    const int64_t down = line.start - line.step + p.size_height - 1;
    return (block.column / kLanes * lines_of(p) + down * p.size_width) * kLanes;
  }

 private:
  template <int Rows, int Taps, typename Tap>
  LOCALMIX_INLINE static void dot_taps(int64_t dim, const Tap& tap, int64_t j, const float* queries, const float* keys,
                                       int64_t stride, float* const (&out)[Rows]) {
    Vector sums[Rows][Taps];
    for_sums<Rows, Taps>([&](auto i, auto t) LOCALMIX_INLINE { sums[i][t] = Vector{}; });
    for (int64_t d = 0; d < dim; ++d, keys += stride) {
      Vector query[Rows];
      unrolled<Rows>([&](auto i) LOCALMIX_INLINE { query[i] = load(queries + (i * dim + d) * kLanes); });
      unrolled<Taps>([&](auto t) LOCALMIX_INLINE {
        const Vector key = tap(keys, j + t);
        unrolled<Rows>([&](auto i) LOCALMIX_INLINE { sums[i][t] += query[i] * key; });
      });
    }
    for_sums<Rows, Taps>([&](auto i, auto t) LOCALMIX_INLINE { store(out[i] + (j + t) * kLanes, sums[i][t]); });
  }

  template <int Rows, int Channels, typename Tap>
  LOCALMIX_INLINE void mix_channels(const PairwiseProblem& p, const Lines& lines, const Lines::Part& part,
                                    const Block& block, const Tap& tap, const ::Rows& values, int64_t d, float* y) {
    Vector sums[Rows][Channels];
    float* out = y + (part.first * p.dim + d) * kLanes;
    for_sums<Rows, Channels>([&](auto i, auto c) LOCALMIX_INLINE {
      sums[i][c] = load(out + (i * p.dim + c) * kLanes);
    });
    const float* weight[Rows];
    for (int i = 0; i < Rows; ++i)
      weight[i] = row(part.first + i) + (part.begin - lines.row[part.first + i].start) * block.taps * kLanes;
    int64_t k = 0;
    for (int64_t step = part.begin; step < part.end; ++step) {
      const float* in = values.row(step) + d * values.stride();
      for (int64_t j = 0; j < block.taps; ++j, k += kLanes) {
        Vector value[Channels];
        unrolled<Channels>([&](auto c) LOCALMIX_INLINE { value[c] = tap(in + c * values.stride(), j); });
        unrolled<Rows>([&](auto i) LOCALMIX_INLINE {
          const Vector w = load(weight[i] + k);
          unrolled<Channels>([&](auto c) LOCALMIX_INLINE { sums[i][c] += w * value[c]; });
        });
      }
    }
    for_sums<Rows, Channels>([&](auto i, auto c) LOCALMIX_INLINE {
      store(out + (i * p.dim + c) * kLanes, sums[i][c]);
    });
  }

  int64_t size_;
  Floats weights_;
};

// Sums of a row of a block, [channel][lane], become results.
template <typename T>
void write_block(const PairwiseProblem& p, const Axis::Step& line, const Block& block, int64_t b, int64_t head,
                 const float* sums, const Vector& factor, float* positions, void* result) {
  const int64_t dim = whole_vectors(p.dim);
  transpose(sums, kLanes, p.dim, block.queries, positions, dim);
  for (int64_t l = 0; l < block.queries; ++l)
    write(positions + l * dim, p.dim, factor[l], at<T>(p, result, b, line.position, block.position[l], head));
}

}  // namespace
