"""Points of the space as layers: what they compute, and which operator computes it."""

import copy
import dataclasses
import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from localmix import kernels, layers
from localmix.axes import MIXERS, Dynamics, Positions
from localmix.functional import aggregate
from localmix.kernels import native
from localmix.layers import LocalMixer
from localmix.point import MIXER_POINTS, Point

close = torch.testing.assert_close

# a point of each kind of route, and the operator that computes it
ROUTES = {
    "sliding3x4-dilation1x2/shared-positions/unshared-channels/static": "depthwise_convolution",
    "sliding4/shared-positions/groups2/static/softmax": "depthwise_convolution",
    "sliding3/shared-positions/groups4/homogeneous": "homogeneous_convolution",
    "sliding3x2/shared-positions/shared-channels/mixture3": "homogeneous_convolution",
    "sliding3/unshared-positions/groups2/inhomogeneous": "projected_inhomogeneous_convolution",
    "sliding3-dilation2/unshared-positions/groups2/inhomogeneous/softmax": "inhomogeneous_convolution",
    "sliding3/shared-windows4x3/groups2/static": "inhomogeneous_convolution",
    "sliding3/shared-windows2/groups2/homogeneous/softmax": "inhomogeneous_convolution",
    "window3-shift1/shared-windows/groups2/static": "local_mlp",
    "window3x4-shift1x2/shared-positions/groups2/static": "local_mlp",
    "window3-shift2/shared-windows/groups2/mixture3/softmax": "local_mlp",
    "window3x2/shared-positions/groups4/homogeneous": "local_mlp",
    "window3x4-shift1x2/unshared-positions/groups2/inhomogeneous": "local_mlp",
    "window3/unshared-positions/groups2/inhomogeneous/softmax": "local_mlp",
    "window3x4-shift1x2-pad/unshared-positions/groups2/dot-product": "window_attention",
    "sliding3x4-dilation2x1/unshared-positions/groups2/dot-product": "neighborhood_attention",
    "sliding3x4-dilation2x1/unshared-positions/groups2/dot-product/free": "inhomogeneous_convolution",
    "window3x4-shift1x2/unshared-positions/groups2/dot-product/free": "local_mlp",
}
every_route = pytest.mark.parametrize("name", ROUTES)


def made(name, dim=8, dtype=torch.float64, **options):
    """A mixer with none of its numbers at a value that hides an error, such as 0 or 1."""
    point = name if isinstance(name, Point) else Point.parse(name)
    mixer = LocalMixer(dim, point, **options).to(dtype)
    with torch.no_grad():
        for p in mixer.parameters():
            p.normal_(std=0.5)
        for buffer in mixer.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return mixer


