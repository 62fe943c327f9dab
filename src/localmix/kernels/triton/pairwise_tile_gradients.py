"""Triton kernels for the gradients of attention by tiles; pairwise_launches.py launches them.

A program owns a block of queries of a tile and loops over the strip of keys that they see, or a block of keys and loops
over the queries that see them.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.pairwise_memory import read, write
from localmix.kernels.triton.pairwise_tiles import (
    keys_of,
    masked,
    nth_steps,
    on_map,
    owned,
    queries_of,
    steps_of_tile,
    weights_of,
)


@triton.jit
def query_gradient(
    query,
    key,
    value,
    bias,
    gradient,
    y,
    peaks,
    logarithms,
    delta,
    of_query,
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
    OF_QUERY: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of a block of queries, and delta = gradient . y, which the other gradients need too."""
    image, tile, block, head = owned(tiles_h * tiles_w, blocks, heads)
    origin_h, length_h, first_h, end_h = steps_of_tile(tile // tiles_w, height, top, dh, tile_h, WINDOW)
    origin_w, length_w, first_w, end_w = steps_of_tile(tile % tiles_w, width, left, dw, tile_w, WINDOW)
    row, column, inside = nth_steps(block * BLOCK_Q + tl.arange(0, BLOCK_Q), first_h, first_w, end_h, end_w)
    map_row, map_column = on_map(row, column, origin_h, origin_w, dh, dw)
    position = (((image * height + map_row) * width + map_column) * heads + head) * D
    of_head = ((image * heads + head) * height + map_row) * width + map_column
    of_y = read(gradient, position, inside, D, BLOCK_D, FACTOR)
    own = tl.sum(of_y.to(tl.float32) * read(y, position, inside, D, BLOCK_D, tl.float32), 1)
    tl.store(delta + of_head, own, mask=inside)
    if OF_QUERY:
        query += image * query_b + head * query_n
        key += image * key_b + head * key_n
        value += image * value_b + head * value_n
        q = read(query, map_row * query_h + map_column * query_w, inside, D, BLOCK_D, FACTOR)
        peak = tl.load(peaks + of_head, mask=inside, other=0)
        logarithm = tl.load(logarithms + of_head, mask=inside, other=0)
        top_key, bottom_key = keys_of(first_h, end_h, length_h, kh, WINDOW)
        left_key, right_key = keys_of(first_w, end_w, length_w, kw, WINDOW)
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
            weights = weights_of(scores, peak[:, None], logarithm[:, None], FACTOR)
            of_weights = tl.dot(of_y, tl.trans(v), input_precision=PRECISION)
            of_scores = weights * (of_weights - own[:, None])
            sums = tl.dot(of_scores.to(FACTOR), k, sums, input_precision=PRECISION)
        write(of_query, sums * scale, position, inside, D, BLOCK_D)


@triton.jit
def key_gradient(
    query,
    key,
    value,
    bias,
    gradient,
    peaks,
    logarithms,
    delta,
    of_key,
    of_value,
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
    OF_KEY: tl.constexpr,
    OF_VALUE: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of a block of keys and values: a sum over the queries that see them. Blocks are [keys, queries]."""
    image, tile, block, head = owned(tiles_h * tiles_w, blocks, heads)
    origin_h, length_h, first_h, end_h = steps_of_tile(tile // tiles_w, height, top, dh, tile_h, WINDOW)
    origin_w, length_w, first_w, end_w = steps_of_tile(tile % tiles_w, width, left, dw, tile_w, WINDOW)
    key_row, key_column, key_inside = nth_steps(block * BLOCK_K + tl.arange(0, BLOCK_K), first_h, first_w, end_h, end_w)
    key_map_row, key_map_column = on_map(key_row, key_column, origin_h, origin_w, dh, dw)
    query += image * query_b + head * query_n
    key += image * key_b + head * key_n
    value += image * value_b + head * value_n
    k = read(key, key_map_row * key_h + key_map_column * key_w, key_inside, D, BLOCK_D, FACTOR)
    if OF_KEY:
        v = read(value, key_map_row * value_h + key_map_column * value_w, key_inside, D, BLOCK_D, FACTOR)
        sums_of_key = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    if OF_VALUE:
        sums_of_value = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)

    top_query, bottom_query = queries_of(first_h, end_h, length_h, kh, WINDOW)
    left_query, right_query = queries_of(first_w, end_w, length_w, kw, WINDOW)
    for first in range(0, (bottom_query - top_query) * (right_query - left_query), BLOCK_Q):
        n = first + tl.arange(0, BLOCK_Q)
        row, column, inside = nth_steps(n, top_query, left_query, bottom_query, right_query)
        map_row, map_column = on_map(row, column, origin_h, origin_w, dh, dw)
        position = (((image * height + map_row) * width + map_column) * heads + head) * D
        of_head = ((image * heads + head) * height + map_row) * width + map_column
        q = read(query, map_row * query_h + map_column * query_w, inside, D, BLOCK_D, FACTOR)
        of_y = read(gradient, position, inside, D, BLOCK_D, FACTOR)
        peak = tl.load(peaks + of_head, mask=inside, other=0)
        logarithm = tl.load(logarithms + of_head, mask=inside, other=0)
        scores = masked(
            tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale,
            bias + head * bias_n,
            row[None, :],
            column[None, :],
            inside[None, :],
            key_row[:, None],
            key_column[:, None],
            key_inside[:, None],
            length_h,
            length_w,
            kh,
            kw,
            bias_i,
            bias_j,
            WINDOW,
            HAS_BIAS,
        )
        weights = weights_of(scores, peak[None, :], logarithm[None, :], FACTOR)
        if OF_VALUE:
            sums_of_value = tl.dot(weights.to(FACTOR), of_y, sums_of_value, input_precision=PRECISION)
        if OF_KEY:
            own = tl.load(delta + of_head, mask=inside, other=0)
            of_weights = tl.dot(v, tl.trans(of_y), input_precision=PRECISION)
            of_scores = weights * (of_weights - own[None, :])
            sums_of_key = tl.dot(of_scores.to(FACTOR), q, sums_of_key, input_precision=PRECISION)

    position = (((image * height + key_map_row) * width + key_map_column) * heads + head) * D
    if OF_KEY:
        write(of_key, sums_of_key * scale, position, key_inside, D, BLOCK_D)
    if OF_VALUE:
        write(of_value, sums_of_value, position, key_inside, D, BLOCK_D)
