"""Weights shared over positions, in registers and by vectors: every tile, in Triton's interpreter."""

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
    from localmix.kernels.triton.shared_weight_tiles import BY_PRODUCTS, IN_REGISTERS

    kinds = {IN_REGISTERS: "registers", BY_PRODUCTS: "products"}

    def use(kind, index=0):
        taken = []

        def choose(name, problem, candidates, run, x):
            of_kind = [tile for tile in candidates if kinds.get(tile[0], "vectors") == kind]
            if not name.startswith("shared_weight") or (kind == "products" and name.endswith("gradient")):
                return candidates[0]
            taken.append(of_kind[index % len(of_kind)])
            return taken[-1]

        monkeypatch.setattr(tuning, "choose", choose)
        return taken

    return use


CASES = [
    # several units, strips, tiles and blocks of channels, one of them not filled
    ("depthwise_convolution", (1, 9, 11, 40), (7, 7), 1, True),
    ("depthwise_convolution", (2, 8, 9, 5), (7, 5), 1, False),
    ("depthwise_convolution", (18, 4, 3, 16), (2, 4), (3, 1), True),
    ("homogeneous_convolution", (3, 13, 9, 16), (3, 5), 2, True),
    ("homogeneous_convolution", (2, 5, 7, 20), (4, 3), (1, 2), True),
    # a map that is one tile, a kernel larger than the map, and the smallest
    ("depthwise_convolution", (3, 5, 7, 6), (7, 7), 1, True),
    ("depthwise_convolution", (5, 3, 2, 32), (7, 7), 1, True),
    ("homogeneous_convolution", (2, 5, 30, 1), (1, 1), 1, False),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("operator", "shape", "kernel", "dilation", "has_bias"), CASES)
@pytest.mark.parametrize("index", [0, -1])
def test_taps_in_registers_are_within_the_budget(operator, shape, kernel, dilation, has_bias, dtype, index, take):
    taken = take("registers", index)
    images = [] if operator == "depthwise_convolution" else [shape[0]]
    shapes = {"x": shape, "weight": (*images, shape[3], *kernel)} | ({"bias": (shape[3],)} if has_bias else {})
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    gradient = torch.randn(shape).to(dtype)
    check_operator(operator, tensors, {"dilation": dilation}, gradient, impl="triton")
    assert taken


@pytest.mark.parametrize("index", range(7))
def test_every_tile_of_vectors_is_within_the_budget(index, take):
    taken = take("vectors", index)
    shape = (1, 4, 6, 20)
    tensors = {"x": torch.randn(shape), "weight": torch.randn(20, 10, 10), "bias": torch.randn(20)}
    check_operator("depthwise_convolution", tensors, {}, torch.randn(shape), impl="triton")
    assert taken


def test_more_shares_are_summed_than_are_read_at_a_time(take, monkeypatch):
    from localmix.kernels.triton import tuning

    shares, run = [], tuning.run

    def spy(plan, tensors, *rest):
        shares.extend(t.shape[1] for t in tensors if t.dim() == 5)
        return run(plan, tensors, *rest)

    monkeypatch.setattr(tuning, "run", spy)
    take("registers")
    tensors = {"x": torch.randn(80, 3, 3, 32), "weight": torch.randn(32, 1, 1), "bias": torch.randn(32)}
    check_operator("depthwise_convolution", tensors, {}, torch.randn(80, 3, 3, 32), impl="triton")
    assert set(shares) == {80}


@pytest.mark.parametrize("operator", ["depthwise_convolution", "homogeneous_convolution"])
def test_programs_go_through_several_images(operator, take, monkeypatch):
    """As on a GPU that runs few of them at a time."""
    from localmix.kernels.triton import tuning

    programs, launch = [], tuning.launch

    def spy(kernel, number, *rest):
        programs.append((kernel.fn.__name__, number))
        return launch(kernel, number, *rest)

    monkeypatch.setattr(tuning, "num_multiprocessors", lambda x: 1)
    monkeypatch.setattr(tuning, "launch", spy)
    take("registers")
    shape, images = (10, 3, 5, 40), [] if operator == "depthwise_convolution" else [10]
    tensors = {"x": torch.randn(shape), "weight": torch.randn(*images, 40, 3, 3), "bias": torch.randn(40)}
    check_operator(operator, tensors, {}, torch.randn(shape), impl="triton")
    (number,) = {number for name, number in programs if name == "convolve_in_registers"}
    assert number == (3 * 2 if operator == "depthwise_convolution" else 10 * 2)  # of 2 blocks of channels, 5 items


