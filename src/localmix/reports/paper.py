"""The figures that the paper's tables state, as data: what is measured here is put beside them.

Only what was read in a public source or follows from the architecture is here. The paper's images per second, and the
scores of its inhomogeneous nets, are neither, so they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TASKS = ("classification", "detection", "segmentation")
SIZES = {"classification": (224, 224), "detection": (1280, 800), "segmentation": (512, 2048)}
"""Height and width of the image that multiply-adds are counted for [pixels]."""
NUM_CLASSES = {"classification": 1000, "detection": 80, "segmentation": 150}
DATA = {"classification": "ImageNet-1K", "detection": "COCO", "segmentation": "ADE20K"}
SCORES = {"classification": ("top-1 %",), "detection": ("box AP", "mask AP"), "segmentation": ("mIoU %",)}


class Origin(Enum):
    """Where a figure comes from."""

    READ = "read in the README of the official code or of Swin"
    COUNTED = "counted from the architecture that the official code describes"


@dataclass(frozen=True)
class Figure:
    """A figure of the paper with the digits it is stated with.

    >>> Figure("24.173M", Origin.COUNTED).value
    24173000.0
    """

    text: str
    origin: Origin

    @property
    def value(self) -> float:
        """In units of one."""
        scale = {"M": 10**6, "G": 10**9}.get(self.text[-1], 1)
        return float(self.text.rstrip("MG")) * scale

    def agrees(self, value: float) -> bool:
        """Whether `value` is the figure in all the digits it is stated with."""
        digits = self.text.rstrip("MG")
        scale = self.value / float(digits)
        return f"{value / scale:.{len(digits.partition('.')[2])}f}" == digits

    def difference(self, value: float) -> float:
        """How much more `value` is, as a share of the figure."""
        return value / self.value - 1


@dataclass(frozen=True)
class PaperRow:
    """A network in a table of the paper.

    `networks` are its names in timm, ours first. `parameters` and `macs` are as published (the paper calls
    multiply-adds FLOPs), those that end in `_counted` follow from the architecture.
    """

    task: str
    title: str
    networks: tuple[str, ...]
    parameters: Figure | None
    macs: Figure | None
    parameters_counted: Figure | None
    macs_counted: Figure | None
    scores: tuple[Figure | None, ...]


def _read(text: str | None) -> Figure | None:
    return None if text is None else Figure(text, Origin.READ)


def _counted(text: str | None) -> Figure | None:
    return None if text is None else Figure(text, Origin.COUNTED)


_NETWORKS = {
    "Swin-T": ("localswin_tiny", "swin_tiny_patch4_window7_224"),
    "DWNet-T": ("dwnet_tiny",),
    "dynamic DWNet-T": ("dynamic_dwnet_tiny",),
    "inhomogeneous dynamic DWNet-T": ("i_dynamic_dwnet_tiny",),
    "Swin-B": ("localswin_base", "swin_base_patch4_window7_224"),
    "DWNet-B": ("dwnet_base",),
    "dynamic DWNet-B": ("dynamic_dwnet_base",),
    "inhomogeneous dynamic DWNet-B": ("i_dynamic_dwnet_base",),
}
# parameters and multiply-adds as published, both as the architecture has them, scores
_FIGURES: dict[str, dict[str, tuple[str | None, ...]]] = {
    "classification": {
        "Swin-T": (None, "4.5G", "28.288M", "4.491G", "81.2"),
        "DWNet-T": ("24M", "3.8G", "24.173M", "3.727G", "81.2"),
        "dynamic DWNet-T": ("51M", "3.8G", "51.132M", "3.754G", "81.8"),
        "inhomogeneous dynamic DWNet-T": (None, None, "26.244M", "4.374G", None),
        "Swin-B": (None, "15.4G", "87.768M", "15.431G", "83.5"),
        "DWNet-B": ("74M", "12.9G", "74.347M", "12.812G", "83.2"),
        "dynamic DWNet-B": ("162M", "13.0G", "161.598M", "12.900G", "83.2"),
        "inhomogeneous dynamic DWNet-B": (None, None, "80.254M", "14.340G", None),
    },
    "detection": {
        "Swin-T": ("86M", "745G", None, None, "50.4", "43.7"),
        "DWNet-T": ("82M", "730G", None, None, "49.9", "43.4"),
        "dynamic DWNet-T": ("108M", "730G", None, None, "50.5", "43.7"),
        "Swin-B": ("145M", "982G", None, None, "51.9", "45.0"),
        "DWNet-B": ("132M", "924G", None, None, "51.0", "44.1"),
        "dynamic DWNet-B": ("219M", "924G", None, None, "51.2", "44.4"),
    },
    "segmentation": {
        "Swin-T": ("60M", "945G", None, None, "44.5"),
        "DWNet-T": ("56M", "928G", None, None, "45.5"),
        "dynamic DWNet-T": ("83M", "928G", None, None, "45.7"),
        "Swin-B": ("121M", "1188G", None, None, "48.1"),
        "DWNet-B": ("108M", "1129G", None, None, "48.3"),
        "dynamic DWNet-B": ("195M", "1129G", None, None, "48.0"),
    },
}

PAPER: dict[str, tuple[PaperRow, ...]] = {
    task: tuple(
        PaperRow(
            task,
            title,
            _NETWORKS[title],
            _read(figures[0]),
            _read(figures[1]),
            _counted(figures[2]),
            _counted(figures[3]),
            tuple(map(_read, figures[4:])),
        )
        for title, figures in rows.items()
    )
    for task, rows in _FIGURES.items()
}
"""The tables of the paper by task."""


def paper_row(task: str, network: str) -> PaperRow | None:
    """The network's row in the paper's table of a task; None if it has none.

    >>> paper_row("segmentation", "dwnet_tiny").macs.text
    '928G'
    """
    return next((row for row in PAPER[task] if network in row.networks), None)
