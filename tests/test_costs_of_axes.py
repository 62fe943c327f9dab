"""The formulas of docs/axes.md are what the layers cost, to the last multiply-add."""

import re
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from localmix import layers
from localmix.axes import MIXERS
from localmix.reports.cost import cost
from localmix.reports.cost_memory import layer_weights

PAGE = Path(__file__).parents[1] / "docs" / "axes.md"
ROW = re.compile(r"^\| ([\w\- ]+) \| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
FORMULAS = {title: formulas for title, *formulas in ROW.findall(PAGE.read_text())}


def _size(sizes):
    return {"kernel_size": (sizes["h"], sizes["w"])}


MAKE = {
    "depthwise_convolution": lambda s: layers.DepthwiseConv(s["C"], **_size(s)),
    "homogeneous_convolution": lambda s: layers.HomogeneousDynamicConv(s["C"], reduction=s["reduction"], **_size(s)),
    "inhomogeneous_convolution": lambda s: layers.InhomogeneousDynamicConv(
        s["C"], num_groups=s["G"], reduction=s["reduction"], **_size(s)
    ),
    "window_attention": lambda s: layers.WindowAttention(s["C"], num_heads=s["G"], window_size=(s["h"], s["w"])),
    "neighborhood_attention": lambda s: layers.NeighborhoodAttention(s["C"], num_heads=s["G"], **_size(s)),
    "local_mlp": lambda s: layers.LocalMLP(s["C"], num_groups=s["G"], window_size=(s["h"], s["w"])),
}
SIZES = [
    {"B": 1, "H": 5, "W": 9, "C": 12, "G": 3, "h": 3, "w": 5, "reduction": 4},
    {"B": 3, "H": 8, "W": 6, "C": 30, "G": 10, "h": 4, "w": 2, "reduction": 7},
    {"B": 2, "H": 2, "W": 3, "C": 8, "G": 1, "h": 5, "w": 5, "reduction": 2},
]


class OnImages(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, images):
        return self.mixer(images.permute(0, 2, 3, 1))


def value(formula, sizes):
    assert re.fullmatch(r"[BHWCKGRLhw\d *+()-]+", formula)
    names = {**sizes, "K": sizes["h"] * sizes["w"], "R": sizes["C"] // sizes["reduction"]}
    return eval(formula, {"__builtins__": {}}, names)


def test_the_page_has_a_row_for_each_mixer():
    assert {row.title for row in MIXERS.values()} == set(FORMULAS)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_formulas(name, sizes):
    net = OnImages(MAKE[name](sizes))
    macs, parameters, weight = (value(formula, sizes) for formula in FORMULAS[MIXERS[name].title])
    counted = cost(net, (sizes["H"], sizes["W"]), in_chans=sizes["C"])
    assert counted.parameters == parameters
    # the count is of one image, and images do not share work
    assert sizes["B"] * counted.macs == macs
    (layer,) = layer_weights(net, (sizes["B"], sizes["C"], sizes["H"], sizes["W"]))
    assert prod(layer.shape) == weight


def test_padded_windows_count_the_padded_map():
    mixer = layers.WindowAttention(8, num_heads=2, window_size=4, shift=1, border="pad")
    padded, channels, slots = 8 * 8, 8, 16
    macs = 2 * padded * channels * slots + 4 * padded * channels**2
    assert cost(OnImages(mixer), (6, 7), in_chans=8).macs == macs


# what it takes to make the weights: MACs of one image and parameters, by the words under "What each costs"
MAKING = {
    "static": ("0", "G*L"),
    "homogeneous": ("C*R + R*G*L", "C*R + 2*R + R*G*L + G*L"),
    "mixture3": ("C*3 + 3*G*L", "C*3 + 3 + 3*G*L"),
    "inhomogeneous": ("H*W*(C*R + R*G*K)", "C*R + 3*R + R*G*K + G*K"),
    "dot-product": ("H*W*C*K + 4*H*W*C*C", "4*C*C + 4*C + G*(2*h - 1)*(2*w - 1)"),
    "dot-product/free": ("H*W*C*K + 4*H*W*C*C", "4*C*C + 4*C + G*L"),
}


@pytest.mark.parametrize("weights", MAKING)
@pytest.mark.parametrize("groups", [2, 12])  # with one channel in a group a dot product is a product
@pytest.mark.parametrize("size", ["sliding3x2", "window3x2-shift1"])
def test_every_point_costs_the_sum_and_the_making_of_its_weights(size, groups, weights):
    """Whatever kernel serves it, and however the border cuts its windows."""
    end = weights.split("/")[0]
    positions = "unshared-positions" if end in ("inhomogeneous", "dot-product") else "shared-positions"
    mixer = layers.LocalMixer.from_name(f"{size}/{positions}/groups{groups}/{weights}", dim=12)
    slides = size.startswith("sliding")
    offsets = 6 if slides else 5 * 3  # L: weights by offset, in windows more than slots
    sizes = {"H": 7, "W": 5, "C": 12, "G": groups, "h": 3, "w": 2, "reduction": 4, "L": offsets}
    macs, parameters = (value(formula, sizes) for formula in MAKING[weights])
    counted = cost(OnImages(mixer), (7, 5), in_chans=12)
    assert counted.macs == 7 * 5 * 12 * 6 + macs
    assert counted.parameters == parameters + (0 if positions == "unshared-positions" else 12)


def test_batch_of_the_pooled_image_is_counted_per_image():
    torch.manual_seed(0)
    mixer = layers.HomogeneousDynamicConv(16, kernel_size=3)
    small, large = (cost(OnImages(mixer), side, in_chans=16).macs for side in (4, 8))
    assert large - small == (64 - 16) * 16 * 9
