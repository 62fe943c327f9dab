"""Triton kernel for given weights of its own at every position; local_weight_launches.py launches it.

It reads every weight once, which no cache can help. So what counts is how many of them are on their way from memory at
a time, and what else the caches have to do: a warp's load costs them one step for each 128 bytes that its threads
touch, however few of these it takes. So neighboring threads have neighboring channels, and each thread has a unit of
them: `VECTOR` words of two numbers of 16 bits, or of one number, of one group or, where a word would belong to two
groups, of two. It sums them for `ROWS` rows and `COLUMNS` columns of positions in registers: a word that it has read
serves every one of them that it is a tap of. A block has one element for each thread, so Triton has no choice of how it
lies in the registers.
"""

import triton
import triton.language as tl


@triton.jit
def numbers_of(words, PARTS: tl.constexpr, HALF: tl.constexpr):
    """Words of two numbers of type `HALF`, or words that are numbers, in float32: a tuple of `PARTS`."""
    if PARTS == 1:
        return (words.to(tl.float32),)
    elif tl.float16 == HALF:
        low, high = words.to(tl.int16), (words >> 16).to(tl.int16)
        return low.to(HALF, bitcast=True).to(tl.float32), high.to(HALF, bitcast=True).to(tl.float32)
    else:
        # bfloat16 is float32 but for a shift or a mask
        return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)


@triton.jit
def word_of(low, high, HALF: tl.constexpr):
    """The inverse of `numbers_of`, rounded."""
    low = low.to(HALF).to(tl.int16, bitcast=True).to(tl.int32)
    high = high.to(HALF).to(tl.int16, bitcast=True).to(tl.int32)
    return (high << 16) | (low & 65535)


