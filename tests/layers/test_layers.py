import copy
import io
import pickle

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from localmix.layers import (
    DepthwiseConv,
    DotProduct,
    HomogeneousDynamicConv,
    HomogeneousKernel,
    InhomogeneousDynamicConv,
    InhomogeneousKernel,
    LocalMLP,
    Mixer,
    NeighborhoodAttention,
    Sliding,
    StaticKernel,
    StaticWindow,
    Window,
    WindowAttention,
)
from localmix.testing import output_and_gradients

close = torch.testing.assert_close

LAYERS = {
    "depthwise": lambda: DepthwiseConv(8, kernel_size=(3, 4), dilation=(1, 2)),
    "depthwise without bias": lambda: DepthwiseConv(8, kernel_size=3, bias=False),
    "homogeneous": lambda: HomogeneousDynamicConv(8, kernel_size=(3, 4), dilation=(1, 2)),
    "inhomogeneous": lambda: InhomogeneousDynamicConv(
        8, num_groups=2, kernel_size=(3, 4), dilation=(1, 2), reduction=2
    ),
    "window": lambda: WindowAttention(8, num_heads=2, window_size=(3, 4), shift=(1, 2)),
    "window, padded": lambda: WindowAttention(8, num_heads=2, window_size=(3, 4), shift=(1, 2), border="pad"),
    "window, plain": lambda: WindowAttention(
        8, num_heads=4, window_size=3, qkv_bias=False, relative_position_bias=False
    ),
    "neighborhood": lambda: NeighborhoodAttention(8, num_heads=2, kernel_size=(3, 4), dilation=(2, 1)),
    "local MLP": lambda: LocalMLP(8, num_groups=2, window_size=(3, 4), shift=(1, 2)),
}


def made(name, dtype=torch.float32):
    """A layer with none of its numbers at a value that hides an error, such as 0 or 1."""
    layer = LAYERS[name]().to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return layer


def results(layer, function, x):
    """Output and gradients with respect to the input and every parameter."""
    parameters = dict(layer.named_parameters())
    gradient = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)

    def call(x, **values):
        return torch.func.functional_call(Calls(layer, function), {f"layer.{n}": v for n, v in values.items()}, (x,))

    # parameters that batch statistics make idle get no gradient, but for the bias in front of the norm all take part
    tensors = {"x": x, **{name: p.detach() for name, p in parameters.items()}}
    named = {name.replace(".", "__"): t for name, t in tensors.items()}
    return output_and_gradients(
        lambda x, **v: call(x, **{n.replace("__", "."): t for n, t in v.items()}), named, {}, gradient
    )


