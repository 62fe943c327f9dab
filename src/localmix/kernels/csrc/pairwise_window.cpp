// Attention in windows, forward and backward, where query, key and value lie: no partition, no roll, no padding.
//
//   weight[i, j] = softmax over j of (scale * query[i] . key[j] + bias[i, j])
//   y[i] = sum over j of weight[i, j] * value[j]
//
// A window and head at a time, all of it in the cache, of large windows some queries at a time. Some heads are read and
// written together, in the order in which they lie: a processor sees ahead what comes next to each other, and waits for
// every line of what does not. Scores lie with the queries side by side, [key][query], so that their maximum and their
// sum are those of whole vectors, and slots that only fill up a vector disturb no others. A cut window holds fewer
// positions. The backward pass makes the weights again. Maps are read as words (words.h); where these are pairs of
// numbers, weights and the gradients of scores are rounded to pairs before they are multiplied by others.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "pairwise_maps.h"
#include "product.h"
#include "softmax.h"
#include "windows.h"
#include "words.h"

#include <cstring>
#include <utility>

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

// Heads that are read together, of some units and as many each time. Their maps should stay in the second-level cache,
// but to be read in long pieces is worth more.
inline int64_t heads_together(const PairwiseProblem& p, int64_t units, int64_t floats_of_head) {
  constexpr int64_t floats = 192 << 10;
  const int64_t heads = std::min(p.heads, units), fitting = std::max<int64_t>(floats / floats_of_head, 1);
  return divide_up(heads, divide_up(heads, fitting));
}

// Calls f(window, first head, beyond the last) for units [begin, end), at most `most` heads of a window at a time: a part
// of the heads after the other, and of each a window by all of its heads before the next window.
template <typename F>
void for_windows(const PairwiseProblem& p, int64_t begin, int64_t end, int64_t most, F f) {
  const Parts parts{p.heads, p.parts};
  while (begin < end) {
    const int64_t part = parts.part_of(begin / p.places), low = parts.first(part), heads = parts.first(part + 1) - low;
    const int64_t unit = begin - low * p.places, head = unit % heads;
    const int64_t count = std::min({end - begin, heads - head, most});
    f(Window(p, unit / heads), low + head, low + head + count);
    begin += count;
  }
}

// Some heads of a window: their positions in words of W, and the scores of some queries of one head as floats.
template <typename W>
class Heads {
 public:
  Heads(const PairwiseProblem& p, bool backward, int64_t units)
      : p_(p),
        n_(std::min(p.size_height, p.height) * std::min(p.size_width, p.width)),
        width_(std::min(whole_vectors(n_), kQueries)),
        line_(whole_vectors(n_)),
        slots_(whole_vectors(slots_of(p))),
        dim_(whole_vectors(p.dim)),
        words_(dim_ / kPerWord<W>),
        most(heads_together(p, units, n_ * dim_ * (backward ? 7 : 4))),
        query(most * n_ * words_),
        key(most * n_ * words_),
        value(most * n_ * words_),
        gradient(backward ? most * n_ * words_ : 0),
        result(most * n_ * dim_),
        of_key(backward ? most * n_ * dim_ : 0),
        of_value(backward ? most * n_ * dim_ : 0),
        weight(n_ * width_, 0.0f),
        inverse(width_, 0.0f),
        transposed_(words_of<W>(p.dim) * width_, 0.0f),
        bias_(p.bias ? n_ * line_ + kLanes : 0, 0.0f) {
    if (kPerWord<W> > 1) {
      stacked_.resize(words_of<W>(n_) * dim_);
      matrix_.resize(words_of<W>(n_) * width_);
    }
    if (backward) of_score.resize(n_ * width_ + kLanes, 0.0f);
    // what fills up a word or a vector
    if (dim_ != p.dim)
      for (auto* map : {&query, &key, &value, &gradient}) std::fill(map->begin(), map->end(), 0.0f);
  }

  // Some maps as lines of words, one for each head and position; a word that is not full is filled by zero. What several
  // maps have of a position may lie side by side, too.
  template <typename T, std::size_t N>
  void read(const Window& w, int64_t first, int64_t last, const std::pair<const PairwiseMap*, UnsetFloats*> (&maps)[N]) {
    w.for_positions([&](int64_t i, int64_t r, int64_t c) {
      for (const auto& [map, lines] : maps) {
        const T* source = at<T>(*map, w.b, w.top + r, w.left + c, first);
        float* line = lines->data() + i * words_;
        for (int64_t h = first; h < last; ++h, source += map->strides[3], line += n_ * words_) {
          if constexpr (kPerWord<W> == 1) {
            to_floats(source, p_.dim, line);
          } else {
            std::memcpy(line, source, p_.dim * sizeof(T));
          }
        }
      }
    });
    heads_ = last - first;
  }

  // Lines of a head that was read, `h` counted from the first one.
  const float* head_of(const UnsetFloats& lines, int64_t h) const { return &lines[h * n_ * words_]; }

