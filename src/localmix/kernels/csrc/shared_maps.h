// Maps whose weights all positions share: rows of them in scratch, padded, as float, by blocks of 16 channels.
//
// Included by files that are compiled once per instruction set, so everything here is theirs alone.
#pragma once

#include "conversions.h"
#include "floats.h"
#include "numbers.h"
#include "shared_weight.h"
#include "unroll.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t kBlock = kSharedBlock;

// Positions of a row that are summed at a time, and rows: with their taps they fill the registers. With one row each
// sum would wait for itself: there are as many others as a multiplication takes half cycles only if there are two.
constexpr int kRun = 7;
constexpr int kLines = LOCALMIX_VECTOR_BYTES == 64 ? 2 : 1;

// Calls f(width, lines) as constants: the width of the kernel where it is a usual one and not dilated, else 0; and how
// many output rows next to each other are taken together.
template <typename F>
inline void with_width(const SharedWeightProblem& p, F f) {
  constexpr std::integral_constant<int, kLines> lines;
  switch (p.dilation_width == 1 && p.dilation_height == 1 ? p.kernel_width : 0) {
    case 3: return f(std::integral_constant<int, 3>(), lines);
    case 5: return f(std::integral_constant<int, 5>(), lines);
    case 7: return f(std::integral_constant<int, 7>(), lines);
    case 9: return f(std::integral_constant<int, 9>(), lines);
    case 11: return f(std::integral_constant<int, 11>(), lines);
    default: return f(std::integral_constant<int, 0>(), std::integral_constant<int, 1>());
  }
}

struct Plan {
  explicit Plan(const SharedWeightProblem& p)
      : blocks(divide_up(p.channels, kBlock)),
        taps(p.kernel_height * p.kernel_width),
        rows(p.dilation_height * (p.kernel_height - 1) + 1),
        columns(std::max<int64_t>(p.width, kRun) + p.dilation_width * (p.kernel_width - 1)),
        top((rows - 1 + p.adjoint) / 2),
        left((p.dilation_width * (p.kernel_width - 1) + p.adjoint) / 2) {}

  // Blocks [first, first + count) of channels that a part of `parts` has.
  int64_t first_block(const SharedWeightProblem& p, int64_t part) const { return blocks * part / p.parts; }
  int64_t most_blocks(const SharedWeightProblem& p) const { return divide_up(blocks, p.parts); }

  int64_t blocks, taps;
  int64_t rows;       // of the map that an output row reaches
  int64_t columns;    // of the ring: the map, at least a run, with its border
  int64_t top, left;  // of the border; with an odd one the adjoint has the larger half in front
};

// Numbers of a block of channels, and back; the last block may be cut.
template <typename T>
inline void read_block(const T* source, int64_t count, float* target) {
  count == kBlock ? to_floats(source, kBlock, target) : to_floats(source, count, target);
}

template <typename T>
inline void write_block(const float* source, int64_t count, T* target) {
  count == kBlock ? from_floats(source, kBlock, target) : from_floats(source, count, target);
}

// A row of the map as an output row sees it, with the taps that each of the output rows has for it.
struct Seen {
  const float* x;
  int64_t tap_row[kLines];
};

// The rows that some output rows see: first those that only the first one sees, then those that all see, then the last.
struct View {
  std::vector<Seen> rows;
  int64_t before = 0, both = 0, after = 0;
};

// Some blocks of channels of an image, rows of which slide through a ring.
template <typename T>
class Window {
 public:
  Window(const SharedWeightProblem& p, const Plan& plan)
      : p_(p),
        plan_(plan),
        row_(plan.columns * kBlock),
        slot_(plan.most_blocks(p) * row_),
        data_((plan.rows + kLines - 1) * slot_, 0.0f) {
    view_.rows.resize(p.kernel_height + kLines - 1);
  }

  void move_to(const T* x, int64_t b, int64_t part, int64_t first_row) {
    const int64_t first = plan_.first_block(p_, part);
    blocks_ = plan_.first_block(p_, part + 1) - first;
    whole_ = std::min(blocks_, p_.channels / kBlock - first);
    cut_ = whole_ < blocks_ ? p_.channels % kBlock : 0;
    x_ = x + b * p_.height * p_.width * p_.channels + first * kBlock;
    loaded_ = std::max<int64_t>(first_row - plan_.top, 0);
    // a cut block holds no number left from another one
    if (cut_) std::fill(data_.begin(), data_.end(), 0.0f);
  }

  // Loads what the output rows up to h reach.
  void reach(int64_t h) {
    for (; loaded_ < std::min(h - plan_.top + plan_.rows, p_.height); ++loaded_)
      read(x_ + loaded_ * p_.width * p_.channels, slot(loaded_) + plan_.left * kBlock, row_);
  }

  // Reads a row of the blocks, each `stride` floats after the one before.
  void read(const T* source, float* target, int64_t stride) const {
    for (int64_t i = 0; i < p_.width; ++i, source += p_.channels, target += kBlock) {
      for (int64_t j = 0; j < whole_; ++j) read_block(source + j * kBlock, kBlock, target + j * stride);
      if (cut_) read_block(source + whole_ * kBlock, cut_, target + whole_ * stride);
    }
  }

  // What output rows h to h + lines - 1 see of a block; they are next to each other and not dilated if there are two.
  const View& seen(int64_t h, int64_t lines, int64_t block) {
    view_.before = view_.both = view_.after = 0;
    Seen* seen = view_.rows.data();
    for (int64_t a = 0; a < p_.kernel_height + lines - 1; ++a) {
      const int64_t r = h - plan_.top + a * p_.dilation_height;
      if (r < 0 || r >= p_.height) continue;
      seen->x = slot(r) + block * row_;
      for (int64_t line = 0; line < kLines; ++line) seen->tap_row[line] = a - line;
      ++(a >= p_.kernel_height ? view_.after : a < lines - 1 ? view_.before : view_.both);
      ++seen;
    }
    return view_;
  }

  int64_t blocks() const { return blocks_; }
  int64_t channels(int64_t block) const { return block < whole_ ? kBlock : cut_; }

 private:
  float* slot(int64_t r) { return data_.data() + r % (plan_.rows + kLines - 1) * slot_; }

  const SharedWeightProblem& p_;
  const Plan& plan_;
  int64_t row_, slot_;  // floats of a row of a block, and of all blocks
  Floats data_;
  View view_;
  const T* x_ = nullptr;
  int64_t blocks_ = 0, whole_ = 0, cut_ = 0, loaded_ = 0;
};

// Calls f(position of the map, position of a line) for whole runs of a line, the last one laid over the one before.
template <typename F>
inline void for_runs(const SharedWeightProblem& p, F f) {
  for (int64_t i = 0; i < p.width; i += kRun) f(std::max<int64_t>(0, std::min(i, p.width - kRun)));
}

}  // namespace
