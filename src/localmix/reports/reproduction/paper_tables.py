"""The paper's tables: what can be counted is counted, and what cannot be had here says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

from localmix.reports.cost import Cost, cost
from localmix.reports.cost_subject import Subject
from localmix.reports.paper import DATA, NUM_CLASSES, PAPER, SCORES, SIZES, Figure, Origin, paper_row
from localmix.reports.reproduction.page import Block, Cell, Grid, Heading, Mark, Paragraph

Scores: TypeAlias = Mapping[tuple[str, str], Mapping[str, tuple[float, ...]]]
"""What runs reached on the paper's data, in the unit of the paper, by task and network and then by the run."""

_SUBJECT = {
    "classification": ("Classification", "Whole networks"),
    "detection": ("Detection and instance segmentation", "Cascade Mask R-CNN on each backbone"),
    "segmentation": ("Semantic segmentation", "UPerNet on each backbone"),
}
_TRAINING = {
    "classification": "300 epochs on ImageNet-1K (`recipes/imagenet`)",
    "detection": "36 epochs on COCO, of a backbone that was trained on ImageNet-1K",
    "segmentation": "160,000 iterations on ADE20K, of a backbone that was trained on ImageNet-1K",
}
UNREAD = "no public source was read that states it"


def paper_table(task: str, scores: Scores) -> list[Block]:
    """Heading, explanation and table of a task; networks in the order of the paper."""
    title, what = _SUBJECT[task]
    height, width = SIZES[task]
    header = [
        "network",
        "name here",
        "parameters",
        "the paper's",
        "difference",
        "MACs",
        "the paper's",
        "difference",
    ]
    for name in SCORES[task]:
        header += [name, f"the paper's {name}"]
    rows = [_row(task, row.title, row.networks[0], scores) for row in PAPER["classification"]]
    settings = f"{what}, {NUM_CLASSES[task]} classes; MACs of an image of {height} x {width} pixels"
    extra = "" if task != "detection" else ", 1000 boxes through each box head and 100 through each mask head"
    return [
        Heading(f"{title}: {DATA[task]}"),
        Paragraph(
            f"{settings}{extra}. MACs are multiply-adds of convolutions, linear layers and mixers; the paper calls "
            "them FLOPs. `equal` is in all the digits that the paper states."
        ),
        Grid(tuple(header), tuple(rows), num_left=2),
    ]


def counted(task: str, network: str) -> Cost:
    """What the network costs at the size and with the classes of the paper."""
    subject = Subject(network, task, SIZES[task], NUM_CLASSES[task])
    with torch.no_grad():
        return cost(subject.on_meta(), subject.size, in_chans=3)


def _row(task: str, title: str, network: str, scores: Scores) -> tuple[Cell, ...]:
    ours, paper = counted(task, network), paper_row(task, network)
    parameters = (paper.parameters or paper.parameters_counted) if paper else None
    macs = (paper.macs or paper.macs_counted) if paper else None
    row = [
        Cell(title),
        Cell(f"`{network}`"),
        Cell(f"{ours.parameters / 1e6:.3f} M", Mark.HERE),
        *_beside(parameters, ours.parameters),
        Cell(f"{ours.macs / 1e9:.3f} G", Mark.HERE),
        *_beside(macs, ours.macs),
    ]
    reached = scores.get((task, network))
    for index in range(len(SCORES[task])):
        figure = paper.scores[index] if paper else None
        if reached:
            row.append(_reached({run: values[index] for run, values in reached.items()}))
        else:
            row.append(Cell("", Mark.MISSING, f"needs {_TRAINING[task]}; no run of it was given"))
        row.append(Cell(figure.text, Mark.PAPER) if figure else Cell("-", None, UNREAD))
    return tuple(row)


def _reached(values: Mapping[str, float]) -> Cell:
    """What one run reached, or each of several, which are then named below the table."""
    runs = ", ".join(f"{value:.1f} of `{run}`" for run, value in values.items())
    why = f"of several evaluations: {runs}" if len(values) > 1 else None
    return Cell(", ".join(f"{value:.1f}" for value in values.values()), Mark.HERE, why)


def _beside(figure: Figure | None, count: int) -> list[Cell]:
    """The paper's figure, and how much more is counted here."""
    if figure is None:
        return [Cell("-", None, UNREAD), Cell("-")]
    origin = Origin.COUNTED.value if figure.origin is Origin.COUNTED else None
    text = "equal" if figure.agrees(count) else f"{figure.difference(count):+.1%}"
    return [Cell(figure.text, Mark.PAPER, origin), Cell(text, Mark.HERE)]
