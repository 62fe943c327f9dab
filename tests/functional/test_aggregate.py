import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from localmix.functional import NO_INPUT, aggregate, sliding, window


def loops(x, weight, neighborhood):
    """The equation, one number at a time."""
    width, channels = x.shape[2:]
    b_step, h_step, w_step = (size > 1 for size in weight.shape[:3])
    y = torch.zeros_like(x)
    for b, i, j, c in itertools.product(*map(range, x.shape)):
        g = c // (channels // weight.shape[3])
        for k, source in enumerate(neighborhood[i, j].tolist()):
            if source != NO_INPUT:
                w = weight[b * b_step, i * h_step, j * w_step, g, k]
                y[b, i, j, c] += w * x[b, source // width, source % width, c]
    return y


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shared", list(itertools.product([False, True], repeat=3)))
def test_is_the_equation(shared, groups):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    neighborhood = torch.randint(-1, 12, (3, 4, 5))
    sizes = [1 if s else size for s, size in zip(shared, x.shape[:3], strict=True)]
    weight = torch.randn(*sizes, groups, 5, dtype=torch.float64)
    torch.testing.assert_close(aggregate(x, weight, neighborhood), loops(x, weight, neighborhood))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data):
    batch, height, width, groups, per_group, taps = (data.draw(st.integers(1, high)) for high in (2, 4, 4, 3, 2, 4))
    x = torch.randn(batch, height, width, groups * per_group, dtype=torch.float64)
    neighborhood = torch.randint(-1, height * width, (height, width, taps))
    sizes = [data.draw(st.sampled_from([1, size])) for size in (batch, height, width)]
    weight = torch.randn(*sizes, groups, taps, dtype=torch.float64)
    torch.testing.assert_close(aggregate(x, weight, neighborhood), loops(x, weight, neighborhood))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 6), (7, 5)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize("size", [(6, 5), (2, 3), (1, 1)])
def test_static_weights_on_a_sliding_neighborhood_are_a_depthwise_convolution(size, kernel, dilation):
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    weight = torch.randn(3, *kernel, dtype=torch.float64)
    y = aggregate(x, weight.reshape(1, 1, 1, 3, -1), sliding(*size, kernel, dilation=dilation))
    images = x.permute(0, 3, 1, 2)
    expected = F.conv2d(images, weight[:, None], padding="same", dilation=dilation, groups=3)
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1))


def test_one_window_is_a_matrix():
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    matrix = torch.randn(2, 12, 12, dtype=torch.float64)
    weight = matrix.transpose(0, 1).reshape(1, 3, 4, 2, 12)
    expected = torch.einsum("cpq,bqc->bpc", matrix, x.flatten(1, 2)).reshape(x.shape)
    torch.testing.assert_close(aggregate(x, weight, window(3, 4, (3, 4))), expected)


def test_no_image():
    x = torch.randn(0, 3, 4, 2, requires_grad=True)
    weight = torch.randn(1, 1, 1, 2, 9, requires_grad=True)
    y = aggregate(x, weight, sliding(3, 4, 3))
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_of_small_integers_are_exact_in_every_dtype(dtype):
    x = torch.randint(-2, 3, (2, 4, 5, 6)).to(dtype)
    weight = torch.randint(-2, 3, (2, 4, 5, 3, 9)).to(dtype)
    y = aggregate(x, weight, sliding(4, 5, 3))
    assert y.dtype == dtype
    assert torch.equal(y.double(), loops(x.double(), weight.double(), sliding(4, 5, 3)))


def test_nothing_read_is_zero_even_beside_infinity():
    x = torch.full((1, 2, 2, 1), torch.inf)
    nothing = torch.full((2, 2, 3), NO_INPUT)
    assert torch.equal(aggregate(x, torch.ones(1, 1, 1, 1, 3), nothing), torch.zeros_like(x))
