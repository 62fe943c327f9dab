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
    assert re.fullmatch(r"[BHWCKGRhw\d *+()-]+", formula)
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


def test_batch_of_the_pooled_image_is_counted_per_image():
    torch.manual_seed(0)
    mixer = layers.HomogeneousDynamicConv(16, kernel_size=3)
    small, large = (cost(OnImages(mixer), side, in_chans=16).macs for side in (4, 8))
    assert large - small == (64 - 16) * 16 * 9
