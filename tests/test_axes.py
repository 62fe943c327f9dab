"""The table MIXERS against the Jacobians of the layers.

Nothing here knows what a mixer should be: each axis is worked out from the numbers that a layer computes on a small
map, and then compared with the row.

The layer is taken apart once, at its source of weights. With the weights held at those of a map x, what the layer does
to values v is linear, and its Jacobian in v is the weights themselves: w[p, q, c] = d y[p, c] / d v[q, c]. How the
weights change with x is a second Jacobian.
"""

import copy
import dataclasses
import inspect
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.autograd.functional import jacobian

import localmix.models  # noqa: F401  (registers the networks)
from localmix import functional, kernels, layers
from localmix.axes import MIXERS, Channels, Connectivity, Dynamics, MixerRow, Positions
from localmix.layers import Mixer

HEIGHT, WIDTH, CHANNELS = 6, 9, 4
POSITIONS = [(i, j) for i in range(HEIGHT) for j in range(WIDTH)]
# What a layer wants to be told, by the name of the argument; 3 divides both sides of the map.
ARGUMENTS = {"num_groups": 2, "num_heads": 2, "kernel_size": 3, "window_size": 3, "reduction": 2}


def build(name):
    """A layer in float64 whose parameters and statistics are all random."""
    kind = getattr(layers, name)
    accepted = kind.__init__.__annotations__
    layer = kind(CHANNELS, **{key: value for key, value in ARGUMENTS.items() if key in accepted}).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 1.5)
                norm.bias.fill_(5)  # behind it a ReLU, which would hide the map where it is zero
    return layer


class Held(nn.Module):
    """A source whose weights are those of one map, whatever map it is given; that one is the values."""

    def __init__(self, source, x):
        super().__init__()
        self.source, self.x = source, x

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.source, name)

    def kernels(self, values):
        return self.source.kernels(self.x)

    def hidden(self, values):
        return self.source.hidden(self.x)

    def project(self, values):
        query, key, _ = self.source.project(self.x)
        return query, key, values.reshape(query.shape)

    def forward(self, values, connectivity):
        return values, self.source(self.x, connectivity)[1]


def held(layer, x):
    """The layer as a function of values alone, with the weights of x and nothing behind the sum."""
    layer = copy.deepcopy(layer)
    layer.source, layer.output = Held(layer.source, x.detach()), nn.Identity()
    return layer.forward


@dataclasses.dataclass
class Measured:
    """weight[p, q, c]: of input q in output p. depends[p, q, r]: whether that weight changes with the map at r."""

    weight: torch.Tensor
    depends: torch.Tensor
    change: torch.Tensor


def measure(layer, x):
    """The Jacobians of a layer at x [1, H, W, C]."""
    count = len(POSITIONS)
    values = torch.randn_like(x)
    full = jacobian(held(layer, x), values).reshape(count, CHANNELS, count, CHANNELS)
    weight = torch.stack([full[:, c, :, c] for c in range(CHANNELS)], dim=-1)
    other = ~torch.eye(CHANNELS, dtype=torch.bool)
    assert not full.movedim(2, 1)[:, :, other].any(), "channels mix"
    # the same layer, put together again
    mixed, _ = layer.source(x, layer.connectivity)
    torch.testing.assert_close(layer.output(held(layer, x)(mixed)), layer(x))

    # the weights as a function of the map: what the source gives is what was just seen, so its Jacobian tells the rest
    taps = layer.connectivity.neighborhood(HEIGHT, WIDTH, x.device).reshape(count, -1)
    groups = layer.source(x, layer.connectivity)[1].shape[3]
    owner = torch.arange(CHANNELS) // (CHANNELS // groups)

    def by_pairs(t):
        """[1, H|1, W|1, G, K, ...] by position, group and tap to [p, q, c, ...] by output, input and channel."""
        t = t.expand(1, HEIGHT, WIDTH, *t.shape[3:]).reshape(count, groups, taps.shape[1], *t.shape[5:])
        pairs = torch.zeros(count, count + 1, CHANNELS, *t.shape[3:], dtype=t.dtype)
        pairs[torch.arange(count)[:, None], taps] = t.transpose(1, 2)[:, :, owner]
        return pairs[:, :count]  # taps without an input have gone to the end

    def weights(x):
        return layer.source(x, layer.connectivity)[1]

    torch.testing.assert_close(by_pairs(weights(x)), weight)
    change = by_pairs(jacobian(weights, x, vectorize=True).reshape(*weights(x).shape, count, CHANNELS))
    return Measured(weight, (change.abs() > 1e-12).any(4).any(2), change)


def connected(measured):
    """bool [p, q]: which inputs each output sees."""
    return (measured.weight != 0).any(2)


def offsets(seen, p):
    """Where the inputs of a position lie as seen from it."""
    (i, j) = POSITIONS[p]
    return {(POSITIONS[q][0] - i, POSITIONS[q][1] - j) for q in seen[p].nonzero().flatten().tolist()}


