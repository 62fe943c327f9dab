// The gradients of attention in neighborhoods.
//
// Those of the scores and of the queries are made as the weights are, lane by query. What is added to keys and values
// goes by keys instead: a matrix product of the weights, laid out by query and key, and of the queries.
#pragma once

#include "neighborhood_weights.h"

namespace {

// Exponentials become weights, and the gradients of the weights those of the scores.
void harden(const Axis::Step& line, const Block& block, const Vector& inverse, float* weights, float* of_weights) {
  const int64_t taps = line.count * block.taps;
  Vector mean = {}, zero = {};
  for (int64_t a = 0; a < line.count; ++a)
    mean += sum_in_parts(block.taps, [&](int64_t j) {
      const int64_t k = (a * block.taps + j) * kLanes;
      const Vector weight = load(weights + k) * inverse;
      Vector of_weight = load(of_weights + k);
      if (block.is_ragged) of_weight = block.count > int32_t(j) ? of_weight : zero;
      store(weights + k, weight);
      store(of_weights + k, of_weight);
      return weight * of_weight;
    });
  auto share_of_rest = [&](int64_t k) { return load(weights + k * kLanes) * (load(of_weights + k * kLanes) - mean); };
  // once more from there: shares do not make one to the last digit, and that times the mean is in every gradient
  mean += sum_in_parts(taps, share_of_rest);
  for (int64_t k = 0; k < taps; ++k) store(of_weights + k * kLanes, share_of_rest(k));
}

// Adds the gradients of the scores of a line to those of its biases.
void add_to_biases(
    const PairwiseProblem& p, const Axis::Step& line, const Block& block, const float* of_scores, float* sums) {
  float* target = sums + Weights::bias_at(p, line, block);
  for (int64_t a = 0; a < line.count; ++a, target += p.size_width * kLanes)
    for (int64_t j = 0; j < block.taps; ++j, of_scores += kLanes)
      store(target + j * kLanes, load(target + j * kLanes) + load(of_scores));
}

// Weights of one row of the kernel for the queries of a block, laid out by query and column, zero where a query does
// not see the column: a factor of a matrix product.
class Band {
 public:
  static constexpr int kColumns = 4;  // whose sums are in registers at a time

  Band(const PairwiseProblem& p, const std::vector<Block>& blocks) : dim_(whole_vectors(p.dim)) {
    int64_t span = 0, taps = 0;
    for (const Block& block : blocks) span = std::max(span, block.span), taps = std::max(taps, block.taps);
    width_ = round_up(span, kColumns);
    taps_ = round_up(taps, 4);
    band_.resize(kQueryRows * kLanes * width_);
    turned_.resize(kLanes * taps_);
  }

  // For the weights of another block. Columns are taken together, but where a query may be infinite or NaN: zero times
  // that is not zero, so each is taken with the queries that see it.
  void clear(const Block& block, bool is_finite) {
    std::fill(band_.begin(), band_.end(), 0.0f);
    parts_.clear();
    together_ = is_finite ? kColumns : 1;
    for (int64_t c = 0; c < block.span; c += together_) {
      int64_t begin = 0, end = block.queries;
      while (begin < end && block.first[begin] + block.count[begin] <= c) ++begin;
      while (end > begin && block.first[end - 1] >= c + together_) --end;
      if (begin < end) parts_.push_back({c, begin, end});
    }
  }

  // Weights [tap][lane] of row `i`.
  LOCALMIX_ONCE void lay_out(int i, const Block& block, const float* weights) {
    float* const band = band_.data() + i * kLanes * width_;
    if (block.reach == Block::kSideBySide) return turn(block, weights, band, width_ + 1);
    turn(block, weights, turned_.data(), taps_);
    for (int64_t l = 0; l < block.queries; ++l)
      std::copy_n(turned_.data() + l * taps_, block.count[l], band + l * width_ + block.first[l]);
  }

  // sums[column] += sum over rows and queries of weight * query, for some rows of queries from `first` on.
  LOCALMIX_ONCE void add_products(const Queries& queries, int first, int rows, float* sums) const {
    if (together_ == 1) return add_products<1>(queries, first, rows, sums);
    add_products<kColumns>(queries, first, rows, sums);
  }

 private:
  // Columns from `column` on, and the queries that see one of them.
  struct Part {
    int64_t column, begin, end;
  };

  template <int Columns>
  void add_products(const Queries& queries, int first, int rows, float* sums) const {
    for (const Part& part : parts_)
      for_vectors(dim_, [&](auto vectors, int64_t d) {
        Vector added[Columns][vectors];
        for_sums<Columns, vectors>([&](auto c, auto v) LOCALMIX_INLINE { added[c][v] = Vector{}; });
        for (int i = 0; i < rows; ++i) {
          const Factor band{band_.data() + (i * kLanes + part.begin) * width_ + part.column, 1, width_};
          multiply(band, part.end - part.begin, queries.along(first + i) + part.begin * dim_ + d, dim_, added);
        }
        for_sums<Columns, vectors>([&](auto c, auto v) LOCALMIX_INLINE {
          float* target = sums + (part.column + c) * dim_ + d + v * kLanes;
          store(target, load(target) + added[c][v]);
        });
      });
  }

  static void turn(const Block& block, const float* weights, float* out, int64_t stride) {
    if (block.taps < 4) return transpose(weights, kLanes, block.taps, block.queries, out, stride);
    int64_t j = 0;
    for (; j + 4 <= block.taps; j += 4) transpose_four(weights + j * kLanes, kLanes, block.queries, out + j, stride);
    // once more for some of them rather than one by one
    if (j < block.taps)
      transpose_four(weights + (block.taps - 4) * kLanes, kLanes, block.queries, out + block.taps - 4, stride);
  }

