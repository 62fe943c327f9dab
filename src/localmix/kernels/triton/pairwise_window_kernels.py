"""Triton kernels for attention in windows whose slots fit one block; pairwise_launches.py launches them.

The attention in a window is then a product of two matrices: a program owns a head, goes through a share of the windows
of all images, and keeps the bias in registers.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.pairwise_memory import read, write


@triton.jit
def _first_column(kh, kw):
    """A number with a bit for each slot of a window, which is set in the first column."""
    bits = tl.full((), 0, tl.uint64)
    for i in range(kh):
        bits |= tl.full((), 1, tl.uint64) << (i * kw)
    return bits


@triton.jit
def _window(unit, height, width, windows_h, windows_w, top, left, kh, kw, first_column, BLOCK: tl.constexpr):
    """Image, rows and columns of the slots of a window, and which of them hold a position of the map.

    The latter is taken from a number with a bit for each slot: every thread needs it for all columns of its scores, and
    bounds of rows and columns would fill its registers.
    """
    slot = tl.arange(0, BLOCK)
    row = (unit // windows_w % windows_h).to(tl.int32) * kh - top
    column = (unit % windows_w).to(tl.int32) * kw - left
    above = tl.maximum(-row, 0)
    before = tl.maximum(-column, 0)
    rows = tl.minimum(height - row, kh) - above
    columns = tl.minimum(width - column, kw) - before
    line = (tl.full((), 0xFFFFFFFFFFFFFFFF, tl.uint64) >> (64 - columns)) << before
    bits = line * (first_column >> ((kh - rows) * kw)) << (above * kw)
    inside = ((bits >> slot) & 1) != 0
    row = (row + slot // kw).to(tl.int64)
    column = (column + slot % kw).to(tl.int64)
    return unit // windows_w // windows_h, row, column, inside


@triton.jit
def _bias_of_slots(bias, slots, stride_q, stride_k, BLOCK: tl.constexpr):
    slot = tl.arange(0, BLOCK)
    mask = (slot < slots)[:, None] & (slot < slots)[None, :]
    offsets = slot[:, None] * stride_q + slot[None, :] * stride_k
    return tl.load(bias + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def attend_in_windows(
    query,
    key,
    value,
    bias,
    y,
    scale,
    height,
    width,
    heads,
    windows_h,
    windows_w,
    top,
    left,
    units,
    share,
    kh,
    kw,
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
    bias_q,
    bias_k,
    HAS_BIAS: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """y = softmax(scale * query . key + bias) value in a share of the windows."""
    pid = tl.program_id(0).to(tl.int64)
    head = pid % heads
    first = pid // heads * share
    query += head * query_n
    key += head * key_n
    value += head * value_n
    if HAS_BIAS:
        added = _bias_of_slots(bias + head * bias_n, kh * kw, bias_q, bias_k, BLOCK)
    first_column = _first_column(kh, kw)
    for unit in range(first, tl.minimum(first + share, units)):
        image, row, column, inside = _window(
            unit, height, width, windows_h, windows_w, top, left, kh, kw, first_column, BLOCK
        )
        q = read(query, image * query_b + row * query_h + column * query_w, inside, D, BLOCK_D, FACTOR)
        k = read(key, image * key_b + row * key_h + column * key_w, inside, D, BLOCK_D, FACTOR)
        v = read(value, image * value_b + row * value_h + column * value_w, inside, D, BLOCK_D, FACTOR)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if HAS_BIAS:
            scores += added
        scores = tl.where(inside[None, :], scores, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, 1)[:, None])
        sums = tl.dot(weights.to(FACTOR), v, input_precision=PRECISION) / tl.sum(weights, 1)[:, None]
        position = (image * height + row) * width + column
        write(y, sums, (position * heads + head) * D, inside, D, BLOCK_D)


@triton.jit
def gradients_in_windows(
    query,
    key,
    value,
    bias,
    gradient,
    of_query,
    of_key,
    of_value,
    partial,
    scale,
    height,
    width,
    heads,
    windows_h,
    windows_w,
    top,
    left,
    units,
    share,
    kh,
    kw,
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
    bias_q,
    bias_k,
    HAS_BIAS: tl.constexpr,
    OF_QUERY: tl.constexpr,
    OF_KEY: tl.constexpr,
    OF_VALUE: tl.constexpr,
    OF_BIAS: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All gradients in a share of the windows, and the sum of those of the bias over the share."""
    pid = tl.program_id(0).to(tl.int64)
    head = pid % heads
    first = pid // heads * share
    query += head * query_n
    key += head * key_n
    value += head * value_n
    if HAS_BIAS:
        added = _bias_of_slots(bias + head * bias_n, kh * kw, bias_q, bias_k, BLOCK)
    if OF_BIAS:
        of_bias = tl.zeros((BLOCK, BLOCK), tl.float32)
    first_column = _first_column(kh, kw)
    for unit in range(first, tl.minimum(first + share, units)):
        image, row, column, inside = _window(
            unit, height, width, windows_h, windows_w, top, left, kh, kw, first_column, BLOCK
        )
        position = ((image * height + row) * width + column) * heads + head
        q = read(query, image * query_b + row * query_h + column * query_w, inside, D, BLOCK_D, FACTOR)
        k = read(key, image * key_b + row * key_h + column * key_w, inside, D, BLOCK_D, FACTOR)
        of_y = read(gradient, position * D, inside, D, BLOCK_D, FACTOR)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if HAS_BIAS:
            scores += added
        scores = tl.where(inside[None, :], scores, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, 1)[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
        if OF_VALUE:
            sums = tl.dot(tl.trans(weights.to(FACTOR)), of_y, input_precision=PRECISION)
            write(of_value, sums, position * D, inside, D, BLOCK_D)
        if OF_QUERY or OF_KEY or OF_BIAS:
            v = read(value, image * value_b + row * value_h + column * value_w, inside, D, BLOCK_D, FACTOR)
            of_weights = tl.dot(of_y, tl.trans(v), input_precision=PRECISION)
            of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None])
            if OF_BIAS:
                of_bias += of_scores
            factor = of_scores.to(FACTOR)
            if OF_QUERY:
                sums = tl.dot(factor, k, input_precision=PRECISION) * scale
                write(of_query, sums, position * D, inside, D, BLOCK_D)
            if OF_KEY:
                sums = tl.dot(tl.trans(factor), q, input_precision=PRECISION) * scale
                write(of_key, sums, position * D, inside, D, BLOCK_D)
    if OF_BIAS:
        slots = kh * kw
        slot = tl.arange(0, BLOCK)
        mask = (slot < slots)[:, None] & (slot < slots)[None, :]
        partial += pid * slots * slots
        tl.store(partial + slot[:, None] * slots + slot[None, :], of_bias, mask=mask)