def connectivity(measured):
    """Windows see one another and no one else; what slides sees the same offsets wherever they are on the map."""
    seen = connected(measured)
    if all(torch.equal(seen[p], seen[q]) for p in range(len(POSITIONS)) for q in seen[p].nonzero().flatten()):
        return Connectivity.WINDOW
    middle = offsets(seen, POSITIONS.index((HEIGHT // 2, WIDTH // 2)))
    inside = [{(a, b) for a, b in middle if (i + a, j + b) in POSITIONS} for i, j in POSITIONS]
    if all(offsets(seen, p) == inside[p] for p in range(len(POSITIONS))):
        return Connectivity.SLIDING_ZERO
    fits = [p for p in range(len(POSITIONS)) if len(inside[p]) == len(middle)]
    if all(seen.sum(1) == len(middle)) and all(offsets(seen, p) == middle for p in fits):
        return Connectivity.SLIDING_CLAMPED
    raise AssertionError("a connectivity without a name")


def equal_after(measured, step):
    """Whether weights are the same one step further on the map; None if no pair is connected here and there."""
    moved = [(i + step[0], j + step[1]) for i, j in POSITIONS]
    here = torch.tensor([p for p, to in enumerate(moved) if to in POSITIONS])
    there = torch.tensor([POSITIONS.index(to) for to in moved if to in POSITIONS])
    seen = connected(measured)
    both = seen[here][:, here] & seen[there][:, there]
    first, second = (measured.weight[p][:, p][both] for p in (here, there))
    return torch.allclose(first, second, rtol=1e-9, atol=0) if both.any() else None


def sharing_positions(measured):
    """Over which steps on the map the weights stay the same."""
    steps = [(a, b) for a in range(HEIGHT) for b in range(WIDTH) if (a, b) != (0, 0)]
    answers = {equal_after(measured, step) for step in steps}
    if False not in answers:
        return Positions.ALL
    if True not in answers:
        return Positions.NONE
    if connectivity(measured) is Connectivity.WINDOW and is_shared_by_windows(measured):
        return Positions.WINDOWS
    raise AssertionError("a sharing over positions without a name")


def is_shared_by_windows(measured):
    """Whether positions have the same weights, slot by slot, if and only if they sit at the same place of a window."""
    seen = connected(measured)
    windows = [row.nonzero().flatten().tolist() for row in seen]
    for p, window in enumerate(windows):
        for other, window_of_other in enumerate(windows):
            same_place = window.index(p) == window_of_other.index(other)
            weights = (measured.weight[p, window], measured.weight[other, window_of_other])
            if torch.allclose(*weights, rtol=1e-9, atol=0) != same_place:
                return False
    return True


def sharing_channels(measured):
    """Channels whose weights are the same everywhere, and whether dot products made them."""
    weight = measured.weight.flatten(0, 1)
    same = [[torch.allclose(weight[:, c], weight[:, d], rtol=1e-9) for d in range(CHANNELS)] for c in range(CHANNELS)]
    blocks = sorted({tuple(d for d in range(CHANNELS) if same[c][d]) for c in range(CHANNELS)})
    if blocks == [(c,) for c in range(CHANNELS)]:
        return Channels.NONE
    assert blocks == [(0, 1), (2, 3)], f"a sharing over channels without a name: {blocks}"
    return Channels.HEAD if dynamics(measured) is Dynamics.DOT_PRODUCT else Channels.GROUP


def dynamics(measured):
    """What of the map each weight changes with."""
    seen, count = connected(measured), len(POSITIONS)
    sources = [{tuple(row.nonzero().flatten().tolist()) for row in measured.depends[p][seen[p]]} for p in range(count)]
    if all(source == {()} for source in sources):
        return Dynamics.STATIC
    if all(source == {tuple(range(count))} for source in sources):
        return Dynamics.HOMOGENEOUS
    if all(source == {(p,)} for p, source in enumerate(sources)):
        return Dynamics.INHOMOGENEOUS
    neighborhoods = [{tuple(row.nonzero().flatten().tolist())} for row in seen]
    if sources == neighborhoods and is_softmax_of_pairs(measured):
        return Dynamics.DOT_PRODUCT
    raise AssertionError("dynamics without a name")


def is_softmax_of_pairs(measured):
    """Positive, sums to one, and the ratio of two weights of a position depends on it and these two inputs alone."""
    weight, seen = measured.weight, connected(measured)
    if not (weight >= 0).all() or not torch.allclose(weight.sum(1), torch.ones(1, dtype=weight.dtype)):
        return False
    for p in range(len(POSITIONS)):
        first, *others = seen[p].nonzero().flatten().tolist()
        logarithm = measured.change[p] / weight[p].clamp(min=1e-300)[..., None, None]
        for q in others:
            ratio = (logarithm[q] - logarithm[first]).abs().amax((0, 2)) > 1e-9
            if not set(ratio.nonzero().flatten().tolist()) <= {p, q, first}:
                return False
    return True


AXES = {
    "connectivity": connectivity,
    "sharing_positions": sharing_positions,
    "sharing_channels": sharing_channels,
    "dynamics": dynamics,
}


def check(row, measured):
    """Raises unless the row says of each axis what was measured."""
    for axis, read in AXES.items():
        assert getattr(row, axis) is read(measured), f"{row.title}: {axis} is {read(measured)}"


@pytest.fixture(scope="module", params=MIXERS)
def mixer(request):
    torch.manual_seed(0)
    row = MIXERS[request.param]
    x = torch.randn(1, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64)
    return row, measure(build(row.layer), x)


def test_row_is_what_the_layer_computes(mixer):
    check(*mixer)


def test_a_wrong_row_is_seen(mixer):
    """Every other value on every axis."""
    row, measured = mixer
    for axis in AXES:
        right = getattr(row, axis)
        for wrong in type(right):
            if wrong is not right:
                with pytest.raises(AssertionError, match=axis):
                    check(dataclasses.replace(row, **{axis: wrong}), measured)


def test_a_layer_off_the_table_is_told_by_its_axes():
    """A composition that no row has: inhomogeneous weights on a clamped neighborhood."""
    torch.manual_seed(0)
    source = build("InhomogeneousDynamicConv").source
    layer = Mixer(CHANNELS, layers.Sliding(3, border="clamp"), source).double().eval()
    measured = measure(layer, torch.randn(1, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64))
    found = [read(measured) for read in AXES.values()]
    assert found == [Connectivity.SLIDING_CLAMPED, Positions.NONE, Channels.GROUP, Dynamics.INHOMOGENEOUS]


def test_weights_of_dynamic_mixers_change_with_the_image_and_no_others():
    torch.manual_seed(0)
    for row in MIXERS.values():
        layer = build(row.layer)
        images = torch.randn(2, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64)
        values = torch.randn(1, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64).expand(2, -1, -1, -1)
        first, second = held(layer, images)(values)
        assert torch.allclose(first, second) == (not row.dynamics.is_dynamic)


def test_shape_of_the_weight_is_the_one_stated():
    sizes = {"1": 1, "B": 2, "H": HEIGHT, "W": WIDTH, "C": CHANNELS, "G": 2, "heads": 2, "K": 9, "N": 9}
    x = torch.randn(2, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64)
    for row in MIXERS.values():
        layer = build(row.layer)
        stated = [sizes[letter] for letter in row.weight.strip("[]").split(", ")]
        assert list(layer.source(x, layer.connectivity)[1].shape) == stated


@pytest.mark.parametrize("name", MIXERS)
def test_names_lead_to_the_code(name):
    row = MIXERS[name]
    assert isinstance(row, MixerRow)
    assert row.function == name
    assert callable(getattr(functional, row.function))
    assert callable(getattr(kernels, row.function))
    assert row.function in kernels.OPERATORS
    assert issubclass(getattr(layers, row.layer), nn.Module)
    assert row.layer in layers.__all__
    assert timm.is_model(f"{row.network}_nano")
    assert timm.is_model(f"{row.network}_tiny")
    assert row.title in (
        getattr(functional, row.function).__doc__ + getattr(layers, row.layer).__doc__
    ).lower().replace("mlp", "MLP")


DOCUMENT = Path(__file__).parents[1] / "docs/axes.md"


def table():
    """The mixers on the axes, as the document shows them."""
    yield "| mixer | connectivity | shared over positions | shared over channels | weights come from | weight | layer |"
    yield "|---|---|---|---|---|---|---|"
    for row in MIXERS.values():
        anchor = row.function.replace("_", "-")
        values = (getattr(row, axis).value for axis in AXES)
        yield f"| [{row.title}](mixers.md#{anchor}) | {' | '.join(values)} | `{row.weight}` | `{row.layer}` |"


def test_document_shows_the_table():
    assert "\n".join(table()) in DOCUMENT.read_text()


def signature(function):
    """As a document writes it: without types, and without `impl`, which all have."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "impl"]
    plain = [p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in parameters]
    first = next(i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY)
    return f"`{function.__name__}({', '.join([*plain[:first], '*', *plain[first:]])})`".replace("'", '"')


@pytest.mark.parametrize("name", MIXERS)
def test_document_has_a_section_for_each_mixer(name):
    """Found blind by its anchor, with signatures that are those of the code."""
    row = MIXERS[name]
    _, _, section = DOCUMENT.with_name("mixers.md").read_text().partition(f'<a id="{name.replace("_", "-")}"></a>\n')
    section = section.partition("<a id=")[0]
    assert section.lower().startswith(f"## {row.title.lower()}\n")
    assert signature(getattr(functional, row.function)) in section
    assert signature(getattr(layers, row.layer)) in section
    assert f"`{row.network}_*`" in section


@pytest.mark.parametrize("operator", kernels.OPERATORS)
def test_document_tells_of_each_operator(operator):
    document = DOCUMENT.with_name("mixers.md").read_text()
    assert signature(getattr(functional, operator)) in document
    assert signature(getattr(kernels, operator)) in document
