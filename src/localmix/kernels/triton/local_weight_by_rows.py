"""Triton kernel for weights made of hidden features, several rows at a time; local_weight_launches.py launches it.

To read x from the cache once per tap, turn it into float32 and move it to the threads that hold the weights takes more
instructions than the sum itself. So a program owns a strip of `ROWS` output rows, a dilation apart, and what it has
read of a row of x serves all of them: of 7 x 7 taps and 4 rows 10 rows are read per kernel column instead of 28.

Blocks are [positions, channels] in the layout in which the matrix units leave their products, so the weights are used
in the registers where they appear. Only x, which is fewer numbers, goes through shared memory.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.local_weight_kernels import features_of


@triton.jit
def apply_by_rows(
    x,
    hidden,
    projection,
    bias,
    y,
    height,
    width,
    strips,
    all_strips,
    tiles_w,
    blocks_c,
    top,
    left,
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
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_S: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """What `local_weight_kernels.apply` computes, of made weights; the bias is one more feature than `RANK`.

    A tile is `TILE_S` of all strips of all images, `strips` of each, by `TILE_W` columns. Integers of the type `OFFSET`
    reach all of the images of a tile.
    """
    C: tl.constexpr = G * D
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks_c).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    pid = pid // blocks_c
    local = tl.arange(0, TILE_S * TILE_W)
    column = (pid % tiles_w).to(tl.int32) * TILE_W + local % TILE_W
    first_strip = pid // tiles_w * TILE_S
    first_image = first_strip // strips
    strip = (first_strip - first_image * strips).to(tl.int32) + local // TILE_W
    image = strip // strips
    strip = strip % strips
    row = strip // DH * (ROWS * DH) + strip % DH
    on_map = (column < width) & (first_strip + local // TILE_W < all_strips)
    position = (image.to(OFFSET) * height + row) * width + column
    x += first_image * height * width * C
    y += first_image * height * width * C
    hidden += first_image * height * width * RANK
    in_channels = channel < C
    rank = tl.arange(0, BLOCK_R)
    line = channel // D * (KH * KW)
    offsets = position[:, None] * C + channel[None, :]
    identity = tl.where(rank[:, None] == rank[None, :], 1.0, 0.0).to(FACTOR)

    features = ()
    sums = ()
    for r in tl.static_range(ROWS):
        if not TRANSPOSED:
            here = on_map & (row + r * DH < height)
            # a product with the identity is exact, and leaves the features in the registers where a product reads them
            own = tl.dot(features_of(hidden, position + r * DH * width, here, 0, RANK, BLOCK_R, FACTOR), identity)
            features += (tl.where((rank == RANK)[None, :], 1.0, own).to(FACTOR),)
        sums += (tl.zeros((TILE_S * TILE_W, BLOCK_C), tl.float32),)
    for j in range(KW):
        right = j * DW - left
        if TRANSPOSED:
            right = -right
        beside = on_map & (column + right >= 0) & (column + right < width)
        factors = ()
        for m in tl.static_range(ROWS + KH - 1):
            down = m * DH - top
            if TRANSPOSED:
                down = (m - (KH - 1)) * DH + top
            if m < KH:
                tap = m * KW + j
                if TRANSPOSED:
                    tap = (KH - 1 - m) * KW + j
                pointers = projection + (line[:, None] + tap) * RANK + rank[None, :]
                mask = in_channels[:, None] & (rank < RANK)[None, :]
                factor = tl.load(pointers, mask=mask, other=0).to(FACTOR)
                if HAS_BIAS:
                    of_bias = tl.load(bias + line + tap, mask=in_channels, other=0).to(FACTOR)
                    factor = tl.where((rank == RANK)[None, :], of_bias[:, None], factor)
                factors += (tl.trans(factor),)
            # Where an image is one strip this leaves out rows beyond the map. Besides, without a branch the compiler
            # puts all products before all sums, and runs out of registers.
            if (strips > 1) | ((down >= 0) & (down < height)):
                here = beside & (row + down >= 0) & (row + down < height)
                step = (down * width + right).to(OFFSET)
                read = here[:, None] & in_channels[None, :]
                values = tl.load(x + offsets + step * C, mask=read, other=0).to(tl.float32)
                if TRANSPOSED:
                    owner = features_of(hidden, position + step, here, 0, RANK, BLOCK_R, FACTOR)
                    owner = tl.where((rank == RANK)[None, :], 1.0, owner).to(FACTOR)
                added = ()
                for r in tl.static_range(ROWS):
                    if m - r >= 0 and m - r < KH:
                        if not TRANSPOSED:
                            owner = features[r]
                        added += (sums[r] + tl.dot(owner, factors[m - r]) * values,)
                    else:
                        added += (sums[r],)
                sums = added

    for r in tl.static_range(ROWS):
        here = on_map & (row + r * DH < height)
        below = y + (offsets + (r * DH * width).to(OFFSET) * C)
        tl.store(below, sums[r].to(y.dtype.element_ty), mask=here[:, None] & in_channels[None, :])
