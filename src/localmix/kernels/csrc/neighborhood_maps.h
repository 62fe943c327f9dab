// The neighborhoods of a map: which steps of an axis each position sees, and rows of a head in scratch.
//
// Positions a dilation apart form a map of their own, a residue: its lines are taken one after the other, its columns
// lie side by side in scratch. Queries side by side fill the lanes of a vector, a block. Its lanes see tap `j` in
// columns that lie side by side too, but for those at a border, where the neighborhood stops while the query goes on.
#pragma once

#include "floats.h"
#include "pairwise_maps.h"
#include "unroll.h"

#include <type_traits>

namespace {

// One axis: positions in the order of their residues, and which ones each sees.
class Axis {
 public:
  struct Step {
    int64_t position, step;  // on the map, and within its residue
    int64_t begin, length;   // of its residue, in this order
    int64_t start, count;    // the steps that it sees
  };

  Axis(int64_t length, int64_t size, int64_t dilation) : length_(length), size_(size), dilation_(dilation) {}

  Step operator[](int64_t i) const {
    // the first residues are one longer than the others
    const int64_t shorter = length_ / dilation_, longer = length_ % dilation_, in_longer = longer * (shorter + 1);
    const int64_t own = i < in_longer ? shorter + 1 : shorter;
    const int64_t residue = i < in_longer ? i / own : longer + (i - in_longer) / own;
    const int64_t begin = residue * own + (i < in_longer ? 0 : longer), step = i - begin;
    const int64_t count = std::min(size_, own);
    const int64_t start = std::min(std::max<int64_t>(step - size_ / 2, 0), own - count);
    return {residue + step * dilation_, step, begin, own, start, count};
  }

  int64_t length() const { return length_; }

 private:
  int64_t length_, size_, dilation_;
};

typedef int32_t Lanes __attribute__((vector_size(LOCALMIX_VECTOR_BYTES)));

// The numbers of some vectors, one or two, that `lanes` says.
template <int Vectors>
inline Vector pick(const float* row, const Lanes& lanes) {
#if !defined(__clang__) && LOCALMIX_VECTOR_BYTES > 16
  if constexpr (Vectors == 1) return __builtin_shuffle(load(row), lanes);
  return __builtin_shuffle(load(row), load(row + kLanes), lanes);
#else
  // no such instruction, or no name for it
  Vector picked;
  for (int l = 0; l < kLanes; ++l) picked[l] = row[lanes[l]];
  return picked;
#endif
}

// Tap `j` of the lanes of a block, in a row of scratch: from columns side by side, from columns that all lie within one
// vector or within two, or, which is rare, from any columns.
struct SideBySide {
  static constexpr bool kIsRare = false;
  int64_t base;
  Vector operator()(const float* row, int64_t j) const { return load(row + base + j); }
};

template <int Vectors>
struct Within {
  static constexpr bool kIsRare = false;
  int64_t base;
  Lanes first;
  Vector operator()(const float* row, int64_t j) const { return pick<Vectors>(row + base + j, first); }
};

struct Anywhere {
  static constexpr bool kIsRare = true;
  const int32_t* columns;  // [taps][lanes]
  Vector operator()(const float* row, int64_t j) const {
    Vector picked;
    for (int l = 0; l < kLanes; ++l) picked[l] = row[columns[j * kLanes + l]];
    return picked;
  }
};

// Queries side by side, as many as a vector has lanes or, at the end of the row, fewer: lanes without one repeat the
// last.
struct Block {
  int64_t column, queries;
  int64_t taps;  // of the lane that has most
  int64_t base;  // the first column that a lane sees
  int64_t span;  // columns from there on that lanes see
  int64_t position[kLanes];  // of the queries on the map
  Lanes first;   // column of the first tap, from the base
  Lanes count;   // of taps
  bool is_ragged;
  enum { kSideBySide, kWithinOne, kWithinTwo, kAnywhere } reach;
  std::vector<int32_t> columns;  // where they lie anywhere

