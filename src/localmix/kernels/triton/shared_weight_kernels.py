"""Triton kernels for weights shared over positions; shared_weight.py launches them.

Most of the work is reading x once per tap from the L1 cache. So a program owns a strip of `ROWS` output rows that are
a dilation apart, and a row of x that it has read serves every one of them that it is a tap of. The taps of a kernel
column are unrolled, the columns are a loop.

Weights are [N, K, C] in memory, N = 1 for all images or B, so that those of a tap lie side by side, in float32.

To turn bfloat16 into float32 one by one takes as many instructions as to multiply and add. So two neighboring channels
are read as one word, whose halves are float32 but for a shift or a mask: maps are then [B, H, W, C / 2] words and
weights [N, K, 2, C / 2], with the first channel of every pair in part 0 and the second in part 1.
"""

import triton
import triton.language as tl


@triton.jit
def _numbers(words, PART: tl.constexpr, PARTS: tl.constexpr):
    """One part of words of two bfloat16 numbers in float32, or the words, which are numbers then."""
    if PARTS == 1:
        return words.to(tl.float32)
    elif PART == 0:
        return (words << 16).to(tl.float32, bitcast=True)
    else:
        return (words & -65536).to(tl.float32, bitcast=True)


@triton.jit
def convolve(
    x,
    weight,
    bias,
    y,
    height,
    width,
    channels,
    strips,
    tiles,
    blocks,
    tap_stride,
    image_stride,
    top,
    left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FLIPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    OFFSET: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y[p] = sum_k weight[k] * x[p + k]; the gradient of x is the same with the taps in reverse order.

    `channels` are words, of `PARTS` numbers each.
    """
    pid = tl.program_id(0).to(tl.int64)
    column = (pid % tiles).to(OFFSET) * BLOCK_W + tl.arange(0, BLOCK_W)
    pid = pid // tiles
    strip = (pid % strips).to(tl.int32)
    pid = pid // strips
    block = (pid % blocks).to(tl.int32)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    image = pid // blocks
    first = strip // DH * (ROWS * DH) + strip % DH
    in_channels = channel < channels
    x += image * height * width * channels
    y += image * height * width * (channels * PARTS)
    weight += image * image_stride

    sums = ()
    for _ in tl.static_range(ROWS * PARTS):
        sums += (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
    for step in range(KH // STEP * KW):
        i = step // KW * STEP
        j = step % KW
        source = column + (j * DW - left)
        offsets = source[:, None] * channels + channel[None, :]
        inside = (source >= 0)[:, None] & in_channels[None, :]
        taps = ()
        for m in tl.static_range(ROWS + STEP - 1):
            if m < STEP:
                tap = (i + m) * KW + j
                if FLIPPED:
                    tap = KH * KW - 1 - tap
                for part in tl.static_range(PARTS):
                    # of channels that there are not, whatever it is: nothing is stored of them
                    taps += (tl.load(weight + (tap * PARTS + part) * tap_stride + channel)[None, :],)
            row = first + (i + m) * DH - top
            here = inside & (source < tl.where((row >= 0) & (row < height), width, 0))[:, None]
            words = tl.load(x + row.to(tl.int64) * width * channels + offsets, mask=here, other=0)
            added = ()
            for r in tl.static_range(ROWS):
                for part in tl.static_range(PARTS):
                    if m - r >= 0 and m - r < STEP:
                        values = _numbers(words, part, PARTS)
                        added += (tl.fma(values, taps[(m - r) * PARTS + part], sums[r * PARTS + part]),)
                    else:
                        added += (sums[r * PARTS + part],)
            sums = added

    starts = ()
    for part in tl.static_range(PARTS):
        start = tl.zeros((1, BLOCK_C), tl.float32)
        if HAS_BIAS:
            pointers = bias + channel * PARTS + part
            start += tl.load(pointers, mask=in_channels, other=0).to(tl.float32)[None, :]
        starts += (start,)
    number = block * (BLOCK_C * PARTS) + tl.arange(0, BLOCK_C * PARTS)
    in_channels = number < channels * PARTS
    offsets = column[:, None] * (channels * PARTS) + number[None, :]
    for r in tl.static_range(ROWS):
        row = first + r * DH
        here = (column < tl.where(row < height, width, 0))[:, None] & in_channels[None, :]
        result = sums[r * PARTS] + starts[0]
        if PARTS == 2:
            result = tl.interleave(result, sums[r * PARTS + 1] + starts[1])
        line = row.to(tl.int64) * width * (channels * PARTS)
        tl.store(y + line + offsets, result.to(y.dtype.element_ty), mask=here)


@triton.jit
def shared_weight_gradient(
    gradient,
    x,
    partial,
    height,
    width,
    channels,
    strips,
    tiles,
    blocks,
    shares,
    share,
    units,
    top,
    left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    PARTS: tl.constexpr,
    OFFSET: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[n, share, k, part] = sum over the positions of a share of gradient[p] * x[p + k].

    A share is some of the `units` of result n, a unit is a strip of one image. The share is read again for every
    kernel column, from the cache.
    """
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    pid = pid // blocks
    first_unit = (pid % shares).to(tl.int32) * share
    last_unit = tl.minimum(first_unit + share, units)
    first_image = pid // shares
    in_channels = channel < channels
    partial += pid * (KH * KW * PARTS) * channels

    for step in range((KH + STEP - 1) // STEP * KW):
        i = step // KW * STEP
        j = step % KW
        sums = ()
        for _ in tl.static_range(STEP * PARTS):
            sums += (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
        for unit in range(first_unit, last_unit):
            strip = unit % strips
            tile = unit // strips % tiles
            first = strip // DH * (ROWS * DH) + strip % DH
            start = (first_image + unit // strips // tiles) * height * width * channels
            column = tile.to(OFFSET) * BLOCK_W + tl.arange(0, BLOCK_W)
            offsets = column[:, None] * channels + channel[None, :]
            gradients = ()
            for r in tl.static_range(ROWS):
                row = first + r * DH
                here = (column < tl.where(row < height, width, 0))[:, None] & in_channels[None, :]
                line = start + row.to(tl.int64) * width * channels
                words = tl.load(gradient + line + offsets, mask=here, other=0)
                for part in tl.static_range(PARTS):
                    gradients += (_numbers(words, part, PARTS),)
            source = column + (j * DW - left)
            offsets = source[:, None] * channels + channel[None, :]
            inside = (source >= 0)[:, None] & in_channels[None, :]
            for m in tl.static_range(ROWS + STEP - 1):
                row = first + (i + m) * DH - top
                here = inside & (source < tl.where((row >= 0) & (row < height), width, 0))[:, None]
                line = start + row.to(tl.int64) * width * channels
                words = tl.load(x + line + offsets, mask=here, other=0)
                added = ()
                for t in tl.static_range(STEP):
                    for part in tl.static_range(PARTS):
                        if m - t >= 0 and m - t < ROWS:
                            values = _numbers(words, part, PARTS)
                            added += (tl.fma(values, gradients[(m - t) * PARTS + part], sums[t * PARTS + part]),)
                        else:
                            added += (sums[t * PARTS + part],)
                sums = added
        for t in tl.static_range(STEP):
            for part in tl.static_range(PARTS):
                pointers = partial + (((i + t) * KW + j) * PARTS + part) * channels + channel
                here = channel < tl.where(i + t < KH, channels, 0)
                tl.store(pointers, tl.sum(sums[t * PARTS + part], 0), mask=here)


@triton.jit
def sum_of_shares(
    partial,
    of_weight,
    of_bias,
    shares,
    words,
    results,
    K: tl.constexpr,
    OF_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    SHARES: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """of_weight[n, c, k], of_bias[c] = sum over the shares of partial [N, shares, k, part, words], of c = word, part.

    The last line after the K taps is that of the bias, summed over n too: by programs of its own, after the others,
    which read more shares at a time instead of several lines.
    """
    pid = tl.program_id(0)
    blocks = (words + BLOCK - 1) // BLOCK
    word = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    pid = pid // blocks
    part = pid % PARTS
    pid = pid // PARTS
    BLOCKS_OF_LINES: tl.constexpr = (K + LINES - 1) // LINES
    is_bias = pid >= results * BLOCKS_OF_LINES
    result = tl.where(is_bias, 0, pid // BLOCKS_OF_LINES)
    of_block = tl.arange(0, LINES)
    line = tl.where(is_bias, K, pid % BLOCKS_OF_LINES * LINES + of_block)
    share = tl.arange(0, SHARES)[:, None] * tl.where(is_bias, LINES, 1) + tl.where(is_bias, of_block, 0)[None, :]
    step = tl.where(is_bias, SHARES * LINES, SHARES)
    number = tl.where(is_bias, results * shares, shares)
    numbers: tl.constexpr = (K + OF_BIAS) * PARTS
    is_line = line < tl.where(is_bias, K + 1, K)
    partial += (result * shares).to(tl.int64) * (numbers * words)
    own = (line * PARTS + part)[:, None] * words + word[None, :]
    total = tl.zeros((SHARES, LINES, BLOCK), tl.float32)
    for start in range(0, number, step):
        mask = ((start + share < number) & is_line[None, :])[:, :, None] & (word < words)[None, None, :]
        pointers = partial + ((start + share).to(tl.int64) * (numbers * words))[:, :, None] + own[None]
        total += tl.load(pointers, mask=mask, other=0)
    sums = tl.sum(total, 0)
    channel = word * PARTS + part
    if is_bias:
        tl.store(of_bias + channel, tl.sum(sums, 0).to(of_bias.dtype.element_ty), mask=word < words)
    else:
        pointers = of_weight + (result.to(tl.int64) * (words * PARTS) + channel[:, None]) * K + line[None, :]
        mask = (word < words)[:, None] & is_line[None, :]
        tl.store(pointers, tl.trans(sums).to(of_weight.dtype.element_ty), mask=mask)


@triton.jit
def lay_out_taps(
    weight,
    taps,
    channels,
    line,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """taps[n, k, part, word] = weight[n, c, k] of c = word, part, in float32; through shared memory, in whole lines."""
    blocks = (channels + BLOCK_C - 1) // BLOCK_C
    pid = tl.program_id(0).to(tl.int64)
    channel = (pid % blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    weight += pid // blocks * channels * K
    taps += pid // blocks * (K * PARTS * line)
    own = channel % PARTS * line + channel // PARTS
    for first in range(0, K, BLOCK_K):
        tap = first + tl.arange(0, BLOCK_K)
        here = (channel < channels)[:, None] & (tap < K)[None, :]
        numbers = tl.load(weight + channel[:, None] * K + tap[None, :], mask=here, other=0).to(tl.float32)
        there = (tap < K)[:, None] & (channel < channels)[None, :]
        tl.store(taps + (tap[:, None] * (PARTS * line) + own[None, :]), tl.trans(numbers), mask=there)
