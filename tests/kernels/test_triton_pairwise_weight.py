"""Which Triton kernels attention takes: a neighborhood that is the whole map is one window."""

import pytest
import torch

from localmix.kernels import triton
from localmix.testing import check_operator

pytestmark = pytest.mark.skipif(bool(triton.MISSING), reason=str(triton.MISSING))

IN_WINDOWS = {"attend_in_windows", "gradients_in_windows"}


@pytest.fixture
def kernels_taken(monkeypatch):
    from localmix.kernels.triton import tuning

    taken = set()

    def choose(name, problem, candidates, run, x):
        taken.add(name)
        return candidates[0]

    monkeypatch.setattr(tuning, "choose", choose)
    return taken


def check(shape, kernel, dilation, has_bias, dtype):
    tensors = {name: torch.randn(shape).to(dtype) for name in ("query", "key", "value")}
    if has_bias:
        tensors["bias"] = torch.randn(shape[3], *(2 * k - 1 for k in kernel)).to(dtype)
    options = {"kernel_size": kernel, "dilation": dilation}
    check_operator("neighborhood_attention", tensors, options, torch.randn(shape).to(dtype), impl="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "has_bias"),
    [
        ((2, 4, 5, 2, 8), (7, 7), 1, True),
        ((2, 5, 5, 1, 16), (5, 6), 1, True),
        ((2, 3, 4, 1, 8), (9, 9), 1, False),
        # one row, whose dilation counts for nothing
        ((2, 1, 6, 2, 8), (3, 7), (2, 1), True),
    ],
)
def test_a_neighborhood_that_is_the_whole_map_is_a_window(shape, kernel, dilation, has_bias, dtype, kernels_taken):
    check(shape, kernel, dilation, has_bias, dtype)
    assert kernels_taken == IN_WINDOWS


@pytest.mark.parametrize(
    ("shape", "kernel", "dilation"),
    [
        ((1, 5, 6, 2, 8), (7, 5), 1),  # a column more than the kernel
        ((1, 4, 4, 2, 8), (7, 7), 2),  # all of a residue, which is not the map
        ((1, 7, 7, 2, 8), (7, 7), 1),  # more positions than a block of float32
    ],
)
def test_others_go_by_tiles(shape, kernel, dilation, kernels_taken):
    check(shape, kernel, dilation, True, torch.float32)
    assert not kernels_taken & IN_WINDOWS


def test_keys_that_no_query_of_a_tile_sees_are_left_out(kernels_taken):
    """Away from the border, of a map that is larger than what its tiles see."""
    check((1, 22, 18, 1, 8), (5, 3), 1, True, torch.float32)
    assert not kernels_taken & IN_WINDOWS
