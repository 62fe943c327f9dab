"""Triton kernels for weights that all windows share; window_weight.py launches them.

For a group of channels the sum is a product of two matrices: the weights [N, N], and a matrix whose rows are the slots
of a window and whose columns are the windows of all images with the channels of the group. A program owns some columns
of one group; it reads them where they lie, so that nothing is partitioned, rolled or padded.
"""

import triton
import triton.language as tl


@triton.jit
def _columns(
    first,
    units,
    group,
    block_d,
    height,
    width,
    windows_h,
    windows_w,
    top,
    left,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """For windows from `first` on and channels of a group: where slot 0 lies, its row and column, and which exist."""
    column = tl.arange(0, WINDOWS * BLOCK_D)
    unit = first + column // BLOCK_D
    dim = block_d * BLOCK_D + column % BLOCK_D
    known = (unit < units) & (dim < D)
    left_of = unit % windows_w * KW - left
    unit = unit // windows_w
    top_of = unit % windows_h * KH - top
    start = ((unit // windows_h * height + top_of) * width + left_of) * (G * D) + group * D + dim
    return start, top_of, left_of, known


@triton.jit
def _slots(
    first,
    start,
    top_of,
    left_of,
    known,
    height,
    width,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For slots from `first` on and columns: offsets into a map, and which of them are on it."""
    slot = first + tl.arange(0, BLOCK)
    row = top_of[None, :] + (slot // KW)[:, None]
    column = left_of[None, :] + (slot % KW)[:, None]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & known[None, :] & (slot < KH * KW)[:, None]
    offsets = start[None, :] + ((slot // KW * width + slot % KW) * C)[:, None]
    return offsets, inside


@triton.jit
def mix_windows(
    x,
    weight,
    bias,
    y,
    height,
    width,
    windows_h,
    windows_w,
    top,
    left,
    units,
    blocks_d,
    stride_out,
    stride_in,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """y[i] = bias[i] + sum_j weight[i, j] * x[j]; the gradient of x is the same with the matrix transposed."""
    N: tl.constexpr = KH * KW
    pid = tl.program_id(0).to(OFFSET)
    group = pid % G
    pid = pid // G
    block_d = pid % blocks_d
    pid = pid // blocks_d
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    first_out = (pid % blocks).to(tl.int32) * BLOCK
    first = pid // blocks * WINDOWS
    start, top_of, left_of, known = _columns(
        first, units, group, block_d, height, width, windows_h, windows_w, top, left, G, D, KH, KW, WINDOWS, BLOCK_D
    )
    out = first_out + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK, WINDOWS * BLOCK_D), tl.float32)
    for first_in in range(0, N, BLOCK_IN):
        offsets, inside = _slots(first_in, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK_IN)
        values = tl.load(x + offsets, mask=inside, other=0).to(FACTOR)
        slot = first_in + tl.arange(0, BLOCK_IN)
        pointers = weight + group * (N * N) + out[:, None] * stride_out + slot[None, :] * stride_in
        matrix = tl.load(pointers, mask=(out < N)[:, None] & (slot < N)[None, :], other=0).to(FACTOR)
        sums = tl.dot(matrix, values, sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += tl.load(bias + group * N + out, mask=out < N, other=0).to(tl.float32)[:, None]
    offsets, inside = _slots(first_out, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK)
    tl.store(y + offsets, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def matrix_gradient(
    gradient,
    x,
    partial,
    partial_of_bias,
    height,
    width,
    windows_h,
    windows_w,
    top,
    left,
    units,
    blocks_d,
    shares,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums over a share of the columns: gradient[i] * x[j] for all pairs of slots, and gradient[i] alone."""
    N: tl.constexpr = KH * KW
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    pid = tl.program_id(0).to(OFFSET)
    group = pid % G
    pid = pid // G
    first_in = (pid % blocks).to(tl.int32) * BLOCK
    pid = pid // blocks
    first_out = (pid % blocks).to(tl.int32) * BLOCK
    share = pid // blocks
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    # A product too, with ones. Were they added up from registers, Triton would keep one copy of the gradients in shared
    # memory, and write those of the next step over it while a matrix unit may still read them.
    sums_of_bias = tl.zeros((BLOCK, 16), tl.float32)
    ones = tl.full((WINDOWS * BLOCK_D, 16), 1.0, FACTOR)
    for part in range(share, (units + WINDOWS - 1) // WINDOWS * blocks_d, shares):
        first = part // blocks_d * WINDOWS
        start, top_of, left_of, known = _columns(
            first, units, group, part % blocks_d, height, width, windows_h, windows_w, top, left,
            G, D, KH, KW, WINDOWS, BLOCK_D,
        )  # fmt: skip
        offsets, inside = _slots(first_out, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK)
        gradients = tl.load(gradient + offsets, mask=inside, other=0).to(FACTOR)
        offsets, inside = _slots(first_in, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK)
        values = tl.load(x + offsets, mask=inside, other=0).to(FACTOR)
        sums = tl.dot(gradients, tl.trans(values), sums, input_precision=PRECISION)
        sums_of_bias = tl.dot(gradients, ones, sums_of_bias, input_precision="ieee")
    out = first_out + tl.arange(0, BLOCK)
    slot = first_in + tl.arange(0, BLOCK)
    line = (share * G + group) * N + out
    tl.store(partial + line[:, None] * N + slot[None, :], sums, mask=(out < N)[:, None] & (slot < N)[None, :])
    # all columns are equal, and a mean of 16 is exact
    tl.store(partial_of_bias + line, tl.sum(sums_of_bias, 1) / 16, mask=out < tl.where(first_in == 0, N, 0))
