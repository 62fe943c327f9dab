// Attention in a neighborhood that slides and stops at the border, forward and backward.
//
//   weight[i, k] = softmax over k of (scale * query[i] . key[i + k] + bias[k])
//   y[i] = sum over k of weight[i, k] * value[i + k]
//
// Positions a dilation apart form a map of their own, a residue: its lines are taken one after the other, its columns
// lie side by side in scratch. The keys of a row that a query sees are neighbors then: scores come as vectors of keys,
// from rows of keys that lie [channel][column]; sums of values as vectors of channels, from rows that lie
// [column][channel]. A ring of such rows slides down the map, a head at a time so that it stays in the cache. The
// backward pass makes the weights again.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "pairwise_maps.h"
#include "softmax.h"

namespace {

// Vectors of the keys in a row: most neighborhoods are no wider than 8.
constexpr int64_t kKeys = kLanes < 8 ? kLanes : 8;
typedef float Keys __attribute__((vector_size(kKeys * 4), aligned(4)));
typedef int32_t KeyMask __attribute__((vector_size(kKeys * 4)));

inline Keys load_keys(const float* p) { return *reinterpret_cast<const Keys*>(p); }
inline void store_keys(float* p, Keys v) { *reinterpret_cast<Keys*>(p) = v; }

inline float sum_of(Keys v) {
  float sum = 0;
  for (int i = 0; i < kKeys; ++i) sum += v[i];
  return sum;
}

inline float largest_of(Keys v) {
  float most = v[0];
  for (int i = 1; i < kKeys; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Vectors that the keys of a row fill, and the floats of a row of biases, padded for the last one.
int64_t vectors_of(const PairwiseProblem& p) { return divide_up(p.size_width, kKeys); }
int64_t bias_width(const PairwiseProblem& p) { return 2 * p.size_width - 1 + vectors_of(p) * kKeys; }

// [heads][2 h - 1][2 w - 1, padded]
int64_t packed_size(const PairwiseProblem* p) { return p->heads * (2 * p->size_height - 1) * bias_width(*p); }

void pack(const PairwiseProblem* p, float* packed, int64_t begin, int64_t end) {
  const int64_t distances = 2 * p->size_width - 1, width = bias_width(*p), lines = 2 * p->size_height - 1;
  std::fill(packed + begin * lines * width, packed + end * lines * width, 0.0f);
  for (int64_t line = begin * lines; line < end * lines; ++line)
    std::copy_n(p->bias + line * distances, distances, packed + line * width);
}

void unpack(const PairwiseProblem* p, const float* sums, int64_t begin, int64_t end) {
  const int64_t distances = 2 * p->size_width - 1, width = bias_width(*p), lines = 2 * p->size_height - 1;
  for (int64_t line = begin * lines; line < end * lines; ++line)
    for (int64_t i = 0; i < distances; ++i) p->of_bias[line * distances + i] += sums[line * width + i];
}

// One axis: positions in the order of their residues, and which ones each sees.
struct Axis {
  struct Step {
    int64_t position, step;    // on the map, and within its residue
    int64_t begin, length;     // of its residue, in this order
    int64_t start, count;      // the steps that it sees
  };

  Axis(int64_t length, int64_t size, int64_t dilation) {
    steps.reserve(length);
    for (int64_t residue = 0; residue < std::min(dilation, length); ++residue) {
      const int64_t begin = int64_t(steps.size()), own = divide_up(length - residue, dilation);
      const int64_t count = std::min(size, own);
      for (int64_t s = 0; s < own; ++s) {
        const int64_t start = std::min(std::max<int64_t>(s - size / 2, 0), own - count);
        steps.push_back({residue + s * dilation, s, begin, own, start, count});
      }
    }
  }

  std::vector<Step> steps;
};

// Rows of a head that slide down a residue, [column][channel] and, of those that scores are made of, [channel][column].
class Rows {
 public:
  Rows(const PairwiseProblem& p, const Axis& columns, bool across)
      : p_(p),
        columns_(columns),
        dim_(whole_vectors(p.dim)),
        padded_((p.width + vectors_of(p) * kKeys + 15) / 32 * 32 + 16),
        along_(p.size_height * p.width * dim_, 0.0f),
        across_(across ? p.size_height * p.dim * padded_ : 0, 0.0f) {}

  template <typename T>
  void read_row(const PairwiseMap& map, int64_t b, int64_t row, int64_t head, int64_t step, float factor) {
    float* out = along(step);
    for (int64_t c = 0; c < p_.width; ++c)
      read(at<T>(map, b, row, columns_.steps[c].position, head), p_.dim, factor, out + c * dim_);
    if (!across_.empty())
      transpose(out, dim_, p_.width, p_.dim, across_.data() + slot(step) * p_.dim * padded_, padded_);
  }

  template <typename T>
  void write_row(void* map, int64_t b, int64_t row, int64_t head, int64_t step) {
    const float* in = along(step);
    for (int64_t c = 0; c < p_.width; ++c, in += dim_)
      write(in, p_.dim, 1.0f, at<T>(p_, map, b, row, columns_.steps[c].position, head));
  }

  void clear(int64_t step) { std::fill_n(along(step), p_.width * dim_, 0.0f); }

  float* along(int64_t step, int64_t column = 0) { return along_.data() + (slot(step) * p_.width + column) * dim_; }
  const float* across(int64_t step, int64_t column) const {
    return across_.data() + slot(step) * p_.dim * padded_ + column;
  }
  int64_t padded() const { return padded_; }

 private:
  int64_t slot(int64_t step) const { return step % p_.size_height; }

  const PairwiseProblem& p_;
  const Axis& columns_;
  // an odd number of lines of the cache: else the channels of a column would fall on few of its places
  int64_t dim_, padded_;
  Floats along_, across_;
};

// The weights of one query and head: [row][keys of a row, whole vectors].
class Weights {
 public:
  explicit Weights(const PairwiseProblem& p)
      : p_(p), vectors_(vectors_of(p)), stride_(vectors_ * kKeys), places_(p.size_height * vectors_),
        weight(p.size_height * stride_, 0.0f), of_weight(p.size_height * stride_, 0.0f) {}

  // out = query . each of the keys in `rows`
  void dot(const Axis::Step& row, const Axis::Step& column, const float* query, const Rows& rows, float* out) {
    const int64_t first = column.begin + column.start, count = row.count * vectors_;
    for (int64_t a = 0; a < row.count; ++a)
      for (int64_t v = 0; v < vectors_; ++v) places_[a * vectors_ + v] = rows.across(row.start + a, first + v * kKeys);
    int64_t i = 0;
    auto blocks = [&](auto size) {
      for (; i + size <= count; i += size) {
        Keys sums[size] = {};
        for (int64_t d = 0; d < p_.dim; ++d)
          for (int n = 0; n < size; ++n) sums[n] += query[d] * load_keys(places_[i + n] + d * rows.padded());
        for (int n = 0; n < size; ++n) store_keys(out + (i + n) * kKeys, sums[n]);
      }
    };
    blocks(std::integral_constant<int, 8>());
    blocks(std::integral_constant<int, 7>());
    blocks(std::integral_constant<int, 3>());
    blocks(std::integral_constant<int, 1>());
  }

  // weight = exponentials of the scores in it plus bias, zero where a vector is only filled up; gives 1 / their sum.
  float soften(const Axis::Step& row, const Axis::Step& column, const float* bias) {
    Keys lowest = {}, sums = {};
    lowest -= __builtin_inff();
    Keys highest = lowest;
    for (int64_t a = 0; a < row.count; ++a)
      for (int64_t v = 0; v < vectors_; ++v) {
        Keys score = load_keys(&weight[a * stride_ + v * kKeys]);
        if (bias) score += load_keys(bias + bias_at(row, column, a) + v * kKeys);
        // selected and not added: what lies beside the neighborhood may be NaN
        score = inside(column, v) ? score : lowest;
        store_keys(&weight[a * stride_ + v * kKeys], score);
        highest = larger(score, highest);
      }
    Keys most = {};
    most += largest_of(highest);
    for (int64_t a = 0; a < row.count; ++a)
      for (int64_t v = 0; v < vectors_; ++v) {
        const Keys e = exponential(load_keys(&weight[a * stride_ + v * kKeys]) - most);
        store_keys(&weight[a * stride_ + v * kKeys], e);
        sums += e;
      }
    return 1.0f / sum_of(sums);
  }

  // weight becomes whole, of_weight the gradient of the scores.
  void harden(const Axis::Step& row, const Axis::Step& column, float inverse) {
    Keys sums = {}, zero = {};
    for (int64_t a = 0; a < row.count; ++a)
      for (int64_t v = 0; v < vectors_; ++v) {
        float *w = &weight[a * stride_ + v * kKeys], *g = &of_weight[a * stride_ + v * kKeys];
        const Keys share = load_keys(w) * inverse, of_share = inside(column, v) ? load_keys(g) : zero;
        store_keys(w, share);
        store_keys(g, of_share);
        sums += share * of_share;
      }
    const float sum = sum_of(sums);
    for (int64_t i = 0; i < row.count * stride_; i += kKeys)
      store_keys(&of_weight[i], load_keys(&weight[i]) * (load_keys(&of_weight[i]) - sum));
  }

  // y += factor * sum over the keys of weights[key] * rows[key]
  void mix(const Axis::Step& row, const Axis::Step& column, const Floats& weights, Rows& rows, float* y) {
    const int64_t first = column.begin + column.start, dim = whole_vectors(p_.dim);
    int64_t d = 0;
    auto blocks = [&](auto size) {
      for (; d + size * kLanes <= dim; d += size * kLanes) {
        // two sums of each, lest one waits for the other
        Vector sums[2][size] = {};
        for (int64_t a = 0; a < row.count; ++a) {
          const float *in = rows.along(row.start + a, first) + d, *w = &weights[a * stride_];
          int64_t j = 0;
          for (; j + 2 <= column.count; j += 2)
            for (int64_t half = 0; half < 2; ++half)
              for (int v = 0; v < size; ++v) sums[half][v] += w[j + half] * load(in + (j + half) * dim + v * kLanes);
          if (j < column.count)
            for (int v = 0; v < size; ++v) sums[0][v] += w[j] * load(in + j * dim + v * kLanes);
        }
        for (int v = 0; v < size; ++v) store(y + d + v * kLanes, sums[0][v] + sums[1][v]);
      }
    };
    blocks(std::integral_constant<int, 4>());
    blocks(std::integral_constant<int, 2>());
    blocks(std::integral_constant<int, 1>());
  }

  // Row `a` of the neighborhood: rows[key] += weights[key] * query.
  void scatter(const Axis::Step& row, const Axis::Step& column, int64_t a, const Floats& weights,
               const float* query, Rows& rows) {
    const int64_t dim = whole_vectors(p_.dim);
    float* out = rows.along(row.start + a, column.begin + column.start);
    for (int64_t j = 0; j < column.count; ++j)
      for (int64_t d = 0; d < dim; d += kLanes) {
        float* target = out + j * dim + d;
        store(target, load(target) + weights[a * stride_ + j] * load(query + d));
      }
  }

  // Adds the gradients of the scores to those of the biases of a head.
  void add_to(const Axis::Step& row, const Axis::Step& column, float* sums) const {
    for (int64_t a = 0; a < row.count; ++a)
      for (int64_t j = 0; j < column.count; ++j) sums[bias_at(row, column, a) + j] += of_weight[a * stride_ + j];
  }

 private:
  KeyMask inside(const Axis::Step& column, int64_t v) const {
    KeyMask lane;
    for (int i = 0; i < kKeys; ++i) lane[i] = i;
    return lane < int32_t(column.count - v * kKeys);
  }

  // Of the first key of row `a`: the distance from the query, which is never below 1 - size.
  int64_t bias_at(const Axis::Step& row, const Axis::Step& column, int64_t a) const {
    const int64_t down = row.start + a - row.step + p_.size_height - 1;
    return down * bias_width(p_) + column.start - column.step + p_.size_width - 1;
  }

  const PairwiseProblem& p_;
  int64_t vectors_, stride_;
  std::vector<const float*> places_;

 public:
  Floats weight, of_weight;
};

// Calls f(image, first line, last line) for the lines of one residue of an image among units [begin, end).
template <typename F>
void for_residues(const PairwiseProblem& p, const Axis& rows, int64_t begin, int64_t end, F f) {
  for (int64_t unit = begin; unit < end;) {
    const int64_t b = unit / p.height, line = unit % p.height;
    const auto& step = rows.steps[line];
    const int64_t last = std::min(step.begin + step.length, line + end - unit);
    f(b, line, last);
    unit += last - line;
  }
}

template <typename T>
void forward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  const Axis rows(p.height, p.size_height, p.dilation_height), columns(p.width, p.size_width, p.dilation_width);
  const int64_t of_head = packed_size(&p) / p.heads;
  Rows keys(p, columns, true), values(p, columns, false);
  Weights weights(p);
  Floats query(p.dim), y(whole_vectors(p.dim));
  for_residues(p, rows, begin, end, [&](int64_t b, int64_t first, int64_t last) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* added = bias->packed ? bias->packed + h * of_head : nullptr;
      int64_t loaded = rows.steps[first].start;
      for (int64_t line = first; line < last; ++line) {
        const auto& row = rows.steps[line];
        for (; loaded < row.start + row.count; ++loaded) {
          const int64_t position = rows.steps[row.begin + loaded].position;
          keys.read_row<T>(p.key, b, position, h, loaded, 1.0f);
          values.read_row<T>(p.value, b, position, h, loaded, 1.0f);
        }
        for (const auto& column : columns.steps) {
          read(at<T>(p.query, b, row.position, column.position, h), p.dim, float(p.scale), query.data());
          weights.dot(row, column, query.data(), keys, weights.weight.data());
          const float inverse = weights.soften(row, column, added);
          weights.mix(row, column, weights.weight, values, y.data());
          write(y.data(), p.dim, inverse, at<T>(p, p.output, b, row.position, column.position, h));
        }
      }
    }
  });
}

