"""Connection matrices against the table MIXERS: what connects and what is equal, written down without the package."""

import numpy as np
import pytest
import torch
from torch import nn

from localmix import layers
from localmix.axes import MIXERS, Connectivity, Positions
from localmix.layers import LocalMixer
from localmix.reports.explanation.jacobian import connection_matrix, ranks

HEIGHT, WIDTH, DIM = 6, 9, 4
POSITIONS = [(i, j) for i in range(HEIGHT) for j in range(WIDTH)]
ARGUMENTS = {"num_groups": 2, "num_heads": 2, "kernel_size": 3, "window_size": 3, "reduction": 2}


def layer_of(name):
    kind = getattr(layers, name)
    accepted = kind.__init__.__annotations__
    layer = kind(DIM, **{key: value for key, value in ARGUMENTS.items() if key in accepted}).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.bias.fill_(5)  # behind it a ReLU, which makes positions equal where it is zero
    return layer


def reads(connectivity, p):
    """Where a position reads, tap by tap: None outside of the map."""
    (i, j), taps = p, []
    if connectivity is Connectivity.WINDOW:
        starts = (i // 3 * 3, j // 3 * 3)
    elif connectivity is Connectivity.SLIDING_CLAMPED:
        starts = (min(max(i - 1, 0), HEIGHT - 3), min(max(j - 1, 0), WIDTH - 3))
    else:
        starts = (i - 1, j - 1)
    for a in range(3):
        for b in range(3):
            q = (starts[0] + a, starts[1] + b)
            taps.append(q if q in POSITIONS else None)
    return taps


def place_of_kernel(sharing, p):
    """Positions with the same answer have the same weights, tap by tap."""
    return {Positions.ALL: 0, Positions.WINDOWS: (p[0] % 3, p[1] % 3), Positions.NONE: p}[sharing]


@pytest.mark.parametrize("row", MIXERS.values(), ids=MIXERS)
def test_matrix_agrees_with_the_axes(row):
    x = torch.randn(1, HEIGHT, WIDTH, DIM, dtype=torch.float64)
    layer = layer_of(row.layer)
    matrix = connection_matrix(layer, x).numpy()
    taps = {p: reads(row.connectivity, p) for p in POSITIONS}
    expected = np.array([[q in taps[p] for q in POSITIONS] for p in POSITIONS])
    assert (~np.isnan(matrix) == expected).all(), "what connects"
    # as a name for each weight: equal weights have equal names and no others
    names = {}
    for row_index, p in enumerate(POSITIONS):
        for tap, q in enumerate(taps[p]):
            if q is not None:
                name = (place_of_kernel(row.sharing_positions, p), tap)
                names.setdefault(name, set()).add(round(matrix[row_index, POSITIONS.index(q)], 9))
    assert all(len(weights) == 1 for weights in names.values()), "equal weights"
    values = [next(iter(weights)) for weights in names.values()]
    assert len(set(values)) == len(values), "weights that are not shared differ"
    assert len(np.unique(ranks(matrix)[expected])) == len(values), "as they are drawn"
    # over channels: the matrices of a group are one
    other = connection_matrix(layer, x, channel=1).numpy()
    same = row.sharing_channels.value != "none"
    assert np.allclose(matrix[expected], other[expected], rtol=1e-9) == same


@pytest.mark.parametrize(
    "name",
    [
        "sliding3/shared-positions/groups2/homogeneous",
        "sliding3/shared-positions/shared-channels/mixture2",
        "window3/shared-windows/groups2/homogeneous",
        "sliding3/unshared-positions/groups2/inhomogeneous/softmax",
        "sliding3/shared-windows2/groups2/static",
        "sliding3/unshared-positions/groups2/dot-product/free",
        "window3-shift1/unshared-positions/groups2/dot-product/free",
    ],
)
def test_points_of_the_space_have_the_weights_of_their_definition(name):
    mixer = LocalMixer.from_name(name, dim=DIM).double().eval()
    x = torch.randn(1, 5, 4, DIM, dtype=torch.float64)
    _, weight = mixer.source(x, mixer.connectivity)
    weight = weight.expand(1, 5, 4, -1, -1)[0, :, :, 1 // (DIM // weight.shape[3])].flatten(0, 1)
    taps = mixer.connectivity.neighborhood(5, 4, x.device).flatten(0, 1)
    expected = torch.full((20, 20), torch.nan, dtype=torch.float64)
    for p in range(20):
        inside = taps[p] >= 0
        expected[p, taps[p, inside]] = weight[p, inside].detach()
    torch.testing.assert_close(connection_matrix(mixer, x, channel=1), expected, equal_nan=True)


def test_a_padded_map_and_a_channel_that_is_not_there():
    layer = layers.WindowAttention(4, num_heads=2, window_size=3, shift=1, border="pad").double().eval()
    matrix = connection_matrix(layer, torch.randn(1, 4, 4, 4, dtype=torch.float64))
    assert matrix.shape == (16, 16)
    assert (matrix.nansum(1) < 1).any(), "padding has its share"
    with pytest.raises(ValueError, match=r"channel: expected one of 0 \.\.\. 3, got 4"):
        connection_matrix(layer, torch.randn(1, 4, 4, 4, dtype=torch.float64), channel=4)
    with pytest.raises(ValueError, match=r"^x: expected"):
        connection_matrix(layer, torch.randn(2, 4, 4, 4, dtype=torch.float64))
