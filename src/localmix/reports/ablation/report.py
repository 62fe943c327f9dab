"""What an ablation says of its results: a paragraph and a table for each study, no more than the numbers support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from localmix.reports.ablation.effort import effort
from localmix.writing import write_atomically

COLUMNS = (
    ("point", "left"),
    ("parameters", "right"),
    ("MACs", "right"),
    ("top-1 %", "right"),
    ("95% interval", "right"),
    ("difference", "right"),
    ("95% interval", "right"),
    ("p", "right"),
    ("p (Holm)", "right"),
    ("distinguishable", "left"),
)
FILES = "results.json, report.md, table.md, figure.png"


def report(results: dict[str, Any], output: Path) -> None:
    """Write report.md, table.md and figure.png into `output`."""
    from localmix.reports.ablation.figure import draw

    if results["studies"]:
        draw(results, output / "figure.png", title=title(results), note=note(results))
    tables, text = [f"**{title(results)}**", "", note(results), ""], [f"# Ablation: {title(results)}", ""]
    text += [*_introduction(results), "", "![Differences to the baseline of each study](figure.png)", ""]
    for study in results["studies"]:
        tables += [f"**{study['title']}** (`{study['name']}`)", "", *table(study), ""]
        text += [f"## {study['title']}", "", f"*{study['question']}*", "", paragraph(study), "", *table(study), ""]
        text += [f"Left out: {reason}" for reason in study["left_out"]] + [""] * bool(study["left_out"])
    if results["missing"]:
        text += [f"Not complete yet: {', '.join(results['missing'])}.", ""]
    for name, lines in (("table.md", tables), ("report.md", text)):
        write_atomically(output / name, lambda file, lines=lines: file.write("\n".join(lines).encode()))


def show(results: dict[str, Any], output: Path) -> None:
    """Print the table and the paragraph of each study."""
    console = Console()
    if not console.is_terminal:
        # Nothing limits the width of a file.
        console = Console(width=200)
    console.print(title(results), style="bold", highlight=False)
    for study in results["studies"]:
        grid = Table(title=study["title"], box=box.SIMPLE_HEAD, title_justify="left")
        for name, justify in COLUMNS:
            grid.add_column(name, justify="right" if justify == "right" else "left")
        for point in study["points"]:
            grid.add_row(*_cells(point, study))
        console.print(grid)
        console.print(paragraph(study), markup=False, highlight=False)
        console.print()
    console.print(note(results), markup=False, highlight=False)
    print(f"{output}: {FILES}, and the runs")


def title(results: dict[str, Any]) -> str:
    """What was trained on what, in a line."""
    settings, images = results["settings"], results["images"]
    epochs = f"{settings['epochs']} epoch{'s' if settings['epochs'] > 1 else ''}"
    shown = f"{settings['model']}, {Path(settings['data']).name} at {settings['img_size']} px"
    if not settings["steps"]:
        return f"{shown}, {epochs} of {images['train']:,} images"
    return (
        f"{shown}, {epochs} of {settings['steps']} steps of {settings['batch_size']} out of {images['train']:,} images"
    )


def note(results: dict[str, Any]) -> str:
    """What the figures of a table are."""
    count = len(results["settings"]["seeds"])
    if count == 1:
        return "One seed: no intervals, and no tests."
    return (
        f"Top-1 on {results['images']['validation']:,} images, mean of {count} seeds; intervals of 95% by Student's t "
        "over the seeds; differences in percentage points to the baseline of the study, paired by seed; p of the "
        "paired t test, and Holm's over the comparisons of a study; distinguishable: that is below 0.05."
    )


def paragraph(study: dict[str, Any]) -> str:
    """What the numbers of a study support."""
    baseline = next(point for point in study["points"] if point["label"] == study["baseline"])
    others = [point for point in study["points"] if point is not baseline]
    seeds = len(baseline["runs"])
    start = f"The baseline, {study['baseline']}, reaches {100 * baseline['top1_mean']:.2f}%"
    if seeds == 1:
        listed = "; ".join(f"{point['label']} {_points(point['difference'])}" for point in others)
        return (
            f"{start} with one seed. Differences to it: {listed}. One seed says nothing about how far off these are, "
            "so none of them is called a difference here."
        )
    low, high = baseline["top1_interval"]
    sentences = [f"{start} (95% interval {100 * low:.2f} to {100 * high:.2f}, {seeds} seeds)."]
    told = [point for point in others if point["distinguishable"]]
    alike = [point for point in others if point["distinguishable"] is False]
    untested = [point for point in others if point["distinguishable"] is None]
    tested = len(told) + len(alike)
    rule = f"at the 5% level, after Holm's correction for {tested} comparisons" if tested > 1 else "at the 5% level"
    if told:
        sentences.append(
            f"Distinguishable from it {rule}: "
            + "; ".join(
                f"{point['label']}, {'better' if point['difference'] > 0 else 'worse'} by "
                f"{100 * abs(point['difference']):.2f} points ({_range(point)}, p {p_value(point['p_holm'])})"
                for point in told
            )
            + "."
        )
    if alike:
        which = "Not distinguishable from it" if told else f"None is distinguishable from it {rule}"
        listed = "; ".join(f"{point['label']} {_points(point['difference'])} ({_range(point)})" for point in alike)
        sentences.append(f"{which}: {listed}.")
        sentences.append(
            "That is no evidence of being equal: with so few seeds a difference anywhere in "
            f"{'its interval' if len(alike) == 1 else 'these intervals'} remains possible."
        )
    if untested:
        listed = "; ".join(f"{point['label']} {_points(point['difference'])}" for point in untested)
        sentences.append(f"Not tested, as the difference is the same with every seed: {listed}.")
    return " ".join(sentences)


def table(study: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    names = [name for name, _ in COLUMNS]
    return [
        f"| {' | '.join(names)} | network |",
        "|" + "|".join("---:" if justify == "right" else "---" for _, justify in COLUMNS) + "|---|",
        *(f"| {' | '.join(_cells(point, study))} | `{point['net']}` |" for point in study["points"]),
    ]


def _introduction(results: dict[str, Any]) -> list[str]:
    hardware = results["environment"]["hardware"]
    return [
        note(results),
        "",
        "All nets of a study have the same recipe, images, order of the images and seeds. Each study is corrected for "
        "its own comparisons, not for those of the others. The intervals are over seeds: they say what another seed "
        "would change, not what other images, a longer training or a larger net would.",
        "",
        f"`{results['command']}`: {effort(results)}, each with {hardware['threads']} thread(s) of "
        f"{hardware['gpu'] or hardware['cpu']}.",
    ]


def _cells(point: dict[str, Any], study: dict[str, Any]) -> list[str]:
    interval, spread = point["top1_interval"], point["difference_interval"]
    if point["label"] == study["baseline"]:
        against = ["baseline", "-", "-", "-", "-"]
    else:
        told = point["distinguishable"]
        against = [
            _points(point["difference"], unit=False),
            _range(point, words=False) if spread else "-",
            p_value(point["p"]),
            p_value(point["p_holm"]),
            "not tested" if told is None else "yes" if told else "no",
        ]
    return [
        point["label"],
        f"{point['parameters'] / 1e6:.3f} M",
        f"{point['macs'] / 1e6:.2f} M",
        f"{100 * point['top1_mean']:.2f}",
        f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}" if interval else "-",
        *against,
    ]


def _points(value: float, unit: bool = True) -> str:
    return f"{_signed(value)}{' points' if unit else ''}"


def _range(point: dict[str, Any], words: bool = True) -> str:
    if point["difference_interval"] is None:
        return "equal with every seed"
    low, high = point["difference_interval"]
    return f"{'95% interval ' if words else ''}{_signed(low)} to {_signed(high)}"


def _signed(value: float) -> str:
    text = f"{100 * value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def p_value(value: float | None) -> str:
    """For people: a p value is never zero.

    >>> p_value(0.25), p_value(0.00004), p_value(None)
    ('0.250', '<0.001', '-')
    """
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
