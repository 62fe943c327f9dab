"""How the kernels for attention read and write blocks of positions.

Query, key and value are read where they lie: [B, H, W, heads, D] in any strides but of the last axis, which is dense.
Results and gradients are contiguous.
"""

import triton
import triton.language as tl


@triton.jit
def read(x, offsets, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, FACTOR: tl.constexpr):
    """Block [positions, channels of a head] of x as a factor of a product; zero outside of the map."""
    dim = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (dim < D)[None, :]
    return tl.load(x + offsets[:, None] + dim[None, :], mask=mask, other=0).to(FACTOR)


@triton.jit
def write(y, values, offsets, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    dim = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (dim < D)[None, :]
    tl.store(y + offsets[:, None] + dim[None, :], values.to(y.dtype.element_ty), mask=mask)
