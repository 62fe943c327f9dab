"""One axis at a time from any net: the studies that `localmix ablate --from` makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from localmix.axes import Connectivity, Dynamics, Positions
from localmix.models.local_mixer import BLOCKS, NORMS
from localmix.point import Point, sliding
from localmix.reports.ablation.studies import SIZES, Net, Study


def flips(start: Net) -> list[Study]:
    """A study for each axis along which there is another net than `start`; what is no net is left out, with the reason.

    >>> for study in flips(Net.parse("sliding7/unshared-positions/groups8/dot-product"))[:2]:
    ...     print(study.name, list(study.nets))
    from-connectivity ['sliding', 'window']
    from-size ['3', '5', '7', '9', '11']
    """
    studies = []
    for axis, variants in (
        ("connectivity", _connectivities(start.point)),
        ("size", _sizes(start.point)),
        ("positions", _positions(start.point)),
        ("channels", _channels(start.point)),
        ("weights", _weights(start.point)),
        ("normalisation", _normalisations(start.point)),
        ("block", ((name, {"block": name}) for name in BLOCKS)),
        ("norm", ((name, {"norm": name}) for name in NORMS)),
        ("squeeze-excitation", ((word, {"squeeze_excitation": word == "on"}) for word in ("off", "on"))),
    ):
        nets, left_out, own = {}, [], None
        for label, changes in variants:
            try:
                around = {k: v for k, v in changes.items() if k in ("block", "norm", "squeeze_excitation")}
                point = {k: v for k, v in changes.items() if k not in around}
                net = replace(start, point=replace(start.point, **point), **around)
            except ValueError as error:
                left_out.append(f"{label}: {error}")
                continue
            nets[label] = net
            if net == start:
                own = label
        if own is None:
            nets = {"start": start, **nets}
        if len(nets) > 1:
            title = axis.capitalize().replace("-", " ")
            question = f"What does {axis.replace('-', ' ')} change, from {start.name}?"
            studies.append(Study(f"from-{axis}", title, question, nets, own or "start", tuple(left_out)))
    return studies


Variants = Iterator[tuple[str, dict[str, Any]]]


def _connectivities(point: Point) -> Variants:
    by_windows = point.positions is Positions.WINDOWS
    if point.is_sliding:
        yield "sliding", {}
        window = {"shift": tuple(n // 2 for n in point.size), "pad": point.attends, "period": None}
        yield "window", {"connectivity": Connectivity.WINDOW, **window}
    else:
        period, kernel = point.size if by_windows else None, sliding(point.weights, point.free)
        yield "sliding", {"connectivity": kernel, "shift": (0, 0), "pad": False, "period": period}
        yield "window", {}


def _sizes(point: Point) -> Variants:
    for size in sorted({*((n, n) for n in SIZES), point.size}):
        label = str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"
        if size == point.size:
            yield label, {}
        else:
            shift = tuple(n // 2 for n in size) if point.shift != (0, 0) else (0, 0)
            yield label, {"size": size, "shift": shift}


def _positions(point: Point) -> Variants:
    yield "shared by all", {"positions": Positions.ALL, "period": None}
    period = (point.period or point.size) if point.is_sliding else None
    yield "shared by windows", {"positions": Positions.WINDOWS, "period": period}
    yield "unshared", {"positions": Positions.NONE, "period": None}


def _channels(point: Point) -> Variants:
    counts: list[Any] = [None, 24, 8, 3, 1]
    if point.num_groups not in counts:
        counts.insert(1, point.num_groups)
    for count in counts:
        if isinstance(count, tuple):
            label = f"{'-'.join(map(str, count))} groups"
        else:
            label = "unshared" if count is None else f"{count} group{'s' if count > 1 else ''}"
        yield label, {"num_groups": count}


def _weights(point: Point) -> Variants:
    for label, weights, kernels in (
        ("static", Dynamics.STATIC, 0),
        ("homogeneous", Dynamics.HOMOGENEOUS, 0),
        (f"mixture of {point.num_kernels or 4}", Dynamics.MIXTURE, point.num_kernels or 4),
        ("inhomogeneous", Dynamics.INHOMOGENEOUS, 0),
        ("dot product", Dynamics.DOT_PRODUCT, 0),
    ):
        if weights is point.weights:
            yield label, {}
        else:
            attends = weights is Dynamics.DOT_PRODUCT
            yield label, {"weights": weights, "num_kernels": kernels, "free": False, **_border(point, attends)}


def _normalisations(point: Point) -> Variants:
    for label, normalised in (("softmax", True), ("free", False)):
        if point.weights is not Dynamics.DOT_PRODUCT:
            yield label, {"softmax": normalised}
        elif point.attends is normalised:
            yield label, {}
        else:
            yield label, {"free": not normalised, **_border(point, normalised)}


def _border(point: Point, attends: bool) -> dict[str, Any]:
    """What a softmax of dot products has at the border of the map, and what all other weights have."""
    if point.is_sliding:
        return {"connectivity": Connectivity.SLIDING_CLAMPED if attends else Connectivity.SLIDING_ZERO}
    return {"pad": attends}
