// Attention in windows, forward and backward, where query, key and value lie: no partition, no roll, no padding.
//
//   weight[i, j] = softmax over j of (scale * query[i] . key[j] + bias[i, j])
//   y[i] = sum over j of weight[i, j] * value[j]
//
// A window and head at a time, all of it in the cache, of large windows some queries at a time. Scores lie with the
// queries side by side, [key][query], so that their maximum and their sum are those of whole vectors, and slots that
// only fill up a vector disturb no others. A cut window holds fewer positions. The backward pass makes the weights
// again. Maps are read as words (words.h); where these are pairs of numbers, weights and the gradients of scores are
// rounded to pairs before they are multiplied by others.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "pairwise_maps.h"
#include "product.h"
#include "softmax.h"
#include "windows.h"
#include "words.h"

#include <cstring>

namespace {

int64_t slots_of(const PairwiseProblem& p) { return p.size_height * p.size_width; }

// [heads][key slot][query slots, whole vectors]
int64_t packed_size(const PairwiseProblem* p) { return p->heads * slots_of(*p) * whole_vectors(slots_of(*p)); }

// Calls f(float of the packed biases, number of the given ones) for all pairs of slots of some heads.
template <typename F>
void for_pairs(const PairwiseProblem& p, int64_t begin, int64_t end, F f) {
  const int64_t n = slots_of(p), stride = whole_vectors(n), width = 2 * p.kernel_width - 1;
  for (int64_t h = begin; h < end; ++h)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const int64_t down = j / p.size_width - i / p.size_width + p.kernel_height - 1;
        const int64_t right = j % p.size_width - i % p.size_width + p.kernel_width - 1;
        f((h * n + j) * stride + i, (h * (2 * p.kernel_height - 1) + down) * width + right);
      }
}

void pack(const PairwiseProblem* p, float* packed, int64_t begin, int64_t end) {
  const int64_t n = slots_of(*p), stride = whole_vectors(n);
  std::fill(packed + begin * n * stride, packed + end * n * stride, 0.0f);
  if (p->kernel_width)
    return for_pairs(*p, begin, end, [&](int64_t to, int64_t from) { packed[to] = p->bias[from]; });
  for (int64_t h = begin; h < end; ++h) transpose(p->bias + h * n * n, n, n, n, packed + h * n * stride, stride);
}

void unpack(const PairwiseProblem* p, const float* sums, int64_t begin, int64_t end) {
  const int64_t n = slots_of(*p), stride = whole_vectors(n);
  if (p->kernel_width)
    return for_pairs(*p, begin, end, [&](int64_t from, int64_t to) { p->of_bias[to] += sums[from]; });
  for (int64_t h = begin; h < end; ++h)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) p->of_bias[(h * n + i) * n + j] += sums[(h * n + j) * stride + i];
}

// Queries of a window that are taken at a time: all of them unless the window is large.
constexpr int64_t kQueries = 64;

// A head of a window: its positions in words of W, and the scores of some of its queries as floats.
template <typename W>
class Head {
 public:
  explicit Head(const PairwiseProblem& p, bool backward)
      : p_(p),
        n_(std::min(p.size_height, p.height) * std::min(p.size_width, p.width)),
        width_(std::min(whole_vectors(n_), kQueries)),
        line_(whole_vectors(n_)),
        slots_(whole_vectors(slots_of(p))),
        dim_(whole_vectors(p.dim)),
        words_(dim_ / kPerWord<W>),
        query(n_ * words_, 0.0f),
        key(n_ * words_, 0.0f),
        value(n_ * words_, 0.0f),
        result(n_ * dim_, 0.0f),
        weight(n_ * width_, 0.0f),
        inverse(width_, 0.0f),
        transposed_(words_of<W>(p.dim) * width_, 0.0f),
        bias_(p.bias ? n_ * line_ + kLanes : 0, 0.0f) {
    if (kPerWord<W> > 1) {
      stacked_.resize(words_of<W>(n_) * dim_);
      matrix_.resize(words_of<W>(n_) * width_);
    }
    if (!backward) return;
    gradient.resize(n_ * words_, 0.0f);
    for (auto* map : {&of_key, &of_value}) map->resize(n_ * dim_, 0.0f);
    of_score.resize(n_ * width_ + kLanes, 0.0f);
  }

