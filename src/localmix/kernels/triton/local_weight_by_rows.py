"""Triton kernel for weights made of hidden features, several rows at a time; local_weight_launches.py launches it.

A program owns a strip of `ROWS` output rows, a dilation apart, and what it has read of a row of x serves all of them:
of 7 x 7 taps and 4 rows 10 rows are read per kernel column instead of 28.

Weights are used in the registers in which the matrix units leave them. Of every 8 positions and 8 columns of a product
a thread has two columns of one position, and four threads side by side all of them. (A matrix unit that does this
otherwise only makes it slower.) So the lines of the projection are put in such an order that a thread has the weights
of channels side by side, and it reads these of x: up to 16 bytes, and the four threads 64, because a warp's load costs
a step for each line of 128 bytes that it touches. Blocks [threads, numbers of a thread] have that order.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.local_weight_by_words import numbers_of, word_of


@triton.jit
def _in_one(blocks, BLOCKS: tl.constexpr, NUMBER: tl.constexpr):
    """Block [threads, `BLOCKS` * `NUMBER`] of so many blocks, a power of two of them, side by side."""
    for level in tl.static_range(4):
        if BLOCKS >> level > 1:
            joined = ()
            for i in tl.static_range(BLOCKS >> (level + 1)):
                pair = tl.permute(tl.join(blocks[2 * i], blocks[2 * i + 1]), (0, 2, 1))
                joined += (tl.reshape(pair, (pair.shape[0], 2 * NUMBER << level)),)
            blocks = joined
    return blocks[0]


@triton.jit
def _in_parts(block, BLOCKS: tl.constexpr, NUMBER: tl.constexpr):
    """The inverse of `_in_one`."""
    blocks = (block,)
    for level in tl.static_range(4):
        if BLOCKS >> level > 1:
            halves = ()
            for i in tl.static_range(1 << level):
                pair = tl.reshape(blocks[i], (block.shape[0], 2, BLOCKS * NUMBER >> (level + 1)))
                left, right = tl.split(tl.permute(pair, (0, 2, 1)))
                halves += (left, right)
            blocks = halves
    return blocks


@triton.jit
def _weights(features, factor, WARPS: tl.constexpr, WEIGHTS: tl.constexpr, SHARED: tl.constexpr):
    """`features @ factor`, repeated for the channels that share a weight, as [threads, numbers of both positions]."""
    product = tl.reshape(tl.dot(features, factor), (WARPS, 2, 8, WEIGHTS // 8, 4, 2))
    weights = tl.reshape(tl.permute(product, (0, 2, 4, 1, 3, 5)), (32 * WARPS, WEIGHTS // 2))
    if SHARED > 1:
        weights = tl.broadcast_to(weights[:, :, None], (32 * WARPS, WEIGHTS // 2, SHARED))
        weights = tl.reshape(weights, (32 * WARPS, WEIGHTS // 2 * SHARED))
    return weights


@triton.jit
def places_of(
    local,
    first_strip,
    column,
    strips,
    all_strips,
    height,
    width,
    DH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_W: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Row and position, counted from its first image on, of positions of a tile in some columns.

    Those beyond the last strip have a row from which no step leads to the map.
    """
    strip = (first_strip % strips).to(tl.int32) + local // TILE_W
    image = strip // strips
    strip = strip % strips
    is_real = first_strip + local // TILE_W < all_strips
    row = tl.where(is_real, strip // DH * (ROWS * DH) + strip % DH, -(2**30))
    return row, (image.to(OFFSET) * height + row) * width + column


@triton.jit
def is_on(row, column, height, width):
    """Whether positions are on the map."""
    # without sign, what is before the map is far behind it: one comparison instead of two
    return (row.to(tl.uint32) < height.to(tl.uint32)) & (column.to(tl.uint32) < width.to(tl.uint32))


@triton.jit
def _features(pointers, here, RANK: tl.constexpr, BLOCK_R: tl.constexpr, HAS_BIAS: tl.constexpr, FACTOR: tl.constexpr):
    """Block [positions, features] of hidden, with one more feature, 1, for the bias; zero off the map but for that."""
    rank = tl.arange(0, BLOCK_R)[None, :]
    features = tl.load(pointers, mask=here[:, None] & (rank < RANK), other=0).to(FACTOR)
    if HAS_BIAS:
        features = tl.where(rank == RANK, 1.0, features).to(FACTOR)
    return features


@triton.jit
def _read(pointers, here, VECTORS: tl.constexpr, VECTOR: tl.constexpr):
    """The words of a thread's channels in vectors: a tuple of blocks [threads, `VECTOR`]; zero off the map."""
    words = ()
    for v in tl.static_range(VECTORS):
        # between two of them are those of three other threads
        words += (tl.load(pointers + v * 4 * VECTOR, mask=here[:, None], other=0),)
    return words


@triton.jit
def _read_row(
    x,
    down,
    right,
    height,
    width,
    places,
    C: tl.constexpr,
    OFFSET: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """What `_read` reads, so many rows and columns from both positions of a thread."""
    column, row_0, words_0, row_1, words_1 = places
    x += (down * width + right).to(OFFSET) * (C // 2)
    of_first = _read(x + words_0, is_on(row_0 + down, column + right, height, width), VECTORS, VECTOR)
    return of_first + _read(x + words_1, is_on(row_1 + down, column + right, height, width), VECTORS, VECTOR)


@triton.jit
def _numbers(words, VECTORS: tl.constexpr, VECTOR: tl.constexpr, HALF: tl.constexpr):
    """Words of both positions of a thread as numbers in float32: a block [threads, numbers]."""
    blocks = ()
    for v in tl.static_range(2 * VECTORS):
        low, high = numbers_of(words[v], 2, HALF)
        blocks += (tl.reshape(tl.join(low, high), (low.shape[0], 2 * VECTOR)),)
    return _in_one(blocks, 2 * VECTORS, 2 * VECTOR)


@triton.jit
def _write(pointers, here, blocks, VECTORS: tl.constexpr, VECTOR: tl.constexpr, HALF: tl.constexpr):
    """Writes what `_read` reads, of blocks of numbers."""
    for v in tl.static_range(VECTORS):
        low, high = tl.split(tl.reshape(blocks[v], (blocks[v].shape[0], VECTOR, 2)))
        tl.store(pointers + v * 4 * VECTOR, word_of(low, high, HALF), mask=here[:, None])


@triton.jit
def apply_by_rows(
    x,
    hidden,
    projection,
    y,
    height,
    width,
    strips,
    all_strips,
    tiles_w,
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
    TILE_W: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
):
    """What `local_weight_kernels.apply` computes, of made weights.

    Lines of the projection are `BLOCK_R` numbers; the one after `RANK` of them is of the bias, the others are zero. A
    tile is 16 positions for each warp: so many of all strips of all images, `strips` of each, by `TILE_W` columns, a
    divisor of 8. A program makes `WEIGHTS` weights of a position, each for `SHARED` channels of one group. Integers of
    the type `OFFSET` reach all of the images of a tile.
    """
    C: tl.constexpr = G * D
    NUMBERS: tl.constexpr = WEIGHTS * SHARED // 4  # of a position that a thread has
    VECTOR: tl.constexpr = 4 if NUMBERS > 4 else 2  # words that it reads at a time
    VECTORS: tl.constexpr = NUMBERS // (2 * VECTOR)
    PAIRS: tl.constexpr = 2 * VECTOR // SHARED  # weights for these
    BLOCKS: tl.constexpr = C // (WEIGHTS * SHARED)
    HALF: tl.constexpr = x.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    first_channel = (pid % BLOCKS).to(tl.int32) * (WEIGHTS * SHARED)
    pid = pid // BLOCKS
    first_column = (pid % tiles_w).to(tl.int32) * TILE_W
    first_strip = pid // tiles_w * (16 * WARPS // TILE_W)
    before = first_strip // strips * height * width
    hidden += before * RANK
    x = (x + before * C).to(tl.pointer_type(tl.int32), bitcast=True)
    y = (y + before * C).to(tl.pointer_type(tl.int32), bitcast=True)

    # of the columns of a product: each has two neighbors of one thread, then the next two are of the next thread
    of_product = tl.arange(0, WEIGHTS)
    own = of_product // 8 * 2 + of_product % 2
    of_pair = first_channel + of_product // 2 % 4 * (2 * VECTOR)
    channel = of_pair + own // PAIRS * (8 * VECTOR) + own % PAIRS * SHARED
    rank = tl.arange(0, BLOCK_R)[None, :]
    line = (channel // D * (KH * KW))[:, None] * BLOCK_R + rank

    # a thread's positions are 8 apart, so in one column
    thread = tl.arange(0, 32 * WARPS)
    local = thread // 32 * 16 + thread % 32 // 4
    column = first_column + local % TILE_W
    of_thread = (first_channel // 2 + thread % 4 * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]
    tile = (strips, all_strips, height, width)
    row_0, position_0 = places_of(local, first_strip, column, *tile, DH, ROWS, TILE_W, OFFSET)
    row_1, position_1 = places_of(local + 8, first_strip, column, *tile, DH, ROWS, TILE_W, OFFSET)
    words_0 = position_0[:, None] * (C // 2) + of_thread
    words_1 = position_1[:, None] * (C // 2) + of_thread
    places = (column, row_0, words_0, row_1, words_1)
    # the positions of a tile in order, as a product takes their features
    local = tl.arange(0, 16 * WARPS)
    column_of_tile = first_column + local % TILE_W
    row, position = places_of(local, first_strip, column_of_tile, *tile, DH, ROWS, TILE_W, OFFSET)
    of_hidden = position[:, None] * RANK + rank
    identity = tl.where(tl.arange(0, BLOCK_R)[:, None] == rank, 1.0, 0.0).to(FACTOR)

    first = top - (KH - 1) * DH if TRANSPOSED else -top
    features = ()
    sums = ()
    for r in tl.static_range(ROWS):
        if not TRANSPOSED:
            here = is_on(row + r * DH, column_of_tile, height, width)
            below = hidden + (r * DH * width).to(OFFSET) * RANK
            of_row = _features(below + of_hidden, here, RANK, BLOCK_R, HAS_BIAS, FACTOR)
            # a product with the identity is exact, and leaves the features in the registers where a product reads them
            features += (tl.dot(of_row, identity).to(FACTOR),)
        sums += (tl.zeros((32 * WARPS, 2 * NUMBERS), tl.float32),)
    for j in range(KW):
        right = j * DW - left
        if TRANSPOSED:
            right = -right
        factors = ()
        for i in tl.static_range(KH):
            tap = i * KW + j
            if TRANSPOSED:
                tap = (KH - 1 - i) * KW + j
            factors += (tl.trans(tl.load(projection + tap * BLOCK_R + line).to(FACTOR)),)
        # All threads wait here for the factors of all rows; and what a product needs besides, that the matrix units see
        # them, is done before a loop that uses them. So this is a loop, of one turn.
        tl.debug_barrier()
        for turn in range(tl.minimum(height, 1)):
            # what does not depend on the turn, as all rows of x, would be read before it
            beside = right + turn
            following = _read_row(x, first, beside, height, width, places, C, OFFSET, VECTORS, VECTOR)
            for m in tl.static_range(ROWS + KH - 1):
                down = first + m * DH
                words = following
                if m < ROWS + KH - 2:
                    following = _read_row(x, down + DH, beside, height, width, places, C, OFFSET, VECTORS, VECTOR)
                # Where an image is one strip this leaves out rows beyond the map. Besides, without a branch the
                # compiler puts all products before all sums, and runs out of registers.
                for again in range(tl.where((strips > 1) | ((down >= 0) & (down < height)), 1, 0)):
                    numbers = _numbers(words, VECTORS, VECTOR, HALF)
                    if TRANSPOSED:
                        here = is_on(row + down, column_of_tile + beside, height, width)
                        owner = hidden + ((down + again) * width + beside).to(OFFSET) * RANK + of_hidden
                        owner = _features(owner, here, RANK, BLOCK_R, HAS_BIAS, FACTOR)
                    added = ()
                    for r in tl.static_range(ROWS):
                        if m - r >= 0 and m - r < KH:
                            if not TRANSPOSED:
                                owner = features[r]
                            weights = _weights(owner, factors[m - r], WARPS, WEIGHTS, SHARED)
                            added += (tl.fma(weights, numbers, sums[r]),)
                        else:
                            added += (sums[r],)
                    sums = added

    for r in tl.static_range(ROWS):
        below = y + (r * DH * width).to(OFFSET) * (C // 2)
        blocks = _in_parts(sums[r], 2 * VECTORS, 2 * VECTOR)
        here = is_on(row_0 + r * DH, column, height, width)
        _write(below + words_0, here, blocks[:VECTORS], VECTORS, VECTOR, HALF)
        here = is_on(row_1 + r * DH, column, height, width)
        _write(below + words_1, here, blocks[VECTORS:], VECTORS, VECTOR, HALF)