template <typename T>
void backward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  const Axis rows(p.height, p.size_height, p.dilation_height), columns(p.width, p.size_width, p.dilation_width);
  const int64_t of_head = packed_size(&p) / p.heads, dim = whole_vectors(p.dim);
  Rows keys(p, columns, true), values(p, columns, true), of_keys(p, columns, false), of_values(p, columns, false);
  Weights weights(p);
  Floats query(dim), gradient(dim), result(dim);
  for_residues(p, rows, begin, end, [&](int64_t b, int64_t first, int64_t last) {
    const int64_t residue = rows.steps[first].begin, length = rows.steps[first].length;
    // the steps whose gradients are ours; queries further off reach into them
    const int64_t low = first - residue, high = last - residue;
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* added = bias->packed ? bias->packed + h * of_head : nullptr;
      int64_t loaded = -1, complete = low;
      auto finish = [&](int64_t until) {
        for (; complete < std::min(until, high); ++complete) {
          const int64_t position = rows.steps[residue + complete].position;
          if (p.of_key) of_keys.write_row<T>(p.of_key, b, position, h, complete);
          if (p.of_value) of_values.write_row<T>(p.of_value, b, position, h, complete);
        }
      };
      for (int64_t step = 0; step < length; ++step) {
        const auto& row = rows.steps[residue + step];
        if (row.start + row.count <= low || row.start >= high) continue;
        // no later query reaches the steps before the first one that this query sees
        finish(row.start);
        for (loaded = std::max(loaded, row.start); loaded < row.start + row.count; ++loaded) {
          const int64_t position = rows.steps[residue + loaded].position;
          keys.read_row<T>(p.key, b, position, h, loaded, 1.0f);
          values.read_row<T>(p.value, b, position, h, loaded, 1.0f);
          of_keys.clear(loaded);
          of_values.clear(loaded);
        }
        const bool is_ours = step >= low && step < high;
        for (const auto& column : columns.steps) {
          read(at<T>(p.query, b, row.position, column.position, h), p.dim, float(p.scale), query.data());
          read(at<T>(p.gradient, b, row.position, column.position, h), p.dim, 1.0f, gradient.data());
          weights.dot(row, column, query.data(), keys, weights.weight.data());
          const float inverse = weights.soften(row, column, added);
          weights.dot(row, column, gradient.data(), values, weights.of_weight.data());
          weights.harden(row, column, inverse);
          if (is_ours && bias->sums) weights.add_to(row, column, bias->sums + h * of_head);
          if (is_ours && p.of_query) {
            weights.mix(row, column, weights.of_weight, keys, result.data());
            write(result.data(), p.dim, float(p.scale), at<T>(p, p.of_query, b, row.position, column.position, h));
          }
          for (int64_t a = 0; a < row.count; ++a) {
            if (row.start + a < low || row.start + a >= high) continue;
            if (p.of_key) weights.scatter(row, column, a, weights.of_weight, query.data(), of_keys);
            if (p.of_value) weights.scatter(row, column, a, weights.weight, gradient.data(), of_values);
          }
        }
      }
      finish(high);
    }
  });
}

}  // namespace

LOCALMIX_KERNELS(
    PairwiseKernels, neighborhood, LOCALMIX_RUN(forward), LOCALMIX_RUN(backward), packed_size, pack, unpack)
