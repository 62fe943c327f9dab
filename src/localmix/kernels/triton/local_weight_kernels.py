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
    y,
    weight,
    hidden,
    projection,
    bias,
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


@triton.jit
def _products(
    gradient, own, x, position, on_map, source, inside, group, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Gradient [positions, groups] of the weights of a tap: sum of gradient[p] * x[p + k] over a group's channels.

    `own` is the first block of the gradient, which the caller keeps over the taps.
    """
    total = tl.sum(own * _block(x, source, inside, group, 0, G, D, BLOCK_D), 2)
    for first in range(BLOCK_D, D, BLOCK_D):
        more = _block(gradient, position, on_map, group, first, G, D, BLOCK_D)
        total += tl.sum(more * _block(x, source, inside, group, first, G, D, BLOCK_D), 2)
    return total


@triton.jit
def weight_gradient(
    gradient,
    x,
    of_weight,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_g,
    top,
    left,
    stride_b,
    stride_h,
    stride_w,
    stride_g,
    stride_k,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """of_weight[p, g, k] = sum over the channels of group g of gradient[p] * x[p + k]."""
    pid = tl.program_id(0).to(tl.int64)
    group = pid % blocks_g * BLOCK_G + tl.arange(0, BLOCK_G)
    image, row, column = positions_of(pid // blocks_g, tiles_h, tiles_w, TILE_H, TILE_W)
    position, on_map = _locate(image, row, column, height, width)
    own = _block(gradient, position, on_map, group, 0, G, D, BLOCK_D)
    of_position = image * stride_b + row * stride_h + column * stride_w
    pointers = of_weight + of_position[:, None] + group[None, :] * stride_g
    mask = on_map[:, None] & (group < G)[None, :]
    for k in range(KH * KW):
        down = k // KW * DH - top
        right = k % KW * DW - left
        source, inside = _locate(image, row + down, column + right, height, width)
        total = _products(gradient, own, x, position, on_map, source, inside, group, G, D, BLOCK_D)
        tl.store(pointers, total.to(of_weight.dtype.element_ty), mask=mask)
        pointers += stride_k


@triton.jit
def hidden_gradient(
    gradient,
    x,
    projection,
    of_hidden,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_g,
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
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """of_hidden[p] = sum_k sum_g of_weight[p, g, k] * projection[g, k], of_weight made and forgotten."""
    pid = tl.program_id(0).to(tl.int64)
    rank = pid % blocks_r * BLOCK_R + tl.arange(0, BLOCK_R)
    image, row, column = positions_of(pid // blocks_r, tiles_h, tiles_w, TILE_H, TILE_W)
    position, on_map = _locate(image, row, column, height, width)
    sums = tl.zeros((TILE_H * TILE_W, BLOCK_R), tl.float32)
    for block in range(blocks_g):
        group = block * BLOCK_G + tl.arange(0, BLOCK_G).to(tl.int64)
        own = _block(gradient, position, on_map, group, 0, G, D, BLOCK_D)
        for k in range(KH * KW):
            down = k // KW * DH - top
            right = k % KW * DW - left
            source, inside = _locate(image, row + down, column + right, height, width)
            total = _products(gradient, own, x, position, on_map, source, inside, group, G, D, BLOCK_D)
            pointers = projection + (group[:, None] * (KH * KW) + k) * RANK + rank[None, :]
            mask = (group < G)[:, None] & (rank < RANK)[None, :]
            factor = tl.load(pointers, mask=mask, other=0).to(FACTOR)
            sums = tl.dot(total.to(FACTOR), factor, sums, input_precision=PRECISION)
    mask = on_map[:, None] & (rank < RANK)[None, :]
    tl.store(of_hidden + position[:, None] * RANK + rank[None, :], sums.to(of_hidden.dtype.element_ty), mask=mask)


@triton.jit
def projection_gradient(
    gradient,
    x,
    hidden,
    partial,
    partial_of_bias,
    height,
    width,
    tiles_h,
    tiles_w,
    blocks_g,
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
    TAPS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sums over a share of the tiles, for `TAPS` taps: of_weight[p, g, k] * hidden[p], and of_weight alone."""
    pid = tl.program_id(0).to(tl.int64)
    block_r = pid % blocks_r
    rank = block_r * BLOCK_R + tl.arange(0, BLOCK_R)
    pid = pid // blocks_r
    steps: tl.constexpr = (KH * KW + TAPS - 1) // TAPS
    first_tap = pid % steps * TAPS
    pid = pid // steps
    group = pid % blocks_g * BLOCK_G + tl.arange(0, BLOCK_G)
    share = pid // blocks_g
    sums = ()
    sums_of_bias = ()
    for _ in tl.static_range(TAPS):
        sums += (tl.zeros((BLOCK_G, BLOCK_R), tl.float32),)
        sums_of_bias += (tl.zeros((BLOCK_G,), tl.float32),)
    for tile in range(share, tiles, shares):
        image, row, column = positions_of(tile, tiles_h, tiles_w, TILE_H, TILE_W)
        position, on_map = _locate(image, row, column, height, width)
        own = _block(gradient, position, on_map, group, 0, G, D, BLOCK_D)
        features = features_of(hidden, position, on_map, block_r * BLOCK_R, RANK, BLOCK_R, FACTOR)
        added = ()
        added_to_bias = ()
        for t in tl.static_range(TAPS):
            down = (first_tap + t) // KW * DH - top
            right = (first_tap + t) % KW * DW - left
            source, inside = _locate(image, row + down, column + right, height, width)
            total = _products(gradient, own, x, position, on_map, source, inside, group, G, D, BLOCK_D)
            added += (tl.dot(tl.trans(total.to(FACTOR)), features, sums[t], input_precision=PRECISION),)
            added_to_bias += (sums_of_bias[t] + tl.sum(total, 0),)
        sums = added
        sums_of_bias = added_to_bias
    partial += share * (G * KH * KW * RANK)
    partial_of_bias += share * (G * KH * KW)
    for t in tl.static_range(TAPS):
        groups = tl.where(first_tap + t < KH * KW, G, 0)  # the last taps may be beyond the kernel
        line = group * (KH * KW) + first_tap + t
        mask = (group < groups)[:, None] & (rank < RANK)[None, :]
        tl.store(partial + line[:, None] * RANK + rank[None, :], sums[t], mask=mask)
        tl.store(partial_of_bias + line, sums_of_bias[t], mask=group < tl.where(block_r == 0, groups, 0))
