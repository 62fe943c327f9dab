"""Triton kernel for the gradient of weights of its own at every position; local_weight_gradients.py launches it.

Each number of it is a sum over the few channels of a group, so what counts is how often x is read and turned into
float32, and how many lines of memory a load or store touches. A thread has one column of a strip of `ROWS` rows that
are a dilation apart: a row of x that it has read serves every one of them that it is a tap of. The taps of a kernel
column are unrolled, the columns are a loop.

Neighboring threads have neighboring units of `EACH` groups, so that what a warp writes of a tap lies side by side where
the groups are innermost; as in local_weight_by_words.py, a block has one element for each thread. Two neighboring
channels of 16 bits are read as one word (`PARTS` is 2), up to four words at a time (`VECTOR`).
"""

import triton
import triton.language as tl

from localmix.kernels.triton.local_weight_by_words import numbers_of


@triton.jit
def _read(
    pointers,
    mask,
    start,
    PIECES: tl.constexpr,
    VECTOR: tl.constexpr,
    PARTS: tl.constexpr,
    HALF: tl.constexpr,
    THREADS: tl.constexpr,
):
    """`PIECES` vectors of words from `start` on, in float32: a tuple of blocks."""
    numbers = ()
    for piece in tl.static_range(PIECES):
        first = start + piece * VECTOR
        if VECTOR == 1:
            words = (tl.load(pointers + first, mask=mask, other=0),)
        else:
            lanes = first + tl.arange(0, VECTOR)
            block = tl.load(pointers[:, None] + lanes[None, :], mask=mask[:, None], other=0)
            if VECTOR == 2:
                words = tl.split(block)
            else:
                even, odd = tl.split(tl.reshape(block, (THREADS, 2, 2)))
                a, c = tl.split(even)
                b, d = tl.split(odd)
                words = (a, b, c, d)
        for v in tl.static_range(VECTOR):
            numbers += numbers_of(words[v], PARTS, HALF)
    return numbers


@triton.jit
def _add_products(sums, own, values, NUMBERS: tl.constexpr, EACH: tl.constexpr):
    """Sums of `EACH` groups with the products of their numbers. A function: Triton reads its lines once for all."""
    added = ()
    for e in tl.static_range(EACH):
        total = sums[e]
        for n in tl.static_range(e * NUMBERS // EACH, (e + 1) * NUMBERS // EACH):
            total = tl.fma(own[n], values[n], total)
        added += (total,)
    return added


# parts of a gradient differ in these: each would be a kernel of its own to compile
@triton.jit(do_not_specialize=["last", "rows", "first_row", "strips", "shares"])
def weight_gradient(
    gradient,
    x,
    of_weight,
    last,
    rows,
    first_row,
    height,
    width,
    strips,
    shares,
    top,
    left,
    stride_b,
    stride_h,
    stride_w,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    STRIDE_G: tl.constexpr,
    STRIDE_K: tl.constexpr,
    PARTS: tl.constexpr,
    EACH: tl.constexpr,
    VECTOR: tl.constexpr,
    PIECES: tl.constexpr,
    INDEX: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """of_weight[p, g, k] = sum over the channels of group g of gradient[p] * x[p + k].

    Gradient and of_weight have `rows` rows of each map, from `first_row` on. Units of `EACH` groups of all columns of
    all images are counted through, from 0 to `last`; the threads beyond do again what the last one does. Units are read
    in blocks of `PIECES` vectors. A program does some of the kernel columns: one in so many `shares`.
    """
    WORDS: tl.constexpr = G * D // PARTS  # of a position
    IN_UNIT: tl.constexpr = EACH * D // PARTS
    BLOCKS: tl.constexpr = IN_UNIT // (PIECES * VECTOR)
    NUMBERS: tl.constexpr = PIECES * VECTOR * PARTS
    HALF: tl.constexpr = x.dtype.element_ty
    if PARTS == 2:
        x = x.to(tl.pointer_type(tl.int32), bitcast=True)
        gradient = gradient.to(tl.pointer_type(tl.int32), bitcast=True)
    pid = tl.program_id(0)
    # neighboring programs have neighboring rows, which share rows of x
    strip = pid % strips
    pid = pid // strips
    share = pid % shares
    index = tl.minimum((pid // shares).to(INDEX) * THREADS + tl.arange(0, THREADS), last)
    unit = (index % (G // EACH)).to(tl.int32)
    index = index // (G // EACH)
    column = (index % width).to(tl.int32)
    image = (index // width).to(tl.int64)
    first = strip // DH * (ROWS * DH) + strip % DH

    offset = column.to(tl.int64) * WORDS + unit * IN_UNIT
    gradient += image * rows * width * WORDS + offset
    x += image * height * width * WORDS + offset
    of_weight += image * stride_b + column.to(tl.int64) * stride_w + unit.to(tl.int64) * (EACH * STRIDE_G)

    if BLOCKS == 1:
        own = ()
        for r in tl.static_range(ROWS):
            row = first + r * DH
            here = column < tl.where(row < rows, width, 0)
            own += _read(gradient + row.to(tl.int64) * width * WORDS, here, 0, PIECES, VECTOR, PARTS, HALF, THREADS)
    for step in range(share, (KH + STEP - 1) // STEP * KW, shares):
        i = step // KW * STEP
        j = step % KW
        source = column + (j * DW - left)
        sums = ()
        for _ in tl.static_range(ROWS * STEP * EACH):
            sums += (tl.zeros((THREADS,), tl.float32),)
        for block in range(BLOCKS):
            start = block * (PIECES * VECTOR)
            if BLOCKS > 1:
                own = ()
                for r in tl.static_range(ROWS):
                    row = first + r * DH
                    here = column < tl.where(row < rows, width, 0)
                    line = gradient + row.to(tl.int64) * width * WORDS
                    own += _read(line, here, start, PIECES, VECTOR, PARTS, HALF, THREADS)
            for m in tl.static_range(ROWS + STEP - 1):
                row = first_row + first + (i + m) * DH - top
                here = (source >= 0) & (source < tl.where((row >= 0) & (row < height), width, 0))
                line = x + (row.to(tl.int64) * width + (j * DW - left)) * WORDS
                values = _read(line, here, start, PIECES, VECTOR, PARTS, HALF, THREADS)
                for r in tl.static_range(ROWS):
                    if m - r >= 0 and m - r < STEP:
                        before, of_row = sums[: (r * STEP + m - r) * EACH], own[r * NUMBERS : (r + 1) * NUMBERS]
                        of_tap = sums[(r * STEP + m - r) * EACH : (r * STEP + m - r + 1) * EACH]
                        behind = sums[(r * STEP + m - r + 1) * EACH :]
                        sums = before + _add_products(of_tap, of_row, values, NUMBERS, EACH) + behind
        for r in tl.static_range(ROWS):
            row = first + r * DH
            results = of_weight + (row.to(tl.int64) * stride_h + (i * KW + j).to(tl.int64) * STRIDE_K)
            for t in tl.static_range(STEP):
                # the last taps may be beyond the kernel
                mask = column < tl.where((row < rows) & (i + t < KH), width, 0)
                pointers = results + t * KW * STRIDE_K
                result = sums[(r * STEP + t) * EACH]
                if EACH == 2:
                    result = tl.join(result, sums[(r * STEP + t) * EACH + 1])
                    pointers = pointers[:, None] + (tl.arange(0, 2) * STRIDE_G)[None, :]
                    mask = mask[:, None]
                tl.store(pointers, result.to(of_weight.dtype.element_ty), mask=mask)