@pytest.mark.parametrize("shape", [(2, 9, 11, 16), (3, 5, 7, 16)])
def test_bfloat16_in_registers(shape, take):
    tensors = {"x": torch.randn(shape), "weight": torch.randn(16, 7, 7), "bias": torch.randn(16)}
    tensors = {name: t.bfloat16() for name, t in tensors.items()}
    gradient = torch.randn(shape).bfloat16()
    exact = {name: t.double() for name, t in tensors.items()}
    expected = output_and_gradients(kernels.depthwise_convolution, exact, {"impl": "reference"}, gradient.double())
    taken = take("registers")
    actual = output_and_gradients(kernels.depthwise_convolution, tensors, {"impl": "triton"}, gradient)
    assert taken
    for name, result in actual.items():
        # the interpreter cuts float32 off to bfloat16 where a GPU rounds
        error = (result.double() - expected[name]).abs().max()
        assert error <= torch.finfo(torch.bfloat16).eps * expected[name].abs().max(), name


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "has_bias"),
    [
        # the last block of images is not full, several blocks of channels, a map of one tile
        ((19, 5, 7, 16), (7, 7), 1, True),
        ((8, 9, 14, 8), (7, 5), 1, False),
        # several tiles of columns; the last one is not full
        ((9, 4, 37, 8), (3, 7), 1, True),
        # even kernels, larger than the map, dilated: rows of several residues, a residue without rows
        ((8, 7, 18, 8), (2, 4), (3, 2), True),
        ((8, 2, 3, 8), (6, 8), (3, 1), False),
        ((8, 3, 5, 8), (1, 1), 1, True),
    ],
)
def test_products_are_within_the_budget(shape, kernel, dilation, has_bias, index, take):
    taken = take("products", index)
    shapes = {"x": shape, "weight": (shape[3], *kernel)} | ({"bias": (shape[3],)} if has_bias else {})
    tensors = {name: torch.randn(shape).half() for name, shape in shapes.items()}
    check_operator("depthwise_convolution", tensors, {"dilation": dilation}, torch.randn(shape).half(), impl="triton")
    assert len(taken) == 2  # forward, and the gradient of x


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by the interpreter
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_what_reads_it_and_nothing_else_by_products(wrong, take):
    x, weight, bias = torch.randn(9, 9, 14, 16).half(), torch.randn(16, 3, 3).half(), torch.randn(16).half()
    take("products")
    expected = kernels.depthwise_convolution(x, weight, bias, impl="triton")
    x[1, 4, 5, 1] = wrong
    taken = take("products")
    actual = kernels.depthwise_convolution(x, weight, bias, impl="triton")
    assert taken
    spoilt = torch.zeros(9, 9, 14, 16, dtype=torch.bool)
    spoilt[1, 3:6, 4:7, 1] = True
    assert (~actual.isfinite()).equal(spoilt)
    torch.testing.assert_close(actual[~spoilt], expected[~spoilt])


def test_where_there_are_products():
    from localmix.kernels.triton.shared_weight_tiles import BY_PRODUCTS, tiles_by_products

    def tiles(shape, kernel=(7, 7), results=1, dilation=(1, 1)):
        return tiles_by_products(shape, (results, shape[3], *kernel), dilation)

    assert tiles((128, 56, 56, 96)) == [(BY_PRODUCTS, 16, 16, 32)]
    assert tiles((128, 14, 14, 384)) == [(BY_PRODUCTS, 16, 16, 16)]
    assert tiles((128, 7, 7, 768)) == [(BY_PRODUCTS, 32, 8, 16), (BY_PRODUCTS, 16, 8, 16)]
    assert tiles((7, 7, 7, 768)) == tiles((128, 7, 7, 4)) == tiles((128, 7, 7, 768), results=128) == []
    # more rows of sums than fit the registers, and more columns than are read
    assert tiles((128, 14, 14, 384), (8, 3)) == tiles((128, 56, 56, 96), (3, 19)) == []
    assert tiles((128, 14, 14, 384), (3, 19)) == [(BY_PRODUCTS, 32, 16, 16), (BY_PRODUCTS, 16, 16, 16)]
    assert tiles((128, 32, 32, 96), (3, 19))[1:] == [(BY_PRODUCTS, 16, 16, 32)]


@pytest.mark.parametrize("width", [40, 7])
def test_nan_reaches_what_reads_it_and_nothing_else(width, take):
    x, weight = torch.randn(2, 9, width, 16), torch.randn(16, 3, 3)
    expected = kernels.depthwise_convolution(x, weight, impl="reference")
    x[1, 4, 5, 1] = torch.nan
    take("registers")
    actual = kernels.depthwise_convolution(x, weight, impl="triton")
    spoilt = torch.zeros(2, 9, width, 16, dtype=torch.bool)
    spoilt[1, 3:6, 4:7, 1] = True
    assert actual.isnan().equal(spoilt)
    torch.testing.assert_close(actual[~spoilt], expected[~spoilt])


def test_tiles_of_the_networks_fill_maps_and_gpus():
    from localmix.kernels.triton.shared_weight_tiles import IN_REGISTERS, tiles_in_registers

    def tiles(shape, kernel=(7, 7), results=1, dilation=(1, 1)):
        return tiles_in_registers(shape, (results, shape[3], *kernel), dilation)

    for shape in ((128, 56, 56, 96), (128, 28, 28, 192), (128, 14, 14, 384), (128, 7, 7, 768)):
        assert tiles(shape)[0] == (IN_REGISTERS, 7, 32, 1)  # seven columns leave none over, and no strip reads twice
        assert tiles(shape)[1][1] == 4
        assert tiles(shape, results=128) == tiles(shape)
    # one image is cut into strips of at least four rows
    assert tiles((1, 56, 56, 96))[0] == (IN_REGISTERS, 7, 32, 14)
    assert tiles((1, 3, 56, 96))[0][3] == 1
    # few channels, few columns
    assert tiles((2, 9, 2, 3))[0] == (IN_REGISTERS, 2, 4, 2)
    assert tiles((2, 9, 8, 3), dilation=(1, 4))[0][1] == 2
    # more taps than registers
    assert not tiles((128, 56, 56, 96), (11, 11))
    assert tiles((128, 56, 56, 96), (9, 9))[0][1] == 2
    assert tiles((128, 56, 56, 96), (3, 3))[0][1] == 8
