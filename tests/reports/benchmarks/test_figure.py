"""The figure of a benchmark can be read: numbers on its axes, marks that differ without colours."""

import io
import json
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from localmix.reports.benchmarks.figure import draw

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.mark.parametrize(("name", "num_series"), [("operators_cpu", 4), ("networks_cpu", 2)])
def test_committed_results(name, num_series, monkeypatch):
    figures = []
    save = FigureCanvasAgg.print_png
    monkeypatch.setattr(
        FigureCanvasAgg, "print_png", lambda self, file: (save(self, file), figures.append(self.figure))
    )
    draw(json.loads((RESULTS / name / "results.json").read_text()), io.BytesIO())
    for axes in (axes for axes in figures[0].axes if axes.lines):
        low, high = axes.get_xlim()
        assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2, axes.get_title()
    (legend,) = figures[0].legends
    series = [line for line in legend.get_lines() if line.get_marker() == "s"]
    assert len({line.get_markersize() for line in series}) == len(series) == num_series
    sizes = {line.get_color(): line.get_markersize() for line in series}
    marks = [line for axes in figures[0].axes for line in axes.lines if line.get_marker() in ("o", "D")]
    assert marks and all(line.get_markersize() == sizes[line.get_color()] for line in marks)
