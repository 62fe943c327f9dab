"""Triton kernel for the gradient of weights of its own at every position; local_weight_gradients.py launches it.

Each number of it is a sum over the few channels of a group, so what counts is how often x is read and turned into
float32. A program owns a strip of `ROWS` rows that are a dilation apart: a row of x that it has read serves every one
of them that it is a tap of. The taps of a kernel column are unrolled, the columns are a loop.

A thread has whole positions and `EACH` neighboring groups, so that it sums their channels alone and writes their
results, where these lie side by side, as one word. Two neighboring channels of bfloat16 are read as one word
(`PARTS` is 2; see shared_weight_kernels.py), up to four words at a time (`VECTOR`).
"""

import triton
import triton.language as tl


@triton.jit
def _read(
    pointers,
    mask,
    start,
    PIECES: tl.constexpr,
    STRIDE: tl.constexpr,
    EACH: tl.constexpr,
    VECTOR: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Blocks [positions, units] of float32: for each of `EACH` groups, `STRIDE` words apart, `PIECES` vectors."""
    numbers = ()
    for piece in tl.static_range(EACH * PIECES):
        first = start + piece // PIECES * STRIDE + piece % PIECES * VECTOR
        if VECTOR == 1:
            words = (tl.load(pointers + first, mask=mask, other=0),)
        else:
            lanes = first + tl.arange(0, VECTOR)
            block = tl.load(pointers[:, :, None] + lanes[None, None, :], mask=mask[:, :, None], other=0)
            if VECTOR == 2:
                words = tl.split(block)
            else:
                even, odd = tl.split(tl.reshape(block, (BLOCK_W, BLOCK_U, 2, 2)))
                a, c = tl.split(even)
                b, d = tl.split(odd)
                words = (a, b, c, d)
        for v in tl.static_range(VECTOR):
            if PARTS == 1:
                numbers += (words[v].to(tl.float32),)
            else:
                # two numbers of bfloat16: float32 but for a shift or a mask
                low = (words[v] << 16).to(tl.float32, bitcast=True)
                numbers += (low, (words[v] & -65536).to(tl.float32, bitcast=True))
    return numbers


# parts of a gradient differ in these: each would be a kernel of its own to compile
@triton.jit(do_not_specialize=["rows", "first_row", "strips", "shares"])
def weight_gradient(
    gradient,
    x,
    of_weight,
    rows,
    first_row,
    height,
    width,
    strips,
    tiles,
    blocks,
    shares,
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
    EACH: tl.constexpr,
    PARTS: tl.constexpr,
    VECTOR: tl.constexpr,
    PIECES: tl.constexpr,
    OFFSET: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """of_weight[p, g, k] = sum over the channels of group g of gradient[p] * x[p + k].

    Gradient and of_weight have `rows` rows of each map, from `first_row` on. Units of `EACH` groups are read in blocks
    of `EACH` times `PIECES` vectors. A program does some of the kernel columns: one in so many `shares`.
    """
    WORDS: tl.constexpr = G * D // PARTS  # of a position
    # of a block, of a group; a word may belong to two groups where all is read as one group
    IN_ONE: tl.constexpr = PIECES * VECTOR * PARTS > D
    STRIDE: tl.constexpr = D // PARTS
    BLOCKS: tl.constexpr = 1 if IN_ONE else D // (PIECES * VECTOR * PARTS)
    READ: tl.constexpr = 1 if IN_ONE else EACH
    NUMBERS: tl.constexpr = READ * PIECES * VECTOR * PARTS

    pid = tl.program_id(0).to(tl.int64)
    unit = (pid % blocks).to(tl.int32) * BLOCK_U + tl.arange(0, BLOCK_U)
    pid = pid // blocks
    share = (pid % shares).to(tl.int32)
    pid = pid // shares
    column = (pid % tiles).to(OFFSET) * BLOCK_W + tl.arange(0, BLOCK_W)
    pid = pid // tiles
    strip = (pid % strips).to(tl.int32)
    image = pid // strips
    first = strip // DH * (ROWS * DH) + strip % DH
    in_units = unit < G // EACH
    gradient += image * rows * width * WORDS
    x += image * height * width * WORDS
    of_weight += image * stride_b
    word = unit * (EACH * D // PARTS)
    of_position = column[:, None] * WORDS + word[None, :]
    of_result = column[:, None] * stride_w + (unit.to(OFFSET) * (EACH * stride_g))[None, :]

    if BLOCKS == 1:
        own = ()
        for r in tl.static_range(ROWS):
            row = first + r * DH
            here = (column < tl.where(row < rows, width, 0))[:, None] & in_units[None, :]
            line = gradient + row.to(tl.int64) * width * WORDS
            own += _read(line + of_position, here, 0, PIECES, STRIDE, READ, VECTOR, PARTS, BLOCK_W, BLOCK_U)
    for step in range(share, (KH + STEP - 1) // STEP * KW, shares):
        i = step // KW * STEP
        j = step % KW
        source = column + (j * DW - left)
        of_source = source[:, None] * WORDS + word[None, :]
        inside = (source >= 0)[:, None] & in_units[None, :]
        sums = ()
        for _ in tl.static_range(ROWS * STEP * EACH):
            sums += (tl.zeros((BLOCK_W, BLOCK_U), tl.float32),)
        for block in range(BLOCKS):
            start = block * (PIECES * VECTOR)
            if BLOCKS > 1:
                own = ()
                for r in tl.static_range(ROWS):
                    row = first + r * DH
                    here = (column < tl.where(row < rows, width, 0))[:, None] & in_units[None, :]
                    line = gradient + row.to(tl.int64) * width * WORDS
                    own += _read(line + of_position, here, start, PIECES, STRIDE, READ, VECTOR, PARTS, BLOCK_W, BLOCK_U)
            for m in tl.static_range(ROWS + STEP - 1):
                row = first_row + first + (i + m) * DH - top
                here = inside & (source < tl.where((row >= 0) & (row < height), width, 0))[:, None]
                line = x + row.to(tl.int64) * width * WORDS
                values = _read(line + of_source, here, start, PIECES, STRIDE, READ, VECTOR, PARTS, BLOCK_W, BLOCK_U)
                added = ()
                for r in tl.static_range(ROWS):
                    for t in tl.static_range(STEP):
                        for e in tl.static_range(EACH):
                            total = sums[(r * STEP + t) * EACH + e]
                            if m == r + t:
                                for n in tl.static_range(e * NUMBERS // EACH, (e + 1) * NUMBERS // EACH):
                                    total += own[r * NUMBERS + n] * values[n]
                            added += (total,)
                sums = added
        for r in tl.static_range(ROWS):
            row = first + r * DH
            results = of_weight + row.to(tl.int64) * stride_h + of_result
            for t in tl.static_range(STEP):
                tap = (i + t) * KW + j
                # the last taps may be beyond the kernel
                mask = (column < tl.where((row < rows) & (i + t < KH), width, 0))[:, None] & in_units[None, :]
                pointers = results + tap.to(tl.int64) * stride_k
                result = sums[(r * STEP + t) * EACH]
                if EACH == 2:
                    result = tl.join(result, sums[(r * STEP + t) * EACH + 1])
                    pointers = pointers[:, :, None] + (tl.arange(0, 2) * stride_g)[None, None, :]
                    mask = mask[:, :, None]
                tl.store(pointers, result.to(of_weight.dtype.element_ty), mask=mask)
