"""A point of the space and its name."""

import dataclasses
import itertools
import pickle
import re
from pathlib import Path

import pytest

from localmix.axes import MIXERS, Connectivity, Dynamics, Positions
from localmix.point import MIXER_POINTS, Point

CONNECTIVITIES = [
    "sliding7",
    "sliding1",
    "sliding4x11",
    "sliding7-dilation2",
    "sliding3x5-dilation2x1",
    "window7",
    "window7-shift3",
    "window8x7-shift0x3",
    "window7-pad",
    "window7-shift3-pad",
]
POSITIONS = ["shared-positions", "shared-windows", "shared-windows14", "shared-windows14x9", "unshared-positions"]
CHANNELS = ["unshared-channels", "shared-channels", "groups32", "groups3,6,12,24"]
WEIGHTS = ["static", "homogeneous", "mixture1", "mixture16", "inhomogeneous", "dot-product"]
EVERY = list(itertools.product(CONNECTIVITIES, POSITIONS, CHANNELS, WEIGHTS, ["", "/softmax", "/free"]))


def is_mixer(connectivity, positions, channels, weights, end):
    """The rules, written down a second time."""
    sliding = connectivity.startswith("sliding")
    if weights in ("inhomogeneous", "dot-product"):
        sharing = positions == "unshared-positions"
    else:
        numbered = positions.startswith("shared-windows1")
        sharing = positions == "shared-positions" or (numbered if sliding else positions == "shared-windows")
    attends = weights == "dot-product" and end != "/free"
    padding = attends or not connectivity.endswith("pad")
    in_windows = positions == "shared-positions" and not sliding
    if end == "/free":
        return sharing and padding and weights == "dot-product"
    return sharing and padding and not (end == "/softmax" and (attends or in_windows))


def test_every_name_is_that_of_its_point_or_refused():
    points = set()
    for parts in EVERY:
        name = "/".join(parts[:4]) + parts[4]
        if is_mixer(*parts):
            point = Point.parse(name)
            assert point.name == str(point) == name
            assert Point.parse(point.name) == point == pickle.loads(pickle.dumps(point))
            points.add(point)
        else:
            with pytest.raises(ValueError, match=r"^(pad|positions|period|softmax|free): expected "):
                Point.parse(name)
    assert len(points) == sum(is_mixer(*parts) for parts in EVERY) == 760


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("sliding7x7/shared-positions/groups1/static", "sliding7/shared-positions/shared-channels/static"),
        (
            "sliding7-dilation1/shared-windows8x8/groups2/static",
            "sliding7/shared-windows8/groups2/static",
        ),
        ("window07-shift0x0/shared-windows/groups2/static", "window7/shared-windows/groups2/static"),
    ],
)
def test_a_point_has_one_name(other, name):
    assert Point.parse(other) == Point.parse(name)
    assert Point.parse(other).name == name


