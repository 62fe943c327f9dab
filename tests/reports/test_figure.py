import itertools

import pytest
from matplotlib.figure import Figure

from localmix.axes import MIXERS
from localmix.reports.figure import draw


def rows(top1, std):
    return [
        {
            "title": mixer.title,
            "connectivity": mixer.connectivity.value,
            "dynamics": mixer.dynamics.name.lower(),
            "top1_mean": top1 + shift,
            "top1_std": std,
            "macs": macs,
            "inference_images_per_second": speed,
        }
        for mixer, shift, macs, speed in zip(
            MIXERS.values(),
            (0.0, 0.002, -0.001, 0.001, 0.0, -0.002),
            (13.8e6, 13.9e6, 20e6, 21e6, 21e6, 13.8e6),
            (2690, 1458, 631, 997, 917, 1658),
            strict=True,
        )
    ]


@pytest.mark.parametrize("std", [None, 0.004])
def test_labels_overlap_neither_each_other_nor_the_points(tmp_path, monkeypatch, std):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    draw(rows(0.85, std), tmp_path / "figure.png", title="title", note="note")
    for axes in figures[0].axes:
        labels = [text.get_window_extent() for text in axes.texts]
        assert len(labels) == 6
        assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))
        points = [
            line.get_transform().transform(line.get_xydata())[0] for line in axes.lines if line.get_marker() in "os"
        ]
        assert len(points) >= 6
        assert not any(label.contains(*point) for label in labels for point in points)
        inside = axes.get_window_extent()
        assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in labels)


def legend_of(shown, tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    draw(shown, tmp_path / "figure.png", title="title", note="note")
    (legend,) = figures[0].legends
    return [text.get_text() for text in legend.get_texts()]


def test_a_net_that_is_not_on_the_axes_is_called_neither_static_nor_dynamic(tmp_path, monkeypatch):
    sliding, *_ = rows(0.85, None)
    other = {**sliding, "title": "resnet18", "connectivity": None, "dynamics": None}
    words = ["sliding neighborhood", "weights computed from the input", "weights are parameters"]
    assert legend_of([sliding, other], tmp_path, monkeypatch) == [*words, "not one of the mixers"]
    assert legend_of([other, {**other, "title": "resnet34"}], tmp_path, monkeypatch) == ["not one of the mixers"]
