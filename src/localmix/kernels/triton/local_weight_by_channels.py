"""Triton kernel for weights of its own at every position, channel by channel; local_weight.py launches it.

A group of 3 or 6 channels fills no vector. So a block here is [positions, channels], whatever their groups: x is read
in vectors, and the weight of a channel is that of its group. Weights that are made are made once for every channel, by
a product with the rows of the projection repeated, for which matrix units have the time.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.local_weight_kernels import features_of, positions_of


@triton.jit
def apply_by_channels(
    x,
    y,
    weight,
    hidden,
    projection,
    bias,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_c,
    top,
    left,
    stride_b,
    stride_h,
    stride_w,
    stride_g,
    stride_k,
    G: tl.constexpr,
    D: tl.constexpr,
    RANK: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """What `local_weight_kernels.apply` computes. Integers of the type `OFFSET` reach all of an image."""
    C: tl.constexpr = G * D
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks_c).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, row, column = positions_of(pid // blocks_c, tiles_h, tiles_w, TILE_H, TILE_W)
    row = row.to(OFFSET)
    column = column.to(OFFSET)
    group = channel // D
    in_channels = channel < C
    x += image * height * width * C
    y += image * height * width * C
    weight += image * stride_b
    hidden += image * height * width * RANK
    position = row * width + column
    on_map = (row < height) & (column < width)
    if RANK > 0 and RANK <= BLOCK_R and not TRANSPOSED:
        features = features_of(hidden, position, on_map, 0, RANK, BLOCK_R, FACTOR)

    sums = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for k in range(KH * KW):
        down = k // KW * DH - top
        right = k % KW * DW - left
        if TRANSPOSED:
            down = -down
            right = -right
        inside = on_map & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        source = position + (down * width + right)
        if TRANSPOSED:
            owner = source
            known = inside
        else:
            owner = position
            known = on_map
        if RANK > 0:
            weights = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
            for r in range(0, RANK, BLOCK_R):
                if RANK > BLOCK_R or TRANSPOSED:
                    features = features_of(hidden, owner, known, r, RANK, BLOCK_R, FACTOR)
                rank = r + tl.arange(0, BLOCK_R)
                pointers = projection + (group[None, :] * (KH * KW) + k) * RANK + rank[:, None]
                mask = in_channels[None, :] & (rank < RANK)[:, None]
                factor = tl.load(pointers, mask=mask, other=0).to(FACTOR)
                weights = tl.dot(features, factor, weights, input_precision=PRECISION)
            if HAS_BIAS:
                weights += tl.load(bias + group * (KH * KW) + k, mask=in_channels, other=0).to(tl.float32)[None, :]
        else:
            of_position = row * stride_h + column * stride_w
            if TRANSPOSED:
                of_position += down * stride_h + right * stride_w
            offsets = of_position[:, None] + (group * stride_g)[None, :]
            weights = tl.load(weight + offsets, mask=known[:, None] & in_channels[None, :], other=0).to(tl.float32)
            weight += stride_k
        offsets = source[:, None] * C + channel[None, :]
        values = tl.load(x + offsets, mask=inside[:, None] & in_channels[None, :], other=0).to(tl.float32)
        sums += weights * values

    offsets = position[:, None] * C + channel[None, :]
    tl.store(y + offsets, sums.to(y.dtype.element_ty), mask=on_map[:, None] & in_channels[None, :])


@triton.jit
def _shifted(
    x, row, column, position, on_map, channel, k, height, width, top, left,
    C: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Block [positions, channels] of the inputs of tap k in float32; zero outside of the map."""
    down = k // KW * DH - top
    right = k % KW * DW - left
    inside = on_map & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
    offsets = (position + (down * width + right))[:, None] * C + channel[None, :]
    return tl.load(x + offsets, mask=inside[:, None] & (channel < C)[None, :], other=0).to(tl.float32)


