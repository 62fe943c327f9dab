"""Triton kernels for weights shared over positions, by products of matrices; shared_weight.py launches them.

Along a row a convolution is a product with a band matrix: y[n] = sum_s x[s] * band[s, n], band[s, n] = weight[s - n].
Most of that matrix is zero. But matrix units multiply 16 times as fast as vector units and take numbers of 16 bits as
they are, where the conversion to float32 costs vector units as much as the multiplication.

A unit is a tile of `COLUMNS` columns of a strip of rows. A program goes down `UNITS` units at once, row by row. A
product has one row of x of each, for each channel: [channels, units, sources] x [channels, sources, columns], where the
sources are the columns of x that a unit reads. Each row of x is read once, for all rows of the kernel.

Zero times NaN is NaN: a NaN in x reaches all columns of its unit, not only those that have it within their kernel.
"""

import triton
import triton.language as tl


@triton.jit
def _units(index, units, strips, tiles, ROWS: tl.constexpr, DH: tl.constexpr, UNITS: tl.constexpr):
    """Image, first row and tile of some units, and whether there are such."""
    unit = index * UNITS + tl.arange(0, UNITS)
    strip = unit // tiles % strips
    return unit // tiles // strips, strip // DH * (ROWS * DH) + strip % DH, unit % tiles, unit < units


