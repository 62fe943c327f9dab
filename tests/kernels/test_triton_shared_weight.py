"""Weights shared over positions, by vectors and by products of matrices: every tile, in Triton's interpreter."""

import pytest
import torch

from localmix import kernels
from localmix.kernels import triton
from localmix.testing import check_operator, output_and_gradients

pytestmark = pytest.mark.skipif(bool(triton.MISSING), reason=str(triton.MISSING))


@pytest.fixture
def take(monkeypatch):
    """Makes one kind of kernels run, with the tile of an index; gives the tiles that ran."""
    from localmix.kernels.triton import tuning
    from localmix.kernels.triton.shared_weight_tiles import BY_PRODUCTS

    def use(by_products, index=0):
        taken = []

        def choose(name, problem, candidates, run, x):
            of_kind = [tile for tile in candidates if (tile[1] == BY_PRODUCTS) == by_products]
            taken.append(of_kind[index % len(of_kind)])
            return taken[-1]

        monkeypatch.setattr(tuning, "choose", choose)
        return taken

    return use


CASES = [
    # several units, strips and tiles; a block of channels that is not filled
    ("depthwise_convolution", (2, 9, 11, 48), (7, 7), 1, True),
    ("depthwise_convolution", (1, 20, 18, 16), (7, 7), 1, False),
    ("depthwise_convolution", (18, 4, 3, 16), (2, 4), (3, 1), True),
    # all that a product can read along a row, and one column less: the bias has its gradient from there or not
    ("depthwise_convolution", (2, 3, 17, 16), (5, 9), 1, True),
    ("depthwise_convolution", (2, 3, 17, 16), (5, 8), 1, True),
    ("homogeneous_convolution", (3, 13, 9, 16), (3, 5), 2, True),
    # a kernel larger than the map, and the smallest
    ("depthwise_convolution", (5, 3, 2, 32), (7, 7), 1, True),
    ("homogeneous_convolution", (2, 5, 30, 16), (1, 1), 1, False),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("operator", "shape", "kernel", "dilation", "has_bias"), CASES)
@pytest.mark.parametrize("index", [0, -1])
def test_products_are_within_the_budget(operator, shape, kernel, dilation, has_bias, dtype, index, take):
    taken = take(True, index)
    images = [] if operator == "depthwise_convolution" else [shape[0]]
    shapes = {"x": shape, "weight": (*images, shape[3], *kernel)} | ({"bias": (shape[3],)} if has_bias else {})
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    gradient = torch.randn(shape).to(dtype)
    check_operator(operator, tensors, {"dilation": dilation}, gradient, impl="triton")
    assert taken


@pytest.mark.parametrize("index", range(1, 7))
def test_every_tile_of_vectors_is_within_the_budget(index, take):
    taken = take(False, index)
    shape = (2, 9, 11, 20)
    tensors = {"x": torch.randn(shape), "weight": torch.randn(20, 7, 7), "bias": torch.randn(20)}
    check_operator("depthwise_convolution", tensors, {}, torch.randn(shape), impl="triton")
    assert taken


def test_products_of_bfloat16(take):
    """Factors are what they are in memory; the interpreter makes float32 of them."""
    tensors = {"x": torch.randn(2, 9, 11, 16), "weight": torch.randn(16, 7, 7), "bias": torch.randn(16)}
    tensors = {name: t.bfloat16() for name, t in tensors.items()}
    gradient = torch.randn(2, 9, 11, 16).bfloat16()
    exact = {name: t.double() for name, t in tensors.items()}
    expected = output_and_gradients(kernels.depthwise_convolution, exact, {"impl": "reference"}, gradient.double())
    taken = take(True)
    actual = output_and_gradients(kernels.depthwise_convolution, tensors, {"impl": "triton"}, gradient)
    assert taken
    for name, result in actual.items():
        # the interpreter cuts float32 off to bfloat16 where a GPU rounds
        error = (result.double() - expected[name]).abs().max()
        assert error <= torch.finfo(torch.bfloat16).eps * expected[name].abs().max(), name


def test_nan_stays_in_its_rows_its_channel_and_its_tile(take):
    """Zero times NaN is NaN, so that all columns of a tile that reads it have it, and no others."""
    x, weight = torch.randn(2, 9, 40, 16), torch.randn(16, 3, 3)
    expected = kernels.depthwise_convolution(x, weight, impl="reference")
    x[1, 4, 20, 1] = torch.nan
    take(True)
    actual = kernels.depthwise_convolution(x, weight, impl="triton")
    spoilt = torch.zeros(2, 9, 40, 16, dtype=torch.bool)
    spoilt[1, 3:6, 16:24, 1] = True
    assert actual.isnan().equal(spoilt)
    torch.testing.assert_close(actual[~spoilt], expected[~spoilt])


def test_products_come_first_where_they_fill_a_gpu():
    from localmix.kernels.triton.shared_weight_tiles import BY_PRODUCTS, has_products, with_products

    def kinds(shape, results=1):
        x, weight = torch.empty(shape, device="meta"), (results, shape[3], 7, 7)
        others = [(7, 8, 32, 4)] * 7
        tiles = with_products(x, weight, (1, 1), ((16, 8), (32, 16)), others)
        assert others[0] in tiles
        return [tile[1] == BY_PRODUCTS for tile in tiles]

    assert kinds((128, 56, 56, 96))[0]
    # a map that is too low to be cut: two tiles and one other
    assert kinds((128, 7, 7, 768)) == [True, True, False]
    assert not kinds((1, 56, 56, 96))[0]
    assert kinds((128, 56, 56, 96), results=128)[0]
    # one image of 7 x 7 is one of 16 units
    assert not any(kinds((128, 7, 7, 768), results=128))
    weight, x = (1, 16, 7, 7), torch.empty(1, 9, 9, 16)
    assert has_products(x, weight, (1, 1))
    assert not has_products(x, weight, (1, 2))
    assert not has_products(x, (1, 16, 8, 3), (1, 1))
    assert not has_products(torch.empty(1, 9, 9, 20), (1, 20, 7, 7), (1, 1))
    assert not has_products(torch.empty(9 * 9 * 16 + 1)[1:].view(1, 9, 9, 16), weight, (1, 1))


def test_float32_takes_no_products_on_a_gpu(monkeypatch):
    """They would be rounded, or be no work for a matrix unit."""
    from localmix.kernels.triton import tuning
    from localmix.kernels.triton.shared_weight_tiles import has_products

    monkeypatch.setattr(tuning, "is_interpreted", lambda: False)
    weight = (1, 16, 7, 7)
    assert not has_products(torch.empty(1, 9, 9, 16), weight, (1, 1))
    assert has_products(torch.empty(1, 9, 9, 16, dtype=torch.bfloat16), weight, (1, 1))