@triton.jit
def hidden_gradient_by_channels(
    gradient,
    x,
    projection,
    of_hidden,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_r,
    top,
    left,
    G: tl.constexpr,
    D: tl.constexpr,
    RANK: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """of_hidden[p] = sum_k sum_c gradient[p, c] * x[p + k, c] * projection[group of c, k]."""
    C: tl.constexpr = G * D
    pid = tl.program_id(0).to(tl.int64)
    rank = (pid % blocks_r).to(tl.int32) * BLOCK_R + tl.arange(0, BLOCK_R)
    image, row, column = positions_of(pid // blocks_r, tiles_h, tiles_w, TILE_H, TILE_W)
    row = row.to(OFFSET)
    column = column.to(OFFSET)
    gradient += image * height * width * C
    x += image * height * width * C
    of_hidden += image * height * width * RANK
    position = row * width + column
    on_map = (row < height) & (column < width)
    sums = tl.zeros((TILE_H * TILE_W, BLOCK_R), tl.float32)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        mask = on_map[:, None] & (channel < C)[None, :]
        own = tl.load(gradient + position[:, None] * C + channel[None, :], mask=mask, other=0).to(tl.float32)
        for k in range(KH * KW):
            values = _shifted(x, row, column, position, on_map, channel, k, height, width, top, left, C, KW, DH, DW)
            pointers = projection + (channel[:, None] // D * (KH * KW) + k) * RANK + rank[None, :]
            in_projection = (channel < C)[:, None] & (rank < RANK)[None, :]
            factor = tl.load(pointers, mask=in_projection, other=0).to(FACTOR)
            sums = tl.dot((own * values).to(FACTOR), factor, sums, input_precision=PRECISION)
    mask = on_map[:, None] & (rank < RANK)[None, :]
    tl.store(of_hidden + position[:, None] * RANK + rank[None, :], sums.to(of_hidden.dtype.element_ty), mask=mask)


@triton.jit
def projection_gradient_by_channels(
    gradient,
    x,
    hidden,
    partial,
    partial_of_bias,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_c,
    blocks_r,
    shares,
    tiles,
    top,
    left,
    G: tl.constexpr,
    D: tl.constexpr,
    RANK: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    TAPS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sums over a share of the tiles, for `TAPS` taps: gradient[p, c] * x[p + k, c] * hidden[p], and without hidden."""
    C: tl.constexpr = G * D
    pid = tl.program_id(0).to(tl.int64)
    block_r = (pid % blocks_r).to(tl.int32)
    rank = block_r * BLOCK_R + tl.arange(0, BLOCK_R)
    pid = pid // blocks_r
    steps: tl.constexpr = (KH * KW + TAPS - 1) // TAPS
    first_tap = (pid % steps).to(tl.int32) * TAPS
    pid = pid // steps
    channel = (pid % blocks_c).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    share = pid // blocks_c
    sums = ()
    sums_of_bias = ()
    for _ in tl.static_range(TAPS):
        sums += (tl.zeros((BLOCK_C, BLOCK_R), tl.float32),)
        sums_of_bias += (tl.zeros((BLOCK_C,), tl.float32),)
    for tile in range(share, tiles, shares):
        image, row, column = positions_of(tile, tiles_h, tiles_w, TILE_H, TILE_W)
        row = row.to(OFFSET)
        column = column.to(OFFSET)
        position = row * width + column
        on_map = (row < height) & (column < width)
        start = image * height * width
        mask = on_map[:, None] & (channel < C)[None, :]
        offsets = position[:, None] * C + channel[None, :]
        own = tl.load(gradient + start * C + offsets, mask=mask, other=0).to(tl.float32)
        mask = on_map[:, None] & (rank < RANK)[None, :]
        offsets = position[:, None] * RANK + rank[None, :]
        features = tl.load(hidden + start * RANK + offsets, mask=mask, other=0).to(FACTOR)
        added = ()
        added_to_bias = ()
        for t in tl.static_range(TAPS):
            k = first_tap + t
            values = _shifted(
                x + start * C, row, column, position, on_map, channel, k, height, width, top, left, C, KW, DH, DW
            )  # fmt: skip
            products = own * values
            added += (tl.dot(tl.trans(products.to(FACTOR)), features, sums[t], input_precision=PRECISION),)
            added_to_bias += (sums_of_bias[t] + tl.sum(products, 0),)
        sums = added
        sums_of_bias = added_to_bias
    for t in tl.static_range(TAPS):
        channels = tl.where(first_tap + t < KH * KW, C, 0)  # the last taps may be beyond the kernel
        line = (share * C + channel) * (KH * KW) + first_tap + t
        mask = (channel < channels)[:, None] & (rank < RANK)[None, :]
        tl.store(partial + line[:, None] * RANK + rank[None, :], sums[t], mask=mask)
        tl.store(partial_of_bias + line, sums_of_bias[t], mask=channel < tl.where(block_r == 0, channels, 0))
