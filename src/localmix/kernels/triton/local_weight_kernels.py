"""Triton kernels for weights of its own at every position; local_weight_launches.py launches them.

A program owns a tile of positions and some groups, and loops over the taps. The weights of a tap are read from memory,
or made by one small matrix product of hidden features and projection, and used at once: they are never written.
Blocks of x are [positions, groups, channels of a group].
"""

import triton
import triton.language as tl


@triton.jit
def positions_of(tile, tiles_h, tiles_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Image, rows and columns of the positions of a tile; some may be outside of the map."""
    local = tl.arange(0, TILE_H * TILE_W)
    column = tile % tiles_w * TILE_W + local % TILE_W
    tile = tile // tiles_w
    row = tile % tiles_h * TILE_H + local // TILE_W
    return tile // tiles_h, row, column


@triton.jit
def _locate(image, row, column, height, width):
    """Index of positions in the batch of maps, and whether they are on the map."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (image * height + row) * width + column, inside


@triton.jit
def _block(x, position, inside, group, first, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Block [positions, groups, channels from `first` on] of x; zero outside of the map."""
    dim = first + tl.arange(0, BLOCK_D)
    offsets = position[:, None, None] * (G * D) + (group[:, None] * D + dim[None, :])[None]
    mask = inside[:, None, None] & ((group < G)[:, None] & (dim < D)[None, :])[None]
    return tl.load(x + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def features_of(hidden, position, inside, first, RANK: tl.constexpr, BLOCK_R: tl.constexpr, FACTOR: tl.constexpr):
    """Block [positions, features from `first` on] of hidden."""
    rank = first + tl.arange(0, BLOCK_R)
    mask = inside[:, None] & (rank < RANK)[None, :]
    return tl.load(hidden + position[:, None] * RANK + rank[None, :], mask=mask, other=0).to(FACTOR)


@triton.jit
def apply(
    x,
    weight,
    hidden,
    projection,
    bias,
    y,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_g,
    blocks_d,
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
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """y[p] = sum_k weight[p, k] * x[p + k], or transposed, the gradient: y[p] = sum_k weight[p - k, k] * x[p - k].

    Weights are read where RANK is 0, and made of hidden features of that many numbers where it is not.
    """
    pid = tl.program_id(0).to(tl.int64)
    first = pid % blocks_d * BLOCK_D
    pid = pid // blocks_d
    group = pid % blocks_g * BLOCK_G + tl.arange(0, BLOCK_G)
    image, row, column = positions_of(pid // blocks_g, tiles_h, tiles_w, TILE_H, TILE_W)
    position, on_map = _locate(image, row, column, height, width)
    RESIDENT: tl.constexpr = RANK > 0 and RANK <= BLOCK_R and not TRANSPOSED
    if RESIDENT:
        features = features_of(hidden, position, on_map, 0, RANK, BLOCK_R, FACTOR)

    sums = tl.zeros((TILE_H * TILE_W, BLOCK_G, BLOCK_D), tl.float32)
    for k in range(KH * KW):
        down = k // KW * DH - top
        right = k % KW * DW - left
        if TRANSPOSED:
            down = -down
            right = -right
        source, inside = _locate(image, row + down, column + right, height, width)
        if TRANSPOSED:
            owner = source
            known = inside
        else:
            owner = position
            known = on_map
        if RANK > 0:
            weights = tl.zeros((TILE_H * TILE_W, BLOCK_G), tl.float32)
            for r in range(0, RANK, BLOCK_R):
                if not RESIDENT:
                    features = features_of(hidden, owner, known, r, RANK, BLOCK_R, FACTOR)
                rank = r + tl.arange(0, BLOCK_R)
                pointers = projection + (group[None, :] * (KH * KW) + k) * RANK + rank[:, None]
                mask = (group < G)[None, :] & (rank < RANK)[:, None]
                factor = tl.load(pointers, mask=mask, other=0).to(FACTOR)
                weights = tl.dot(features, factor, weights, input_precision=PRECISION)
            if HAS_BIAS:
                weights += tl.load(bias + group * (KH * KW) + k, mask=group < G, other=0).to(tl.float32)[None, :]
        else:
            if TRANSPOSED:
                of_position = (row + down) * stride_h + (column + right) * stride_w
            else:
                of_position = row * stride_h + column * stride_w
            offsets = image * stride_b + of_position[:, None] + group[None, :] * stride_g
            mask = known[:, None] & (group < G)[None, :]
            weights = tl.load(weight + offsets, mask=mask, other=0).to(tl.float32)
            weight += stride_k
        sums += weights[:, :, None] * _block(x, source, inside, group, first, G, D, BLOCK_D)

    dim = first + tl.arange(0, BLOCK_D)
    offsets = position[:, None, None] * (G * D) + (group[:, None] * D + dim[None, :])[None]
    mask = on_map[:, None, None] & ((group < G)[:, None] & (dim < D)[None, :])[None]
    tl.store(y + offsets, sums.to(y.dtype.element_ty), mask=mask)
