"""Which Triton kernels attention takes, and the one that sums the gradient of the bias over shares."""

import pytest
import torch

from localmix import kernels
from localmix.testing import check_operator

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from localmix.kernels.triton import pairwise_launches, tuning  # noqa: E402
from localmix.kernels.triton.pairwise_geometry import Neighborhoods, Windows  # noqa: E402
from localmix.kernels.triton.pairwise_tiles import nth_steps  # noqa: E402

IN_WINDOWS = {"attend_in_windows", "gradients_in_windows"}
BY_TILES = {"attend", "query_gradient", "key_gradient"}


@pytest.fixture
def kernels_taken(monkeypatch):
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


@pytest.mark.parametrize(
    ("dtype", "channels", "taken"),
    [
        # all keys of a tile fit one block: its programs make the gradient of the queries as well
        (torch.float16, 8, {"attend", "bias_gradient", "key_gradient"}),
        (torch.float16, 512, BY_TILES | {"bias_gradient"}),
        (torch.float32, 8, BY_TILES | {"bias_gradient"}),
    ],
)
def test_one_kernel_makes_the_gradients_of_bias_and_queries_where_it_can(dtype, channels, taken, kernels_taken):
    check((2, 6, 7, 1, channels), (4, 4), 1, True, dtype)
    assert kernels_taken == taken


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_bias_that_needs_no_gradient_leaves_that_of_the_queries_to_its_own_kernel(has_bias, kernels_taken):
    query, key, value = torch.randn(3, 1, 9, 6, 2, 8).half().requires_grad_()
    bias = torch.randn(2, 9, 9).half() if has_bias else None
    y = kernels.neighborhood_attention(query, key, value, kernel_size=5, bias=bias, impl="triton")
    torch.autograd.grad(y.sum(), (query, key, value))
    assert kernels_taken == BY_TILES


SLIDING = ("neighborhood_attention", (3, 5, 6, 1, 8), {"kernel_size": (4, 5)}, (1, 7, 9))
DILATED = ("neighborhood_attention", (1, 7, 9, 1, 8), {"kernel_size": 3, "dilation": (1, 2)}, (1, 5, 5))
WINDOWS = ("window_attention", (2, 10, 7, 1, 8), {"window_size": (11, 6), "shift": (4, 0)}, (1, 66, 66))


@pytest.mark.parametrize(
    ("case", "programs", "dtype"),
    [
        (SLIDING, "few", torch.float16),
        (SLIDING, "many", torch.float16),
        (SLIDING, "few", torch.float32),
        (DILATED, "one", torch.float16),
        (DILATED, "many", torch.float16),
        (WINDOWS, "few", torch.float16),
    ],
)
def test_the_gradient_of_the_bias_is_summed_over_shares(case, programs, dtype, monkeypatch):
    """Of all tiles and images, of some of the tiles, or of one tile and some of the images."""
    operator, shape, options, bias = case
    warps = {"one": 1, "few": 60, "many": 10**6}[programs]
    monkeypatch.setattr(pairwise_launches, "_MOST_WARPS", warps)
    shares, launch = [], tuning.launch

    def note(kernel, programs, inputs, *others):
        if kernel.__name__ == "bias_gradient":
            shares.append(len(inputs[8]))  # the sums
        return launch(kernel, programs, inputs, *others)

    monkeypatch.setattr(tuning, "launch", note)
    tensors = {name: torch.randn(shape).to(dtype) for name in ("query", "key", "value")}
    tensors["bias"] = torch.randn(bias).to(dtype)
    check_operator(operator, tensors, options, torch.randn(shape).to(dtype), impl="triton")
    assert len(shares) == 1
    assert (shares[0] > 1) == (programs != "one")


def test_partial_sums_of_the_bias_have_no_more_numbers_than_the_query():
    def numbers(*shape):
        tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta")] * 3
        tensors.append(torch.empty(shape[3], 13, 13, dtype=torch.bfloat16, device="meta"))
        plan = pairwise_launches.plan_bias_gradient(tensors, (Neighborhoods, (7, 7), (1, 1)), True, True)
        sums, pairs, *_ = plan.launch(*plan.tiles[0]).results
        return torch.Size(sums[0]).numel() + torch.Size(pairs[0]).numel()

    assert numbers(128, 56, 56, 3, 32) < 128 * 56 * 56 * 3 * 32
    assert numbers(2, 200, 334, 3, 32) < 2 * 200 * 334 * 3 * 32
    assert numbers(1, 8, 9, 3, 32) < 2**21


def test_the_gradient_of_the_bias_of_windows_lies_as_the_bias():
    """As compilers of graphs believe."""
    sums = torch.randn(3, 6, 4, 6)
    of_bias = Windows((2, 3), (0, 0)).gradient_of_bias(sums)
    assert of_bias.is_contiguous()
    torch.testing.assert_close(of_bias[1, 2], sums[:, 2, 1].sum(0))


def test_a_tile_that_was_measured_serves_maps_of_about_the_same_size():
    """So the candidates are the same, though fewer keys are seen."""
    small, large = (torch.empty(2, size, size, 1, 32, dtype=torch.bfloat16, device="meta") for size in (5, 8))
    seen = (Neighborhoods, (4, 4), (1, 1))
    plans = [pairwise_launches.plan_bias_gradient([x] * 4, seen, False, True) for x in (small, large)]
    assert plans[0].tiles == plans[1].tiles
    geometry = Neighborhoods(*seen[1:])
    for x, plan in zip((small, large), plans, strict=True):
        across = plan.launch(*plan.tiles[0]).results[1][0][-1]
        assert pairwise_launches.holds_all_keys(x, geometry)
        assert across >= geometry.keys(x.shape, geometry.tile(x.shape, 16))


@triton.jit
def divide(rows, columns, first, width, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    row, column, _ = nth_steps(first + n, 0, 0, 1, width)
    tl.store(rows + n, row)
    tl.store(columns + n, column)


def test_steps_are_divided_into_rows_without_an_error():
    rows, columns = torch.zeros(2, 256, dtype=torch.int32)
    for width in (1, 2, 3, 7, 10, 49, 255, 256, 46341, 2**31 - 1):
        for first in (0, 200, 2**16 - 100, 2**24 - 100, 2**31 - 256):
            divide[(1,)](rows, columns, first, width, 256)
            n = first + torch.arange(256)
            assert rows.equal((n // width).int())
            assert columns.equal((n % width).int())
