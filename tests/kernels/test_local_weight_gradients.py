"""Gradients of local weights in Triton: all ways to read channels, strides, tiles, and sums over several parts."""

import pytest
import torch

from localmix import functional, kernels
from localmix.kernels import triton
from localmix.reports.benchmarks.timing import peak_bytes
from localmix.testing import assert_within_budget, check_operator

pytestmark = pytest.mark.skipif(bool(triton.MISSING), reason=str(triton.MISSING))

half, single, pairs = torch.float16, torch.float32, torch.bfloat16
# (B, H, W), groups, channels of a group, kernel, dilation, dtype
MAPS = {
    "pairs across groups": ((2, 5, 6), 4, 3, (3, 3), (2, 1), pairs),
    "one channel to a group": ((1, 5, 9), 6, 1, (2, 3), (1, 2), pairs),
    "a word to a group": ((1, 3, 2), 2, 2, (3, 3), (1, 1), pairs),
    "three words to a group": ((1, 6, 5), 2, 6, (3, 1), (1, 1), pairs),
    "two words at a time": ((1, 3, 3), 2, 12, (2, 2), (1, 1), pairs),
    "four words at a time": ((1, 9, 3), 3, 8, (2, 2), (1, 1), half),
    "pairs of float16": ((2, 3, 3), 4, 5, (2, 2), (1, 1), half),
    "channels in blocks": ((1, 3, 3), 2, 24, (2, 2), (1, 1), pairs),
    "odd groups of many channels": ((1, 2, 3), 3, 26, (2, 2), (1, 1), pairs),
    "no pairs of many channels": ((1, 2, 3), 2, 13, (2, 2), (1, 1), pairs),
    "one group": ((1, 3, 4), 1, 3, (3, 3), (1, 1), pairs),
    "larger than the map": ((1, 2, 3), 2, 4, (11, 3), (1, 1), half),
    "more units than a block": ((1, 2, 5), 34, 2, (2, 1), (1, 1), half),
    "blocks in float32": ((1, 2, 3), 1, 40, (3, 2), (1, 1), single),
    "several strips and tiles": ((1, 10, 17), 2, 1, (2, 3), (3, 1), single),
}


@pytest.fixture(scope="module")
def gradients():
    from localmix.kernels.triton import local_weight_gradients

    return local_weight_gradients


def draw(shape, groups, dim, dtype):
    return (torch.randn(*shape, groups * dim).to(dtype) for _ in range(2))


def unwritten(shape, groups, num_taps, dtype, *, groups_innermost=True):
    if groups_innermost:
        return torch.empty(*shape, num_taps, groups, dtype=dtype).transpose(3, 4)
    return torch.empty(*shape, groups, num_taps, dtype=dtype)


def assert_right(of_weight, gradient, x, kernel, dilation):
    """As exact as plain PyTorch in the dtype of the result, but for the order of a sum."""
    groups, results = of_weight.shape[3], []
    for dtype in (torch.float64, of_weight.dtype):
        weight = torch.zeros(*x.shape[:3], groups, kernel[0] * kernel[1], dtype=dtype, requires_grad=True)
        y = functional.inhomogeneous_convolution(x.to(dtype), weight, kernel_size=kernel, dilation=dilation)
        results += torch.autograd.grad(y, weight, gradient.to(dtype))
    assert_within_budget(of_weight, *results, summands=x.shape[3] // groups)


@pytest.mark.parametrize("groups_innermost", [True, False], ids=["groups innermost", "taps innermost"])
@pytest.mark.parametrize("case", MAPS)
def test_of_the_weights_is_that_of_the_definition(gradients, case, groups_innermost):
    shape, groups, dim, kernel, dilation, dtype = MAPS[case]
    gradient, x = draw(shape, groups, dim, dtype)
    num_taps = kernel[0] * kernel[1]
    # in float32, so that nothing is lost in a last rounding
    of_weight = unwritten(shape, groups, num_taps, single, groups_innermost=groups_innermost)
    gradients.run_weight_gradient(gradient, x, of_weight, kernel, dilation)
    assert_right(of_weight, gradient, x, kernel, dilation)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("pairs across groups", (2, 2, 1, 3)),
        ("three words to a group", (2, 1, 1, 3)),
        ("two words at a time", (2, 1, 2, 3)),
        ("four words at a time", (2, 1, 4, 1)),
        ("pairs of float16", (2, 2, 1, 5)),
        ("channels in blocks", (2, 1, 4, 1)),
        ("odd groups of many channels", (2, 1, 1, 1)),
        ("no pairs of many channels", (1, 1, 1, 1)),
        ("blocks in float32", (1, 1, 4, 2)),
    ],
)
def test_channels_are_read_in_words_where_they_can_be(gradients, case, expected):
    shape, groups, dim, *_, dtype = MAPS[case]
    assert gradients._words_of(torch.empty(*shape, groups * dim, dtype=dtype), groups) == expected