  // A map as lines of words, one for each position; a word that is not full is filled by zero.
  template <typename T>
  void read_map(const Window& w, const PairwiseMap& map, int64_t head, Floats& lines) {
    float* line = lines.data();
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t c = 0; c < w.columns; ++c, line += words_) {
        const T* source = at<T>(map, w.b, w.top + r, w.left + c, head);
        if constexpr (kPerWord<W> == 1) {
          to_floats(source, p_.dim, line);
        } else {
          std::memcpy(line, source, p_.dim * sizeof(T));
        }
      }
  }

  template <typename T>
  void read_window(const Window& w, int64_t head) {
    read_map<T>(w, p_.query, head, query);
    read_map<T>(w, p_.key, head, key);
    read_map<T>(w, p_.value, head, value);
  }

  template <typename T>
  void write_map(const Window& w, const Floats& source, int64_t head, float factor, void* map) {
    const float* in = source.data();
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t c = 0; c < w.columns; ++c, in += dim_)
        write(in, p_.dim, factor, at<T>(p_, map, w.b, w.top + r, w.left + c, head));
  }

  // The bias of the slots that hold a position, [key][query]; its lines are `bias_line` long.
  const float* bias_of(const Window& w, const float* packed) {
    if (!packed || w.whole) return packed;
    for_keys(w, [&](int64_t key, int64_t slot) {
      const float* from = packed + slot * slots_;
      float* to = &bias_[key * line_];
      for_rows(w, 0, w.positions, [&](int64_t query, int64_t query_slot, int64_t count) {
        // what is too much of a vector is overwritten by the next row
        for (int64_t i = 0; i < count; i += kLanes) store(to + query + i, load(from + query_slot + i));
      });
    });
    return bias_.data();
  }
  int64_t bias_line(const Window& w) const { return w.whole ? slots_ : line_; }

  // Calls f(key, its slot) for all keys.
  template <typename F>
  void for_keys(const Window& w, F f) const {
    w.for_positions([&](int64_t key, int64_t r, int64_t c) { f(key, w.slot(p_, r, c)); });
  }

  // Calls f(query, its slot, how many lie from there on side by side) for the rows of some queries.
  template <typename F>
  void for_rows(const Window& w, int64_t first, int64_t count, F f) const {
    for (int64_t r = first / w.columns, query = first, last = first + count; query < last; ++r) {
      const int64_t c = query - r * w.columns, those = std::min(w.columns - c, last - query);
      f(query, w.slot(p_, r, c), those);
      query += those;
    }
  }

  // Calls f(first query, queries) for some queries at a time.
  template <typename F>
  static void for_queries(const Window& w, F f) {
    for (int64_t i = 0; i < w.positions; i += kQueries) f(i, std::min(kQueries, w.positions - i));
  }

  // out [key][query] = keys[key] . queries[first + query]
  void dot(const Window& w, const Floats& keys, const Floats& queries, int64_t first,
           int64_t count, Floats& out) {
    const int64_t used = whole_vectors(count);
    // slots that fill up a vector hold no number left from another window
    if (count != count_) std::fill(transposed_.begin(), transposed_.end(), 0.0f);
    count_ = count;
    const int64_t depth = words_of<W>(p_.dim);
    transpose(&queries[first * words_], words_, count, depth, transposed_.data(), width_);
    const Factor rows{keys.data(), words_, 1};
    product<W>(rows, w.positions, depth, transposed_.data(), width_, used, out.data(), width_);
  }

  // weight = exponentials of the scores, the scaled products in it plus bias, inverse = one over their sums.
  void soften(const Window& w, int64_t count, const float* bias) {
    const int64_t n = w.positions, line = bias_line(w);
    const float scale = float(p_.scale);
    for (int64_t i = 0; i < count; i += kLanes) {
      float* column = weight.data() + i;
      Vector highest = {};
      for (int64_t j = 0; j < n; ++j) {
        Vector score = load(column + j * width_) * scale;
        if (bias) score += load(bias + j * line + i);
        store(column + j * width_, score);
        highest = j ? larger(score, highest) : score;
      }
      const Vector sum = sum_in_parts(n, [&](int64_t j) {
        const Vector e = exponential(load(column + j * width_) - highest);
        store(column + j * width_, e);
        return e;
      });
      store(inverse.data() + i, 1.0f / sum);
    }
  }

  // of_score: from the gradients of the weights to those of the scores; weight becomes whole.
  void harden(const Window& w, int64_t count) {
    const int64_t n = w.positions;
    for (int64_t i = 0; i < count; i += kLanes) {
      float *column = weight.data() + i, *of_column = of_score.data() + i;
      const Vector whole = load(inverse.data() + i);
      Vector mean = sum_in_parts(n, [&](int64_t j) {
        const Vector share = load(column + j * width_) * whole;
        store(column + j * width_, share);
        return share * load(of_column + j * width_);
      });
      auto share_of_rest = [&](int64_t j) { return load(column + j * width_) * (load(of_column + j * width_) - mean); };
      // once more from there: shares do not make one to the last digit, and that times the mean is in every gradient
      mean += sum_in_parts(n, share_of_rest);
      for (int64_t j = 0; j < n; ++j) store(of_column + j * width_, share_of_rest(j));
    }
  }

  // result [first + query] = sum over the keys of matrix[key, query] lines[key]
  void mix_keys(const Window& w, const Floats& matrix, const Floats& lines, int64_t first, int64_t count) {
    const float* words = matrix.data();
    if constexpr (kPerWord<W> == 2) {
      for (int64_t j = 0; j < w.positions; j += 2) {
        const float* row = words + j * width_;
        const float* other = j + 1 < w.positions ? row + width_ : nullptr;
        to_words_of_two<W>(row, other, whole_vectors(count), &matrix_[j / 2 * width_]);
      }
      words = matrix_.data();
    }
    product<W>(Factor{words, 1, width_}, count, words_of<W>(w.positions), stacked(lines, 0, w.positions), dim_, dim_,
               &result[first * dim_], dim_);
  }

  // out [key] = sum over the queries of matrix[key, query] lines[first + query], added to that of earlier queries
  void mix_queries(const Window& w, const Floats& matrix, const Floats& lines, int64_t first, int64_t count,
                   Floats& out) {
    const float* words = matrix.data();
    const int64_t stride = width_ / kPerWord<W>;
    if constexpr (kPerWord<W> == 2) {
      for (int64_t j = 0; j < w.positions; ++j) {
        float* line = &matrix_[j * stride];
        to_words_of_neighbors<W>(words + j * width_, whole_vectors(count), line);
        // what fills up a word is zero times zero
        if (count % 2) line[count / 2] = as<float>(as<uint32_t>(line[count / 2]) & 0xffffu);
      }
      words = matrix_.data();
    }
    product<W>(Factor{words, stride, 1}, w.positions, words_of<W>(count), stacked(lines, first, count), dim_, dim_,
               out.data(), dim_, first > 0);
  }

  // result [query] *= inverse
  void divide(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < dim_; ++d) result[(first + i) * dim_ + d] *= inverse[i];
  }

  // Adds of_score to the sums of a head, [key slot][query slots].
  void add_to(const Window& w, int64_t first, int64_t count, float* sums) const {
    if (w.whole) return for_keys(w, [&](int64_t key, int64_t slot) {
      add(&of_score[key * width_], whole_vectors(count), sums + slot * slots_ + first);
    });
    // keys innermost: rows of a key overlap, by what is too much of a vector, and would wait for one another
    for_rows(w, first, count, [&](int64_t query, int64_t query_slot, int64_t those) {
      const bool fits = query_slot + whole_vectors(those) <= slots_;
      for_keys(w, [&](int64_t key, int64_t slot) {
        const float* from = &of_score[key * width_ + query - first];
        float* line = sums + slot * slots_ + query_slot;
        if (fits) return add(from, those, line);
        for (int64_t i = 0; i < those; ++i) line[i] += from[i];
      });
    });
  }

 private:
  // line += numbers, `count` of them; what else the last vectors of both hold is let be.
  static void add(const float* numbers, int64_t count, float* line) {
    for (int64_t i = 0; i < count; i += kLanes)
      store(line + i, load(line + i) + first_of(load(numbers + i), count - i));
  }

  // Some lines in words of positions.
  const float* stacked(const Floats& lines, int64_t first, int64_t count) {
    const float* line = &lines[first * words_];
    if constexpr (kPerWord<W> == 1) {
      return line;
    } else {
      to_words_of_rows(reinterpret_cast<const W*>(line), count, dim_, stacked_.data());
      return stacked_.data();
    }
  }

  const PairwiseProblem& p_;
  // most positions of a window; whole vectors of queries at a time, of positions, of slots and of channels; their words
  int64_t n_, width_, line_, slots_, dim_, words_;
  int64_t count_ = 0;  // queries that are transposed

 public:
  Floats query, key, value, gradient;  // lines of words, [position][dim]
  Floats result, of_key, of_value;     // [position][dim]
  Floats weight, of_score;             // [key][query]
  Floats inverse;                      // [query]

 private:
  Floats transposed_, bias_, stacked_, matrix_;
};