  // Calls f with what loads a tap.
  template <typename F>
  LOCALMIX_INLINE void with_taps(F f) const {
    if (reach == kSideBySide) return f(SideBySide{base});
    if (reach == kWithinOne) return f(Within<1>{base, first});
    if (reach == kWithinTwo) return f(Within<2>{base, first});
    f(Anywhere{columns.data()});
  }
};

// `empty` is a column of scratch that is zero.
inline Block block_at(const Axis& axis, int64_t column, int64_t empty) {
  Block block{};
  block.column = column;
  block.queries = std::min(kLanes, axis.length() - column);
  const Axis::Step start = axis[column];
  block.base = start.begin + start.start;
  bool side_by_side = true;
  for (int64_t l = 0; l < kLanes; ++l) {
    const Axis::Step step = axis[column + std::min(l, block.queries - 1)];
    block.position[l] = step.position;
    block.first[l] = int32_t(step.begin + step.start - block.base);
    block.count[l] = int32_t(step.count);
    block.taps = std::max(block.taps, step.count);
    block.span = std::max(block.span, block.first[l] + step.count);
    block.is_ragged |= step.count != start.count;
    side_by_side &= l >= block.queries || block.first[l] == l;
  }
  const int64_t furthest = block.is_ragged ? 2 * kLanes : block.first[kLanes - 1];
  if (side_by_side && !block.is_ragged) {
    block.reach = Block::kSideBySide;
  } else if (furthest < 2 * kLanes) {
    block.reach = furthest < kLanes ? Block::kWithinOne : Block::kWithinTwo;
  } else {
    block.reach = Block::kAnywhere;
    block.columns.resize(block.taps * kLanes);
    for (int64_t j = 0; j < block.taps; ++j)
      for (int64_t l = 0; l < kLanes; ++l)
        // a number beside the neighborhood may be NaN, and zero times NaN is not zero
        block.columns[j * kLanes + l] = int32_t(j < block.count[l] ? block.base + block.first[l] + j : empty);
  }
  return block;
}

inline std::vector<Block> blocks_of(const Axis& axis) {
  std::vector<Block> blocks;
  for (int64_t column = 0; column < axis.length(); column += kLanes)
    blocks.push_back(block_at(axis, column, axis.length()));
  return blocks;
}

// The channels of the positions of a block, [lane][channel], whole vectors of them.
template <typename T>
void read_positions(const PairwiseProblem& p, const PairwiseMap& map, const Block& block, int64_t b, int64_t row,
                    int64_t head, float factor, float* out) {
  const int64_t dim = whole_vectors(p.dim);
  for (int64_t l = 0; l < block.queries; ++l)
    read(at<T>(map, b, row, block.position[l], head), p.dim, factor, out + l * dim);
}

// Floats of a line of scratch, an odd number of lines of the cache: else the lines would fall on few of its places.
inline int64_t odd_lines(int64_t floats) { return (floats + 15) / 32 * 32 + 16; }

// Rows that slide down a residue, [channel][column]: zero beyond the last column.
class Rows {
 public:
  Rows(const PairwiseProblem& p, const std::vector<Block>& blocks, int64_t rows)
      : p_(p), blocks_(blocks), rows_(rows), stride_(odd_lines(p.width + 2 * kLanes)),
        positions_(kLanes * whole_vectors(p.dim)), rows_of_(rows * p.dim * stride_, 0.0f) {}

  template <typename T>
  void read_row(const PairwiseMap& map, int64_t b, int64_t row, int64_t head, int64_t step) {
    float* out = rows_of_.data() + step % rows_ * p_.dim * stride_;
    touch_row<T>(p_, map, b, row, head);
    for (const Block& block : blocks_) {
      read_positions<T>(p_, map, block, b, row, head, 1.0f, positions_.data());
      transpose(positions_.data(), whole_vectors(p_.dim), block.queries, p_.dim, out + block.column, stride_);
    }
  }

  const float* row(int64_t step) const { return rows_of_.data() + step % rows_ * p_.dim * stride_; }
  int64_t stride() const { return stride_; }

 private:
  const PairwiseProblem& p_;
  const std::vector<Block>& blocks_;
  int64_t rows_, stride_;
  UnsetFloats positions_;
  Floats rows_of_;
};

// Sums for rows that slide down a residue, [column][channel].
class RowSums {
 public:
  RowSums(const PairwiseProblem& p, const std::vector<Block>& blocks, int64_t rows, int64_t beyond)
      : p_(p), blocks_(blocks), rows_(rows), dim_(whole_vectors(p.dim)), width_(p.width + beyond),
        sums_(rows * width_ * dim_, 0.0f) {}

  template <typename T>
  void write_row(void* map, int64_t b, int64_t row, int64_t head, int64_t step) {
    for (const Block& block : blocks_)
      for (int64_t l = 0; l < block.queries; ++l)
        write(at_column(step, block.column + l), p_.dim, 1.0f, at<T>(p_, map, b, row, block.position[l], head));
  }

  void clear(int64_t step) { std::fill_n(at_column(step, 0), width_ * dim_, 0.0f); }
  float* at_column(int64_t step, int64_t column) { return sums_.data() + (step % rows_ * width_ + column) * dim_; }

 private:
  const PairwiseProblem& p_;
  const std::vector<Block>& blocks_;
  int64_t rows_, dim_, width_;
  Floats sums_;
};

}  // namespace
