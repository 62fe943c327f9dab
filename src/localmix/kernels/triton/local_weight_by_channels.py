"""Triton kernel for weights of its own at every position, channel by channel; local_weight_launches.py launches it.

A group of 3 or 6 channels fills no vector. So a block here is [positions, channels], whatever their groups: x is read
in vectors, and the weight of a channel is that of its group. Weights that are made are made once for every channel, by
a product with the rows of the projection repeated, for which matrix units have the time.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.local_weight_kernels import features_of, positions_of


@triton.jit
def _tile(index, tiles_h, tiles_w, height, width, OFFSET: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Image of a tile, rows and columns of its positions, their indices in the image, and which are on the map.

    Integers of the type `OFFSET` reach all of an image.
    """
    image, row, column = positions_of(index, tiles_h, tiles_w, TILE_H, TILE_W)
    row = row.to(OFFSET)
    column = column.to(OFFSET)
    return image, row, column, row * width + column, (row < height) & (column < width)


@triton.jit
def _tap(row, column, position, on_map, down, right, height, width):
    """Indices of the positions so many rows and columns away, and which are on the map."""
    inside = on_map & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
    return position + (down * width + right), inside


@triton.jit
def _block(x, position, inside, channel, C: tl.constexpr):
    """Block [positions, channels] of an image in float32; zero outside of the map."""
    offsets = position[:, None] * C + channel[None, :]
    return tl.load(x + offsets, mask=inside[:, None] & (channel < C)[None, :], other=0).to(tl.float32)


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
    """What `local_weight_kernels.apply` computes."""
    C: tl.constexpr = G * D
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks_c).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, row, column, position, on_map = _tile(
        pid // blocks_c, tiles_h, tiles_w, height, width, OFFSET, TILE_H, TILE_W
    )
    group = channel // D
    in_channels = channel < C
    x += image * height * width * C
    y += image * height * width * C
    weight += image * stride_b
    hidden += image * height * width * RANK
    if RANK > 0 and RANK <= BLOCK_R and not TRANSPOSED:
        features = features_of(hidden, position, on_map, 0, RANK, BLOCK_R, FACTOR)

    sums = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for k in range(KH * KW):
        down = k // KW * DH - top
        right = k % KW * DW - left
        if TRANSPOSED:
            down = -down
            right = -right
        source, inside = _tap(row, column, position, on_map, down, right, height, width)
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
        sums += weights * _block(x, source, inside, channel, C)

    offsets = position[:, None] * C + channel[None, :]
    tl.store(y + offsets, sums.to(y.dtype.element_ty), mask=on_map[:, None] & in_channels[None, :])


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
    image, row, column, position, on_map = _tile(
        pid // blocks_r, tiles_h, tiles_w, height, width, OFFSET, TILE_H, TILE_W
    )
    gradient += image * height * width * C
    x += image * height * width * C
    of_hidden += image * height * width * RANK
    sums = tl.zeros((TILE_H * TILE_W, BLOCK_R), tl.float32)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        own = _block(gradient, position, on_map, channel, C)
        for k in range(KH * KW):
            down = k // KW * DH - top
            right = k % KW * DW - left
            source, inside = _tap(row, column, position, on_map, down, right, height, width)
            pointers = projection + (channel[:, None] // D * (KH * KW) + k) * RANK + rank[None, :]
            mask = (channel < C)[:, None] & (rank < RANK)[None, :]
            factor = tl.load(pointers, mask=mask, other=0).to(FACTOR)
            products = own * _block(x, source, inside, channel, C)
            sums = tl.dot(products.to(FACTOR), factor, sums, input_precision=PRECISION)
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
        image, row, column, position, on_map = _tile(tile, tiles_h, tiles_w, height, width, OFFSET, TILE_H, TILE_W)
        start = image * height * width
        own = _block(gradient + start * C, position, on_map, channel, C)
        first_r = block_r * BLOCK_R
        features = features_of(hidden + start * RANK, position, on_map, first_r, RANK, BLOCK_R, FACTOR)
        added = ()
        added_to_bias = ()
        for t in tl.static_range(TAPS):
            down = (first_tap + t) // KW * DH - top
            right = (first_tap + t) % KW * DW - left
            source, inside = _tap(row, column, position, on_map, down, right, height, width)
            products = own * _block(x + start * C, source, inside, channel, C)
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
