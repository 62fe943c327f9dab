"""The networks compute what the published ones do, with weights that `localmix.models.convert` has carried over."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F

from localmix.models import create_model
from localmix.models.convert import convert_state_dict

SMALL = {"embed_dim": 24, "depths": (2, 2, 2, 2)}
SIZES_THAT_7_DOES_NOT_DIVIDE = [(160, 192), (100, 140), (236, 300), (96, 352)]
FAMILIES = ["dwnet", "dynamic_dwnet", "i_dynamic_dwnet"]


def relative_difference(actual, expected):
    assert actual.shape == expected.shape
    assert expected.isfinite().all()
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# Swin, against timm's


def swin(img_size=224, **sizes):
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=img_size, **sizes).eval()


def localswin(weights, **sizes):
    net = create_model("localswin_tiny", **sizes).eval()
    net.load_state_dict(convert_state_dict(weights, net))
    return net


def with_tables_for(net, weights):
    """The weights for a Swin that has shrunk windows to small maps: their tables are the centre of the large ones."""
    weights = dict(weights)
    for name, module in net.named_modules():
        if hasattr(module, "relative_position_bias_table"):
            key = f"{name}.relative_position_bias_table"
            table = weights[key].unflatten(0, (13, 13))
            height, width = module.window_size
            weights[key] = table[7 - height : 6 + height, 7 - width : 6 + width].flatten(0, 1)
    net.load_state_dict(weights)
    return net


@torch.inference_mode()
def assert_same_swin(ours, theirs, size, *, dtype=torch.float64, tolerance=1e-10):
    image = torch.randn(2, 3, *size, dtype=dtype)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    assert relative_difference(ours(image), theirs(image)) < tolerance
    for actual, expected in zip(
        ours.forward_intermediates(image, intermediates_only=True),
        theirs.forward_intermediates(image, intermediates_only=True),
        strict=True,
    ):
        assert relative_difference(actual, expected) < tolerance


def with_names_of_microsoft(weights):
    """The original names: patch merging ends a stage, the head is one layer, and two buffers are stored."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        renamed[key.replace("head.fc.", "head.")] = value
        if key.endswith("relative_position_bias_table"):
            renamed[key.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
            if ".blocks.1." in key:
                renamed[key.replace("attn.relative_position_bias_table", "attn_mask")] = torch.zeros(64, 49, 49)
    return renamed


@pytest.mark.parametrize("size", [(224, 224), *SIZES_THAT_7_DOES_NOT_DIVIDE])
def test_swin_at_any_size(randomised, size):
    weights = randomised(swin(**SMALL)).state_dict()
    theirs = with_tables_for(swin(img_size=size, **SMALL), weights)
    assert_same_swin(localswin(weights, **SMALL), theirs, size)


def test_swin_tiny_in_single_precision(randomised):
    theirs = randomised(swin())
    ours = localswin(theirs.state_dict())
    assert_same_swin(ours, theirs, (224, 224), dtype=torch.float32, tolerance=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_swin_with_the_names_of_microsoft(randomised):
    theirs = randomised(swin(**SMALL))
    weights = with_names_of_microsoft(theirs.state_dict())
    assert not weights.keys() <= theirs.state_dict().keys()
    assert_same_swin(localswin(weights, **SMALL), theirs, (224, 224))


def test_swin_with_other_windows(randomised):
    theirs = randomised(swin(window_size=4, **SMALL))
    assert_same_swin(localswin(theirs.state_dict(), window_size=4, **SMALL), theirs, (224, 224))


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_a_table_read_the_wrong_way_is_seen(randomised, axes):
    theirs = randomised(swin(**SMALL))
    weights = theirs.state_dict()
    for key, value in weights.items():
        if key.endswith("relative_position_bias_table"):
            weights[key] = value.unflatten(0, (13, 13)).flip(axes).flatten(0, 1)
    with pytest.raises(AssertionError):
        assert_same_swin(localswin(weights, **SMALL), theirs, (224, 224), tolerance=1e-2)


# The authors' networks, against a statement of them in channels-first functions


class Official:
    """Logits of a checkpoint of the authors' code, computed from the paper with `F.conv2d`.

    `padded`: as their detectors and segmenters do, to maps of multiples of 7 in front of each block.
    """

    def __init__(self, weights, family, *, padded=False):
        self.padded = padded
        self.weights = {key: v.double() if v.is_floating_point() else v for key, v in weights.items()}
        self.mix = {"dwnet": self.static, "dynamic_dwnet": self.dynamic, "i_dynamic_dwnet": self.inhomogeneous}[family]

    def convolution(self, x, name, **options):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **options)

    def linear(self, x, name):
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight[:, :, None, None], bias)

    def batch_norm(self, x, name):
        mean, var, weight, bias = (
            self.weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def layer_norm(self, x, name):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias).movedim(-1, 1)

    def static(self, x, name):
        return self.convolution(x, name, padding=3, groups=x.shape[1])

    def dynamic(self, x, name):
        hidden = self.batch_norm(self.convolution(x.mean((2, 3), keepdim=True), f"{name}.conv1"), f"{name}.bn")
        kernels = self.convolution(hidden.relu(), f"{name}.conv2").view(len(x), -1, 1, 7, 7)
        bias = self.weights[f"{name}.bias"]
        images = [
            F.conv2d(image[None], kernel, bias, padding=3, groups=len(kernel))
            for image, kernel in zip(x, kernels, strict=True)
        ]
        return torch.cat(images)

    def inhomogeneous(self, x, name):
        hidden = self.batch_norm(self.convolution(x, f"{name}.conv1.0"), f"{name}.conv1.1")
        kernels = self.convolution(hidden.relu(), f"{name}.conv2.0")
        batch, _, height, width = x.shape
        kernels = kernels.view(batch, -1, 1, 49, height, width)
        taps = F.unfold(x, 7, padding=3).view(batch, kernels.shape[1], -1, 49, height, width)
        return (kernels * taps).sum(3).view(x.shape)

    def block(self, x, name):
        conv = f"{name}.attn2conv"
        height, width = x.shape[2:]
        y = F.pad(x, (0, -width % 7, 0, -height % 7)) if self.padded else x
        y = self.batch_norm(self.convolution(y, f"{conv}.conv0"), f"{conv}.bn0").relu()
        y = self.batch_norm(self.mix(y, f"{conv}.conv"), f"{conv}.bn").relu()
        y = self.batch_norm(self.convolution(y, f"{conv}.conv2"), f"{conv}.bn2")
        x = x + y[:, :, :height, :width]
        y = F.gelu(self.linear(self.batch_norm(x, f"{name}.bn"), f"{name}.mlp.fc1"))
        return x + self.linear(y, f"{name}.mlp.fc2")

    def merge(self, x, name):
        x = torch.cat([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)
        return self.linear(self.layer_norm(x, f"{name}.norm"), f"{name}.reduction")

    def __call__(self, image):
        patch = self.weights["patch_embed.proj.weight"].shape[-1]
        x = self.layer_norm(self.convolution(image, "patch_embed.proj", stride=patch), "patch_embed.norm")
        for stage in range(4):
            names = {match[0] for key in self.weights if (match := re.match(rf"layers\.{stage}\.blocks\.\d+", key))}
            for name in sorted(names):
                x = self.block(x, name)
            if stage < 3:
                x = self.merge(x, f"layers.{stage}.downsample")
        return self.linear(self.layer_norm(x, "norm").mean((2, 3), keepdim=True), "head").flatten(1)


@torch.inference_mode()
def difference_of_official(family, weights, fed_to_ours, *, padded=False, **options):
    net = create_model(f"{family}_nano", **options).double().eval()
    net.load_state_dict(convert_state_dict(fed_to_ours, net))
    image = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    return relative_difference(net(image), Official(weights, family, padded=padded)(image))


@pytest.mark.parametrize("family", FAMILIES)
def test_official_network(official, family):
    weights = official(family, "nano")
    assert difference_of_official(family, weights, weights) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_official_backbone_of_detectors_and_segmenters(official, family):
    weights = official(family, "nano")
    assert difference_of_official(family, weights, weights, padded=True, pad_to=7) < 1e-10
    assert difference_of_official(family, weights, weights, padded=True) > 1e-4


@pytest.mark.parametrize(
    ("family", "one", "other"),
    [
        ("dwnet", "attn2conv.bn0", "attn2conv.bn"),
        ("dwnet", "attn2conv.bn2", "bn"),
        ("dynamic_dwnet", "attn2conv.conv0", "attn2conv.conv2"),
        ("i_dynamic_dwnet", "attn2conv.bn", "attn2conv.bn2"),
    ],
)
def test_two_weights_in_the_places_of_each_other_are_seen(official, family, one, other):
    weights = official(family, "nano")
    swapped = dict(weights)
    for part in ("weight", "running_mean"):
        first, second = (f"layers.2.blocks.1.{name}.{part}" for name in (one, other))
        if first in weights:
            swapped[first], swapped[second] = weights[second], weights[first]
    assert difference_of_official(family, weights, swapped) > 1e-4


@pytest.mark.parametrize(
    ("family", "size", "num_parameters"),
    [
        ("dwnet", "tiny", 24_172_744),
        ("dynamic_dwnet", "tiny", 51_131_752),
        ("i_dynamic_dwnet", "tiny", 26_244_280),
        ("dwnet", "base", 74_347_112),
    ],
)
def test_official_sizes(official, family, size, num_parameters):
    weights = official(family, size)
    with torch.device("meta"):
        net = create_model(f"{family}_{size}")
    converted = convert_state_dict(weights, net)
    assert converted.keys() == net.state_dict().keys()
    parameters = dict(net.named_parameters())
    assert sum(value.numel() for key, value in converted.items() if key in parameters) == num_parameters
