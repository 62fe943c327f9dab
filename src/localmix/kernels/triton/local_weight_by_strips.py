"""Triton kernel for weights made of hidden features, whole groups to a thread; local_weight_launches.py launches it.

A thread owns a strip of `ROWS` positions of one column, a dilation apart, and all channels of some groups: a weight is
made once, and a row of x that was read serves the whole strip. As in local_weight_by_rows.py weights are used in the
registers in which the matrix units leave them. There a thread has two lines of every 16 of a product, 8 apart, and two
columns of every 8. So the positions of a product are put in such an order that the two lines are rows of one strip, and
the lines of the projection in such an order that the columns are groups side by side.

Channels of a group need not be a power of two, so numbers of a thread are blocks of their own, of one each.
"""

import triton
import triton.language as tl

from localmix.kernels.triton.local_weight_by_rows import is_on, places_of
from localmix.kernels.triton.local_weight_by_words import add_tap, numbers_of, word_of


@triton.jit
def _apart(block, NUMBER: tl.constexpr):
    """The numbers of a block [threads, `NUMBER`], a power of two of them, as a tuple of blocks [threads]."""
    parts = (block,)
    for level in tl.static_range(6):
        if NUMBER >> level > 1:
            even = ()
            odd = ()
            for i in tl.static_range(1 << level):
                pairs = tl.reshape(parts[i], (block.shape[0], NUMBER >> (level + 1), 2))
                of_even, of_odd = tl.split(pairs)
                even += (of_even,)
                odd += (of_odd,)
            parts = even + odd
    flat = ()
    for i in tl.static_range(NUMBER):
        flat += (tl.reshape(parts[i], (block.shape[0],)),)
    return flat


@triton.jit
def _side_by_side(parts, NUMBER: tl.constexpr):
    """The inverse of `_apart`, of 2 or 4 numbers."""
    if NUMBER == 2:
        return tl.join(parts[0], parts[1])
    else:
        pairs = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        return tl.reshape(pairs, (pairs.shape[0], 4))


@triton.jit
def _read(pointers, here, VECTORS: tl.constexpr, VECTOR: tl.constexpr):
    """A thread's words of x: for every vector a block [threads, `VECTOR`]; zero off the map."""
    words = ()
    for v in tl.static_range(VECTORS):
        words += (tl.load(pointers + v * VECTOR, mask=here[:, None], other=0),)
    return words


@triton.jit
def _numbers(words, VECTORS: tl.constexpr, VECTOR: tl.constexpr, HALF: tl.constexpr):
    """Words as a tuple of numbers in float32."""
    numbers = ()
    for v in tl.static_range(VECTORS):
        low, high = numbers_of(words[v], 2, HALF)
        low = _apart(low, VECTOR)
        high = _apart(high, VECTOR)
        for i in tl.static_range(VECTOR):
            numbers += (low[i], high[i])
    return numbers