template <typename T>
void forward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  Head<Factored<T>> head(p, false);
  const int64_t of_head = packed_size(&p) / p.heads;
  for_heads(p, begin, end, [&](int64_t h, int64_t first_window, int64_t last_window) {
    for (int64_t window = first_window; window < last_window; ++window) {
      const Window w(p, window);
      head.template read_window<T>(w, h);
      const float* added = head.bias_of(w, bias->packed ? bias->packed + h * of_head : nullptr);
      head.for_queries(w, [&](int64_t first, int64_t count) {
        head.dot(w, head.key, head.query, first, count, head.weight);
        head.soften(w, count, added ? added + first : nullptr);
        head.mix_keys(w, head.weight, head.value, first, count);
        head.divide(first, count);
      });
      head.template write_map<T>(w, head.result, h, 1.0f, p.output);
    }
  });
}

template <typename T>
void backward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  Head<Factored<T>> head(p, true);
  const int64_t of_head = packed_size(&p) / p.heads;
  for_heads(p, begin, end, [&](int64_t h, int64_t first_window, int64_t last_window) {
    for (int64_t window = first_window; window < last_window; ++window) {
      const Window w(p, window);
      head.template read_window<T>(w, h);
      head.template read_map<T>(w, p.gradient, h, head.gradient);
      const float* added = head.bias_of(w, bias->packed ? bias->packed + h * of_head : nullptr);
      head.for_queries(w, [&](int64_t first, int64_t count) {
        head.dot(w, head.key, head.query, first, count, head.weight);
        head.soften(w, count, added ? added + first : nullptr);
        head.dot(w, head.value, head.gradient, first, count, head.of_score);
        head.harden(w, count);
        if (bias->sums) head.add_to(w, first, count, bias->sums + h * of_head);
        if (p.of_value) head.mix_queries(w, head.weight, head.gradient, first, count, head.of_value);
        if (p.of_key) head.mix_queries(w, head.of_score, head.query, first, count, head.of_key);
        if (p.of_query) head.mix_keys(w, head.of_score, head.key, first, count);
      });
      if (p.of_value) head.template write_map<T>(w, head.of_value, h, 1.0f, p.of_value);
      if (p.of_key) head.template write_map<T>(w, head.of_key, h, float(p.scale), p.of_key);
      if (p.of_query) head.template write_map<T>(w, head.result, h, float(p.scale), p.of_query);
    }
  });
}

}  // namespace

LOCALMIX_KERNELS(
    PairwiseKernels, window, LOCALMIX_RUN(forward), LOCALMIX_RUN(backward), packed_size, pack, unpack)