def test_parts_of_a_name():
    assert Point.parse("sliding3x5-dilation2x1/shared-windows14x9/groups3,6/mixture16/softmax") == Point(
        connectivity=Connectivity.SLIDING_ZERO,
        size=(3, 5),
        positions=Positions.WINDOWS,
        num_groups=(3, 6),
        weights=Dynamics.MIXTURE,
        dilation=(2, 1),
        period=(14, 9),
        num_kernels=16,
        softmax=True,
    )
    assert Point.parse("window8-shift2x3-pad/unshared-positions/unshared-channels/dot-product") == Point(
        connectivity=Connectivity.WINDOW,
        size=8,
        positions=Positions.NONE,
        num_groups=None,
        weights=Dynamics.DOT_PRODUCT,
        shift=[2, 3],
        pad=True,
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sliding7", r"point: expected connectivity/positions/channels/weights, .*, got 'sliding7'"),
        (7, r"point: expected connectivity/positions/channels/weights, .*, got 7"),
        ("a/b/c/d/e/f", r"point: expected connectivity/positions/channels/weights"),
        ("slide7/shared-positions/groups2/static", r"connectivity: expected such as sliding7, .*, got 'slide7' in 'sl"),
        ("sliding7-shift3/shared-positions/groups2/static", r"connectivity: .* got 'sliding7-shift3'"),
        ("window7-dilation2/shared-windows/groups2/static", r"connectivity: .* got 'window7-dilation2'"),
        ("sliding7-pad/shared-positions/groups2/static", r"connectivity: .* got 'sliding7-pad'"),
        ("sliding-7/shared-positions/groups2/static", r"connectivity: .* got 'sliding-7'"),
        ("sliding7/shared/groups2/static", r"positions: expected shared-positions, shared-windows .*, got 'shared'"),
        ("sliding7/unshared-positions4/groups2/static", r"positions: .* got 'unshared-positions4'"),
        ("sliding7/shared-positions/groups/static", r"channels: expected .*groups32.*, got 'groups'"),
        ("sliding7/shared-positions/groups3,,6/static", r"channels: .* got 'groups3,,6'"),
        ("sliding7/shared-positions/groups2/dynamic", r"weights: expected static, .*, got 'dynamic'"),
        ("sliding7/shared-positions/groups2/mixture", r"weights: .*, got 'mixture'"),
        ("sliding7/shared-positions/groups2/static/norm", r"normalisation: expected softmax, free .*, got 'norm'"),
        ("sliding0/shared-positions/groups2/static", r"size: expected .* of at least 1, got \(0, 0\)"),
        ("sliding7-dilation0/shared-positions/groups2/static", r"dilation: expected .* of at least 1, got \(0, 0\)"),
        ("window7-shift7/shared-windows/groups2/static", r"shift: expected less than the window of \(7, 7\), got"),
        ("sliding7/shared-windows0/groups2/static", r"period: expected .* of at least 1, got \(0, 0\)"),
        ("sliding7/shared-positions/groups0/static", r"num_groups: expected None, or ints of at least 1, got 0"),
        ("sliding7/shared-positions/groups2,0/static", r"num_groups: expected .*, got \(2, 0\)"),
        ("sliding7/shared-positions/groups2/mixture0", r"num_kernels: expected an int of at least 1, got 0"),
        (
            "sliding7/shared-positions/groups2/dot-product",
            r"positions: expected unshared-positions for dot-product weights, which belong to a pair of positions .*, "
            r"got shared-positions",
        ),
        (
            "window7/shared-windows/groups2/dot-product",
            r"positions: expected unshared-positions for dot-product weights, .*, got shared-windows",
        ),
        (
            "sliding7/shared-positions/groups2/inhomogeneous",
            r"positions: .* for inhomogeneous weights, which are made of the feature at each position, got shared-",
        ),
        (
            "sliding7/unshared-positions/groups2/static",
            r"positions: expected shared-positions or shared-windows for static weights, of which there is one set, "
            r"whatever the size of the map; own weights at each position of maps up to a size are shared-windows",
        ),
        (
            "sliding7/unshared-positions/groups2/homogeneous",
            r"positions: expected shared-positions or shared-windows for homogeneous weights, of which",
        ),
        ("sliding7/shared-windows/groups2/static", r"period: expected the size of the windows that share a sliding"),
        ("window7/shared-windows14/groups2/static", r"period: expected none but for a sliding kernel .*\(14, 14\)"),
        ("window7-pad/shared-windows/groups2/static", r"pad: expected none for static weights: zero tokens"),
        ("window7/unshared-positions/groups2/dot-product/softmax", r"softmax: .* dot-product weights, which are one"),
        ("window7-pad/unshared-positions/groups2/dot-product/free", r"pad: expected none for free dot-product weights"),
        ("sliding7/shared-positions/groups2/static/free", r"free: expected none for static weights, which are free"),
        ("window7/shared-positions/groups2/static/softmax", r"softmax: .* windows whose positions share weights: each"),
    ],
)
def test_what_is_no_point_says_why(name, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Point.parse(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connectivity": Connectivity.SLIDING_CLAMPED}, r"connectivity: expected 'sliding, zero border' for static"),
        (
            {"weights": Dynamics.DOT_PRODUCT, "positions": Positions.NONE},
            r"connectivity: expected 'sliding, clamped border' for dot-product weights",
        ),
        (
            {
                "weights": Dynamics.DOT_PRODUCT,
                "positions": Positions.NONE,
                "free": True,
                "connectivity": Connectivity.SLIDING_CLAMPED,
            },
            r"connectivity: expected 'sliding, zero border' for free dot-product weights",
        ),
        (
            {"weights": Dynamics.DOT_PRODUCT, "positions": Positions.NONE, "free": True, "softmax": True},
            r"softmax: expected none for dot-product weights, which are one already unless free",
        ),
        ({"shift": 1}, r"shift: expected none for a sliding kernel, which has no windows, got \(1, 1\)"),
        ({"pad": True}, r"pad: expected none for a sliding kernel"),
        ({"period": 4}, r"period: expected none but for a sliding kernel that windows share"),
        ({"num_kernels": 4}, r"num_kernels: expected 0 but for a mixture, got 4"),
        ({"num_groups": True}, r"num_groups: expected None, or ints of at least 1, got True"),
        ({"num_groups": ()}, r"num_groups: expected None, or ints of at least 1, got \(\)"),
        ({"num_groups": 2.0}, r"num_groups: expected None, or ints of at least 1, got 2\.0"),
        ({"size": (3, 3, 3)}, r"size: expected an int or a pair of ints"),
        ({"size": 3.0}, r"size: expected an int or a pair of ints"),
        ({"connectivity": Connectivity.WINDOW, "dilation": 2}, r"dilation: expected none for windows, whose positions"),
    ],
)
def test_what_no_name_can_say_is_refused_too(change, message):
    point = Point.parse("sliding7/shared-positions/groups2/static")
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(point, **change)


