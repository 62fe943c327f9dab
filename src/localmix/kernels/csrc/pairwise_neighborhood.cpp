// Attention in a neighborhood that slides and stops at the border, forward and backward.
//
//   weight[i, k] = softmax over k of (scale * query[i] . key[i + k] + bias[k])
//   y[i] = sum over k of weight[i, k] * value[i + k]
//
// Rows of keys and values slide down the map in scratch, a head at a time so that they stay in the cache, and with them
// some rows of queries together. The backward pass makes the weights again.
//
// This file is compiled once per instruction set (LOCALMIX_ISA); dispatch.cpp chooses among them when it is loaded.

#include "neighborhood_gradients.h"

namespace {

// Calls f(head, image, first line, last line) for the lines of one residue of an image among units [begin, end): a part of
// the heads after the other, and of each the lines of an image by all of its heads before the next image.
template <typename F>
void for_residues(const PairwiseProblem& p, const Axis& rows, int64_t begin, int64_t end, F f) {
  const Parts parts{p.heads, p.parts};
  while (begin < end) {
    const int64_t part = parts.part_of(begin / p.places), low = parts.first(part), heads = parts.first(part + 1) - low;
    const int64_t unit = begin - low * p.places, run = unit / p.height, line = unit % p.height;
    const Axis::Step step = rows[line];
    const int64_t count = std::min(end - begin, step.begin + step.length - line);
    f(low + run % heads, run / heads, line, line + count);
    begin += count;
  }
}

template <typename T>
void forward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  const Axis rows(p.height, p.size_height, p.dilation_height), columns(p.width, p.size_width, p.dilation_width);
  const std::vector<Block> blocks = blocks_of(columns);
  const int64_t of_head = packed_size(&p) / p.heads, most = p.size_height + kQueryRows - 1;
  Rows keys(p, blocks, most), values(p, blocks, most);
  Queries queries(p);
  Weights weights(p);
  Floats y(kQueryRows * p.dim * kLanes), positions(kLanes * whole_vectors(p.dim));
  for_residues(p, rows, begin, end, [&](int64_t h, int64_t b, int64_t first, int64_t last) {
    const float* added = bias->packed ? bias->packed + h * of_head : nullptr;
    const int64_t residue = rows[first].begin;
    int64_t loaded = rows[first].start;
    for (int64_t line = first; line < last; line += kQueryRows) {
      const Lines lines(rows, line, std::min<int64_t>(kQueryRows, last - line));
      for (; loaded < lines.end; ++loaded) {
        const int64_t position = rows[residue + loaded].position;
        keys.read_row<T>(p.key, b, position, h, loaded);
        values.read_row<T>(p.value, b, position, h, loaded);
      }
      for (int i = 0; i < lines.rows; ++i) touch_row<T>(p, p.query, b, lines.row[i].position, h);
      for (const Block& block : blocks) {
        queries.read_block<T>(p.query, lines, block, b, h, float(p.scale));
        weights.dot(p, lines, block, queries, keys);
        Vector inverse[kQueryRows];
        for (int i = 0; i < lines.rows; ++i) inverse[i] = weights.soften(p, lines.row[i], block, i, added);
        weights.mix(p, lines, block, values, y.data());
        for (int i = 0; i < lines.rows; ++i)
          write_block<T>(p, lines.row[i], block, b, h, y.data() + i * p.dim * kLanes, inverse[i],
                         positions.data(), p.output);
      }
    }
  });
}

template <typename T>
void backward(const PairwiseProblem& p, const PairwiseBias* bias, int64_t begin, int64_t end) {
  const Axis rows(p.height, p.size_height, p.dilation_height), columns(p.width, p.size_width, p.dilation_width);
  const int64_t of_head = packed_size(&p) / p.heads;
  Gradients<T> gradients(p, rows, columns);
  for_residues(p, rows, begin, end, [&](int64_t h, int64_t b, int64_t first, int64_t last) {
    const int64_t residue = rows[first].begin;
    gradients.run(b, h, residue, first - residue, last - residue, bias->packed ? bias->packed + h * of_head : nullptr,
                  bias->sums ? bias->sums + h * of_head : nullptr);
  });
}

}  // namespace

LOCALMIX_KERNELS(
    PairwiseKernels, neighborhood, LOCALMIX_RUN(forward), LOCALMIX_RUN(backward), packed_size, pack, unpack)
