import numpy as np
import pytest
import timm
import torch
from torch import nn

from localmix.models import create_model
from localmix.reports.explanation.receptive_field import radii, receptive_fields


class Convolution(nn.Module):
    """One stage: a convolution of stride 1 that keeps the size."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.feature_info = [{"num_chs": len(weight), "reduction": 1}]

    def forward_intermediates(self, x, output_fmt, intermediates_only):
        return [nn.functional.conv2d(x, self.weight, padding="same")]


def test_energy_of_a_convolution_is_its_squared_weights():
    """One output channel has no signs to draw: the energy is exact."""
    weight = torch.randn(1, 3, 5, 3)
    field = receptive_fields(Convolution(weight), [torch.randn(3, 16, 12)], num_probes=1)[0]
    expected = np.zeros((16, 12))
    # x = 0.5 of 12 and y = 0.5 of 16: position 8, 6
    expected[6:11, 5:8] = weight[0].square().sum(0).numpy()
    np.testing.assert_allclose(field.energy, expected / expected.sum(), rtol=1e-5, atol=1e-12)
    assert field.centre == (8.5, 6.5)
    assert field.radius[0.5] <= field.radius[0.95] <= np.hypot(2, 1)


def test_signs_tend_to_the_sum_over_channels():
    weight = torch.randn(6, 2, 3, 3)
    field = receptive_fields(Convolution(weight), [torch.randn(2, 9, 9)], num_probes=3000)[0]
    expected = weight.square().sum((0, 1)).numpy()
    np.testing.assert_allclose(field.energy[3:6, 3:6], expected / expected.sum(), rtol=0.1)


def test_radii_of_a_disc_and_of_nothing():
    """Of a uniform disc a circle of radius r holds (r / R)^2."""
    rows, columns = np.indices((201, 201))
    disc = (np.hypot(rows - 100, columns - 100) <= 90).astype(float)
    found = radii(disc, (100.5, 100.5))
    assert found[0.5] == pytest.approx(90 * 0.5**0.5, abs=0.5)
    assert found[0.95] == pytest.approx(90 * 0.95**0.5, abs=0.5)
    assert np.isnan(list(radii(np.zeros((3, 3)), (1, 1)).values())).all()


def test_no_pixel_beyond_what_the_kernels_reach():
    """Two blocks of 7 x 7 on patches of 2 x 2: twice three positions around the own one."""
    net = create_model("dwnet_nano").eval()
    field = receptive_fields(net, [torch.randn(3, 64, 64)] * 2, stages=[0], num_probes=2)[0]
    inside = np.zeros((64, 64), bool)
    inside[32 - 12 : 34 + 12, 32 - 12 : 34 + 12] = True
    assert (field.energy[~inside] == 0).all()
    assert (field.energy[inside] > 0).mean() > 0.9
    assert field.energy.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "localnat_nano"])
def test_any_network_of_timm(name):
    net = timm.create_model(name).eval()
    size = 160 if name.startswith("test") else 32
    fields = receptive_fields(net, [torch.randn(3, size, size)], num_probes=1, position=(0.2, 0.8))
    assert list(fields) == list(range(len(fields)))
    for field in fields.values():
        assert field.energy.sum() == pytest.approx(1)
        assert abs(field.centre[0] - 0.8 * size) <= 0.5 * size
        assert field.radius[0.5] <= field.radius[0.95]
    assert all(p.grad is None for p in net.parameters())


def test_what_cannot_be():
    with pytest.raises(ValueError, match="model: expected a network with forward_intermediates"):
        receptive_fields(nn.Identity(), [torch.randn(3, 8, 8)])
    net = Convolution(torch.randn(1, 3, 3, 3))
    with pytest.raises(ValueError, match="stages: expected at most 1, got 2"):
        receptive_fields(net, [torch.randn(3, 8, 8)], stages=[1])
    with pytest.raises(ValueError, match="images: expected one or more, got none"):
        receptive_fields(net, [])
    with pytest.raises(ValueError, match="images: the network takes none of 32 x 32 pixels"):
        receptive_fields(timm.create_model("vit_tiny_patch16_224"), [torch.randn(3, 32, 32)])
