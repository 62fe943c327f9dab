"""What metrics.csv of a run says, also while the run is under way."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localmix.tasks.engine.run_folder import METRICS

KNOWN = ("epoch", "step", "lr", "loss")
"""Columns that are read, and with them those of validation, `val_*`; others may hold anything."""


@dataclass(frozen=True)
class Metrics:
    """Columns by name, float64 with a value for each row; NaN where a cell is empty."""

    columns: Mapping[str, np.ndarray]

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a column where it has finite ones; empty if there is no such column."""
        if name not in self.columns:
            return np.empty(0), np.empty(0)
        there = np.isfinite(self.columns[name])
        return self.columns["step"][there], self.columns[name][there]

    def at(self, step: int) -> dict[str, float]:
        """What was measured at a step; nothing if it has no row."""
        rows = np.flatnonzero(self.columns["step"] == step)
        last = {name: float(values[rows[-1]]) for name, values in self.columns.items()} if len(rows) else {}
        return {name: value for name, value in last.items() if np.isfinite(value)}


def read_metrics(run: Path) -> Metrics:
    """The metrics of the run in a folder; half a line at the end, which is being written, is left out.

    Raises:
        ValueError: there is no metrics.csv, or it holds something else; names it.
    """
    path = run / METRICS
    if not path.is_file():
        inner = sorted(str(found.parent) for found in run.glob(f"*/**/{METRICS}")) if run.is_dir() else []
        hint = f"; there are some in {' '.join(inner[:10])}" if inner else ""
        raise ValueError(f"runs: expected folders with {METRICS}, got {run}{hint}")
    with path.open(newline="", errors="replace") as file:
        whole = [line for line in file if line.endswith("\n")]
    header, *rows = csv.reader(whole) if whole else [[]]
    if not {"step", "loss"} <= set(header):
        raise ValueError(f"runs: expected columns step and loss in {path}, got {', '.join(header) or 'nothing'}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"runs: expected {len(header)} cells in line {number} of {path}, got {len(row)}")
    columns = {
        name: np.array([_number(row[place], name, number, path) for number, row in enumerate(rows, 2)], dtype=float)
        for place, name in enumerate(header)
        if name in KNOWN or name.startswith("val_")
    }
    return Metrics(columns)


def short_names(runs: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their paths without the parts that all begin and all end with.

    >>> short_names([Path("runs/dwnet_nano/seed-0"), Path("runs/localmlp_nano/seed-0")])
    ['dwnet_nano', 'localmlp_nano']
    """
    parts = [run.resolve().parts for run in runs]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:])]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({p[i] for p in parts}) > 1), shortest)
    end = next((i for i in range(shortest) if len({p[-1 - i] for p in parts}) > 1), shortest)
    if start + end >= shortest:
        # one may lie within another, and must not be left without a name
        start, end = min(start, shortest - 1), 0
    return ["/".join(p[start : len(p) - end]) for p in parts]


def _number(cell: str, name: str, line: int, path: Path) -> float:
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        raise ValueError(f"runs: expected a number as {name} in line {line} of {path}, got {cell!r}") from None