  int64_t dim_, width_, taps_, together_ = kColumns;
  Floats band_, turned_;
  std::vector<Part> parts_;
};

// The backward pass of the lines of a residue and head that are ours, by the lines that see them.
template <typename T>
class Gradients {
 public:
  Gradients(const PairwiseProblem& p, const Axis& rows, const Axis& columns)
      : p_(p), rows_(rows), blocks_(blocks_of(columns)), most_(p.size_height + kQueryRows - 1),
        keys_(p, blocks_, most_), values_(p, blocks_, most_), of_keys_(p, blocks_, most_, Band::kColumns),
        of_values_(p, blocks_, most_, Band::kColumns), queries_(p), gradients_(p), weights_(p), of_weights_(p),
        band_(p, blocks_), result_(kQueryRows * p.dim * kLanes), positions_(kLanes * whole_vectors(p.dim)) {}

  // Steps [low, high) of a residue are ours; queries further off reach into them.
  void run(int64_t b, int64_t head, int64_t residue, int64_t low, int64_t high, const float* bias, float* of_bias) {
    const int64_t length = rows_[residue].length;
    int64_t loaded = -1, complete = low;
    auto finish = [&](int64_t until) {
      for (; complete < std::min(until, high); ++complete) {
        const int64_t position = rows_[residue + complete].position;
        if (p_.of_key) of_keys_.template write_row<T>(p_.of_key, b, position, head, complete);
        if (p_.of_value) of_values_.template write_row<T>(p_.of_value, b, position, head, complete);
      }
    };
    int64_t step = 0;
    while (rows_[residue + step].start + rows_[residue + step].count <= low) ++step;
    while (step < length && rows_[residue + step].start < high) {
      int64_t count = 1;
      while (count < kQueryRows && step + count < length && rows_[residue + step + count].start < high) ++count;
      const Lines lines(rows_, residue + step, count);
      // no later query reaches the steps before the first one that these see
      finish(lines.start());
      for (loaded = std::max(loaded, lines.start()); loaded < lines.end; ++loaded) {
        const int64_t position = rows_[residue + loaded].position;
        keys_.template read_row<T>(p_.key, b, position, head, loaded);
        values_.template read_row<T>(p_.value, b, position, head, loaded);
        of_keys_.clear(loaded);
        of_values_.clear(loaded);
      }
      for (int i = 0; i < lines.rows; ++i) {
        touch_row<T>(p_, p_.query, b, lines.row[i].position, head);
        touch_row<T>(p_, p_.gradient, b, lines.row[i].position, head);
      }
      for (const Block& block : blocks_) run_block(b, head, lines, block, low, high, bias, of_bias);
      step += count;
    }
    finish(high);
  }

 private:
  void run_block(int64_t b, int64_t head, const Lines& lines, const Block& block, int64_t low, int64_t high,
                 const float* bias, float* of_bias) {
    queries_.read_block<T>(p_.query, lines, block, b, head, float(p_.scale));
    gradients_.read_block<T>(p_.gradient, lines, block, b, head, 1.0f);
    weights_.dot(p_, lines, block, queries_, keys_);
    of_weights_.dot(p_, lines, block, gradients_, values_);
    for (int i = 0; i < lines.rows; ++i) {
      const Vector inverse = weights_.soften(p_, lines.row[i], block, i, bias);
      harden(lines.row[i], block, inverse, weights_.row(i), of_weights_.row(i));
    }
    auto is_ours = [&](int i) { return lines.row[i].step >= low && lines.row[i].step < high; };
    if (of_bias)
      for (int i = 0; i < lines.rows; ++i)
        if (is_ours(i)) add_to_biases(p_, lines.row[i], block, of_weights_.row(i), of_bias);
    if (p_.of_query) {
      Vector factor = {};
      factor += float(p_.scale);
      of_weights_.mix(p_, lines, block, keys_, result_.data());
      for (int i = 0; i < lines.rows; ++i)
        if (is_ours(i))
          write_block<T>(p_, lines.row[i], block, b, head, result_.data() + i * p_.dim * kLanes, factor,
                         positions_.data(), p_.of_query);
    }
    band_.clear(block, queries_.is_finite(lines) && gradients_.is_finite(lines));
    if (p_.of_key) add_to_rows(lines, block, low, high, of_weights_, queries_, of_keys_);
    if (p_.of_value) add_to_rows(lines, block, low, high, weights_, gradients_, of_values_);
  }

  // sums[key] += sum over the queries that see it of weight * query
  void add_to_rows(const Lines& lines, const Block& block, int64_t low, int64_t high, Weights& weights,
                   const Queries& queries, RowSums& sums) {
    for (int n = 0; n < lines.num_parts; ++n) {
      const Lines::Part& part = lines.parts[n];
      for (int64_t step = std::max(part.begin, low); step < std::min(part.end, high); ++step) {
        for (int i = 0; i < part.rows; ++i) {
          const int row = part.first + i;
          band_.lay_out(i, block, weights.row(row) + (step - lines.row[row].start) * block.taps * kLanes);
        }
        band_.add_products(queries, part.first, part.rows, sums.at_column(step, block.base));
      }
    }
  }

  const PairwiseProblem& p_;
  const Axis& rows_;
  std::vector<Block> blocks_;
  int64_t most_;
  Rows keys_, values_;
  RowSums of_keys_, of_values_;
  Queries queries_, gradients_;
  Weights weights_, of_weights_;
  Band band_;
  Floats result_, positions_;
};

}  // namespace