@triton.jit
def _columns(tile, COLUMNS: tl.constexpr):
    """Columns [units, columns] of y."""
    return tile[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _sources(tile, left, KW: tl.constexpr, DW: tl.constexpr, SOURCES: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns [units, sources] of x; -1 for those that no tap reads."""
    source = tl.arange(0, SOURCES)[None, :]
    return tl.where(source < COLUMNS + (KW - 1) * DW, tile[:, None] * COLUMNS - left + source, -1)


@triton.jit
def _line(base, row, column, channel, height, width, channels, real, OFFSET: tl.constexpr):
    """Pointers [units, columns, channels] to a row of each unit, and which of them are on the map."""
    position = row.to(OFFSET)[:, None] * width + column
    inside = (column >= 0) & (column < tl.where(real & (row >= 0) & (row < height), width, 0)[:, None])
    pointers = base[:, None, None] + (position[:, :, None] * channels + channel[None, None, :])
    return pointers, inside[:, :, None] & (channel < channels)[None, None, :]


@triton.jit
def _distances(SOURCES: tl.constexpr, COLUMNS: tl.constexpr):
    """By how many columns a source lies behind the first one that an output reads: [sources, columns]."""
    return tl.arange(0, SOURCES)[:, None] - tl.arange(0, COLUMNS)[None, :]


@triton.jit
def convolve_by_products(
    x,
    weight,
    bias,
    y,
    height,
    width,
    channels,
    strips,
    tiles,
    units,
    blocks,
    image_stride,
    top,
    left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FLIPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    SOURCES: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y[p] = sum_k weight[k] * x[p + k]; the gradient of x is the same with the taps in reverse order.

    Weights are [N, C, kh, kw], each for so many `units`.
    """
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    pid = pid // blocks
    shares = (units + UNITS - 1) // UNITS
    result = pid // shares
    images = units // (strips * tiles)
    in_channels = channel < channels

    distance = _distances(SOURCES, COLUMNS)
    j = distance // DW
    known = (distance >= 0) & (distance % DW == 0) & (j < KW)
    if FLIPPED:
        j = KW - 1 - j
    of_taps = channel[:, None, None] * (KH * KW) + j[None]
    known = in_channels[:, None, None] & known[None]
    weight += result * image_stride
    bands = ()
    for i in tl.static_range(KH):
        row = KH - 1 - i if FLIPPED else i
        bands += (tl.load(weight + row * KW + of_taps, mask=known, other=0).to(FACTOR),)
    start = tl.zeros((BLOCK_C, UNITS, COLUMNS), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + channel, mask=in_channels, other=0).to(tl.float32)[:, None, None]

    image, first, tile, real = _units((pid % shares).to(tl.int32), units, strips, tiles, ROWS, DH, UNITS)
    base = (result * images + image) * height * width * channels
    source = _sources(tile, left, KW, DW, SOURCES, COLUMNS)
    column = _columns(tile, COLUMNS)
    # of output row r at r % KH, from its first row of x to its last
    sums = ()
    for _ in tl.static_range(KH):
        sums += (start,)
    for group in range((ROWS + 2 * KH - 2) // KH):
        for s in tl.static_range(KH):
            m = group * KH + s
            pointers, here = _line(
                x + base, first + (m * DH - top), source, channel, height, width, channels, real, OFFSET
            )
            factor = tl.permute(tl.load(pointers, mask=here, other=0), (2, 0, 1)).to(FACTOR)
            added = ()
            for slot in tl.static_range(KH):
                if s == slot:
                    added += (tl.dot(factor, bands[0], start, input_precision="ieee"),)
                else:
                    added += (tl.dot(factor, bands[(s - slot + KH) % KH], sums[slot], input_precision="ieee"),)
            sums = added
            r = m - (KH - 1)
            if r >= 0:
                destination, there = _line(
                    y + base, first + r * DH, column, channel, height, width, channels, real & (r < ROWS), OFFSET
                )
                tl.store(destination, tl.permute(sums[(s + 1) % KH].to(y.dtype.element_ty), (1, 2, 0)), mask=there)


@triton.jit
def shared_weight_gradient_by_products(
    gradient,
    x,
    partial,
    height,
    width,
    channels,
    strips,
    tiles,
    units,
    blocks,
    top,
    left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    OF_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    SOURCES: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[n, share, k] = sum over the positions of some units of gradient[p] * x[p + k].

    Products of each source with each output are summed over the units; a tap is the sum of those of its distance. For
    the gradient of the bias, one more line of `partial`, the last source, which no tap reads, is 1.
    """
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    shares = (units + UNITS - 1) // UNITS
    share = pid // blocks
    images = units // (strips * tiles)
    image, first, tile, real = _units((share % shares).to(tl.int32), units, strips, tiles, ROWS, DH, UNITS)
    base = (share // shares * images + image) * height * width * channels
    source = _sources(tile, left, KW, DW, SOURCES, COLUMNS)
    column = _columns(tile, COLUMNS)

    last = tl.arange(0, SOURCES)[None, :, None] == SOURCES - 1
    beyond = tl.zeros((UNITS, SOURCES, BLOCK_C), x.dtype.element_ty)
    if OF_BIAS:
        beyond = tl.where(last, beyond + 1, beyond)

    sums = ()
    lines = ()
    for _ in tl.static_range(KH):
        sums += (tl.zeros((BLOCK_C, SOURCES, COLUMNS), tl.float32),)
        lines += (tl.zeros((BLOCK_C, UNITS, COLUMNS), FACTOR),)
    for group in range((ROWS + 2 * KH - 2) // KH):
        for s in tl.static_range(KH):
            m = group * KH + s
            pointers, here = _line(
                gradient + base, first + m * DH, column, channel, height, width, channels, real & (m < ROWS), OFFSET
            )
            line = tl.permute(tl.load(pointers, mask=here, other=0), (2, 0, 1)).to(FACTOR)
            pointers, here = _line(
                x + base, first + (m * DH - top), source, channel, height, width, channels, real, OFFSET
            )
            factor = tl.permute(tl.load(pointers, mask=here, other=beyond), (2, 1, 0)).to(FACTOR)
            kept = ()
            for slot in tl.static_range(KH):
                if slot == s:
                    kept += (line,)
                else:
                    kept += (lines[slot],)
            lines = kept
            added = ()
            for i in tl.static_range(KH):
                added += (tl.dot(factor, lines[(s - i + KH) % KH], sums[i], input_precision="ieee"),)
            sums = added

    distance = _distances(SOURCES, COLUMNS)
    partial += share * (KH * KW + OF_BIAS) * channels + channel
    for j in range(KW):
        chosen = (distance == j * DW)[None]
        for i in tl.static_range(KH):
            products = tl.reshape(tl.where(chosen, sums[i], 0), (BLOCK_C, SOURCES * COLUMNS))
            tl.store(partial + (i * KW + j) * channels, tl.sum(products, 1), mask=channel < channels)
    if OF_BIAS:
        products = tl.reshape(tl.where(last, sums[0], 0), (BLOCK_C, SOURCES * COLUMNS))
        tl.store(partial + KH * KW * channels, tl.sum(products, 1), mask=channel < channels)
