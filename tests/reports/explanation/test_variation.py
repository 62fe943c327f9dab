"""The three numbers on weights whose answer is known, and on the six mixers."""

import pytest
import torch

from localmix import functional
from localmix.axes import MIXERS, Positions
from localmix.layers import DepthwiseConv, LocalMixer
from localmix.models import create_model
from localmix.reports.explanation.variation import Variance
from localmix.reports.explanation.weights import Used, mixers, used, watch

H, W, G, K = 5, 4, 3, 9


def seen(weight, height=H, width=W, neighborhood=None):
    """As if a layer had used these weights; without a border, unless a neighborhood is given."""
    batch = weight.shape[0]
    x = torch.zeros(batch, height, width, G)
    if neighborhood is None:
        neighborhood = torch.arange(height * width).view(height, width, 1).expand(-1, -1, weight.shape[4])
    place = torch.arange(height * width).view(height, width)
    return Used("layer", DepthwiseConv(G), x, x, x, weight, neighborhood, place)


def varied(*weights, **options):
    variance = Variance()
    for weight in weights:
        variance.add(seen(weight, **options))
    return variance.result()


def part(shape):
    """Numbers of mean zero and variance one along the one axis that is longer than one, the same for all taps."""
    length = max(shape)
    numbers = torch.randn(length, dtype=torch.float64)
    return ((numbers - numbers.mean()) / numbers.std(unbiased=False)).view(shape)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_effects_that_add_up(scale):
    """w = kernel[k] + 2 position + channel + 3 image, independent: shares 4 : 1 : 9 of 14."""
    kernel = torch.randn(1, 1, 1, 1, K, dtype=torch.float64)
    by_position = part((1, H * W, 1, 1, 1)).view(1, H, W, 1, 1)
    weight = kernel + 2 * by_position + part((1, 1, 1, G, 1)) + 3 * part((6, 1, 1, 1, 1))
    for batches in ((weight,), weight.split(1), weight.split(2)):
        result = varied(*(scale * batch for batch in batches))
        found = (result.positions, result.channels, result.images)
        assert found == pytest.approx((4 / 14, 1 / 14, 9 / 14), rel=1e-9)
        assert result.spread == pytest.approx(14 / (14 + kernel.square().mean().item()), rel=1e-9)


def test_what_varies_along_all_axes_together_counts_for_each():
    weight = torch.randn(40, H, W, G, K, dtype=torch.float64)
    result = varied(weight)
    # independent numbers: of n, a variance holds all but one part in n
    assert result.positions == pytest.approx(1 - 1 / 20, abs=0.02)
    assert result.channels == pytest.approx(1 - 1 / 3, abs=0.02)
    assert result.images == pytest.approx(1 - 1 / 40, abs=0.02)


def test_product_of_position_and_channel():
    """w = position * channel, each of mean zero: all of the variance is along each of the two."""
    weight = part((1, H * W, 1, 1, 1)).view(1, H, W, 1, 1) * part((1, 1, 1, G, 1)).expand(2, 1, 1, G, K)
    result = varied(weight)
    assert (result.positions, result.channels, result.images) == pytest.approx((1, 1, 0))


def test_one_kernel_has_no_variance():
    result = varied(torch.randn(1, 1, 1, 1, K), torch.randn(0, 1, 1, 1, K))
    assert (result.positions, result.channels, result.spread) == (0, 0, 0)


def test_taps_that_read_nothing_are_left_out():
    """Three taps in a row: at the ends one reads nothing, and may hold anything."""
    neighborhood = functional.sliding(1, W, (1, 3))
    weight = torch.randn(2, 1, W, G, 3, dtype=torch.float64)
    other = weight.clone()
    other[:, 0, 0, :, 0], other[:, 0, -1, :, 2] = 1e6, -7.0
    expected = varied(weight, height=1, neighborhood=neighborhood)
    assert varied(other, height=1, neighborhood=neighborhood) == expected
    # by hand: the taps one after the other, each over the positions that have it
    taps = [weight[:, 0, 1:, :, 0], weight[:, 0, :, :, 1], weight[:, 0, :-1, :, 2]]

    def deviation(dims):
        return sum((t - t.mean(dims, keepdim=True)).square().sum() for t in taps)

    whole = deviation((0, 1, 2))
    for share, dim in ((expected.positions, 1), (expected.channels, 2), (expected.images, 0)):
        assert share == pytest.approx((deviation((dim,)) / whole).item())


def test_images_of_several_sizes_and_one_image_do_not_tell_of_images():
    big = torch.randn(1, H, W, G, K)
    assert varied(big).images is None
    variance = Variance()
    variance.add(seen(big))
    variance.add(seen(torch.randn(1, H + 1, W, G, K), height=H + 1))
    assert variance.result().images is None
    with pytest.raises(ValueError, match="images: expected one or more, got none"):
        Variance().result()


@pytest.mark.parametrize("row", MIXERS.values(), ids=MIXERS)
def test_the_six_mixers_stand_where_the_table_says(row):
    net = create_model(f"{row.network}_nano")
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    net.eval()
    variances = {name: Variance() for name in mixers(net)}
    with torch.no_grad(), watch(net, lambda used: variances[used.name].add(used)):
        for image in torch.randn(3, 1, 3, 30, 38):
            net(image)
    for variance in variances.values():
        result = variance.result()
        assert (result.positions == 0) == (row.sharing_positions is Positions.ALL)
        assert (result.images == 0) == (not row.dynamics.is_dynamic)
        assert 0 < result.channels <= 1
        assert 0 <= result.positions <= 1
        assert 0 <= result.images <= 1
        if not row.dynamics.is_dynamic and row.sharing_positions is Positions.ALL:
            assert result.channels == pytest.approx(1)


def test_channels_that_share_all():
    mixer = LocalMixer.from_name("sliding3/shared-positions/shared-channels/homogeneous", dim=8).eval()
    variance = Variance()
    x = torch.randn(4, 5, 6, 8)
    variance.add(used("mixer", mixer, x, mixer(x)))
    result = variance.result()
    assert (result.positions, result.channels) == (0, 0)
    assert result.images == pytest.approx(1)
