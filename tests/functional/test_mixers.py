"""Each definition against an oracle that shares no code with it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.swin_transformer import _get_relative_position_bias

from localmix.functional import (
    aggregate,
    depthwise_convolution,
    homogeneous_convolution,
    inhomogeneous_convolution,
    local_mlp,
    neighborhood_attention,
    projected_inhomogeneous_convolution,
    relative_position_bias,
    sliding,
    window,
    window_attention,
)

f64 = torch.float64
close = torch.testing.assert_close
same_padding = pytest.mark.filterwarnings("ignore:Using padding='same'")


def randn(*shape, dtype=f64, requires_grad=False):
    return torch.randn(shape, dtype=dtype, requires_grad=requires_grad)


def convolution(images, weight, bias=None, dilation=1):
    """`F.conv2d` of a channels-last map, one kernel [C, kh, kw] per channel."""
    images = images.permute(0, 3, 1, 2)
    y = F.conv2d(images, weight[:, None], bias, padding="same", dilation=dilation, groups=len(weight))
    return y.permute(0, 2, 3, 1)


def full_attention(query, key, value, seen, bias, scale=None):
    """`F.scaled_dot_product_attention` over all pairs of positions: seen [P, P], bias [heads, P, P]."""
    mask = torch.where(seen, bias, -torch.inf)
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in (query, key, value)]
    y = F.scaled_dot_product_attention(*tokens, attn_mask=mask, scale=scale)
    return y.transpose(1, 2).reshape(query.shape)


@same_padding
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_convolutions_of_any_shape(size, kernel, dilation, channels, batch):
    x, weight, bias = randn(batch, *size, channels), randn(batch, channels, *kernel), randn(channels)
    y = depthwise_convolution(x, weight[0], bias, dilation=dilation)
    close(y, convolution(x, weight[0], bias, dilation))
    y = homogeneous_convolution(x, weight, bias, dilation=dilation)
    close(y, torch.cat([convolution(i[None], w, bias, dilation) for i, w in zip(x, weight, strict=True)]))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"), [((5, 4), (3, 3), (1, 1)), ((4, 7), (2, 4), (2, 1)), ((2, 1), (5, 6), (1, 2))]
)
def test_inhomogeneous_convolution_is_a_kernel_per_position(size, kernel, dilation, groups):
    """Convolves the whole image by the kernel of a position, and keeps the result at that position only."""
    x, weight = randn(2, *size, 6), randn(2, *size, groups, kernel[0] * kernel[1])
    y = inhomogeneous_convolution(x, weight, kernel_size=kernel, dilation=dilation)
    per_channel = weight.repeat_interleave(6 // groups, dim=3)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    border = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    images = F.pad(x.permute(0, 3, 1, 2), border)
    for b, i, j in itertools.product(*map(range, y.shape[:3])):
        kernels = per_channel[b, i, j].reshape(6, 1, *kernel)
        everywhere = F.conv2d(images[b : b + 1], kernels, dilation=dilation, groups=6)
        close(y[b, i, j], everywhere[0, :, i, j])


@pytest.mark.parametrize("has_bias", [False, True])
def test_projected_inhomogeneous_convolution_makes_its_weights_itself(has_bias):
    x, hidden, projection = randn(2, 4, 5, 6), randn(2, 4, 5, 3), randn(2 * 6, 3)
    bias = randn(2 * 6) if has_bias else None
    sizes = {"kernel_size": (3, 2), "dilation": (1, 2)}
    y = projected_inhomogeneous_convolution(x, hidden, projection, bias, num_groups=2, **sizes)
    weight = torch.einsum("kr,bijr->bijk", projection, hidden) + (0 if bias is None else bias)
    close(y, inhomogeneous_convolution(x, weight.reshape(2, 4, 5, 2, 6), **sizes))


def windows_of(size, window_size, shift):
    """The rows and columns of every window, each a list of positions and a list of slots."""
    axes = []
    for length, w, s in zip(size, window_size, shift, strict=True):
        starts = range(s - w if s else 0, length, w)
        axes.append([([p for p in range(o, o + w) if 0 <= p < length], o) for o in starts])
    for (rows, top), (columns, left) in itertools.product(*axes):
        if rows and columns:
            slots = [(i - top) * window_size[1] + j - left for i, j in itertools.product(rows, columns)]
            yield rows, columns, slots


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    ("size", "window_size", "shift"),
    [
        ((6, 4), (3, 2), (0, 0)),
        ((6, 4), (3, 2), (1, 1)),
        ((7, 5), (3, 4), (2, 0)),
        ((2, 3), (4, 7), (0, 0)),
        ((2, 3), (4, 7), (3, 2)),
        ((1, 1), (2, 2), (1, 0)),
    ],
)
def test_window_attention_is_attention_in_each_window(size, window_size, shift, scale, has_bias):
    query, key, value = (randn(2, *size, 3, 4) for _ in range(3))
    slots = window_size[0] * window_size[1]
    bias = randn(3, slots, slots) if has_bias else None
    y = window_attention(query, key, value, window_size=window_size, shift=shift, bias=bias, scale=scale)
    seen = 0
    for rows, columns, slot in windows_of(size, window_size, shift):
        q, k, v, expected = (t[:, rows][:, :, columns].flatten(1, 2).transpose(1, 2) for t in (query, key, value, y))
        mask = None if bias is None else bias[:, slot][:, :, slot]
        close(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale), expected)
        seen += len(slot)
    assert seen == size[0] * size[1]


@pytest.mark.parametrize("shift", [(1, 1), (2, 1), (0, 2)])
def test_shifted_windows_are_swin_s(shift):
    """Swin rolls the map, attends within windows under a mask by region, and rolls back."""
    size, window_size, slots = (9, 6), (3, 3), 9
    query, key, value = (randn(2, *size, 2, 4) for _ in range(3))
    bias = randn(2, slots, slots)

    def cut(t):
        t = t.unflatten(2, (-1, 3)).unflatten(1, (-1, 3)).transpose(2, 3)
        return t.flatten(3, 4).flatten(0, 2)

    region = torch.zeros(1, *size)
    bands = [[(0, n - 3), (n - 3, n - s), (n - s, n)] for n, s in zip(size, shift, strict=True)]
    for number, ((top, bottom), (left, right)) in enumerate(itertools.product(*bands)):
        region[:, top:bottom, left:right] = number
    region = cut(region)
    mask = torch.where(region[:, :, None] == region[:, None, :], 0.0, -torch.inf)[:, None] + bias
    rolled = [cut(t.roll((-shift[0], -shift[1]), (1, 2))).transpose(1, 2) for t in (query, key, value)]
    y = F.scaled_dot_product_attention(*rolled, attn_mask=mask.repeat(2, 1, 1, 1)).transpose(1, 2)
    y = y.reshape(2, 3, 2, 3, 3, 2, 4).transpose(2, 3).reshape(query.shape).roll(shift, (1, 2))
    close(window_attention(query, key, value, window_size=window_size, shift=shift, bias=bias), y)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"),
    [
        ((6, 5), (3, 3), (1, 1)),
        ((7, 5), (4, 2), (1, 1)),
        ((9, 4), (3, 2), (2, 3)),
        ((2, 3), (5, 4), (1, 1)),
        ((5, 4), (3, 3), (4, 7)),
    ],
)
def test_neighborhood_attention_is_masked_global_attention(size, kernel, dilation, has_bias):
    query, key, value = (randn(2, *size, 2, 4) for _ in range(3))
    table = randn(2, 2 * kernel[0] - 1, 2 * kernel[1] - 1) if has_bias else None
    positions = list(itertools.product(*map(range, size)))
    seen = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    bias = torch.zeros(2, *seen.shape, dtype=f64)
    neighborhood = sliding(*size, kernel, dilation=dilation, border="clamp")
    for p, (i, j) in enumerate(positions):
        for q in neighborhood[i, j].tolist():
            if q >= 0:
                seen[p, q] = True
                row, column = ((positions[q][a] - (i, j)[a]) // dilation[a] + kernel[a] - 1 for a in (0, 1))
                if table is not None:
                    bias[:, p, q] = table[:, row, column]
    y = neighborhood_attention(query, key, value, kernel_size=kernel, dilation=dilation, bias=table)
    close(y, full_attention(query, key, value, seen, bias))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "window_size", "shift"),
    [((6, 4), (3, 2), (0, 0)), ((7, 5), (3, 4), (2, 1)), ((2, 3), (4, 7), (0, 0)), ((2, 3), (4, 7), (3, 6))],
)
def test_local_mlp_is_a_matrix_in_each_window(size, window_size, shift, groups):
    slots = window_size[0] * window_size[1]
    x, weight, bias = randn(2, *size, 4), randn(groups, slots, slots), randn(groups, slots)
    y = local_mlp(x, weight, bias, window_size=window_size, shift=shift)
    for rows, columns, slot in windows_of(size, window_size, shift):
        inputs, outputs = (t[:, rows][:, :, columns].flatten(1, 2) for t in (x, y))
        for c in range(4):
            g = c // (4 // groups)
            matrix = weight[g][slot][:, slot]
            close(outputs[..., c], F.linear(inputs[..., c], matrix, bias[g, slot]))


@pytest.mark.parametrize("window_size", [(3, 3), (2, 5), (1, 4)])
def test_relative_position_bias_is_torchvision_s(window_size):
    """There the table is by query minus key, flat, and heads come last."""
    height, width = window_size
    table = randn(3, 2 * height - 1, 2 * width - 1)
    i, j = (t.flatten() for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    rows, columns = i[:, None] - i + height - 1, j[:, None] - j + width - 1
    index = (rows * (2 * width - 1) + columns).flatten()
    theirs = table.flip(1, 2).flatten(1).T
    assert torch.equal(relative_position_bias(table, window_size), theirs[index].T.reshape(3, i.numel(), i.numel()))
    if height == width:
        expected = _get_relative_position_bias(theirs, index, list(window_size))[0]
        assert torch.equal(relative_position_bias(table, window_size), expected)


def calls(dtype=f64, batch=1):
    """Every function on small maps, with all of its tensors as arguments."""

    def r(*shape):
        return randn(*shape, dtype=dtype, requires_grad=True)

    qkv = [r(batch, 5, 5, 2, 2) for _ in range(3)]
    return {
        "aggregate": (
            lambda x, w: aggregate(x, w, window(5, 5, (2, 3), shift=1)),
            [r(batch, 5, 5, 2), r(1, 5, 1, 2, 6)],
        ),
        "depthwise_convolution": (
            lambda x, w, b: depthwise_convolution(x, w, b, dilation=(1, 2)),
            [r(batch, 5, 5, 2), r(2, 3, 2), r(2)],
        ),
        "homogeneous_convolution": (
            lambda x, w, b: homogeneous_convolution(x, w, b, dilation=(1, 2)),
            [r(batch, 5, 5, 2), r(batch, 2, 3, 2), r(2)],
        ),
        "inhomogeneous_convolution": (
            lambda x, w: inhomogeneous_convolution(x, w, kernel_size=(3, 2), dilation=(1, 2)),
            [r(batch, 5, 5, 2), r(batch, 5, 5, 1, 6)],
        ),
        "projected_inhomogeneous_convolution": (
            lambda x, h, p, b: projected_inhomogeneous_convolution(
                x, h, p, b, num_groups=2, kernel_size=(3, 2), dilation=(1, 2)
            ),
            [r(batch, 5, 5, 4), r(batch, 5, 5, 3), r(12, 3), r(12)],
        ),
        "window_attention": (
            lambda q, k, v, b: window_attention(q, k, v, window_size=(2, 3), shift=(1, 2), bias=b),
            [*qkv, r(2, 6, 6)],
        ),
        "neighborhood_attention": (
            lambda q, k, v, b: neighborhood_attention(q, k, v, kernel_size=(3, 2), dilation=(1, 2), bias=b),
            [*qkv, r(2, 5, 3)],
        ),
        "local_mlp": (
            lambda x, w, b: local_mlp(x, w, b, window_size=(2, 3), shift=(1, 2)),
            [r(batch, 5, 5, 4), r(2, 6, 6), r(2, 6)],
        ),
    }


@pytest.mark.parametrize("function", calls())
def test_gradients(function):
    call, tensors = calls()[function]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("function", calls())
def test_no_image_has_zero_gradients(function):
    call, tensors = calls(torch.float32, batch=0)[function]
    y = call(*tensors)
    assert y.shape == tensors[0].shape
    for t, gradient in zip(tensors, torch.autograd.grad(y.sum(), tensors), strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("function", calls())
def test_dtype_is_kept_and_near_float64(function, dtype):
    call, tensors = calls(dtype, batch=2)[function]
    y = call(*tensors)
    gradients = torch.autograd.grad(y.sum(), tensors)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = call(*exact)
    assert {y.dtype, *(g.dtype for g in gradients)} == {dtype}
    # a sum of at most 60 terms of size 1 to 10, each rounded a few times
    bound = 64 * torch.finfo(dtype).eps
    for actual, reference in zip((y, *gradients), (expected, *torch.autograd.grad(expected.sum(), exact)), strict=True):
        assert (actual.double() - reference).abs().max() <= bound * max(1, reference.abs().max())
