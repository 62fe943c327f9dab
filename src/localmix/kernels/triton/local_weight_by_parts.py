"""Triton kernel for weights of its own at every position, by parts of groups; local_weight_launches.py launches it.

Groups of 12 or 24 channels are no power of two, and a block that is larger works in vain. So a block of x is
[positions, groups, channels of a part], the weights of a tap serve `PARTS` such blocks, and the positions of all images
are counted through, whatever the width of the map.
"""

import triton
import triton.language as tl


@triton.jit
def _features(hidden, position, here, first, RANK: tl.constexpr, BLOCK_R: tl.constexpr, FACTOR: tl.constexpr):
    """Block [positions, features from `first` on] of hidden."""
    rank = first + tl.arange(0, BLOCK_R)
    pointers = hidden + position[:, None] * RANK + rank[None, :]
    if RANK % BLOCK_R == 0:
        return tl.load(pointers, mask=here[:, None], other=0).to(FACTOR)
    return tl.load(pointers, mask=here[:, None] & (rank < RANK)[None, :], other=0).to(FACTOR)


@triton.jit
def _factor(projection, line, in_groups, first, RANK: tl.constexpr, BLOCK_R: tl.constexpr, FACTOR: tl.constexpr):
    """Block [features from `first` on, groups] of the lines of the projection for a tap."""
    rank = first + tl.arange(0, BLOCK_R)
    mask = in_groups[None, :] & (rank < RANK)[:, None]
    return tl.load(projection + line[None, :] * RANK + rank[:, None], mask=mask, other=0).to(FACTOR)


@triton.jit
def apply_by_parts(
    x,
    y,
    weight,
    hidden,
    projection,
    bias,
    height,
    width,
    positions,
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
    RESIDENT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """What `local_weight_kernels.apply` computes; `RESIDENT` if the features of the block stay in registers.

    Integers of the type `OFFSET` reach all of the images of a block.
    """
    C: tl.constexpr = G * D
    BLOCK_D: tl.constexpr = D // PARTS
    pid = tl.program_id(0).to(tl.int64)
    group = (pid % blocks_g).to(tl.int32) * BLOCK_G + tl.arange(0, BLOCK_G)
    first = pid // blocks_g * BLOCK_P
    first_image = first // (height * width)
    local = (first - first_image * (height * width)).to(OFFSET) + tl.arange(0, BLOCK_P)
    column = (local % width).to(tl.int32)
    image = local // width
    row = (image % height).to(tl.int32)
    image = image // height
    on_map = first + tl.arange(0, BLOCK_P) < positions
    in_groups = group < G
    x += first_image * height * width * C
    y += first_image * height * width * C
    hidden += first_image * height * width * RANK
    weight += first_image * stride_b
    channel = group[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
    offsets = local[:, None, None] * C + channel[None]
    own_weight = image * stride_b + row * stride_h + column * stride_w

    features = ()
    if RESIDENT:
        rank = tl.arange(0, BLOCK_R)
        identity = tl.where(rank[:, None] == rank[None, :], 1.0, 0.0).to(FACTOR)
        for r in tl.static_range(0, RANK, BLOCK_R):
            # a product with the identity is exact, and leaves the features in the registers where a product reads them
            own = _features(hidden, local, on_map, r, RANK, BLOCK_R, FACTOR)
            features += (tl.dot(own, identity, input_precision=PRECISION).to(FACTOR),)
    sums = ()
    for _ in tl.static_range(PARTS):
        sums += (tl.zeros((BLOCK_P, BLOCK_G, BLOCK_D), tl.float32),)
    for k in range(KH * KW):
        down = k // KW * DH - top
        right = k % KW * DW - left
        if TRANSPOSED:
            down = -down
            right = -right
        here = on_map & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        step = (down * width + right).to(OFFSET)
        if RANK > 0:
            weights = tl.zeros((BLOCK_P, BLOCK_G), tl.float32)
            line = group * (KH * KW) + k
            for r in tl.static_range(0, RANK, BLOCK_R):
                factor = _factor(projection, line, in_groups, r, RANK, BLOCK_R, FACTOR)
                if RESIDENT:
                    own = features[r // BLOCK_R]
                elif TRANSPOSED:
                    own = _features(hidden, local + step, here, r, RANK, BLOCK_R, FACTOR)
                else:
                    own = _features(hidden, local, on_map, r, RANK, BLOCK_R, FACTOR)
                weights = tl.dot(own, factor, weights, input_precision=PRECISION)
            if HAS_BIAS:
                weights += tl.load(bias + line, mask=in_groups, other=0).to(tl.float32)[None, :]
        else:
            if TRANSPOSED:
                of_position = own_weight + (down * stride_h + right * stride_w)
                known = here
            else:
                of_position = own_weight
                known = on_map
            pointers = weight + of_position[:, None] + (group * stride_g)[None, :]
            weights = tl.load(pointers, mask=known[:, None] & in_groups[None, :], other=0).to(tl.float32)
            weight += stride_k
        added = ()
        for part in tl.static_range(PARTS):
            pointers = x + offsets + (step * C + part * BLOCK_D)
            values = tl.load(pointers, mask=here[:, None, None] & in_groups[None, :, None], other=0).to(tl.float32)
            added += (sums[part] + weights[:, :, None] * values,)
        sums = added

    for part in tl.static_range(PARTS):
        mask = on_map[:, None, None] & in_groups[None, :, None]
        tl.store(y + offsets + part * BLOCK_D, sums[part].to(y.dtype.element_ty), mask=mask)