def test_what_is_no_multiple_of_a_word_away(gradients):
    (gradient, x), size = draw((1, 3, 4), 2, 2, torch.bfloat16), (1, 3, 4, 4)
    away = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(size)
    assert away.data_ptr() % 4
    results = [unwritten(size[:3], 2, 6, torch.bfloat16) for _ in range(2)]
    for result, source in zip(results, (x, away), strict=True):
        gradients.run_weight_gradient(gradient, source, result, (3, 2), (1, 1))
    assert results[0].equal(results[1])


@pytest.mark.parametrize("enough", [1, 8, 2**20], ids=["together", "in shares", "each alone"])
def test_kernel_columns_are_shared_by_programs_where_these_are_few(gradients, monkeypatch, enough):
    monkeypatch.setattr(gradients, "_ENOUGH_WARPS", enough)
    launched = []
    launch = gradients.tuning.launch
    monkeypatch.setattr(gradients.tuning, "launch", lambda *args: launched.append(args[1]) or launch(*args))
    gradient, x = draw((1, 3, 4), 2, 1, torch.float32)
    of_weight = unwritten((1, 3, 4), 2, 6, torch.float32)
    gradients.run_weight_gradient(gradient, x, of_weight, (2, 3), (1, 1))
    assert launched == [{1: 1, 8: 2}.get(enough, 3)]
    assert_right(of_weight, gradient, x, (2, 3), (1, 1))


def test_every_tile_gives_the_same(gradients, monkeypatch):
    gradient, x = draw((1, 9, 6), 2, 3, torch.float32)
    tiles, results = gradients._tiles(9, 3, 1), []
    assert len(tiles) > 1
    for tile in tiles:
        monkeypatch.setattr(gradients.tuning, "choose", lambda *_, tile=tile: tile)
        results.append(unwritten((1, 9, 6), 2, 9, torch.float32))
        gradients.run_weight_gradient(gradient, x, results[-1], (3, 3), (1, 2))
        assert_right(results[-1], gradient, x, (3, 3), (1, 2))


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_of_some_rows_of_a_map(gradients, dilation):
    gradient, x = draw((1, 9, 4), 2, 2, torch.float32)
    whole, rows = unwritten((1, 9, 4), 2, 6, torch.float32), unwritten((1, 5, 4), 2, 6, torch.float32)
    gradients.run_weight_gradient(gradient, x, whole, (3, 2), dilation)
    tensors = (gradient[:, 3:8], x, rows)
    plan = gradients._plan(tensors, (3, 2), dilation, 3)
    it = plan.launch(*plan.tiles[0])
    gradients.tuning.launch(it.kernel, it.programs, tensors, it.integers, it.constants, it.warps)
    assert rows.equal(whole[:, 3:8])


