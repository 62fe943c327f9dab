"""Triton kernel for the gradient of the bias of attention by tiles; pairwise_launches.py launches it.

A program owns a block of queries of a tile and goes through a share of the images. All have the same keys and biases
there, so that these and what is summed stay in registers.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.pairwise_memory import read, write
from localmix.kernels.triton.pairwise_tiles import keys_of, masked, nth_steps, on_map, sees, steps_of_tile, weights_of


@triton.jit
def bias_gradient(
    query,
    key,
    value,
    bias,
    gradient,
    y,
    peaks,
    logarithms,
    partial,
    pairs,
    delta,
    of_query,
    scale,
    batch,
    height,
    width,
    heads,
    tiles_h,
    tiles_w,
    tile_h,
    tile_w,
    blocks,
    shares_of_tiles,
    shares_of_images,
    columns,
    top,
    left,
    kh,
    kw,
    dh,
    dw,
    query_b,
    query_h,
    query_w,
    query_n,
    key_b,
    key_h,
    key_w,
    key_n,
    value_b,
    value_h,
    value_w,
    value_n,
    bias_n,
    bias_i,
    bias_j,
    WINDOW: tl.constexpr,
    OF_QUERY: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of the scores, summed over a share of tiles and images: [shares, queries of a tile, heads, columns].

    A query's columns are those of the bias: the keys of a window, or the distances of a neighborhood. Where a block has
    all keys that a tile sees, the gradient of the queries is made too, and delta = gradient . y.
    """
    pid = tl.program_id(0)
    head = pid % heads
    block = pid // heads % blocks
    share = pid // heads // blocks
    first_image = (share % shares_of_images).to(tl.int64)
    first_line = block * BLOCK_Q
    m = first_line + tl.arange(0, BLOCK_Q)
    n = tl.arange(0, BLOCK_K)
    queries = tile_h * tile_w
    to_head = head.to(tl.int64)
    query += to_head * query_n
    key += to_head * key_n
    value += to_head * value_n
    bias += to_head * bias_n
    # a block for the biases and then for the sums, and lines of results: no other program reads or writes them
    pairs += pid.to(tl.int64) * BLOCK_Q * BLOCK_K
    to_pairs = pairs + (tl.arange(0, BLOCK_Q) * BLOCK_K)[:, None] + n[None, :]
    partial += (share.to(tl.int64) * queries * heads + head) * columns
    for first in range(0, columns, BLOCK_K):
        mask = (m < queries)[:, None] & (first + n < columns)[None, :]
        to_lines = partial + m.to(tl.int64)[:, None] * heads * columns + (first + n)[None, :]
        tl.store(to_lines, tl.zeros((BLOCK_Q, BLOCK_K), tl.float32), mask=mask)
    for tile in range(share // shares_of_images, tiles_h * tiles_w, shares_of_tiles):
        origin_h, length_h, first_h, end_h = steps_of_tile(tile // tiles_w, height, top, dh, tile_h, WINDOW)
        origin_w, length_w, first_w, end_w = steps_of_tile(tile % tiles_w, width, left, dw, tile_w, WINDOW)
        # the lines of a block are those of the whole tile, so that they have the same place in all tiles
        low_h = 0 if WINDOW else first_h
        low_w = 0 if WINDOW else first_w
        row = low_h + m // tile_w
        column = low_w + m % tile_w
        inside = _is_inside(row, column, first_h, first_w, end_h, end_w)
        map_row, map_column = on_map(row, column, origin_h, origin_w, dh, dw)
        of_q = map_row * query_h + map_column * query_w
        position = ((map_row * width + map_column) * heads + head) * D
        of_head = (to_head * height + map_row) * width + map_column
        top_key, bottom_key = keys_of(first_h, end_h, length_h, kh, WINDOW)
        left_key, right_key = keys_of(first_w, end_w, length_w, kw, WINDOW)
        keys = (bottom_key - top_key) * (right_key - left_key)
        for first in range(0, BLOCK_K if OF_QUERY else keys, BLOCK_K):
            key_row, key_column, key_inside = nth_steps(first + n, top_key, left_key, bottom_key, right_key)
            # line after line, as all that is known of a whole block of pairs would take the registers of the sums
            line_row = low_h + first_line // tile_w
            line_column = low_w + first_line % tile_w
            for i in range(BLOCK_Q):
                line_inside = _is_inside(line_row, line_column, first_h, first_w, end_h, end_w)
                line_biases = masked(
                    tl.zeros((BLOCK_K,), tl.float32),
                    bias,
                    line_row,
                    line_column,
                    True,
                    key_row,
                    key_column,
                    first + n < tl.where(line_inside, keys, 0),
                    length_h,
                    length_w,
                    kh,
                    kw,
                    bias_i,
                    bias_j,
                    WINDOW,
                    True,
                )
                tl.store(pairs + i * BLOCK_K + n, line_biases)
                line_row, line_column = _next_step(line_row, line_column, low_w, tile_w)
            tl.debug_barrier()  # threads read what others have written
            biases = tl.load(to_pairs)
            key_map_row, key_map_column = on_map(key_row, key_column, origin_h, origin_w, dh, dw)
            of_k = key_map_row * key_h + key_map_column * key_w
            of_v = key_map_row * value_h + key_map_column * value_w
            sums = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
            for image in range(first_image, batch, shares_of_images):
                to_image = image * height * width * heads
                q = read(query + image * query_b, of_q, inside, D, BLOCK_D, FACTOR)
                k = read(key + image * key_b, of_k, key_inside, D, BLOCK_D, FACTOR)
                v = read(value + image * value_b, of_v, key_inside, D, BLOCK_D, FACTOR)
                of_y = read(gradient + to_image * D, position, inside, D, BLOCK_D, FACTOR)
                own = of_y.to(tl.float32) * read(y + to_image * D, position, inside, D, BLOCK_D, tl.float32)
                own = tl.sum(own, 1)
                peak = tl.load(peaks + to_image + of_head, mask=inside, other=0)
                logarithm = tl.load(logarithms + to_image + of_head, mask=inside, other=0)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + biases
                weights = weights_of(scores, peak[:, None], logarithm[:, None], FACTOR)
                of_weights = tl.dot(of_y, tl.trans(v), input_precision=PRECISION)
                of_scores = weights * (of_weights - own[:, None])
                sums += of_scores
                if OF_QUERY:
                    products = tl.dot(of_scores.to(FACTOR), k, input_precision=PRECISION)
                    write(of_query + to_image * D, products * scale, position, inside, D, BLOCK_D)
                    tl.store(delta + to_image + of_head, own, mask=inside)
            tl.store(to_pairs, sums)
            tl.debug_barrier()
            line_row = low_h + first_line // tile_w
            line_column = low_w + first_line % tile_w
            to_line = partial + first_line.to(tl.int64) * heads * columns
            for i in range(BLOCK_Q):
                line_inside = _is_inside(line_row, line_column, first_h, first_w, end_h, end_w)
                of_line = first + n < tl.where(line_inside, keys, 0)
                seen = sees(
                    line_row, line_column, True, key_row, key_column, of_line, length_h, length_w, kh, kw, WINDOW
                )
                if WINDOW:
                    of_pairs = key_row * kw + key_column
                else:
                    of_pairs = (key_row - line_row + kh - 1) * (2 * kw - 1) + key_column - line_column + kw - 1
                to_sums = to_line + of_pairs
                tl.store(to_sums, tl.load(to_sums, mask=seen, other=0) + tl.load(pairs + i * BLOCK_K + n), mask=seen)
                line_row, line_column = _next_step(line_row, line_column, low_w, tile_w)
                to_line += heads * columns


@triton.jit
def _is_inside(row, column, first_h, first_w, end_h, end_w):
    return (row >= first_h) & (row < end_h) & (column >= first_w) & (column < end_w)


@triton.jit
def _next_step(row, column, low_w, tile_w):
    """The one after it in the lines of a tile: dividing takes ten times as many instructions."""
    is_last = column == low_w + tile_w - 1
    return tl.where(is_last, row + 1, row), tl.where(is_last, low_w, column + 1)
