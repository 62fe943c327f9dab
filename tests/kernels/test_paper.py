"""The paper's claim as identities: each mixer becomes another one when an axis is taken away."""

import pytest
import torch
import torch.nn.functional as F

from localmix import kernels
from localmix.functional import NO_INPUT, aggregate, sliding, window

close = torch.testing.assert_close
# those that have every operator, in float64 too
every_impl = pytest.mark.parametrize("impl", ["aten", "reference"])


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def heads_of(x):
    """A map as queries, keys or values with one channel per head."""
    return x[..., None]


@every_impl
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), (1, 1)), ((4, 2), (1, 3))])
def test_inhomogeneous_with_one_kernel_everywhere_is_depthwise(impl, kernel, dilation):
    x, weight = randn(2, 6, 7, 4), randn(4, *kernel)
    everywhere = weight.flatten(1).expand(2, 6, 7, -1, -1)
    y = kernels.inhomogeneous_convolution(x, everywhere, kernel_size=kernel, dilation=dilation, impl=impl)
    close(y, kernels.depthwise_convolution(x, weight, dilation=dilation, impl=impl))


@every_impl
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), (1, 1)), ((4, 2), (1, 3))])
def test_homogeneous_with_equal_kernels_is_depthwise(impl, kernel, dilation):
    x, weight, bias = randn(3, 6, 7, 4), randn(4, *kernel), randn(4)
    y = kernels.homogeneous_convolution(x, weight.expand(3, -1, -1, -1), bias, dilation=dilation, impl=impl)
    close(y, kernels.depthwise_convolution(x, weight, bias, dilation=dilation, impl=impl))


@every_impl
def test_inhomogeneous_with_one_kernel_per_image_is_homogeneous(impl):
    x, weight = randn(3, 6, 7, 4), randn(3, 4, 3, 3)
    everywhere = weight.flatten(2)[:, None, None].expand(-1, 6, 7, -1, -1)
    y = kernels.inhomogeneous_convolution(x, everywhere, kernel_size=3, impl=impl)
    close(y, kernels.homogeneous_convolution(x, weight, impl=impl))


@every_impl
@pytest.mark.parametrize("constant", ["query", "key"])
def test_window_attention_of_constant_keys_or_no_query_is_the_window_mean(impl, constant):
    value, other = randn(2, 6, 8, 3), randn(2, 6, 8, 3)
    same = torch.zeros_like(other) if constant == "query" else other[:, :1, :1].expand_as(other)
    query, key = (same, other) if constant == "query" else (other, same)
    y = kernels.window_attention(*map(heads_of, (query, key, value)), window_size=(3, 4), impl=impl)[..., 0]
    mean = F.avg_pool2d(value.permute(0, 3, 1, 2), (3, 4))
    close(y, F.interpolate(mean, scale_factor=(3, 4)).permute(0, 2, 3, 1))


@every_impl
@pytest.mark.parametrize("shift", [(1, 2), (2, 0)])
def test_shifted_windows_are_windows_of_the_shifted_map(impl, shift):
    """Away from the strips that the border cuts, which Swin masks, shifting is rolling."""
    qkv = [randn(2, 9, 8, 2, 3) for _ in range(3)]
    y = kernels.window_attention(*qkv, window_size=(3, 4), shift=shift, impl=impl)
    rolled = [t.roll((-shift[0], -shift[1]), (1, 2)) for t in qkv]
    expected = kernels.window_attention(*rolled, window_size=(3, 4), impl=impl).roll(shift, (1, 2))
    bottom, right = 9 - (9 - shift[0]) % 3, 8 - (8 - shift[1]) % 4
    inside = slice(None), slice(shift[0], bottom), slice(shift[1], right)
    close(y[inside], expected[inside])


@every_impl
@pytest.mark.parametrize("kernel", [(5, 4), (6, 9)])
def test_a_neighborhood_that_covers_the_map_is_global_attention(impl, kernel):
    qkv = [randn(2, 5, 4, 2, 3) for _ in range(3)]
    y = kernels.neighborhood_attention(*qkv, kernel_size=kernel, impl=impl)
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in qkv]
    close(y.flatten(1, 2), F.scaled_dot_product_attention(*tokens).transpose(1, 2))


@every_impl
@pytest.mark.parametrize("window", [(5, 4), (6, 9)])
def test_a_window_that_covers_the_map_is_global_attention(impl, window):
    qkv = [randn(2, 5, 4, 2, 3) for _ in range(3)]
    y = kernels.window_attention(*qkv, window_size=window, impl=impl)
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in qkv]
    close(y.flatten(1, 2), F.scaled_dot_product_attention(*tokens).transpose(1, 2))


@every_impl
def test_covered_by_either_they_are_the_same_with_the_same_bias(impl):
    qkv, table = [randn(2, 5, 4, 2, 3) for _ in range(3)], randn(2, 9, 7)
    bias = torch.stack(
        [
            torch.stack([table[:, i - p + 4, j - q + 3] for i in range(5) for j in range(4)], dim=1)
            for p in range(5)
            for q in range(4)
        ],
        dim=1,
    )
    y = kernels.window_attention(*qkv, window_size=(5, 4), bias=bias, impl=impl)
    close(y, kernels.neighborhood_attention(*qkv, kernel_size=(5, 4), bias=table, impl=impl))