@pytest.mark.parametrize("rank", [5, 8])
@pytest.mark.parametrize(("most", "parts"), [(2**24, 1), (250, 3), (80, 9)], ids=["at once", "by images", "by rows"])
def test_projected_by_parts(gradients, monkeypatch, most, parts, rank):
    """Three images of 3 rows of 4 positions with 2 * 6 weights are 144 numbers each; also with bias and without."""
    from localmix.kernels.triton import local_weight_launches, local_weight_parts

    monkeypatch.setattr(local_weight_parts, "_BUFFER_BYTES", (4 * most,))
    monkeypatch.setattr(local_weight_parts, "_BUFFER_OF_X", 100)
    product, seen = torch.mm, []
    monkeypatch.setattr(local_weight_launches, "buffers_to_apply", lambda *args: [])  # which takes products too
    monkeypatch.setattr(torch, "mm", lambda a, b, out: (seen.append(a.numel()), product(a, b, out=out)))
    shapes = {"x": (3, 3, 4, 6), "hidden": (3, 3, 4, rank), "projection": (12, rank), "projection_bias": (12,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    options, gradient = {"kernel_size": (3, 2), "num_groups": 2}, torch.randn(shapes["x"])
    for named in (tensors, {name: t for name, t in tensors.items() if name != "projection_bias"}):
        seen.clear()
        check_operator("projected_inhomogeneous_convolution", named, options, gradient, impl="triton")
        assert len(seen) == 2 * parts
        assert max(seen) <= most


def test_every_candidate_of_made_weights_gives_the_same(gradients, monkeypatch):
    """Of a large buffer and of a small one; tiles for the rows of large parts take small ones too."""
    from localmix.kernels.triton import local_weight_launches, local_weight_parts

    monkeypatch.setattr(local_weight_parts, "_BUFFER_BYTES", (4 * 3 * 432, 4 * 100))
    monkeypatch.setattr(local_weight_parts, "_BUFFER_OF_X", 100)
    monkeypatch.setattr(local_weight_launches, "buffers_to_apply", lambda *args: [])
    shapes = {"x": (3, 9, 4, 6), "hidden": (3, 9, 4, 5), "projection": (12, 5), "projection_bias": (12,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    options, gradient, seen = {"kernel_size": (3, 2), "num_groups": 2}, torch.randn(shapes["x"]), []

    def take(name, problem, candidates, run, x):
        if name != "projected_local_weight_gradients":
            return candidates[0]
        seen.append(candidates)
        return candidates[len(seen) - 1]

    monkeypatch.setattr(gradients.tuning, "choose", take)
    while not seen or len(seen) < len(seen[0]):
        check_operator("projected_inhomogeneous_convolution", tensors, options, gradient, impl="triton")
    assert {size for size, *_ in seen[0]} == {4 * 3 * 432, 4 * 100}
    assert len(seen[0]) == 4


def test_the_gradient_of_all_weights_is_never_in_memory(gradients, monkeypatch):
    """Of the maps of a first stage; the kernel itself is left out, which the interpreter would take minutes for."""
    monkeypatch.setattr(gradients.tuning, "launch", lambda kernel, programs, tensors, *rest: tensors[2].fill_(1.0))
    x, hidden, projection = torch.ones(8, 28, 28, 96), torch.ones(8, 28, 28, 24), torch.ones(32 * 49, 24)

    def run():
        return gradients.run_projected_gradients(x, x, hidden, projection, 32, (7, 7), (1, 1), (True, True, True))

    assert peak_bytes(run) < 6 * x.numel() * 4 < 8 * 28 * 28 * 32 * 49 * 4
    of_hidden, of_projection, of_bias = run()
    # sums of so many ones
    assert of_hidden.unique() == 32 * 49
    assert of_projection.unique() == of_bias.unique() == 8 * 28 * 28


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_gradients_are_contiguous_and_share_no_memory(gradients, kernel_size):
    """As the operator promises to compilers, also where there is one tap, group or feature."""
    taps, rank = kernel_size**2, kernel_size
    x, hidden, projection = torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, rank), torch.randn(taps, rank)
    sizes = (1, (kernel_size, kernel_size), (1, 1))
    results = gradients.run_projected_gradients(x, x, hidden, projection, *sizes, (True, True, True))
    assert [r.shape for r in results] == [hidden.shape, projection.shape, (taps,)]
    assert all(r.is_contiguous() for r in results)
    assert len({r.untyped_storage().data_ptr() for r in results}) == 3


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
def test_of_an_empty_batch_and_only_what_is_asked_for(gradients, needed):
    hidden, projection = (0, 3, 4, 5), (6, 5)
    for batch in (0, 1):
        x, features = torch.randn(batch, 3, 4, 2), torch.randn(batch, *hidden[1:])
        results = gradients.run_projected_gradients(x, x, features, torch.randn(projection), 1, (3, 2), (1, 1), needed)
        shapes = [s if n else (0,) for s, n in zip((features.shape, projection, (6,)), needed, strict=True)]
        assert [tuple(r.shape) for r in results] == [tuple(s) for s in shapes]
        assert batch or not any(r.any() for r in results)


def test_the_operator_uses_them():
    """The gradient of weights that lie with the groups innermost lies so too."""
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 6, 2).transpose(3, 4).requires_grad_()
    y = kernels.inhomogeneous_convolution(x, weight, kernel_size=(3, 2), impl="triton")
    (of_weight,) = torch.autograd.grad(y.sum(), weight)
    assert of_weight.stride() == weight.stride()
