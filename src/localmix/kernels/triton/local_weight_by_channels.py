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