@triton.jit
def _features_of_thread(
    pointers, here, first, NUMBER: tl.constexpr, RANK: tl.constexpr, HAS_BIAS: tl.constexpr, FACTOR: tl.constexpr
):
    """Block [threads, features] of hidden: a fourth of `NUMBER` features of a position, 8 of every 32."""
    of_thread = tl.arange(0, pointers.shape[0]) % 4 * 8
    blocks = ()
    for v in tl.static_range(NUMBER // 32):
        rank = first + v * 32 + of_thread[:, None] + tl.arange(0, 8)[None, :]
        block = tl.load(pointers[:, None] + rank, mask=here[:, None] & (rank < RANK), other=0).to(FACTOR)
        if HAS_BIAS:
            block = tl.where(rank == RANK, 1.0, block).to(FACTOR)
        blocks += (block,)
    for level in tl.static_range(3):
        if NUMBER // 32 >> level > 1:
            joined = ()
            for i in tl.static_range(NUMBER // 64 >> level):
                pair = tl.permute(tl.join(blocks[2 * i], blocks[2 * i + 1]), (0, 2, 1))
                joined += (tl.reshape(pair, (pair.shape[0], 16 << level)),)
            blocks = joined
    return blocks[0]


@triton.jit
def _features_of_two(
    upper,
    lower,
    upper_here,
    lower_here,
    first,
    NUMBER: tl.constexpr,
    RANK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Block [lines of a product, `NUMBER` features], read by the threads in whose registers a product reads them.

    There a thread has four numbers of every 16 of each of two lines: pairs, 8 apart. They are features that lie side by
    side in memory, as the second factor has its lines in that order too.
    """
    upper = _features_of_thread(upper, upper_here, first, NUMBER, RANK, HAS_BIAS, FACTOR)
    lower = _features_of_thread(lower, lower_here, first, NUMBER, RANK, HAS_BIAS, FACTOR)
    both = tl.reshape(tl.join(upper, lower), (WARPS, 8, 4, NUMBER // 16, 2, 2, 2))
    return tl.reshape(tl.permute(both, (0, 6, 1, 3, 4, 2, 5)), (16 * WARPS, NUMBER))


@triton.jit
def apply_by_strips(
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
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_W: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SHARED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
):
    """What `local_weight_kernels.apply` computes, not transposed, of made weights.

    Lines of the projection are `BLOCK_R` numbers; the one after `RANK` of them is of the bias, the others are zero. As
    a block has a power of two of them, features are in parts, whose sizes are the powers that sum up to `BLOCK_R`. Of
    every 32 the digits (thread, pair, number) have become (pair, thread, number), for the 4 threads of a position that
    have 4 pairs each: `_features_of_two` says why.

    A tile is 8 columns of a strip for each warp: so many of all strips of all images, `strips` of each, by `TILE_W`
    columns, a divisor of 8. A program makes `WEIGHTS` weights of a position, each for `SHARED` channels of one group,
    and those of `TAPS` taps by one product. Integers of the type `OFFSET` reach all of the images of a tile.
    """
    C: tl.constexpr = G * D
    OWN: tl.constexpr = WEIGHTS // 4  # of a position that a thread has
    NUMBERS: tl.constexpr = OWN * SHARED
    VECTOR: tl.constexpr = 4 if NUMBERS % 8 == 0 else 2  # words that it reads at a time
    VECTORS: tl.constexpr = NUMBERS // (2 * VECTOR)
    BLOCKS: tl.constexpr = C // (WEIGHTS * SHARED)
    PARTS: tl.constexpr = BLOCK_R // 16 % 2 + BLOCK_R // 32 % 2 + BLOCK_R // 64 % 2 + BLOCK_R // 128 % 2
    THREADS: tl.constexpr = 32 * WARPS
    HALF: tl.constexpr = x.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    first_channel = (pid % BLOCKS).to(tl.int32) * (WEIGHTS * SHARED)
    pid = pid // BLOCKS
    first_column = (pid % tiles_w).to(tl.int32) * TILE_W
    first_strip = pid // tiles_w * (8 * WARPS // TILE_W)
    before = first_strip // strips * height * width
    hidden += before * RANK
    x = (x + before * C).to(tl.pointer_type(tl.int32), bitcast=True)
    y = (y + before * C).to(tl.pointer_type(tl.int32), bitcast=True)

    # of the columns of a product, for each tap: two neighbors are of one thread, the next two of the next thread
    of_product = tl.arange(0, TAPS * WEIGHTS)
    of_tap = of_product % WEIGHTS
    channel = first_channel + of_tap // 2 % 4 * NUMBERS + (of_tap // 8 * 2 + of_tap % 2) * SHARED
    line = channel // D * (KH * KW)
    tap_of_product = of_product // WEIGHTS

    tile = (strips, all_strips, height, width)
    thread = tl.arange(0, THREADS)
    local = thread // 4
    column = first_column + local % TILE_W
    row, position = places_of(local, first_strip, column, *tile, DH, ROWS, TILE_W, OFFSET)
    words = position * (C // 2) + first_channel // 2 + thread % 4 * (NUMBERS // 2)
    words = words[:, None] + tl.arange(0, VECTOR)[None, :]
    # the lines of a product are, for each column, two rows of its strip
    features = ()
    for t in tl.static_range(ROWS // 2):
        upper = hidden + position * RANK + (2 * t * DH * width).to(OFFSET) * RANK
        lower = upper + (DH * width).to(OFFSET) * RANK
        upper_here = is_on(row + 2 * t * DH, column, height, width)
        lower_here = is_on(row + (2 * t + 1) * DH, column, height, width)
        owners = (upper, lower, upper_here, lower_here)
        for level in tl.static_range(4):
            if BLOCK_R & (128 >> level):
                # larger parts are before this one
                begin = BLOCK_R // (256 >> level) * (256 >> level)
                features += (_features_of_two(*owners, begin, 128 >> level, RANK, HAS_BIAS, FACTOR, WARPS),)

    sums = (tl.zeros((THREADS,), tl.float32),) * (ROWS * NUMBERS)
    for j in range(KW):
        right = j * DW - left
        pointers = x + (right - top * width).to(OFFSET) * (C // 2) + words
        following = _read(pointers, is_on(row - top, column + right, height, width), VECTORS, VECTOR)
        factors = ()
        for i in tl.static_range((KH + TAPS - 1) // TAPS):
            # beyond the last tap there are weights that are not used
            tap = line + tl.minimum(i * TAPS + tap_of_product, KH - 1) * KW + j
            for level in tl.static_range(4):
                if BLOCK_R & (128 >> level):
                    of_rank = BLOCK_R // (256 >> level) * (256 >> level) + tl.arange(0, 128 >> level)
                    factor = tl.load(projection + tap[:, None] * BLOCK_R + of_rank[None, :])
                    factors += (tl.trans(factor.to(FACTOR)),)
        # All threads wait here for the factors of all rows; and what a product needs besides, that the matrix units see
        # them, is done before a loop that uses them. So this is a loop, of one turn.
        tl.debug_barrier()
        for turn in range(tl.minimum(height, 1)):
            # what does not depend on the turn, as all rows of x, would be read before it
            beside = right + turn
            # for every two rows of a strip, the weights that their last product made, and those of the one before
            made = ((),) * (ROWS // 2)
            earlier = made
            for m in tl.static_range(ROWS + KH - 1):
                read = following
                if m < ROWS + KH - 2:
                    down = (m + 1) * DH - top
                    pointers = x + (down * width + beside).to(OFFSET) * (C // 2) + words
                    following = _read(pointers, is_on(row + down, column + beside, height, width), VECTORS, VECTOR)
                if m % TAPS == 0:
                    earlier = made
                    made = ()
                    for t in tl.static_range(ROWS // 2):
                        if m - 2 * t >= 0 and m - 2 * t < KH:
                            product = tl.dot(features[t * PARTS], factors[(m - 2 * t) // TAPS * PARTS])
                            for part in tl.static_range(1, PARTS):
                                product = tl.dot(
                                    features[t * PARTS + part], factors[(m - 2 * t) // TAPS * PARTS + part], product
                                )
                            product = tl.reshape(product, (WARPS, 2, 8, TAPS * WEIGHTS // 8, 4, 2))
                            product = tl.reshape(tl.permute(product, (0, 2, 4, 1, 3, 5)), (THREADS, 2 * TAPS * OWN))
                            made += (_apart(product, 2 * TAPS * OWN),)
                        else:
                            made += ((),)
                # Without a branch the compiler reads too many rows of x ahead, and runs out of registers. It leaves out
                # one on the height, as in the loop around this one.
                for _again in range(tl.minimum(width, 1)):
                    numbers = _numbers(read, VECTORS, VECTOR, HALF)
                    added = ()
                    for r in tl.static_range(ROWS):
                        of_row = sums[r * NUMBERS : (r + 1) * NUMBERS]
                        if m - r >= 0 and m - r < KH:
                            # of a product the weights of the upper rows are first, those of one tap before the next
                            if r % 2 == 0 or m % TAPS > 0:
                                weights = made[r // 2][(r % 2 * TAPS + (m - r) % TAPS) * OWN :]
                            else:
                                weights = earlier[r // 2][(2 * TAPS - 1) * OWN :]
                            of_row = add_tap(of_row, weights[:OWN], numbers, NUMBERS, SHARED)
                        added += of_row
                    sums = added

    for r in tl.static_range(ROWS):
        here = is_on(row + r * DH, column, height, width)
        below = y + (r * DH * width).to(OFFSET) * (C // 2) + words
        for v in tl.static_range(VECTORS):
            of_vector = ()
            for i in tl.static_range(VECTOR):
                low, high = sums[r * NUMBERS + (v * VECTOR + i) * 2], sums[r * NUMBERS + (v * VECTOR + i) * 2 + 1]
                of_vector += (word_of(low, high, HALF),)
            tl.store(below + v * VECTOR, _side_by_side(of_vector, VECTOR), mask=here[:, None])


@triton.jit
def apply_transposed_by_strips(
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
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_W: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SHARED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
):
    """`apply_by_strips`, transposed: weights are those of the positions that x is read from.

    So the lines of a product are, for each column, two rows of x, and their features are read with these.
    """
    C: tl.constexpr = G * D
    OWN: tl.constexpr = WEIGHTS // 4  # of a position that a thread has
    NUMBERS: tl.constexpr = OWN * SHARED
    VECTOR: tl.constexpr = 4 if NUMBERS % 8 == 0 else 2  # words that it reads at a time
    VECTORS: tl.constexpr = NUMBERS // (2 * VECTOR)
    BLOCKS: tl.constexpr = C // (WEIGHTS * SHARED)
    PARTS: tl.constexpr = BLOCK_R // 16 % 2 + BLOCK_R // 32 % 2 + BLOCK_R // 64 % 2 + BLOCK_R // 128 % 2
    PRODUCTS: tl.constexpr = (KH + TAPS - 1) // TAPS  # for a column of the kernel
    LAST: tl.constexpr = ROWS + KH - 2  # row of x of a strip
    THREADS: tl.constexpr = 32 * WARPS
    HALF: tl.constexpr = x.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    first_channel = (pid % BLOCKS).to(tl.int32) * (WEIGHTS * SHARED)
    pid = pid // BLOCKS
    first_column = (pid % tiles_w).to(tl.int32) * TILE_W
    first_strip = pid // tiles_w * (8 * WARPS // TILE_W)
    before = first_strip // strips * height * width
    hidden += before * RANK
    x = (x + before * C).to(tl.pointer_type(tl.int32), bitcast=True)
    y = (y + before * C).to(tl.pointer_type(tl.int32), bitcast=True)

    # of the columns of a product, for each tap: two neighbors are of one thread, the next two of the next thread
    of_product = tl.arange(0, TAPS * WEIGHTS)
    of_tap = of_product % WEIGHTS
    channel = first_channel + of_tap // 2 % 4 * NUMBERS + (of_tap // 8 * 2 + of_tap % 2) * SHARED
    line = channel // D * (KH * KW)
    tap_of_product = of_product // WEIGHTS

    thread = tl.arange(0, THREADS)
    local = thread // 4
    column = first_column + local % TILE_W
    tile = (strips, all_strips, height, width)
    row, position = places_of(local, first_strip, column, *tile, DH, ROWS, TILE_W, OFFSET)
    words = position * (C // 2) + first_channel // 2 + thread % 4 * (NUMBERS // 2)
    words = words[:, None] + tl.arange(0, VECTOR)[None, :]
    owner = hidden + position * RANK

    sums = (tl.zeros((THREADS,), tl.float32),) * (ROWS * NUMBERS)
    first = top - (KH - 1) * DH
    for j in range(KW):
        right = left - j * DW
        factors = ()
        for i in tl.static_range(PRODUCTS):
            # beyond the last tap there are weights that are not used
            tap = line + tl.maximum(KH - 1 - i * TAPS - tap_of_product, 0) * KW + j
            for level in tl.static_range(4):
                if BLOCK_R & (128 >> level):
                    of_rank = BLOCK_R // (256 >> level) * (256 >> level) + tl.arange(0, 128 >> level)
                    factor = tl.load(projection + tap[:, None] * BLOCK_R + of_rank[None, :])
                    factors += (tl.trans(factor.to(FACTOR)),)
        # all threads wait here, and a product then needs nothing besides, as in `apply_by_strips`
        tl.debug_barrier()
        for turn in range(tl.minimum(height, 1)):
            # what does not depend on the turn would be read before it
            beside = right + turn
            for m in tl.static_range(0, LAST + 1, 2):
                above = first + m * DH
                upper = (above * width + beside).to(OFFSET)
                lower = (above * width + beside + DH * width).to(OFFSET)
                upper_here = is_on(row + above, column + beside, height, width)
                lower_here = is_on(row + above + DH, column + beside, height, width)
                words_of_two = (_read(x + upper * (C // 2) + words, upper_here, VECTORS, VECTOR),)
                if m < LAST:
                    words_of_two += (_read(x + lower * (C // 2) + words, lower_here, VECTORS, VECTOR),)
                features = ()
                for level in tl.static_range(4):
                    if BLOCK_R & (128 >> level):
                        # larger parts are before this one
                        begin = BLOCK_R // (256 >> level) * (256 >> level)
                        owners = (owner + upper * RANK, owner + lower * RANK, upper_here, lower_here)
                        features += (_features_of_two(*owners, begin, 128 >> level, RANK, HAS_BIAS, FACTOR, WARPS),)
                numbers = ()
                for h in tl.static_range(2):
                    if m + h <= LAST:
                        numbers += (_numbers(words_of_two[h], VECTORS, VECTOR, HALF),)
                for i in tl.static_range(PRODUCTS):
                    # the taps of a product from the first on, and those by which two rows of x reach the strip
                    if i * TAPS <= m + 1 and (i + 1) * TAPS > m - ROWS + 1:
                        product = tl.dot(features[0], factors[i * PARTS])
                        for part in tl.static_range(1, PARTS):
                            product = tl.dot(features[part], factors[i * PARTS + part], product)
                        product = tl.reshape(product, (WARPS, 2, 8, TAPS * WEIGHTS // 8, 4, 2))
                        product = tl.reshape(tl.permute(product, (0, 2, 4, 1, 3, 5)), (THREADS, 2 * TAPS * OWN))
                        made = _apart(product, 2 * TAPS * OWN)
                        # a branch, as in `apply_by_strips`
                        for _again in range(tl.minimum(width, 1)):
                            added = ()
                            for r in tl.static_range(ROWS):
                                of_row = sums[r * NUMBERS : (r + 1) * NUMBERS]
                                for h in tl.static_range(2):
                                    if m + h - r >= i * TAPS and m + h - r < min(KH, (i + 1) * TAPS):
                                        weights = made[(h * TAPS + m + h - r - i * TAPS) * OWN :]
                                        of_row = add_tap(of_row, weights[:OWN], numbers[h], NUMBERS, SHARED)
                                added += of_row
                            sums = added

    for r in tl.static_range(ROWS):
        here = is_on(row + r * DH, column, height, width)
        below = y + (r * DH * width).to(OFFSET) * (C // 2) + words
        for v in tl.static_range(VECTORS):
            of_vector = ()
            for i in tl.static_range(VECTOR):
                low, high = sums[r * NUMBERS + (v * VECTOR + i) * 2], sums[r * NUMBERS + (v * VECTOR + i) * 2 + 1]
                of_vector += (word_of(low, high, HALF),)
            tl.store(below + v * VECTOR, _side_by_side(of_vector, VECTOR), mask=here[:, None])