class Calls(nn.Module):
    """A layer whose call is one of its methods."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return getattr(self.layer, self.function)(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(7, 5), (6, 8), (2, 3), (1, 1)])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_the_definition(name, size, training):
    layer = made(name, torch.float64).train(training)
    x = torch.randn(3, *size, 8, dtype=torch.float64)
    actual, expected = (results(copy.deepcopy(layer), function, x) for function in ("forward", "definition"))
    assert actual["output"].shape == x.shape
    for key in expected:
        close(actual[key], expected[key])
    # the taps of an even kernel with an even dilation all miss a map of one position
    assert actual["output"].any() or size == (1, 1)


@pytest.mark.parametrize("name", LAYERS)
def test_map_in_other_strides(name):
    layer, x = made(name).eval(), torch.randn(2, 8, 7, 5).permute(0, 2, 3, 1)
    close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("name", LAYERS)
def test_no_image(name):
    layer, x = made(name).eval(), torch.randn(0, 7, 5, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (DepthwiseConv(64), {"bias": (64,), "source.weight": (64, 7, 7)}),
        (DepthwiseConv(64, kernel_size=(3, 4), bias=False), {"source.weight": (64, 3, 4)}),
        (
            HomogeneousDynamicConv(64, kernel_size=(3, 4)),
            {
                "bias": (64,),
                "source.reduce.weight": (16, 64),
                "source.norm.weight": (16,),
                "source.norm.bias": (16,),
                "source.expand.weight": (64 * 12, 16),
                "source.expand.bias": (64 * 12,),
            },
        ),
        (
            InhomogeneousDynamicConv(64, num_groups=4, kernel_size=(3, 4), reduction=2),
            {
                "source.reduce.weight": (32, 64),
                "source.reduce.bias": (32,),
                "source.norm.weight": (32,),
                "source.norm.bias": (32,),
                "source.expand.weight": (4 * 12, 32),
                "source.expand.bias": (4 * 12,),
            },
        ),
        (
            WindowAttention(64, num_heads=4, window_size=(3, 4)),
            {
                "source.relative_position_bias_table": (4, 5, 7),
                "source.qkv.weight": (192, 64),
                "source.qkv.bias": (192,),
                "output.weight": (64, 64),
                "output.bias": (64,),
            },
        ),
        (
            NeighborhoodAttention(64, num_heads=4, kernel_size=(3, 4), qkv_bias=False, relative_position_bias=False),
            {"source.qkv.weight": (192, 64), "output.weight": (64, 64), "output.bias": (64,)},
        ),
        (
            LocalMLP(64, num_groups=4, window_size=(3, 4)),
            {"bias": (4, 12), "source.weight": (4, 12, 12)},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters(layer, shapes):
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == shapes


def spread(values):
    """Largest magnitude and standard deviation."""
    return values.abs().max().item(), values.std().item()


def is_uniform_within(values, bound):
    largest, deviation = spread(values)
    return 0.9 * bound < largest <= bound and abs(deviation / (bound / 3**0.5) - 1) < 0.1


def test_initialisation_of_convolutions_is_that_of_torch():
    """Uniform within one over the square root of what is summed."""
    layer = DepthwiseConv(256, kernel_size=(3, 5))
    assert is_uniform_within(layer.source.weight, 15**-0.5)
    assert is_uniform_within(layer.bias, 15**-0.5)
    for layer in (
        HomogeneousDynamicConv(256, kernel_size=3),
        InhomogeneousDynamicConv(256, num_groups=8, kernel_size=3),
    ):
        assert is_uniform_within(layer.source.reduce.weight, 256**-0.5)
        assert is_uniform_within(layer.source.expand.weight, 64**-0.5)
        assert is_uniform_within(layer.source.expand.bias, 64**-0.5)
    layer = LocalMLP(256, num_groups=8, window_size=(4, 5))
    assert is_uniform_within(layer.source.weight, 20**-0.5)
    assert is_uniform_within(layer.bias, 20**-0.5)


def test_bias_of_the_homogeneous_convolution_starts_at_zero():
    assert not HomogeneousDynamicConv(64).bias.any()


@pytest.mark.parametrize("layer", [WindowAttention(128, num_heads=8), NeighborhoodAttention(128, num_heads=8)])
def test_initialisation_of_attention_is_that_of_swin(layer):
    for weight in (layer.source.qkv.weight, layer.output.weight, layer.source.relative_position_bias_table):
        largest, deviation = spread(weight)
        assert 0.05 < largest < 0.2
        assert abs(deviation / 0.02 - 1) < 0.1
    assert not layer.source.qkv.bias.any()
    assert not layer.output.bias.any()


@pytest.mark.parametrize("size", [(7, 5), (5, 8), (10, 3), (9, 8)])
def test_padding_is_zero_tokens_at_the_end_that_take_part(size):
    layer = made("window, padded", torch.float64)
    layer.connectivity = Window((3, 4), border="pad")
    cut = copy.deepcopy(layer)
    cut.connectivity = Window((3, 4))
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    # an axis that one window covers is not padded
    missing = [-n % w if n > w else 0 for n, w in zip(size, (3, 4), strict=True)]
    padded = nn.functional.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
    y = layer(x)
    close(y, cut(padded)[:, : size[0], : size[1]])
    assert any(missing) == (not torch.allclose(y, cut(x)))


@pytest.mark.parametrize("border", ["cut", "pad"])
def test_an_axis_that_one_window_covers_is_neither_shifted_nor_padded(border):
    shifted = made("window, padded", torch.float64)
    shifted.connectivity = Window(4, 2, border)
    plain = copy.deepcopy(shifted)
    plain.connectivity = Window(4, 0, "cut")
    shifted.source.relative_position_bias_table = plain.source.relative_position_bias_table = None
    for size in [(3, 4), (1, 2), (4, 4)]:
        x = torch.randn(2, *size, 8, dtype=torch.float64)
        close(shifted(x), plain(x))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    rows_only = copy.deepcopy(shifted)
    rows_only.connectivity = Window(4, (0, 2), border)
    close(shifted(x), rows_only(x))
    assert not torch.allclose(shifted(x), plain(x))


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("size", [(14, 7), (10, 13), (8, 20), (9, 5), (5, 6), (15, 7)])
def test_padded_window_attention_is_timm_s(size, shift):
    """The attention of timm's Swin block built for that size, with the same parameters."""
    layer = WindowAttention(8, num_heads=2, window_size=7, shift=shift, border="pad").double()
    block = SwinTransformerBlock(8, size, num_heads=2, window_size=7, shift_size=shift).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
        # timm cuts the window of a covered axis, and with it the table of distances, which is by query minus key
        margin = [7 - w for w in block.window_size]
        table = layer.source.relative_position_bias_table.flip(1, 2)
        table = table[:, margin[0] : 13 - margin[0], margin[1] : 13 - margin[1]]
        block.attn.relative_position_bias_table.copy_(table.flatten(1).T)
    block.attn.qkv.load_state_dict(layer.source.qkv.state_dict())
    block.attn.proj.load_state_dict(layer.output.state_dict())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    close(layer(x), block._attn(x))


