import pytest
import torch
from torch import nn

from localmix.axes import MIXERS
from localmix.functional import NO_INPUT, aggregate
from localmix.layers import WindowAttention
from localmix.models import create_model
from localmix.reports.explanation.weights import mixers, used, watch

NETS = [f"{row.network}_nano" for row in MIXERS.values()]
POINTS = ["sliding3/shared-positions/groups4/mixture3", "window4-shift2-pad/unshared-positions/groups3/dot-product"]


def net_of(name):
    """With random weights everywhere, so that no layer is near zero."""
    net = create_model("localmixer_nano", mixer=name) if "/" in name else create_model(name)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    return net.eval()


@pytest.mark.parametrize("name", [*NETS, *POINTS])
def test_weights_are_those_of_the_very_pass(name):
    """What is seen gives, by the equation, what the layer gave: at a size that windows and patches do not divide."""
    net, seen = net_of(name), []

    def visit(used):
        y = aggregate(used.value, used.weight, used.neighborhood)
        offset = used.mixer.offset(y.shape[1], y.shape[2])
        y = used.mixer.output(y if offset is None else y + offset)
        torch.testing.assert_close(used.mixer.connectivity.unpad(y, *used.size), used.result, rtol=1e-4, atol=1e-5)
        assert used.result.abs().max() > 1e-3
        seen.append(used.name)

    with torch.no_grad(), watch(net, visit):
        net(torch.randn(2, 3, 38, 27))
    assert seen == list(mixers(net))
    with torch.no_grad():
        net(torch.randn(1, 3, 16, 16))
    assert seen == list(mixers(net)), "the watch goes on after it has ended"


@pytest.mark.parametrize("row", MIXERS.values(), ids=MIXERS)
def test_weights_of_a_position_are_laid_where_they_read(row):
    """Summed up over the map they give what the layer mixes at that position."""
    net, checked = net_of(f"{row.network}_nano"), []

    def visit(used):
        height, width = used.size
        per_group = used.mixer.dim // used.num_groups
        y = aggregate(used.value, used.weight, used.neighborhood)
        values = used.value[1][used.place != NO_INPUT]  # padding gives a value too, which no place shows
        order = used.place[used.place != NO_INPUT].argsort()
        values = values[order].view(height, width, -1)
        for i, j in ((0, 0), (height // 2, width // 3), (height - 1, width - 1)):
            weight, places = used.at(i, j, image=1)
            (a,), (b,) = torch.nonzero(used.place == i * width + j, as_tuple=True)
            pads = (used.neighborhood[a, b] != NO_INPUT) & (places == NO_INPUT)
            for group in (0, used.num_groups - 1):
                laid = used.on_map(i, j, group, image=1)
                channel = group * per_group
                rest = (weight[group] * used.value[1, ..., channel].flatten()[used.neighborhood[a, b]])[pads].sum()
                total = (laid.nan_to_num(0) * values[..., channel]).sum() + rest
                torch.testing.assert_close(total, y[1, a, b, channel], rtol=1e-4, atol=1e-5)
        checked.append(used.name)

    with torch.no_grad(), watch(net, visit):
        net(torch.randn(2, 3, 18, 26))
    assert len(checked) == 9


def test_padding_has_no_place():
    layer = WindowAttention(4, num_heads=2, window_size=3, shift=1, border="pad").eval()
    x = torch.randn(1, 4, 5, 4)
    seen = used("layer", layer, x, layer(x))
    assert seen.place.shape == (6, 6)
    assert sorted(seen.place.flatten().tolist()) == [NO_INPUT] * 16 + list(range(20))
    assert seen.is_normalised
    weight, places = seen.at(0, 0)
    read = places != NO_INPUT
    assert torch.isnan(seen.on_map(0, 0)).sum() == 20 - read.sum()
    torch.testing.assert_close(seen.on_map(0, 0).nansum(), weight.mean(0)[read].sum())


def test_mean_over_groups_and_a_position_outside():
    net = net_of("dwnet_nano")

    def visit(used):
        groups = torch.stack([used.on_map(1, 1, group) for group in range(used.num_groups)])
        torch.testing.assert_close(used.on_map(1, 1), groups.mean(0), equal_nan=True)
        assert not used.is_normalised
        with pytest.raises(ValueError, match=r"position: expected one within a map of 8 x 8, got 8, 0"):
            used.at(8, 0)

    with torch.no_grad(), watch(net, visit, ["stages.0.blocks.0.mixer"]):
        net(torch.randn(1, 3, 16, 16))


def test_maps_that_the_network_overwrites_are_seen_before():
    """Activations write over what they take where no gradient is asked for: the watch sees what was there."""

    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = WindowAttention(4, num_heads=2, window_size=2)

        def forward(self, x):
            return self.mixer(x).zero_()

    net, sums = Overwriting(), []
    with torch.no_grad(), watch(net, lambda used: sums.append(used.result.abs().sum().item())):
        assert net(torch.randn(1, 4, 4, 4)).abs().sum() == 0
    assert sums[0] > 0
