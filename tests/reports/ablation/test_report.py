import itertools

import pytest
from matplotlib.figure import Figure
from PIL import Image

from localmix.reports.ablation.figure import draw
from localmix.reports.ablation.report import note, paragraph, report, table, title
from localmix.reports.ablation.statistics import difference, estimate, holm


def study(name="size", **top1):
    """Of planted accuracies; the first is the baseline."""
    baseline = next(iter(top1))
    against = {label: difference(values, top1[baseline]) for label, values in top1.items() if label != baseline}
    adjusted = dict(zip(against, holm([d.p for d in against.values()]), strict=True))
    points = []
    for label, values in top1.items():
        other, p = against.get(label), adjusted.get(label)
        points.append(
            {
                "label": label,
                "net": f"dwnet/{label}",
                "parameters": 941_000,
                "macs": 13_800_000,
                "top1_mean": estimate(values).mean,
                "top1_interval": estimate(values).interval,
                "difference": other and other.mean,
                "difference_interval": other and other.interval,
                "p": other and other.p,
                "p_holm": p,
                "distinguishable": None if p is None else p < 0.05,
                "runs": [
                    {"top1": value, "folder": f"runs/{label}/seed-{seed}", "seconds": 60.0}
                    for seed, value in enumerate(values)
                ],
            }
        )
    return {"name": name, "title": name, "question": "?", "baseline": baseline, "left_out": [], "points": points}


def results(*studies, seeds=3):
    settings = {"model": "localmixer_nano", "data": "fashion_mnist", "img_size": 28, "epochs": 1, "steps": 160}
    return {
        "studies": list(studies),
        "missing": [],
        "settings": {**settings, "batch_size": 32, "seeds": list(range(seeds))},
        "images": {"train": 10_000, "validation": 2_000},
        "command": "localmix ablate size",
        "environment": {"hardware": {"threads": 1, "cpu": "a processor", "gpu": None}},
    }


BASE = [0.80, 0.82, 0.81, 0.83]
WORSE = [0.70, 0.7205, 0.7095, 0.73]
NULL = [0.81, 0.81, 0.82, 0.82]


def test_paragraph_tells_an_effect_from_none():
    text = paragraph(study(seven=BASE, three=WORSE, nine=NULL))
    assert text == (
        "The baseline, seven, reaches 81.50% (95% interval 79.45 to 83.55, 4 seeds). Distinguishable from it at the 5% "
        "level, after Holm's correction for 2 comparisons: three, worse by 10.00 points (95% interval −10.06 to −9.94, "
        "p <0.001). Not distinguishable from it: nine 0.00 points (95% interval −1.84 to +1.84). That is no evidence "
        "of being equal: with so few seeds a difference anywhere in its interval remains possible."
    )


def test_paragraph_of_nothing_but_nulls_claims_nothing():
    text = paragraph(study(seven=BASE, nine=NULL, five=[0.82, 0.81, 0.8, 0.82]))
    assert "None is distinguishable from it at the 5% level, after Holm's correction for 2 comparisons" in text
    assert "better" not in text and "worse" not in text


def test_an_effect_that_the_correction_takes_back_is_not_claimed():
    """p = 0.03 alone, but the family has three."""
    slight = [0.812, 0.827, 0.829, 0.8405]
    alone, among = study(a=BASE, b=slight), study(a=BASE, b=slight, c=NULL, d=NULL)
    assert alone["points"][1]["p"] == among["points"][1]["p"] < 0.05 < among["points"][1]["p_holm"]
    assert "Distinguishable from it at the 5% level: b, better by" in paragraph(alone)
    assert "None is distinguishable" in paragraph(among)


def test_one_seed_is_no_evidence():
    text = paragraph(study(seven=[0.8], nine=[0.9]))
    assert text.startswith("The baseline, seven, reaches 80.00% with one seed. Differences to it: nine +10.00 points.")
    assert "none of them is called a difference" in text
    assert note(results(seeds=1)) == "One seed: no intervals, and no tests."
    assert " - | - | - | not tested |" in table(study(seven=[0.8], nine=[0.9]))[-1]


def test_ties_are_not_tested():
    text = paragraph(study(seven=[0.8, 0.9], nine=[0.85, 0.95], five=[0.8, 0.9]))
    assert "five 0.00 points (equal with every seed)" in text
    assert "Not tested, as the difference is the same with every seed: nine +5.00 points." in text


def test_table():
    lines = table(study(seven=BASE, three=WORSE))
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[2].startswith("| seven | 0.941 M | 13.80 M | 81.50 | 79.45 to 83.55 | baseline | - | - | - | - |")
    assert "| −10.00 | −10.06 to −9.94 | <0.001 | <0.001 | yes |" in lines[3]


def test_files(tmp_path):
    shown = results(study("size", seven=BASE, three=WORSE), study("heads", eight=BASE, four=NULL))
    shown["missing"] = ["norm"]
    report(shown, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(
        "# Ablation: localmixer_nano, fashion_mnist at 28 px, 1 epoch of 160 steps of 32 out of 10,000"
    )
    assert text.count("\n## ") == 2 and "Not complete yet: norm." in text
    assert paragraph(shown["studies"][0]) in text
    assert (tmp_path / "table.md").read_text().count("| point |") == 2


@pytest.mark.parametrize("number", [1, 2, 5])
def test_figure_is_as_wide_as_a_page_and_nothing_in_it_overlaps(tmp_path, monkeypatch, number):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    top1 = {"as Swin: 3-6-12-24": BASE, "windows, not shifted": WORSE, "b": NULL, "c": NULL, "d": NULL}
    shown = results(*(study(f"Sharing over channels: attention {i}", **top1) for i in range(number)))
    draw(shown, tmp_path / "figure.png", title=title(shown), note=note(shown))
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == 1440
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert len(panels) == number
    for axes in panels:
        assert axes.get_xlabel() == "difference in top-1 [percentage points]"
        labels = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))
        assert [label.get_text() for label in axes.get_yticklabels()] == list(top1)
    boxes = [axes.get_tightbbox() for axes in panels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= 1440 for box in boxes)


def test_a_point_that_was_not_tested_is_not_drawn_as_one_that_was(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    ties = [value + 0.05 for value in BASE]
    for top1, kinds in (
        ({"seven": BASE[:1], "nine": NULL[:1]}, ["not tested"]),
        (
            {"seven": BASE, "three": WORSE, "nine": NULL, "five": ties},
            ["distinguishable from the baseline", "not distinguishable", "not tested"],
        ),
    ):
        draw(results(study("size", **top1)), tmp_path / "figure.png", title="t", note="n")
        (legend,) = figures.pop().legends
        assert [text.get_text() for text in legend.get_texts()] == [*kinds, "baseline"]