@pytest.mark.parametrize("name", LAYERS)
def test_copies_are_the_layer(name):
    layer, x = made(name).eval(), torch.randn(2, 7, 5, 8)
    expected = layer(x)
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    restored = LAYERS[name]().eval()
    assert not torch.equal(restored(x), expected)
    restored.load_state_dict(torch.load(stored, weights_only=True))
    for twin in (restored, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
        assert twin.connectivity == layer.connectivity


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name):
    with torch.device("meta"):
        layer = LAYERS[name]()
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    layer = layer.to_empty(device="cpu").eval()
    source = made(name).eval()
    layer.load_state_dict(source.state_dict())
    x = torch.randn(2, 7, 5, 8)
    assert torch.equal(layer(x), source(x))
    assert layer.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("name", ["homogeneous", "inhomogeneous"])
def test_batch_norm_can_be_replaced_by_the_synchronised_one(name):
    layer, x = made(name).eval(), torch.randn(2, 7, 5, 8)
    expected = layer(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == 1
    assert torch.equal(converted(x), expected)


@pytest.mark.parametrize("name", ["homogeneous", "inhomogeneous"])
def test_batch_norm_has_the_statistics_of_all_positions(name):
    layer, x = made(name, torch.float64), torch.randn(4, 7, 5, 8, dtype=torch.float64)
    norm = layer.source.norm
    norm.reset_running_stats()
    norm.momentum = 1.0
    layer(x)
    features = layer.source.reduce(x.mean((1, 2)) if name == "homogeneous" else x).flatten(0, -2)
    close(norm.running_mean, features.mean(0))
    close(norm.running_var, features.var(0))


def test_homogeneous_kernels_of_an_image_depend_on_no_other_image():
    layer, x = made("homogeneous", torch.float64).eval(), torch.randn(3, 5, 4, 8, dtype=torch.float64)
    close(layer(x), torch.cat([layer(image) for image in x.split(1)]))


PAIRS = {
    "static": (lambda: StaticKernel(8, kernel_size=3), Sliding),
    "homogeneous": (lambda: HomogeneousKernel(8, kernel_size=3), Sliding),
    "inhomogeneous": (lambda: InhomogeneousKernel(8, num_groups=2, num_taps=9), (Sliding, Window)),
    "dot product": (lambda: DotProduct(8, num_heads=2, span=3), (Sliding, Window)),
    "static in the window": (lambda: StaticWindow(2, window_size=3), Window),
}
CONNECTIVITIES = [
    Sliding(3),
    Sliding(3, dilation=2),
    Sliding(3, border="clamp"),
    Window(3),
    Window(3, shift=1),
    Window(3, shift=(0, 2), border="pad"),
]


PAIRED = [(name, c) for name, (_, kinds) in PAIRS.items() for c in CONNECTIVITIES if isinstance(c, kinds)]


@pytest.mark.parametrize(("name", "connectivity"), PAIRED, ids=str)
def test_any_connectivity_goes_with_any_source_of_its_kind(name, connectivity):
    make, _ = PAIRS[name]
    mixer, x = Mixer(8, connectivity, make()), torch.randn(2, 7, 5, 8)
    y = mixer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None for p in mixer.source.parameters())


def test_a_named_layer_is_its_pair():
    layer = made("inhomogeneous", torch.float64)
    general = Mixer(8, layer.connectivity, layer.source)
    x = torch.randn(2, 7, 5, 8, dtype=torch.float64)
    close(layer(x), general(x))


