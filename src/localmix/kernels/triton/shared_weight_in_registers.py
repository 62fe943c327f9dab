"""Triton kernels for weights shared over positions, all taps in registers; shared_weight_launches.py launches them.

Blocks are [units, channels] with one number for every thread of a program, so the lanes of a warp read channels side by
side. A unit is a tile of `COLUMNS` columns of a strip of rows of an image, a dilation apart; the units of a program are
in one strip. A thread goes down the strip with the taps of its channel and the sums of the last `KH` rows of its tile,
and reads each number of x once: of 7 x 7 taps and 7 columns 13 numbers a row for 343 multiplications. A row is read
before the one above it is used.
"""

import triton
import triton.language as tl


@triton.jit
def _dot(total, values, factors, FIRST: tl.constexpr, END: tl.constexpr):
    """`total` and the products of two tuples. A function, because Triton reads its lines once for all calls."""
    for i in tl.static_range(FIRST, END):
        total = tl.fma(values[i], factors[i], total)
    return total


@triton.jit
def _taps_of(
    weight,
    channel,
    C: tl.constexpr,
    K: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Taps of channels [1, `BLOCK_C`]: a tuple of blocks, each thread with those of its own channel.

    They are read as they lie, tap by tap, and change threads through shared memory.
    """
    tap = tl.arange(0, BLOCK_K)[None, None, :]
    lines = weight + (channel[:, :, None] * K + tap) + tl.zeros((UNITS, 1, 1), tl.int32)
    blocks = (tl.load(lines, mask=(channel[:, :, None] < C) & (tap < K), other=0),)
    for level in tl.static_range(7):
        if BLOCK_K >> level > 1:
            halves = ()
            for i in tl.static_range(1 << level):
                pair = tl.reshape(blocks[i], (UNITS, BLOCK_C, 2, BLOCK_K >> (level + 1)))
                left, right = tl.split(tl.permute(pair, (0, 1, 3, 2)))
                halves += (left, right)
            blocks = halves
    factors = ()
    for i in tl.static_range(K):
        factors += (tl.reshape(blocks[i], (UNITS, BLOCK_C)).to(tl.float32),)
    return factors


@triton.jit
def _units(index, units, tiles, DW: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr):
    """Image and first column [units, 1] of some units, and which there are."""
    unit = index * UNITS + tl.arange(0, UNITS)[:, None]
    tile = unit % tiles
    return unit // tiles, tile // DW * (COLUMNS * DW) + tile % DW, unit < units


@triton.jit
def _first_row(strip, rows, DH: tl.constexpr):
    return strip // DH * (rows * DH) + strip % DH


@triton.jit
def _sources(first_row, rows, height, KH: tl.constexpr, DH: tl.constexpr, TOP: tl.constexpr):
    """First row of x on the map and end of those that a strip reads, counted from its first one, perhaps above it."""
    begin = (tl.maximum(TOP - first_row, 0) + DH - 1) // DH
    return begin, tl.minimum(rows + KH - 1, (height + TOP - first_row + DH - 1) // DH)


@triton.jit
def _read_row(
    x,
    row,
    height,
    first,
    width,
    real,
    DW: tl.constexpr,
    OFFSET: tl.constexpr,
    C: tl.constexpr,
    NUMBER: tl.constexpr,
    LEFT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """So many columns of a row, from the first ones on, where x points: a tuple; 0 outside of the map.

    Of a map that is one tile of `WIDTH` columns, `LEFT` after the first, no others are read.
    """
    of_row = x + row.to(OFFSET) * width * C
    width = tl.where((row >= 0) & (row < height), width, 0)
    is_row = real & (tl.zeros(real.shape, tl.int32) < width)
    numbers = ()
    for s in tl.static_range(NUMBER):
        if WIDTH == 0:
            # without sign, what is before the map is far behind it: one comparison instead of two
            here = real & ((first + s * DW).to(tl.uint32) < width.to(tl.uint32))
            numbers += (tl.load(of_row + s * DW * C, mask=here, other=0).to(tl.float32),)
        elif s >= LEFT and s < LEFT + WIDTH:
            numbers += (tl.load(of_row + s * DW * C, mask=is_row, other=0).to(tl.float32),)
        else:
            numbers += (tl.zeros(real.shape, tl.float32),)
    return numbers


@triton.jit
def _write_row(
    y,
    numbers,
    row,
    height,
    first,
    width,
    real,
    DW: tl.constexpr,
    OFFSET: tl.constexpr,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes a row of tiles where it is on the map."""
    of_row = y + row.to(OFFSET) * width * C
    width = tl.where((row >= 0) & (row < height), width, 0)
    for c in tl.static_range(COLUMNS):
        tl.store(of_row + c * DW * C, numbers[c].to(y.dtype.element_ty), mask=real & (first + c * DW < width))


@triton.jit
def convolve_in_registers(
    x,
    weight,
    bias,
    y,
    height,
    width,
    rows,
    strips,
    tiles,
    units,
    shares,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    FLIPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p] = sum_k weight[k] * x[p + k]; the gradient of x is the same with the taps in reverse order.

    Weights are [N, C, K], each of the N for `units` units, which are dealt out to `shares` in turn.
    `WIDTH` is that of a map that is one tile, whose taps outside of it are left out, or 0.
    """
    SOURCES: tl.constexpr = COLUMNS + KW - 1
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % BLOCKS).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    pid = pid // BLOCKS
    first_row = _first_row((pid % strips).to(tl.int32), rows, DH)
    pid = pid // strips
    share = (pid % shares).to(tl.int32)
    result = pid // shares

    factors = _taps_of(weight + result * (C * KH * KW), channel, C, KH * KW, UNITS, BLOCK_C, BLOCK_K)
    start = tl.zeros((UNITS, BLOCK_C), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + channel, mask=channel < C, other=0).to(tl.float32)
    fresh = ()
    for _ in tl.static_range(COLUMNS):
        fresh += (start,)

    begin, end = _sources(first_row, rows, height, KH, DH, TOP)
    for item in range(share, (units + UNITS - 1) // UNITS, shares):
        image, column, real = _units(item, units, tiles, DW, COLUMNS, UNITS)
        real = real & (channel < C)
        base = (result * (units // tiles) + image) * height * width * C + channel
        sources = x + base + (column - LEFT).to(OFFSET) * C
        results = y + base + column.to(OFFSET) * C
        # of the last KH rows of y, to which a row of x belongs
        sums = ()
        for _ in tl.static_range(KH):
            sums += fresh
        row = first_row + begin * DH - TOP
        numbers = _read_row(sources, row, height, column - LEFT, width, real, DW, OFFSET, C, SOURCES, LEFT, WIDTH)
        for q in range(begin, end):
            row = first_row + (q + 1) * DH - TOP
            following = _read_row(sources, row, height, column - LEFT, width, real, DW, OFFSET, C, SOURCES, LEFT, WIDTH)
            added = ()
            for t in tl.static_range(KH):
                for c in tl.static_range(COLUMNS):
                    if FLIPPED:
                        row_of_taps = factors[t * KW : (t + 1) * KW][::-1]
                    else:
                        row_of_taps = factors[(KH - 1 - t) * KW : (KH - t) * KW]
                    added += (
                        _dot(
                            *(sums[t * COLUMNS + c], numbers[c : c + KW], row_of_taps),
                            LEFT - c if WIDTH > 0 and c < LEFT else 0,
                            WIDTH + LEFT - c if WIDTH > 0 and WIDTH + LEFT - c < KW else KW,
                        ),
                    )
            o = q - (KH - 1)
            end_of_map = tl.where((o >= 0) & (o < rows), height, 0)
            _write_row(results, added, first_row + o * DH, end_of_map, column, width, real, DW, OFFSET, C, COLUMNS)
            sums = added[COLUMNS:] + fresh
            numbers = following
        for t in tl.static_range(KH - 1):
            o = end - (KH - 1) + t
            end_of_map = tl.where((o >= 0) & (o < rows), height, 0)
            of_row = sums[t * COLUMNS : (t + 1) * COLUMNS]
            _write_row(results, of_row, first_row + o * DH, end_of_map, column, width, real, DW, OFFSET, C, COLUMNS)


@triton.jit
def _with_sum(total, numbers, WANTED: tl.constexpr, NUMBER: tl.constexpr):
    """Adds numbers to a sum that is wanted."""
    if WANTED:
        for i in tl.static_range(NUMBER):
            total += numbers[i]
    return total


@triton.jit
def shared_weight_gradient_in_registers(
    gradient,
    x,
    partial,
    height,
    width,
    rows,
    strips,
    tiles,
    units,
    items,
    shares,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    OF_BIAS: tl.constexpr,
    OFFSET: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[n, share, k] = sum over the positions of a share of gradient[p] * x[p + k].

    An item is a strip of `UNITS` units; the `items` of each of the N results are dealt out to shares in turn. The last
    line, after those of the taps, is that of the gradient of the bias, if it is asked for. A thread has the sums of the
    taps, and the gradients of its tile in the last `KH` rows, to which a row of x belongs.
    """
    SOURCES: tl.constexpr = COLUMNS + KW - 1
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % BLOCKS).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    pid = pid // BLOCKS
    share = (pid % shares).to(tl.int32)
    gradient += channel
    x += channel

    sums = ()
    for _ in tl.static_range(KH * KW):
        sums += (tl.zeros((UNITS, BLOCK_C), tl.float32),)
    of_bias = tl.zeros((UNITS, BLOCK_C), tl.float32)
    for item in range(share, items, shares):
        first_row = _first_row(item % strips, rows, DH)
        image, column, real = _units(item // strips, units, tiles, DW, COLUMNS, UNITS)
        real = real & (channel < C)
        base = (pid // shares * (units // tiles) + image) * height * width * C
        own = gradient + base + column.to(OFFSET) * C
        sources = x + base + (column - LEFT).to(OFFSET) * C
        begin, end = _sources(first_row, rows, height, KH, DH, TOP)
        lines = ()
        for t in tl.static_range(KH - 1):
            o = begin - (KH - 1) + t
            end_of_map = tl.where((o >= 0) & (o < rows), height, 0)
            read = _read_row(own, first_row + o * DH, end_of_map, column, width, real, DW, OFFSET, C, COLUMNS, 0, 0)
            of_bias = _with_sum(of_bias, read, OF_BIAS, COLUMNS)
            lines += read
        row = first_row + begin * DH
        end_of_map = tl.where(begin < rows, height, 0)
        read = _read_row(own, row, end_of_map, column, width, real, DW, OFFSET, C, COLUMNS, 0, 0)
        numbers = _read_row(sources, row - TOP, height, column - LEFT, width, real, DW, OFFSET, C, SOURCES, 0, 0)
        for q in range(begin, end):
            row = first_row + (q + 1) * DH
            end_of_map = tl.where(q + 1 < rows, height, 0)
            next_read = _read_row(own, row, end_of_map, column, width, real, DW, OFFSET, C, COLUMNS, 0, 0)
            following = _read_row(sources, row - TOP, height, column - LEFT, width, real, DW, OFFSET, C, SOURCES, 0, 0)
            of_bias = _with_sum(of_bias, read, OF_BIAS, COLUMNS)
            lines += read
            added = ()
            for i in tl.static_range(KH):
                for j in tl.static_range(KW):
                    of_line = lines[(KH - 1 - i) * COLUMNS : (KH - i) * COLUMNS]
                    added += (_dot(sums[i * KW + j], numbers[j : j + COLUMNS], of_line, 0, COLUMNS),)
            sums = added
            lines = lines[COLUMNS:]
            read = next_read
            numbers = following

    partial += pid * ((KH * KW + OF_BIAS) * C) + channel
    for tap in tl.static_range(KH * KW):
        tl.store(partial + tap * C, tl.sum(sums[tap], 0, keep_dims=True), mask=channel < C)
    if OF_BIAS:
        tl.store(partial + KH * KW * C, tl.sum(of_bias, 0, keep_dims=True), mask=channel < C)