def results(mixer, call, x):
    """Output, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    mixer.zero_grad()
    y = call(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    return {"output": y.detach(), "x": x.grad, **{name: p.grad for name, p in mixer.named_parameters()}}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key in expected:
        assert (actual[key] is None) == (expected[key] is None), key
        if expected[key] is not None:
            close(actual[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")


def random_point(draw):
    """Any point whose groups divide 8 channels."""

    def size(low, high):
        return draw.randint(low, high), draw.randint(low, high)

    kind = draw.choice(["sliding", "window"])
    weights = draw.choice(["static", "homogeneous", f"mixture{draw.randint(1, 3)}", "inhomogeneous", "dot-product"])
    free = "/free" if weights == "dot-product" and draw.random() < 0.5 else ""
    attends = weights == "dot-product" and not free
    height, width = size(1, 5)
    if kind == "sliding":
        dilation = size(1, 2)
        connectivity = f"sliding{height}x{width}-dilation{dilation[0]}x{dilation[1]}"
    else:
        connectivity = f"window{height}x{width}-shift{draw.randrange(height)}x{draw.randrange(width)}"
        connectivity += draw.choice(["", "-pad"]) if attends else ""
    positions = "unshared-positions"
    if weights not in ("inhomogeneous", "dot-product"):
        period = "{}x{}".format(*size(1, 4)) if kind == "sliding" else ""
        positions = draw.choice(["shared-positions", f"shared-windows{period}"])
    softmax = weights != "dot-product" and (kind, positions) != ("window", "shared-positions")
    channels = draw.choice(["unshared-channels", "shared-channels", "groups2", "groups4"])
    end = "/softmax" if softmax and draw.random() < 0.5 else free
    return Point.parse(f"{connectivity}/{positions}/{channels}/{weights}{end}")


def weight_by_hand(mixer, x):
    """w[b, p, q, c] of every pair of positions, from the raw output of the source, by the words of the axes."""
    point, source = mixer.point, mixer.source
    batch, height, width, channels = x.shape
    (kh, kw), (dh, dw) = point.size, point.dilation
    shift = [s if n > w else 0 for s, n, w in zip(point.shift, (height, width), point.size, strict=True)]
    if point.weights is Dynamics.INHOMOGENEOUS:
        raw = source.expand(source.hidden(x)).unflatten(3, (mixer.num_groups, kh * kw))
        raw = raw.softmax(-1) if point.softmax else raw
    elif point.free:
        query, key, _ = source.project(x)
        raw = torch.einsum("bijgd,bacgd->bijacg", query, key) / (kh * kw * (channels / mixer.num_groups) ** 0.5)
    else:
        raw = source.matrices(x).expand(batch, *[-1] * 3)  # [B, G, ., .]
        if point.softmax:
            raw = raw.softmax(-1) if point.positions is Positions.WINDOWS else raw.flatten(2).softmax(2).view_as(raw)
    rows = []
    for i, j in ((i, j) for i in range(height) for j in range(width)):
        row = []
        for a, b in ((a, b) for a in range(height) for b in range(width)):
            if point.is_sliding:  # the tap of (a, b) in a kernel around (i, j)
                up, left = a - i + dh * (kh - 1) // 2, b - j + dw * (kw - 1) // 2
                seen = up % dh == 0 and left % dw == 0 and 0 <= up // dh < kh and 0 <= left // dw < kw
                tap = (up // dh, left // dw)
            else:  # its slot in the window of (i, j)
                seen = (i - shift[0]) // kh == (a - shift[0]) // kh and (j - shift[1]) // kw == (b - shift[1]) // kw
                tap = ((a - shift[0]) % kh, (b - shift[1]) % kw)
            if not seen:
                row.append(x.new_zeros(batch, mixer.num_groups))
                continue
            k = tap[0] * kw + tap[1]
            if point.free:
                offset = tap if point.is_sliding else (a - i + kh - 1, b - j + kw - 1)
                row.append(raw[:, i, j, a, b] + source.relative_position_bias_table[(slice(None), *offset)])
            elif point.positions is Positions.NONE:
                row.append(raw[:, i, j, :, k])
            elif point.positions is Positions.WINDOWS:
                ph, pw = point.period or point.size
                row.append(raw[:, :, (i - shift[0]) % ph * pw + (j - shift[1]) % pw, k])
            elif point.is_sliding:
                row.append(raw[:, :, tap[0], tap[1]])
            else:
                row.append(raw[:, :, a - i + kh - 1, b - j + kw - 1])
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1).repeat_interleave(channels // mixer.num_groups, 3)


@pytest.mark.parametrize("seed", range(60))
def test_random_points_are_the_equation(seed):
    """Against `aggregate`, output and every gradient, at a random size; the weights made again by hand."""
    draw = random.Random(seed)
    point = random_point(draw)
    mixer = made(point).train(draw.random() < 0.5)
    x = torch.randn(draw.randint(2, 3), draw.randint(1, 7), draw.randint(1, 7), 8, dtype=torch.float64)
    twin = copy.deepcopy(mixer)

    def equation(x):
        padded = twin.connectivity.pad(x)
        value, weight = twin.source(padded, twin.connectivity)
        y = aggregate(value, weight, twin.connectivity.neighborhood(*padded.shape[1:3], x.device))
        offset = twin.offset(*padded.shape[1:3])
        return twin.connectivity.unpad(twin.output(y if offset is None else y + offset), *x.shape[1:3])

    expected = results(twin, equation, x)
    assert_same(results(mixer, mixer, x), expected)
    assert mixer.name == point.name
    if not point.attends:  # which the tests of the attentions hold
        mixer.eval()
        weight = weight_by_hand(mixer, x)
        value = mixer.source.project(x)[2].flatten(3) if point.free else x
        y = torch.einsum("bpqc,bqc->bpc", weight, value.flatten(1, 2)).view(x.shape)
        offset = mixer.offset(*x.shape[1:3])
        close(mixer.output(y if offset is None else y + offset), mixer(x))


@every_route
@pytest.mark.parametrize("size", [(7, 5), (6, 8), (2, 3), (1, 1)])
def test_any_size_by_the_operator_is_the_equation(name, size):
    mixer, x = made(name), torch.randn(3, *size, 8, dtype=torch.float64)
    assert mixer(x).shape == x.shape
    twin = copy.deepcopy(mixer)
    assert_same(results(mixer, mixer, x), results(twin, twin.definition, x))


def without_groups(name):
    """The same with one channel, which has one group."""
    point = Point.parse(name)
    return dataclasses.replace(point, num_groups=None if point.num_groups is None else 1)


@every_route
def test_one_channel(name):
    mixer, x = made(without_groups(name), 1), torch.randn(2, 7, 5, 1, dtype=torch.float64)
    twin = copy.deepcopy(mixer)
    assert_same(results(mixer, mixer, x), results(twin, twin.definition, x))


@every_route
def test_no_image(name):
    mixer = made(name).eval()
    x = torch.randn(0, 7, 5, 8, dtype=torch.float64, requires_grad=True)
    y = mixer(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in mixer.parameters() if p.grad is not None)


@every_route
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_second_derivatives(name, impl):
    point = dataclasses.replace(without_groups(name), num_groups=1)
    mixer = made(point, 2, impl=impl).eval()
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    parameters = {n: p.detach().requires_grad_() for n, p in mixer.named_parameters()}

    def call(x, *values):
        return torch.func.functional_call(mixer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(call, (x, *parameters.values()), fast_mode=True)


# The six mixers.


@pytest.mark.parametrize("function", MIXERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_mixer_of_the_paper_is_its_point(function, training):
    options = {
        "depthwise_convolution": {},
        "homogeneous_convolution": {},
        "inhomogeneous_convolution": {"num_groups": 32},
        "window_attention": {"num_heads": 3, "shift": 3, "border": "pad"},
        "neighborhood_attention": {"num_heads": 3},
        "local_mlp": {"num_groups": 32, "shift": 3},
    }[function]
    layer = getattr(layers, MIXERS[function].layer)(96, **options).double().train(training)
    mixer = made(MIXER_POINTS[function].in_block(0, 1), 96).train(training)
    assert {n: p.shape for n, p in mixer.state_dict().items()} == {n: p.shape for n, p in layer.state_dict().items()}
    layer.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 9, 11, 96, dtype=torch.float64)
    assert_same(results(mixer, mixer, x), results(layer, layer, x))
    assert mixer.operator == (f"projected_{function}" if function.startswith("inhomogeneous") else function)


@pytest.mark.parametrize("function", MIXERS)
def test_a_mixer_of_the_paper_starts_as_its_point(function):
    """The same spread of the parameters at the start, each within a tenth."""
    point = dataclasses.replace(
        MIXER_POINTS[function].in_block(0, 1), num_groups=MIXER_POINTS[function].num_groups and 4
    )
    options = {} if point.num_groups is None else {"num_heads" if "attention" in function else "num_groups": 4}
    layer, mixer = getattr(layers, MIXERS[function].layer)(256, **options), LocalMixer(256, point)
    for (name, first), second in zip(layer.named_parameters(), mixer.parameters(), strict=True):
        assert abs(first.std() - second.std()) <= 0.1 * first.std() + 1e-6, name
        assert abs(first.abs().max() - second.abs().max()) <= 0.2 * first.abs().max(), name


@pytest.mark.parametrize("connectivity", ["window3", "window4-shift1x2", "sliding3"])
def test_free_dot_products_start_as_a_softmax_of_small_ones(connectivity):
    """Around 1 / K, and where all taps have an input they follow the softmax to first order."""
    torch.manual_seed(0)
    free = LocalMixer.from_name(f"{connectivity}/unshared-positions/groups2/dot-product/free", dim=32)
    attention = LocalMixer.from_name(f"{connectivity}/unshared-positions/groups2/dot-product", dim=32)
    attention.source.qkv.load_state_dict(free.source.qkv.state_dict())
    x = torch.randn(2, 12, 12, 32)
    taps = free.connectivity.num_taps
    table = free.source.relative_position_bias_table
    assert (taps * table - 1).abs().max() < 0.1 and 0.01 < (taps * table).std() < 0.03
    with torch.no_grad():
        table.fill_(1 / taps)
        attention.source.relative_position_bias_table.zero_()
        weight, shares = (mixer.source(x, mixer.connectivity)[1][:, 4:8, 4:8] for mixer in (free, attention))
    # of logits l a softmax is (1 + l - mean l) / K and terms of second order
    weight, shares = (w - w.mean(-1, keepdim=True) for w in (weight, shares))
    assert (weight - shares).abs().max() < 0.1 * weight.abs().max()


@pytest.mark.parametrize("connectivity", ["window3-shift1", "sliding3-dilation2x1"])
def test_free_dot_products_without_a_query_are_static(connectivity):
    """The bias alone: weights by offset, as a static mixer has them."""
    free = made(f"{connectivity}/unshared-positions/groups2/dot-product/free")
    static = made(f"{connectivity}/shared-positions/groups2/static")
    with torch.no_grad():
        free.source.qkv.weight[:8] = free.source.qkv.bias[:8] = 0
        static.source.weight.copy_(free.source.relative_position_bias_table)
        static.bias.zero_()
    x = torch.randn(2, 7, 5, 8, dtype=torch.float64)
    close(free(x), free.output(static(free.source.project(x)[2].flatten(3))))


def test_a_mixture_does_not_grow_as_the_homogeneous_convolution_does():
    def count(weights):
        mixer = LocalMixer.from_name(f"sliding7/shared-positions/unshared-channels/{weights}", dim=96)
        return sum(p.numel() for p in mixer.parameters())

    assert count("mixture4") == 4 * 96 * 49 + 96 * 4 + 4 + 96
    assert count("static") < count("mixture4") < count("homogeneous") / 5


def test_a_mixture_of_one_is_static():
    static = made("sliding3/shared-positions/groups2/static")
    mixture = made("sliding3/shared-positions/groups2/mixture1")
    with torch.no_grad():
        mixture.source.weight[0] = static.source.weight
        mixture.bias.copy_(static.bias)
    x = torch.randn(2, 7, 5, 8, dtype=torch.float64)
    close(mixture(x), static(x))


def test_a_mixture_chooses_by_the_image():
    mixer = made("sliding3/shared-positions/groups2/mixture3")
    x = torch.randn(3, 7, 5, 8, dtype=torch.float64)
    close(mixer(x), torch.cat([mixer(image) for image in x.split(1)]))
    share = mixer.source.select(x.mean((1, 2))).softmax(-1)
    assert share.std(0).min() > 0.01
    only = copy.deepcopy(mixer)
    nn.init.constant_(only.source.select.bias, -1e4)
    only.source.select.bias.data[1] = 0
    static = made("sliding3/shared-positions/groups2/static")
    with torch.no_grad():
        static.source.weight.copy_(mixer.source.weight[1])
        static.bias.copy_(mixer.bias)
    close(only(x), static(x))


def test_windows_as_large_as_the_map_share_nothing():
    """Static weights of each position, which is the layer without any sharing over positions."""
    mixer = made("sliding3/shared-windows6x5/groups2/static")
    _, weight = mixer.source(torch.randn(1, 6, 5, 8, dtype=torch.float64), mixer.connectivity)
    assert weight.shape == (1, 6, 5, 2, 9)
    assert len(weight.flatten(0, 2).unique(dim=0)) == 30
    _, weight = mixer.source(torch.randn(1, 12, 7, 8, dtype=torch.float64), mixer.connectivity)
    assert torch.equal(weight[:, :6], weight[:, 6:])


def test_softmax_sums_to_one():
    for name in ROUTES:
        if name.endswith("softmax"):
            mixer = made(name)
            _, weight = mixer.source(torch.randn(2, 7, 5, 8, dtype=torch.float64), mixer.connectivity)
            assert (weight > 0).all()
            close(weight.sum(-1), torch.ones_like(weight[..., 0]))


# Operators.


@pytest.fixture
def called(monkeypatch):
    """Names of the operators that are called, from outside of them."""
    calls = []
    for operator in kernels.OPERATORS:

        def spy(name, run, *args, **options):
            calls.append((name, options["impl"]))
            return run(*args, **options)

        monkeypatch.setattr(kernels, operator, partial(spy, operator, getattr(kernels, operator)))
    monkeypatch.setattr(layers.mixer, "aggregate", lambda *_: pytest.fail("the definition was called"))
    return calls


@every_route
def test_operator_of_each_point(name, called):
    mixer = made(name, impl="aten")
    assert mixer.operator == ROUTES[name]
    mixer(torch.randn(2, 7, 5, 8, dtype=torch.float64)).sum().backward()
    assert called == [(mixer.operator, "aten")]


@every_route
def test_an_implementation_that_cannot_serve_is_an_error(name, monkeypatch):
    monkeypatch.setattr(native, "refusal", lambda x, named: "out of order")
    x = torch.randn(2, 7, 5, 8, dtype=torch.float64)
    made(name)(x)
    with pytest.raises(ValueError, match=rf"^impl: .* {ROUTES[name]}, got 'native': out of order$"):
        made(name, impl="native")(x)
    with pytest.raises(ValueError, match=r"^impl: expected one of .*, got 'fastest'$"):
        made(name, impl="fastest")(x)


def test_document_says_which_operator_computes_a_point():
    document = (Path(__file__).parents[2] / "docs/local_mixer.md").read_text()
    rows = re.findall(r"^\| `(\S+/\S+)` \| `(\w+)` \|", document, re.MULTILINE)
    assert {operator for _, operator in rows} == set(kernels.OPERATORS)
    assert [(name, LocalMixer.from_name(name, dim=8).operator) for name, _ in rows] == rows


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that an operator made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().size() // t.element_size())
        return made


@every_route
def test_the_inputs_of_all_taps_are_never_copied(name):
    point = Point.parse(name)
    mixer = made(dataclasses.replace(point, size=(5, 5), shift=(0, 0), num_groups=2), 32, torch.float32)
    x = torch.randn(2, 15, 20, 32)
    copies = x.numel() * 25
    for call, bounded in ((mixer, True), (mixer.definition, False)):
        with Largest() as largest:
            call(x).sum().backward()
        assert (largest.numbers < copies / 2) == bounded


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((8, "sliding7/shared-positions/groups2/static"), TypeError, r"point: expected a Point .*, got str"),
        ((8, Point.parse("sliding7/shared-positions/groups3/static")), ValueError, "num_groups: .* dim = 8, got 3"),
        (
            (96, Point.parse("sliding7/unshared-positions/groups3,6/dot-product")),
            ValueError,
            r"num_groups: expected one number for a layer, got \(3, 6\): point.in_block",
        ),
        ((0, MIXER_POINTS["depthwise_convolution"]), ValueError, "dim: expected an int of at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        LocalMixer(*arguments)


def test_name_of_a_layer():
    mixer = LocalMixer.from_name("sliding7/shared-positions/groups32/homogeneous", dim=96)
    assert mixer.name == "sliding7/shared-positions/groups32/homogeneous"
    assert mixer.name in repr(mixer)
    with pytest.raises(ValueError, match=r"^positions: "):
        LocalMixer.from_name("sliding7/shared-positions/groups32/dot-product", dim=96)