LAYER = {"dim": 8}
HEADS, GROUPS = {**LAYER, "num_heads": 2}, {**LAYER, "num_groups": 2}


@pytest.mark.parametrize(
    ("layer", "right", "wrong", "message"),
    [
        (DepthwiseConv, LAYER, {"dim": 0}, "dim: expected an int of at least 1, got 0"),
        (DepthwiseConv, LAYER, {"dim": 8.0}, "dim: expected an int of at least 1, got 8.0"),
        (DepthwiseConv, LAYER, {"kernel_size": 0}, "kernel_size: expected at least 1, got 0"),
        (DepthwiseConv, LAYER, {"dilation": -1}, "dilation: expected at least 1, got -1"),
        (HomogeneousDynamicConv, LAYER, {"kernel_size": (3, 0)}, "kernel_size: expected at least 1, got (3, 0)"),
        (HomogeneousDynamicConv, LAYER, {"dim": "8"}, "dim: expected an int of at least 1, got '8'"),
        (HomogeneousDynamicConv, LAYER, {"reduction": 0}, "reduction: expected an int of at least 1, got 0"),
        (HomogeneousDynamicConv, LAYER, {"reduction": 9}, "reduction: expected at most dim = 8, got 9"),
        (InhomogeneousDynamicConv, GROUPS, {"num_groups": 3}, "num_groups: expected a divisor of dim = 8, got 3"),
        (InhomogeneousDynamicConv, GROUPS, {"num_groups": 0}, "num_groups: expected an int of at least 1, got 0"),
        (InhomogeneousDynamicConv, GROUPS, {"reduction": 16}, "reduction: expected at most dim = 8, got 16"),
        (InhomogeneousDynamicConv, GROUPS, {"kernel_size": "7"}, "kernel_size: expected an int or a pair of ints"),
        (WindowAttention, HEADS, {"num_heads": 3}, "num_heads: expected a divisor of dim = 8, got 3"),
        (WindowAttention, HEADS, {"window_size": 0}, "window_size: expected at least 1, got 0"),
        (WindowAttention, HEADS, {"shift": 7}, "shift: expected less than window_size = (7, 7), got 7"),
        (WindowAttention, HEADS, {"shift": -1}, "shift: expected at least 0, got -1"),
        (WindowAttention, HEADS, {"border": "zero"}, "border: expected one of 'cut', 'pad', got 'zero'"),
        (NeighborhoodAttention, HEADS, {"num_heads": True}, "num_heads: expected an int of at least 1, got True"),
        (NeighborhoodAttention, HEADS, {"kernel_size": (7, 7, 7)}, "kernel_size: expected an int or a pair of ints"),
        (NeighborhoodAttention, HEADS, {"dilation": 0}, "dilation: expected at least 1, got 0"),
        (LocalMLP, GROUPS, {"num_groups": 5}, "num_groups: expected a divisor of dim = 8, got 5"),
        (LocalMLP, GROUPS, {"window_size": (7, -7)}, "window_size: expected at least 1, got (7, -7)"),
        (LocalMLP, GROUPS, {"shift": (0, 9)}, "shift: expected less than window_size = (7, 7), got (0, 9)"),
    ],
)
def test_wrong_arguments(layer, right, wrong, message):
    layer(**right)
    with pytest.raises(ValueError) as caught:
        layer(**{**right, **wrong})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_input(name):
    layer = LAYERS[name]()
    for x, message in [
        (torch.randn(2, 7, 5, 6), r"^x: expected \[B, H, W, 8\], got shape \(2, 7, 5, 6\)$"),
        (torch.randn(7, 5, 8), r"^x: expected \[B, H, W, C\], got shape \(7, 5, 8\)$"),
        (torch.randn(2, 0, 5, 8), r"^x: expected sizes of at least 1 .*, got shape \(2, 0, 5, 8\)$"),
        (torch.ones(2, 7, 5, 8, dtype=torch.uint8), r"^x: expected a floating point tensor, got torch.uint8$"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer(x)
    with pytest.raises(TypeError, match=r"^x: expected a tensor \[B, H, W, C\], got list$"):
        layer([[1.0]])


@pytest.mark.parametrize("name", LAYERS)
def test_unknown_implementation(name):
    layer = LAYERS[name]()
    layer.impl = "fastest"
    with pytest.raises(ValueError, match=r"^impl: expected one of .*, got 'fastest'$"):
        layer(torch.randn(2, 7, 5, 8))
