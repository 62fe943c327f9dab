// A map cut into windows, of which those at the border may hold fewer positions than they have slots.
#pragma once

#include <algorithm>
#include <cstdint>

namespace {

// The positions of a window: `rows` x `columns` of the map from (top, left) on, in its slots from (row, column) on.
struct Window {
  template <typename Problem>
  Window(const Problem& p, int64_t unit) {
    const int64_t across = (p.before_width + p.width + p.size_width - 1) / p.size_width;
    const int64_t down = (p.before_height + p.height + p.size_height - 1) / p.size_height;
    b = unit / (down * across);
    cut(unit / across % down, p.size_height, p.before_height, p.height, top, row, rows);
    cut(unit % across, p.size_width, p.before_width, p.width, left, column, columns);
    whole = rows == p.size_height && columns == p.size_width;
    positions = rows * columns;
  }

  static void cut(int64_t index, int64_t size, int64_t before, int64_t length, int64_t& first, int64_t& slot,
                  int64_t& count) {
    const int64_t start = index * size - before;
    first = std::max<int64_t>(start, 0);
    slot = first - start;
    count = std::min(start + size, length) - first;
  }

  // Calls f(position, its row, its column) for all positions.
  template <typename F>
  void for_positions(F f) const {
    for (int64_t r = 0, position = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c, ++position) f(position, r, c);
  }

  // The slot of the position in a row and a column of the window.
  template <typename Problem>
  int64_t slot(const Problem& p, int64_t r, int64_t c) const {
    return (row + r) * p.size_width + column + c;
  }

  // Whether both hold the same slots.
  bool is_like(const Window& other) const {
    return row == other.row && column == other.column && rows == other.rows && columns == other.columns;
  }

  int64_t b, top, left, row, column, rows, columns, positions;
  bool whole;
};

}  // namespace
