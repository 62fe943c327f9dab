"""Triton kernel for attention by tiles, in neighborhoods and in windows of any size; pairwise_launches.py launches it.

A program owns a block of queries of a tile and loops over the strip of keys that they see.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.pairwise_memory import read, write
from localmix.kernels.triton.pairwise_tiles import exponential, keys_of, masked, nth_steps, on_map, owned, steps_of_tile


@triton.jit
def attend(
    query,
    key,
    value,
    bias,
    y,
    peaks,
    logarithms,
    scale,
    height,
    width,
    heads,
    tiles_h,
    tiles_w,
    tile_h,
    tile_w,
    blocks,
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
    HAS_BIAS: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """y = softmax(scale * query . key + bias) value for a block of queries, and the logarithm of the denominator."""
    image, tile, block, head = owned(tiles_h * tiles_w, blocks, heads)
    origin_h, length_h, first_h, end_h = steps_of_tile(tile // tiles_w, height, top, dh, tile_h, WINDOW)
    origin_w, length_w, first_w, end_w = steps_of_tile(tile % tiles_w, width, left, dw, tile_w, WINDOW)
    row, column, inside = nth_steps(block * BLOCK_Q + tl.arange(0, BLOCK_Q), first_h, first_w, end_h, end_w)
    map_row, map_column = on_map(row, column, origin_h, origin_w, dh, dw)
    query += image * query_b + head * query_n
    key += image * key_b + head * key_n
    value += image * value_b + head * value_n
    q = read(query, map_row * query_h + map_column * query_w, inside, D, BLOCK_D, FACTOR)

    top_key, bottom_key = keys_of(first_h, end_h, length_h, kh, WINDOW)
    left_key, right_key = keys_of(first_w, end_w, length_w, kw, WINDOW)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    sums = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in range(0, (bottom_key - top_key) * (right_key - left_key), BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        key_row, key_column, key_inside = nth_steps(n, top_key, left_key, bottom_key, right_key)
        key_map_row, key_map_column = on_map(key_row, key_column, origin_h, origin_w, dh, dw)
        k = read(key, key_map_row * key_h + key_map_column * key_w, key_inside, D, BLOCK_D, FACTOR)
        v = read(value, key_map_row * value_h + key_map_column * value_w, key_inside, D, BLOCK_D, FACTOR)
        scores = masked(
            tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale,
            bias + head * bias_n,
            row[:, None],
            column[:, None],
            inside[:, None],
            key_row[None, :],
            key_column[None, :],
            key_inside[None, :],
            length_h,
            length_w,
            kh,
            kw,
            bias_i,
            bias_j,
            WINDOW,
            HAS_BIAS,
        )
        higher = tl.maximum(peak, tl.max(scores, 1))
        # a query may have seen no key yet
        finite = tl.where(higher == float("-inf"), 0, higher)
        weights = exponential(scores - finite[:, None], FACTOR)
        shrink = exponential(peak - finite, FACTOR)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(FACTOR), v, sums * shrink[:, None], input_precision=PRECISION)
        peak = higher

    total = tl.where(inside, total, 1)
    position = (image * height + map_row) * width + map_column
    write(y, sums / total[:, None], (position * heads + head) * D, inside, D, BLOCK_D)
    of_head = ((image * heads + head) * height + map_row) * width + map_column
    tl.store(peaks + of_head, peak, mask=inside)
    tl.store(logarithms + of_head, tl.log(total), mask=inside)
