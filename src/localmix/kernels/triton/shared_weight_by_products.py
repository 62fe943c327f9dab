"""Triton kernel for weights that all images share, on the matrix units; shared_weight_launches.py launches it.

Of a channel, a row of some images is a matrix [images, columns], and what it adds to a row of y is its product with the
taps of one row of the kernel laid out by columns: `factor[j, i]` is the tap that leads from column j of x to column i
of y, or zero. A program goes down the rows of a tile of columns, with these factors of `KH` rows in shared memory and
the sums of the last `KH` rows of y in registers. Most of what it multiplies is zero, and yet that takes a third of the
instructions or less: one multiplies 2048 pairs, where a thread multiplies one.

Zero times NaN is NaN, in columns that no tap leads to. Where there is any, the tile is computed again, tap by tap.
"""

import triton
import triton.language as tl


@triton.jit
def _factors_of(
    weight,
    channel,
    distance,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DW: tl.constexpr,
    FLIPPED: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """A tuple of blocks [channels, columns of x, columns of y] for the rows of the kernel, both so far away."""
    tap = distance // DW
    inside = (distance >= 0) & (tap * DW == distance) & (tap < KW)
    if FLIPPED:
        tap = KW - 1 - tap
    lines = weight + (channel[:, None, None] * (KH * KW) + tap[None, :, :])
    factors = ()
    for row in tl.static_range(KH):
        of_row = lines + (KH - 1 - row if FLIPPED else row) * KW
        factors += (tl.load(of_row, mask=inside[None, :, :], other=0).to(FACTOR),)
    return factors


@triton.jit
def _write(y, sums, bias, mask):
    """Sums [channels, images, columns], where y [images, columns, channels] points."""
    tl.store(y, (tl.permute(sums, (1, 2, 0)) + bias).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _convolve_by_taps(
    x,
    weight,
    bias,
    y,
    of_images,
    is_image,
    columns,
    channel,
    row,
    rows,
    height,
    width,
    top,
    left,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FLIPPED: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """y of blocks [images, columns, channels] for `rows` rows from `row` on, as it is defined."""
    lines = tl.zeros(columns.shape, tl.int32) + row
    for _ in range(rows):
        total = tl.zeros((of_images.shape[0], columns.shape[1], channel.shape[2]), tl.float32) + bias
        for tap in range(KH * KW):
            source, column = lines - top + tap // KW * DH, columns - left + tap % KW * DW
            here = is_image & (column >= 0) & (column < width) & (source >= 0) & (source < height)
            place = x + of_images + (source.to(OFFSET) * width + column) * C
            value = tl.load(place, mask=here, other=0).to(tl.float32)
            index = KH * KW - 1 - tap if FLIPPED else tap
            total += value * tl.load(weight + channel * (KH * KW) + index).to(tl.float32)
        place = y + of_images + (lines.to(OFFSET) * width + columns) * C
        tl.store(place, total.to(y.dtype.element_ty), mask=is_image & (columns < width))
        lines += DH


@triton.jit
def convolve_by_products(
    x,
    weight,
    bias,
    y,
    images,
    height,
    width,
    tiles,
    top,
    left,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FLIPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
    IMAGES: tl.constexpr,
    COLUMNS: tl.constexpr,
    READ: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program for each block of channels, tile of columns, of some images, and rows a dilation apart."""
    program = tl.program_id(0)
    channel = program % (C // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // (C // BLOCK_C)
    tile = program % tiles
    program = program // tiles
    residue = program % DH
    block = program // DH
    x += block.to(tl.int64) * IMAGES * height * width * C
    y += block.to(tl.int64) * IMAGES * height * width * C

    image = tl.arange(0, IMAGES)[:, None, None]
    is_image = image < images - block * IMAGES
    of_images = image.to(OFFSET) * height * width * C + channel[None, None, :]
    begin = tile * COLUMNS
    # a tile of which all columns of a map are read begins with the first one
    sources = tl.maximum(begin - left, 0) + tl.arange(0, READ)
    columns = begin + tl.arange(0, COLUMNS)
    factors = _factors_of(weight, channel, sources[:, None] - columns[None, :] + left, KH, KW, DW, FLIPPED, FACTOR)
    added = tl.zeros((1, 1, BLOCK_C), tl.float32)
    if HAS_BIAS:
        added += tl.load(bias + channel).to(tl.float32)[None, None, :]

    rows = (height - residue + DH - 1) // DH  # of y
    # rows of x are counted from the first one that y reads, perhaps above the map
    above = top - residue
    first = (tl.maximum(above, 0) + DH - 1) // DH
    end = tl.minimum(rows + KH - 1, (height + above + DH - 1) // DH)
    line = width * C
    from_x = x + of_images + sources[None, :, None] * C
    to_y = y + of_images + columns[None, :, None] * C
    is_read, is_written = is_image & (sources < width)[None, :, None], is_image & (columns < width)[None, :, None]
    zero = tl.zeros((1, 1, 1), tl.int32)
    sums = ()
    for _ in tl.static_range(KH):
        sums += (tl.zeros((BLOCK_C, IMAGES, COLUMNS), tl.float32),)
    spoilt = tl.zeros((BLOCK_C, IMAGES, COLUMNS), tl.float32)  # NaN from the first sum on that is not finite
    following = tl.load(from_x + (first * DH - above).to(OFFSET) * line, mask=is_read & (zero + first < end), other=0)
    for source in range(first, end):
        values = tl.permute(following, (2, 0, 1)).to(FACTOR)
        # the row that comes next is read before this one is used
        below = (source + 1) * DH - above
        following = tl.load(from_x + below.to(OFFSET) * line, mask=is_read & (zero + source + 1 < end), other=0)
        row = source - (KH - 1)
        done = tl.dot(values, factors[KH - 1], sums[0])
        later = ()
        for i in tl.static_range(1, KH):
            later += (tl.dot(values, factors[KH - 1 - i], sums[i]),)
        later += (tl.zeros((BLOCK_C, IMAGES, COLUMNS), tl.float32),)
        sums = later
        spoilt += 0.0 * done
        place = to_y + (residue + row * DH).to(OFFSET) * line
        _write(place, done, added, is_written & (zero + row >= 0))
    # rows of y that read beyond the map
    for i in tl.static_range(KH - 1):
        row = end - (KH - 1) + i
        spoilt += 0.0 * sums[i]
        place = to_y + (residue + row * DH).to(OFFSET) * line
        _write(place, sums[i], added, is_written & (zero + row >= 0) & (zero + row < rows))
    if tl.max(tl.reshape((spoilt != spoilt).to(tl.int32), (BLOCK_C * IMAGES * COLUMNS,)), axis=0) > 0:
        # threads write where others have written
        tl.debug_barrier()
        _convolve_by_taps(
            x,
            weight,
            added,
            y,
            of_images,
            is_image,
            columns[None, :, None],
            channel[None, None, :],
            residue,
            rows,
            height,
            width,
            top,
            left,
            C,
            KH,
            KW,
            DH,
            DW,
            FLIPPED,
            OFFSET,
        )
