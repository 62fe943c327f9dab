"""Which layers, positions and groups of channels are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localmix.models import Hierarchy
from localmix.reports.explanation.subjects import Subject
from localmix.reports.explanation.weights import mixers

Position = tuple[float, float] | tuple[int, int]
"""x, y: integers are pixels of what the network sees, others shares of its width and height."""
NUM_ROWS = 4
"""So many layers are shown of a network that has no stages, or more of them."""


@dataclass(frozen=True)
class Row:
    """A layer in each of several networks, by its name there."""

    label: str
    names: tuple[str, ...]


def rows_of(subjects: Sequence[Subject], layers: Sequence[str | int] | None = None) -> list[Row]:
    """The layers to show side by side.

    Args:
        layers: stages from 1 (the last mixer of each), names of layers as `named_modules` has them, or "all". By
            default every stage; of networks without stages some layers from the first to the last.

    Raises:
        ValueError: a network without local mixers, or without a layer that is asked for.
    """
    held = [list(mixers(subject.trained.net)) for subject in subjects]
    for subject, names in zip(subjects, held, strict=True):
        if not names:
            raise ValueError(
                f"model: expected a network of local mixers, such as dwnet_tiny, but none of the layers of "
                f"{subject.label} is one; its receptive field can be shown (--show receptive_field)"
            )
    stages = [_stages(subject) for subject in subjects]
    if layers is None:
        count = min(len(names) for names in stages)
        if count:
            layers = range(1, count + 1)
        else:
            each = [_spread(names, min(NUM_ROWS, *map(len, held))) for names in held]
            return [Row(_short(names[0]), names) for names in zip(*each, strict=True)]
    if list(layers) == ["all"]:
        layers = held[0]
    rows = []
    for layer in layers:
        if str(layer).isdigit():
            names = tuple(_stage(s, n, int(layer)) for s, n in zip(subjects, stages, strict=True))
            rows.append(Row(f"stage {layer}", names))
            continue
        for subject, names in zip(subjects, held, strict=True):
            if layer not in names:
                raise ValueError(
                    f"layers: expected a stage from 1, or one of {', '.join(names[:3])} ... {names[-1]} in "
                    f"{subject.label}, got {layer!r}"
                )
        rows.append(Row(_short(str(layer)), (str(layer),) * len(subjects)))
    return rows


def stage_numbers(layers: Sequence[str | int] | None) -> list[int] | None:
    """The stages that `layers` names, from 0; None if it names none."""
    return [int(layer) - 1 for layer in layers or () if str(layer).isdigit()] or None


def spread_stages(count: int) -> list[int]:
    """All stages of a network, or some of many: always the last.

    >>> spread_stages(4), spread_stages(12)
    ([0, 1, 2, 3], [2, 5, 8, 11])
    """
    return list(_spread(range(count), min(NUM_ROWS, count)))


def shares(position: Position, height: int, width: int) -> tuple[float, float]:
    """x, y of a position as shares of the width and height, in the middle of its pixel.

    Raises:
        ValueError: a position that is not in the image.
    """
    x, y = position
    if isinstance(x, int) and isinstance(y, int):
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"positions: expected x, y within {width} x {height} pixels, got {x},{y}")
        return (x + 0.5) / width, (y + 0.5) / height
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"positions: expected x, y as shares in 0..1 or as whole pixels, got {x},{y}")
    return float(x), float(y)


def parse_position(text: str) -> Position:
    """x,y from text: "112,80" are pixels, "0.5,0.25" shares.

    Raises:
        ValueError: anything else.
    """
    parts = text.split(",")
    try:
        if len(parts) == 2:
            x, y = parts
            return (int(x), int(y)) if x.strip().isdigit() and y.strip().isdigit() else (float(x), float(y))
    except ValueError:
        pass
    raise ValueError(f"positions: expected x,y such as 0.5,0.5 (shares) or 112,80 (pixels), got {text!r}")


def group_of(group: str | int, num_groups: int, where: str) -> int | None:
    """A group of channels by its number, or None for the mean over the groups.

    Raises:
        ValueError: neither, or more than the layer has.
    """
    if group == "mean":
        return None
    if not str(group).isdigit() or int(group) >= num_groups:
        raise ValueError(f"groups: expected mean or one of 0 ... {num_groups - 1} in {where}, got {group!r}")
    return int(group)


def _stages(subject: Subject) -> list[str]:
    """The last mixer of each stage."""
    net = subject.trained.net
    if not isinstance(net, Hierarchy):
        return []
    names = list(mixers(net))
    found = ([name for name in names if name.startswith(f"stages.{index}.")] for index in range(len(net.stages)))
    return [stage[-1] for stage in found if stage]


def _stage(subject: Subject, stages: Sequence[str], number: int) -> str:
    if not 1 <= number <= len(stages):
        raise ValueError(f"layers: expected a stage of 1 ... {len(stages)} in {subject.label}, got {number}")
    return stages[number - 1]


def _spread(items: Sequence, count: int) -> tuple:
    return tuple(items[len(items) * (index + 1) // count - 1] for index in range(count))


def _short(name: str) -> str:
    """The name of a layer in two lines at most."""
    name = name.removesuffix(".mixer")
    return name if len(name) < 18 else name.replace(".blocks", "\n.blocks", 1)
