import pytest
import torch
from timm.layers import SEModule
from torch import nn

from localmix.layers import SqueezeExcitation


@pytest.mark.parametrize("ratio", [0.25, 1.0, 1 / 16])
def test_it_is_timm_s(ratio):
    layer = SqueezeExcitation(32, ratio=ratio).double()
    theirs = SEModule(32, rd_channels=int(32 * ratio)).double()
    with torch.no_grad():
        for ours, there in ((layer.reduce, theirs.fc1), (layer.expand, theirs.fc2)):
            there.weight.copy_(ours.weight[:, :, None, None])
            there.bias.copy_(ours.bias)
    x = torch.randn(3, 7, 5, 32, dtype=torch.float64)
    expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():  # where nothing keeps the activations
        torch.testing.assert_close(layer(x), expected)
    assert layer(x[:0]).shape == (0, 7, 5, 32)


def test_factors_are_between_zero_and_one_and_of_the_image():
    layer, x = SqueezeExcitation(8), 0.1 + torch.rand(3, 7, 5, 8)
    nn.init.normal_(layer.expand.weight, std=3.0)
    factor = layer(x) / x
    assert (factor > 0).all()
    assert (factor < 1).all()
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor))
    assert factor[:, 0, 0].std(0).min() > 1e-4


def test_autocast_keeps_the_dtype_of_the_map():
    layer = SqueezeExcitation(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert layer(torch.randn(2, 7, 5, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim: expected an int of at least 1, got 0"),
        ({"ratio": 0}, "ratio: expected a number above 0, got 0"),
        ({"ratio": True}, "ratio: expected a number above 0, got True"),
        ({"ratio": "4"}, "ratio: expected a number above 0, got '4'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SqueezeExcitation(**{"dim": 8, **options})
    with pytest.raises(ValueError, match=r"^x: expected \[B, H, W, 8\], got shape \(2, 7, 5, 6\)$"):
        SqueezeExcitation(8)(torch.randn(2, 7, 5, 6))