  template <typename T>
  void write_map(const Window& w, const UnsetFloats& source, int64_t first, float factor, void* map) {
    const float* in = source.data();
    // without numbers that fill up vectors, those of all heads lie side by side
    const int64_t together = dim_ == p_.dim ? heads_ : 1;
    w.for_positions([&](int64_t, int64_t r, int64_t c) {
      T* out = at<T>(p_, map, w.b, w.top + r, w.left + c, first);
      for (int64_t h = 0; h < heads_; h += together, in += together * dim_)
        write(in, together * p_.dim, factor, out + h * p_.dim);
    });
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
  void dot(const Window& w, const float* keys, const float* queries, int64_t first, int64_t count, Floats& out) {
    const int64_t used = whole_vectors(count);
    // slots that fill up a vector hold no number left from another window
    if (count != count_) std::fill(transposed_.begin(), transposed_.end(), 0.0f);
    count_ = count;
    const int64_t depth = words_of<W>(p_.dim);
    transpose(queries + first * words_, words_, count, depth, transposed_.data(), width_);
    const Factor rows{keys, words_, 1};
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

  // result [first + query] of head `h` = sum over the keys of matrix[key, query] lines[key]
  void mix_keys(const Window& w, const Floats& matrix, const float* lines, int64_t first, int64_t count, int64_t h) {
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
               of_position(result, first, h), heads_ * dim_);
  }

  // out [key] of head `h` = sum over the queries of matrix[key, query] lines[first + query], added to that of earlier
  // queries
  void mix_queries(const Window& w, const Floats& matrix, const float* lines, int64_t first, int64_t count, int64_t h,
                   UnsetFloats& out) {
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
               of_position(out, 0, h), heads_ * dim_, first > 0);
  }

  // result [query] of head `h` *= inverse
  void divide(int64_t first, int64_t count, int64_t h) {
    for (int64_t i = 0; i < count; ++i) {
      float* line = of_position(result, first + i, h);
      for (int64_t d = 0; d < dim_; d += kLanes) store(line + d, load(line + d) * inverse[i]);
    }
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

  // The line of a position and head of a result.
  float* of_position(UnsetFloats& lines, int64_t position, int64_t h) const {
    return &lines[(position * heads_ + h) * dim_];
  }

  // Some lines in words of positions.
  const float* stacked(const float* lines, int64_t first, int64_t count) {
    const float* line = lines + first * words_;
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
  int64_t heads_ = 0;  // that were read

 public:
  const int64_t most;                       // heads that are read together
  UnsetFloats query, key, value, gradient;  // lines of words, [head][position][dim]
  UnsetFloats result, of_key, of_value;     // [position][head][dim]
  Floats weight, of_score;                  // [key][query]
  Floats inverse;                           // [query]

 private:
  Floats transposed_, bias_, stacked_, matrix_;
};

template <typename T>
void forward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  Heads<Factored<T>> heads(p, false, end - begin);
  const int64_t of_head = packed_size(&p) / p.heads;
  for_windows(p, begin, end, heads.most, [&](const Window& w, int64_t head, int64_t last_head) {
    heads.template read<T>(w, head, last_head, {{&p.query, &heads.query}, {&p.key, &heads.key}, {&p.value, &heads.value}});
    for (int64_t h = 0; h < last_head - head; ++h) {
      const float *query = heads.head_of(heads.query, h), *key = heads.head_of(heads.key, h);
      const float* value = heads.head_of(heads.value, h);
      const float* added = heads.bias_of(w, bias->packed ? bias->packed + (head + h) * of_head : nullptr);
      heads.for_queries(w, [&](int64_t first, int64_t count) {
        heads.dot(w, key, query, first, count, heads.weight);
        heads.soften(w, count, added ? added + first : nullptr);
        heads.mix_keys(w, heads.weight, value, first, count, h);
        heads.divide(first, count, h);
      });
    }
    heads.template write_map<T>(w, heads.result, head, 1.0f, p.output);
  });
}

template <typename T>
void backward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  Heads<Factored<T>> heads(p, true, end - begin);
  const int64_t of_head = packed_size(&p) / p.heads;
  for_windows(p, begin, end, heads.most, [&](const Window& w, int64_t head, int64_t last_head) {
    heads.template read<T>(w, head, last_head, {{&p.query, &heads.query}, {&p.key, &heads.key}, {&p.value, &heads.value},
                                                {&p.gradient, &heads.gradient}});
    for (int64_t h = 0; h < last_head - head; ++h) {
      const float *query = heads.head_of(heads.query, h), *key = heads.head_of(heads.key, h);
      const float *value = heads.head_of(heads.value, h), *gradient = heads.head_of(heads.gradient, h);
      const float* added = heads.bias_of(w, bias->packed ? bias->packed + (head + h) * of_head : nullptr);
      heads.for_queries(w, [&](int64_t first, int64_t count) {
        heads.dot(w, key, query, first, count, heads.weight);
        heads.soften(w, count, added ? added + first : nullptr);
        heads.dot(w, value, gradient, first, count, heads.of_score);
        heads.harden(w, count);
        if (bias->sums) heads.add_to(w, first, count, bias->sums + (head + h) * of_head);
        if (p.of_value) heads.mix_queries(w, heads.weight, gradient, first, count, h, heads.of_value);
        if (p.of_key) heads.mix_queries(w, heads.of_score, query, first, count, h, heads.of_key);
        if (p.of_query) heads.mix_keys(w, heads.of_score, key, first, count, h);
      });
    }
    if (p.of_value) heads.template write_map<T>(w, heads.of_value, head, 1.0f, p.of_value);
    if (p.of_key) heads.template write_map<T>(w, heads.of_key, head, float(p.scale), p.of_key);
    if (p.of_query) heads.template write_map<T>(w, heads.result, head, float(p.scale), p.of_query);
  });
}

}  // namespace

LOCALMIX_KERNELS(
    PairwiseKernels, window, LOCALMIX_RUN(forward), LOCALMIX_RUN(backward), packed_size, pack, unpack)