def test_a_list_of_one_number_is_the_number():
    point = Point.parse("sliding7/shared-positions/groups2/static")
    assert dataclasses.replace(point, num_groups=[2]) == point
    assert hash(dataclasses.replace(point, num_groups=[2, 4])) == hash(dataclasses.replace(point, num_groups=(2, 4)))


def test_the_six_mixers_stand_where_the_table_has_them():
    assert list(MIXER_POINTS) == list(MIXERS)
    for function, row in MIXERS.items():
        point = MIXER_POINTS[function]
        assert (point.connectivity, point.positions, point.weights) == (
            row.connectivity,
            row.sharing_positions,
            row.dynamics,
        )
        assert (point.num_groups is None) == (row.sharing_channels.value == "none")


def test_blocks_of_a_network():
    point = Point.parse("window7-shift3x2/unshared-positions/groups3,6/dot-product")
    assert [point.in_block(stage, index).name for stage in (0, 1) for index in (0, 1)] == [
        "window7/unshared-positions/groups3/dot-product",
        "window7-shift3x2/unshared-positions/groups3/dot-product",
        "window7/unshared-positions/groups6/dot-product",
        "window7-shift3x2/unshared-positions/groups6/dot-product",
    ]
    with pytest.raises(
        ValueError, match=r"^num_groups: expected a number for each stage, also for stage 2, got \(3, 6"
    ):
        point.in_block(2, 0)
    plain = Point.parse("sliding7/shared-positions/unshared-channels/static")
    assert plain.in_block(3, 1) == plain


def test_the_grammar_is_that_of_the_document():
    """What the document calls an example of a name is one."""
    document = (Path(__file__).parents[1] / "docs/local_mixer.md").read_text()
    names = re.findall(r"`([a-z0-9x-]+/[a-z0-9-]+/[a-z0-9,-]+/[a-z0-9-]+(?:/softmax|/free)?)`", document)
    assert len(names) >= 6
    assert [Point.parse(name).name for name in names] == names
