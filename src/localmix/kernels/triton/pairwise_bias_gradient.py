"""Triton kernel for the gradient of the bias of attention by tiles; pairwise_launches.py launches it.

A program owns a block of pairs of a query of a tile and a key of the strip that it sees, and goes through a share of
the tiles of all images.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.pairwise_memory import read
from localmix.kernels.triton.pairwise_tiles import keys_of, masked, on_map, steps_of_tile


@triton.jit
def bias_gradient(
    query,
    key,
    value,
    bias,
    gradient,
    peaks,
    logarithms,
    delta,
    partial,
    scale,
    height,
    width,
    heads,
    tiles_h,
    tiles_w,
    tile_h,
    tile_w,
    reach_h,
    reach_w,
    blocks_q,
    blocks_k,
    units,
    shares,
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
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of the scores, summed over a share of the tiles, by step from the start of the tile.

    Results are [heads, queries of a tile, keys of the strip], and the strip reaches `reach` steps to all sides. As it
    begins at the same distance in every tile, a pair of block entries has the same bias in all of them.
    """
    pid = tl.program_id(0).to(tl.int64)
    head = pid % heads
    pid = pid // heads
    m = (pid % blocks_q).to(tl.int32) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    pid = pid // blocks_q
    first_key = (pid % blocks_k).to(tl.int32) * BLOCK_K
    n = first_key + tl.arange(0, BLOCK_K)
    share = pid // blocks_k
    strip_w = tile_w + 2 * reach_w
    queries = tile_h * tile_w
    keys = (tile_h + 2 * reach_h) * strip_w
    first_row = first_key // strip_w
    last_row = (first_key + BLOCK_K - 1) // strip_w
    query += head * query_n
    key += head * key_n
    value += head * value_n
    sums = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for unit in range(share, units, shares):
        tile = (unit % (tiles_h * tiles_w)).to(tl.int32)
        image = unit // (tiles_h * tiles_w)
        origin_h, length_h, first_h, end_h = steps_of_tile(tile // tiles_w, height, top, dh, tile_h, WINDOW)
        origin_w, length_w, first_w, end_w = steps_of_tile(tile % tiles_w, width, left, dw, tile_w, WINDOW)
        if WINDOW:
            low_h = 0
            low_w = 0
        else:
            low_h = first_h
            low_w = first_w
        # a strip has the keys that queries at a border see; away from it none sees the first rows and the last ones
        top_key, bottom_key = keys_of(first_h, end_h, length_h, kh, WINDOW)
        if (low_h - reach_h + last_row >= top_key) & (low_h - reach_h + first_row < bottom_key):
            row = low_h + m // tile_w
            column = low_w + m % tile_w
            key_row = low_h - reach_h + n // strip_w
            key_column = low_w - reach_w + n % strip_w
            inside = (m < queries) & (row >= first_h) & (row < end_h) & (column >= first_w) & (column < end_w)
            key_inside = (
                (n < keys) & (key_row >= 0) & (key_row < length_h) & (key_column >= 0) & (key_column < length_w)
            )
            if WINDOW:
                key_inside = key_inside & (key_row >= first_h) & (key_column >= first_w)
            map_row, map_column = on_map(row, column, origin_h, origin_w, dh, dw)
            key_map_row, key_map_column = on_map(key_row, key_column, origin_h, origin_w, dh, dw)
            position = (((image * height + map_row) * width + map_column) * heads + head) * D
            of_head = ((image * heads + head) * height + map_row) * width + map_column
            offsets = image * key_b + key_map_row * key_h + key_map_column * key_w
            q = read(query, image * query_b + map_row * query_h + map_column * query_w, inside, D, BLOCK_D, FACTOR)
            k = read(key, offsets, key_inside, D, BLOCK_D, FACTOR)
            offsets = image * value_b + key_map_row * value_h + key_map_column * value_w
            v = read(value, offsets, key_inside, D, BLOCK_D, FACTOR)
            of_y = read(gradient, position, inside, D, BLOCK_D, FACTOR)
            peak = tl.load(peaks + of_head, mask=inside, other=0)
            logarithm = tl.load(logarithms + of_head, mask=inside, other=0)
            own = tl.load(delta + of_head, mask=inside, other=0)
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
                True,
            )
            weights = tl.exp(scores - peak[:, None] - logarithm[:, None])
            of_weights = tl.dot(of_y, tl.trans(v), input_precision=PRECISION)
            sums += weights * (of_weights - own[:, None])
    partial += (share * heads + head) * queries * keys
    mask = (m < queries)[:, None] & (n < keys)[None, :]
    tl.store(partial + m.to(tl.int64)[:, None] * keys + n[None, :], sums, mask=mask)