@every_impl
@pytest.mark.parametrize("kernel", [3, 5])
def test_local_mlp_of_a_toeplitz_matrix_is_a_convolution_in_each_window(impl, kernel):
    x, weight = randn(2, 8, 6, 2), randn(2, kernel, kernel)
    slots = sliding(4, 6, kernel)
    matrix = torch.zeros(2, 24, 24, dtype=torch.float64)
    for m, taps in enumerate(slots.flatten(0, 1).tolist()):
        for k, n in enumerate(taps):
            if n != NO_INPUT:
                matrix[:, m, n] = weight.flatten(1)[:, k]
    y = kernels.local_mlp(x, matrix, window_size=(4, 6), impl=impl)
    halves = [kernels.depthwise_convolution(half, weight, impl=impl) for half in x.split(4, dim=1)]
    close(y, torch.cat(halves, dim=1))


@every_impl
@pytest.mark.parametrize("shift", [0, (1, 2)])
def test_local_mlp_of_equal_entries_is_window_attention_without_a_query(impl, shift):
    """Where no window is cut, so that a mean over the window is a sum over its slots divided by their number."""
    x = randn(2, 5, 7, 2)
    y = kernels.local_mlp(x, torch.full((1, 12, 12), 1 / 12).double(), window_size=(3, 4), shift=shift, impl=impl)
    mean = kernels.window_attention(*map(heads_of, (x * 0, x, x)), window_size=(3, 4), shift=shift, impl=impl)[..., 0]
    whole = (window(5, 7, (3, 4), shift=shift) != NO_INPUT).all(2)
    assert whole.any()
    assert not whole.all()
    close(y[:, whole], mean[:, whole])


@every_impl
@pytest.mark.parametrize("kernel", [(3, 3), (2, 5)])
def test_neighborhood_attention_without_a_query_is_a_clamped_box_filter(impl, kernel):
    value = randn(2, 6, 7, 3)
    y = kernels.neighborhood_attention(*map(heads_of, (value * 0, value, value)), kernel_size=kernel, impl=impl)[..., 0]
    # the box filter where it fits, repeated outwards
    box = F.avg_pool2d(value.permute(0, 3, 1, 2), kernel, stride=1)
    before = [k // 2 for k in kernel]
    after = [k - 1 - b for k, b in zip(kernel, before, strict=True)]
    expected = F.pad(box, (before[1], after[1], before[0], after[0]), mode="replicate")
    close(y, expected.permute(0, 2, 3, 1))


def test_borders_differ_at_the_border_only():
    x, weight = randn(2, 6, 6, 4), randn(1, 1, 1, 4, 9)
    zero, clamped = (aggregate(x, weight, sliding(6, 6, 3, border=border)) for border in ("zero", "clamp"))
    inside = slice(None), slice(1, -1), slice(1, -1)
    close(zero[inside], clamped[inside])
    assert not torch.isclose(zero[:, 0], clamped[:, 0]).any()


# Moving the map moves the output: by any step for what slides, by whole windows for what is cut into windows.


def depthwise_convolution(x, weight, impl):
    return kernels.depthwise_convolution(x, weight[0, :, :9].unflatten(1, (3, 3)), impl=impl)


def homogeneous_convolution(x, weight, impl):
    return kernels.homogeneous_convolution(x, weight[:, :, :9].unflatten(2, (3, 3)), impl=impl)


def inhomogeneous_convolution(x, weight, impl):
    of_positions = x[..., :2, None] * weight[:, None, None, :2, :9]
    return kernels.inhomogeneous_convolution(x, of_positions, kernel_size=3, impl=impl)


def neighborhood_attention(x, weight, impl):
    qkv, bias = [x.unflatten(3, (2, 2))] * 3, weight[0, :2, :25].unflatten(1, (5, 5))
    return kernels.neighborhood_attention(*qkv, kernel_size=3, bias=bias, impl=impl).flatten(3)


def window_attention(x, weight, impl):
    qkv, bias = [x.unflatten(3, (2, 2))] * 3, weight[0, :2].unflatten(1, (6, 6))
    return kernels.window_attention(*qkv, window_size=(2, 3), bias=bias, impl=impl).flatten(3)


def local_mlp(x, weight, impl):
    return kernels.local_mlp(x, weight[0, :2].unflatten(1, (6, 6)), window_size=(2, 3), impl=impl)


def difference_when_moved(mixer, impl, step, border):
    """Between the output of the moved map and the moved output, but for what the border comes into."""
    x, weight = randn(2, 8, 12, 4), randn(2, 4, 36)
    first = mixer(x, weight, impl).roll(step, (1, 2))
    second = mixer(x.roll(step, (1, 2)), weight, impl)
    rows, columns = (slice(border + s, size - border) for s, size in zip(step, (8, 12), strict=True))
    return (first - second)[:, rows, columns].abs().max()


@every_impl
@pytest.mark.parametrize("step", [(1, 0), (0, 1), (2, 3)])
@pytest.mark.parametrize(
    "mixer", [depthwise_convolution, homogeneous_convolution, inhomogeneous_convolution, neighborhood_attention]
)
def test_what_slides_moves_with_the_map(impl, mixer, step):
    assert difference_when_moved(mixer, impl, step, border=1) < 1e-12
    assert difference_when_moved(mixer, impl, step, border=0) > 1e-2


@every_impl
@pytest.mark.parametrize("mixer", [window_attention, local_mlp])
def test_windows_move_with_the_map_by_whole_windows_only(impl, mixer):
    for step in [(2, 0), (0, 3), (4, 6)]:
        assert difference_when_moved(mixer, impl, step, border=0) < 1e-12
    for step in [(1, 0), (0, 1), (2, 2), (1, 3)]:
        assert difference_when_moved(mixer, impl, step, border=0) > 1e-2