@triton.jit
def _weights(
    pointers,
    mask,
    STRIDE_G: tl.constexpr,
    IS_FULL: tl.constexpr,
    PAIRED: tl.constexpr,
    EACH: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """Weights of `EACH` neighboring groups in float32; where they are not masked, some or zero."""
    if PAIRED:
        if IS_FULL:
            return numbers_of(tl.load(pointers), 2, WEIGHT)
        else:
            return numbers_of(tl.load(pointers, mask=mask, other=0), 2, WEIGHT)
    weights = ()
    for e in tl.static_range(EACH):
        if IS_FULL:
            weights += (tl.load(pointers + e * STRIDE_G).to(tl.float32),)
        else:
            weights += (tl.load(pointers + e * STRIDE_G, mask=mask, other=0).to(tl.float32),)
    return weights


@triton.jit
def add_tap(sums, weights, numbers, NUMBERS: tl.constexpr, SHARED: tl.constexpr):
    """Sums of a position with one more tap, whose weights `SHARED` neighboring numbers share.

    A function, because Triton reads its lines once for all calls.
    """
    added = ()
    for i in tl.static_range(NUMBERS):
        added += (tl.fma(weights[i // SHARED], numbers[i], sums[i]),)
    return added


# parts of a map differ in these: each would be a kernel of its own to compile
@triton.jit(do_not_specialize=["last", "rows", "first_row", "weight_row", "strips"])
def apply_by_words(
    x,
    weight,
    y,
    last,
    rows,
    first_row,
    weight_row,
    height,
    width,
    strips,
    tiles,
    top,
    left,
    stride_b,
    stride_h,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    STRIDE_W: tl.constexpr,
    STRIDE_G: tl.constexpr,
    STRIDE_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    IS_FULL: tl.constexpr,
    PARTS: tl.constexpr,
    EACH: tl.constexpr,
    VECTOR: tl.constexpr,
    PAIRED: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """What `local_weight_kernels.apply` computes, of given weights.

    The maps y have `rows` rows each, from `first_row` on, and the weights are those of rows from `weight_row` on. Units
    of channels of tiles of columns of images are counted through, from 0 to `last`; the threads beyond do again what
    the last one does. `top` and `left` are the rows and columns of the padding before the map; transposed, after it.
    All columns are on the map if `IS_FULL`. x and y come in words of `PARTS` numbers, and weights of two groups are one
    word if `PAIRED`, which then is the unit of their strides.
    """
    WORDS: tl.constexpr = G * D // PARTS  # of a position
    NUMBERS: tl.constexpr = VECTOR * PARTS
    HALF: tl.constexpr = x.dtype.element_ty
    WEIGHT: tl.constexpr = weight.dtype.element_ty
    if PARTS == 2:
        x = x.to(tl.pointer_type(tl.int32), bitcast=True)
        y = y.to(tl.pointer_type(tl.int32), bitcast=True)
    if PAIRED:
        weight = weight.to(tl.pointer_type(tl.int32), bitcast=True)
    pid = tl.program_id(0)
    # neighboring programs have neighboring rows, which share rows of x
    strip = pid % strips
    index = tl.minimum((pid // strips).to(INDEX) * THREADS + tl.arange(0, THREADS), last)
    unit = (index % (WORDS // VECTOR)).to(tl.int32)
    tile = index // (WORDS // VECTOR)
    image = (tile // tiles).to(tl.int64)
    tile = (tile % tiles).to(tl.int32)
    first = strip // DH * (ROWS * DH) + strip % DH
    column = tile // DW * (COLUMNS * DW) + tile % DW
    # of the first of the groups, or the word of both
    group = unit if PAIRED else unit * NUMBERS // D

    x += image * height * width * WORDS + (column - left).to(tl.int64) * WORDS + unit * VECTOR
    y += image * rows * width * WORDS + column.to(tl.int64) * WORDS + unit * VECTOR
    weight += image * stride_b + group.to(tl.int64) * STRIDE_G
    if TRANSPOSED:
        weight += (column - left).to(tl.int64) * STRIDE_W
    else:
        weight += column.to(tl.int64) * STRIDE_W

    sums = ()
    for _ in tl.static_range(ROWS * COLUMNS * NUMBERS):
        sums += (tl.zeros((THREADS,), tl.float32),)
    # the first row of x that counts, if it is on the map
    above = first_row + first - top
    start = (tl.maximum(-above, 0) + DH - 1) // DH
    stop = tl.minimum((tl.maximum(height - above, 0) + DH - 1) // DH, ROWS + KH - 1)
    for m in range(start, stop):
        row = (above + m * DH).to(tl.int64)
        line = x + row * width * WORDS
        words = ()
        for n in tl.static_range(COLUMNS + KW - 1):
            source = column + (n * DW - left)
            here = (source >= 0) & (source < width)
            for v in tl.static_range(VECTOR):
                words += (tl.load(line + (n * DW * WORDS + v), mask=here, other=0),)
        for r in tl.static_range(ROWS):
            # the row of the kernel by which this row of x is a tap of row r
            i = m - r
            if (ROWS == 1) or ((i >= 0) & (i < KH) & (first + r * DH < rows)):
                if TRANSPOSED:
                    owner = row - weight_row
                    i = KH - 1 - i
                else:
                    owner = (first_row + first + r * DH - weight_row).to(tl.int64)
                taps = weight + (owner * stride_h + i.to(tl.int64) * (KW * STRIDE_K))
                for n in tl.static_range(COLUMNS + KW - 1):
                    values = ()
                    for v in tl.static_range(VECTOR):
                        values += numbers_of(words[n * VECTOR + v], PARTS, HALF)
                    source = column + (n * DW - left)
                    on_map = (source >= 0) & (source < width)
                    for c in tl.static_range(COLUMNS):
                        if n - c >= 0 and n - c < KW:
                            if TRANSPOSED:
                                pointers = taps + (n * DW * STRIDE_W + (KW - 1 - n + c) * STRIDE_K)
                                tap = _weights(pointers, on_map, STRIDE_G, False, PAIRED, EACH, WEIGHT)
                            else:
                                here = column + c * DW < width
                                pointers = taps + (c * DW * STRIDE_W + (n - c) * STRIDE_K)
                                tap = _weights(pointers, here, STRIDE_G, IS_FULL, PAIRED, EACH, WEIGHT)
                            before = sums[: (r * COLUMNS + c) * NUMBERS]
                            own = sums[(r * COLUMNS + c) * NUMBERS : (r * COLUMNS + c + 1) * NUMBERS]
                            behind = sums[(r * COLUMNS + c + 1) * NUMBERS :]
                            sums = before + add_tap(own, tap, values, NUMBERS, NUMBERS // EACH) + behind
    for r in tl.static_range(ROWS):
        row = first + r * DH
        line = y + row.to(tl.int64) * width * WORDS
        for c in tl.static_range(COLUMNS):
            here = column < tl.where(row < rows, width - c * DW, 0)
            for v in tl.static_range(VECTOR):
                result = sums[((r * COLUMNS + c) * VECTOR + v) * PARTS]
                if PARTS == 2:
                    word = word_of(result, sums[((r * COLUMNS + c) * VECTOR + v) * PARTS + 1], HALF)
                else:
                    word = result.to(HALF)
                tl.store(line + (c * DW * WORDS + v), word, mask=here)
