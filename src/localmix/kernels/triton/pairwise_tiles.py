"""Device code that the Triton kernels of attention by tiles share.

On each axis a tile has steps: step s is the position `origin + s * dilation`, of one window or of one residue of the
dilation. Tiles and strips are rectangles of steps, so that the programs at a border have less to do.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def owned(tiles, blocks, heads):
    """Image, tile, block of the tile and head that a program has."""
    pid = tl.program_id(0).to(tl.int64)
    block = pid // heads % blocks
    tile = pid // heads // blocks % tiles
    return pid // heads // blocks // tiles, tile.to(tl.int32), block.to(tl.int32), pid % heads


@triton.jit
def steps_of_tile(index, size, before, dilation, tile, WINDOW: tl.constexpr):
    """On one axis: where step 0 lies, how many steps there are, and the first and the end of those of a tile."""
    if WINDOW:
        origin = index * tile - before
        first = tl.maximum(-origin, 0)
        length = tl.minimum(size - origin, tile)
        end = length
    else:
        origin = index % dilation
        length = (size - origin + dilation - 1) // dilation
        first = tl.minimum(index // dilation * tile, length)
        end = tl.minimum(first + tile, length)
    return origin, length, first, end


@triton.jit
def _start(step, length, kernel):
    """First step of the neighborhood of a query, which stops at the border."""
    return tl.minimum(tl.maximum(step - kernel // 2, 0), tl.maximum(length - kernel, 0))


@triton.jit
def keys_of(first, end, length, kernel, WINDOW: tl.constexpr):
    """First and end of the steps that queries see."""
    if not WINDOW:
        last = _start(end - 1, length, kernel) + kernel
        first = _start(first, length, kernel)
        end = tl.minimum(last, length)
    return first, end


@triton.jit
def queries_of(first, end, length, kernel, WINDOW: tl.constexpr):
    """First and end of the steps that see keys: near the border it is seen from as far as the border."""
    if not WINDOW:
        first = tl.where(first < kernel, 0, first + kernel // 2 - kernel + 1)
        end = tl.where(end > length - kernel, length, end + kernel // 2)
    return first, end


@triton.jit
def nth_steps(n, top, left, bottom, right):
    """Rows and columns of the n-th steps of a rectangle, and whether they are in it."""
    columns = tl.maximum(right - left, 1)
    # n // columns, by a product with a reciprocal that may be short by one: a GPU divides in twenty instructions
    row = tl.umulhi(n.to(tl.uint32), 0xFFFFFFFF // columns.to(tl.uint32)).to(tl.int32)
    column = n - row * columns
    is_short = column >= columns
    row = tl.where(is_short, row + 1, row)
    column = tl.where(is_short, column - columns, column)
    return top + row, left + column, n < (bottom - top) * (right - left)


@triton.jit
def on_map(row, column, origin_h, origin_w, dh, dw):
    """Where steps lie on the map, in 64 bits for the offsets that are made of them."""
    return (origin_h + row * dh).to(tl.int64), (origin_w + column * dw).to(tl.int64)


@triton.jit
def sees(row, column, inside, key_row, key_column, key_inside, length_h, length_w, kh, kw, WINDOW: tl.constexpr):
    """Whether queries see keys."""
    seen = inside & key_inside
    if not WINDOW:
        down = key_row - _start(row, length_h, kh)
        right = key_column - _start(column, length_w, kw)
        seen = seen & (down >= 0) & (down < kh) & (right >= 0) & (right < kw)
    return seen


@triton.jit
def masked(
    scores,
    bias,
    row,
    column,
    inside,
    key_row,
    key_column,
    key_inside,
    length_h,
    length_w,
    kh,
    kw,
    stride_i,
    stride_j,
    WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Scores with their bias; -inf where the query does not see the key. Steps come as lines and columns of a block."""
    seen = sees(row, column, inside, key_row, key_column, key_inside, length_h, length_w, kh, kw, WINDOW)
    if HAS_BIAS:
        if WINDOW:
            of_query = (row * kw + column).to(tl.int64) * stride_i
            of_key = (key_row * kw + key_column).to(tl.int64) * stride_j
        else:
            of_query = (kh - 1 - row) * stride_i + (kw - 1 - column) * stride_j
            of_key = key_row * stride_i + key_column * stride_j
        # a line and a column of offsets, so that the block itself takes one addition
        scores += tl.load(bias + of_query + of_key, mask=seen, other=0).to(tl.float32)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def exponential(x, FACTOR: tl.constexpr):
    """exp(x), which is multiplied by factors of this dtype.

    A GPU has an instruction for powers of two. `exp` takes four more, so that numbers below 1e-38 keep their digits.
    """
    return tl.exp(x) if tl.float32 == FACTOR else tl.exp2(x * _LOG2_E)


@triton.jit
def weights_of(scores, peak, logarithm, FACTOR: tl.constexpr):
    """exp(scores - peak - logarithm)."""
    if tl.float32 == FACTOR:
        weights = tl.exp(scores - peak - logarithm)
    else:
        # the last product is one for each query
        weights = tl.exp2((scores - peak) * _LOG2_E - logarithm * _LOG2_E)
    return weights
