"""What the page says of runs that trained networks or evaluated them, and how that compares with the paper's order."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from localmix.reports.ablation.effort import effort
from localmix.reports.ablation.report import p_value
from localmix.reports.metrics import read_metrics
from localmix.reports.paper import DATA, PAPER
from localmix.reports.reproduction.found import Found, origin, picture
from localmix.reports.reproduction.page import Beside, Block, Cell, Grid, Heading, Mark, Paragraph, Picture, cells

README = "README.md"


def _compare(found: Found) -> list[Block]:
    content = found.content
    settings, rows = content["settings"], content["rows"]
    name, seeds = Path(settings["data"]).name, len(settings["seeds"])
    header = ("mixer", "network", "parameters", "MACs", "training images/s", "inference images/s", "top-1 %")
    table = [
        (
            Cell(row["title"]),
            Cell(f"`{row['model']}`"),
            *cells(
                (
                    Cell(f"{row['parameters'] / 1e6:.3f} M", Mark.HERE),
                    f"{row['macs'] / 1e6:.1f} M",
                    f"{row['training_images_per_second']:,.0f}",
                    f"{row['inference_images_per_second']:,.0f}",
                    _with_spread(row["top1_mean"], row["top1_std"]),
                ),
                Mark.HERE,
            ),
        )
        for row in rows
    ]
    spread = f"± is the standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no spread is known"
    return [
        Heading(f"The mixers on {name}", 3),
        Paragraph(
            f"One skeleton, recipe and order of the images: {settings['img_size']} px, {settings['epochs']} epochs of "
            f"{content['images']['train']:,} images, {content['images']['validation']:,} for validation; {spread}. "
            f"Images per second: batch {content['throughput']['batch_size']}, "
            f"{content['environment']['hardware']['gpu'] or 'one thread of the CPU'}."
        ),
        origin(found),
        Grid(header, tuple(table), num_left=2),
        *_order(rows),
        *picture(found, "figure.png", f"Top-1 on {name} against multiply-adds and images per second"),
    ]


def _with_spread(value: float, std: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def _order(rows: Sequence[dict[str, Any]]) -> list[Block]:
    """Whether networks of one skeleton come in the order of the paper's tiny ones."""
    here = {row["model"].rpartition("_")[0]: row for row in rows}
    paper = {row.networks[0].rpartition("_")[0]: row for row in PAPER["classification"] if "-T" in row.title}
    scores = {stem: row.scores[0] for stem, row in paper.items() if stem in here and row.scores[0]}
    pairs = [(a, b) for a, first in scores.items() for b, second in scores.items() if first.value > second.value]
    if not pairs:
        return []
    stated = ", ".join(
        f"{paper[stem].title} {scores[stem].text}"
        for stem in sorted(scores, key=lambda s: scores[s].value, reverse=True)
    )
    found, differences = [], []
    for a, b in pairs:
        by_seed = [
            100 * (first["top1"] - second["top1"])
            for first, second in zip(here[a]["runs"], here[b]["runs"], strict=True)
        ]
        differences.append(float(np.mean(by_seed)))
        spread = f" ± {np.std(by_seed, ddof=1):.2f}" if len(by_seed) > 1 else ""
        found.append(f"`{here[a]['model']}` less `{here[b]['model']}` {differences[-1]:+.2f}{spread}")
    shows = sum(difference > 0 for difference in differences)
    return [
        Paragraph(
            f"The paper's order on {DATA['classification']}: {stated}. Here, in percentage points, paired by seed: "
            f"{'; '.join(found)}. The paper's order shows in {shows} of {len(pairs)} pair(s)."
        )
    ]


def _ablation(found: Found) -> list[Block]:
    content = found.content
    settings = content["settings"]
    header = ("point", "parameters", "MACs", "top-1 %", "95% interval", "difference", "95% interval", "p (Holm)")
    blocks: list[Block] = [
        Heading(f"Ablation: {settings['model']} on {Path(settings['data']).name}", 3),
        Paragraph(
            f"{settings['img_size']} px, {settings['epochs']} epoch{'s' if settings['epochs'] > 1 else ''}, "
            f"{len(settings['seeds'])} seed(s): {effort(content)}. Differences in percentage points to the baseline of "
            "the study, paired by seed."
        ),
        origin(found),
    ]
    for study in content["studies"]:
        rows = []
        for point in study["points"]:
            is_baseline = point["label"] == study["baseline"]
            rows.append(
                cells(
                    (
                        point["label"],
                        f"{point['parameters'] / 1e6:.3f} M",
                        f"{point['macs'] / 1e6:.2f} M",
                        f"{100 * point['top1_mean']:.2f}",
                        _interval(point["top1_interval"]),
                        Cell("baseline") if is_baseline else f"{100 * point['difference']:+.2f}",
                        "-" if is_baseline else _interval(point["difference_interval"], "+"),
                        "-" if is_baseline else p_value(point["p_holm"]),
                    ),
                    Mark.HERE,
                )
            )
        blocks += [Paragraph(f"{study['title']}. {study['question']}"), Grid(header, tuple(rows))]
    if content["missing"]:
        blocks.append(Paragraph(f"Not complete yet: {', '.join(content['missing'])}."))
    return [*blocks, *picture(found, "figure.png", "Differences to the baseline of each study")]


def _interval(interval: Sequence[float] | None, sign: str = "") -> str:
    return "-" if not interval else " to ".join(f"{100 * end:{sign}.2f}" for end in interval)


def _evaluation(found: Found) -> list[Block]:
    content = found.content
    figures = [
        ("top-1 %", f"{100 * content['top1']:.2f}"),
        ("top-5 %", f"{100 * content['top5']:.2f}"),
        ("mean over classes %", f"{100 * content['mean_class_accuracy']:.2f}"),
        ("loss", f"{content['loss']:.4f}"),
        ("images", f"{content['images']:,}"),
        *([("images/s", f"{content['images_per_second']:,.1f}")] if content["images_per_second"] else []),
    ]
    return [
        Heading(f"`{content['model']['name']}` on {Path(content['data']['name']).name}, {content['split']}", 3),
        origin(found),
        Grid(("", "value"), tuple(cells(figure, Mark.HERE) for figure in figures)),
        *picture(found, "confusion.png", "Confusion of the classes"),
    ]


def _fit(found: Found) -> list[Block]:
    metrics = read_metrics(found.path)
    settings = found.content.get("settings", {})
    name, data = settings.get("model.name", found.path.name), settings.get("data.root")
    steps, losses = metrics.points("loss")
    rows = [("steps", f"{int(steps[-1]):,}" if len(steps) else "0", "-")]
    for column in metrics.columns:
        _, values = metrics.points(column)
        if column in ("epoch", "step", "lr") or not len(values):
            continue
        is_loss = column.endswith("loss")
        best = np.min(values) if is_loss else np.max(values)
        rows.append((column, *(f"{v:.4f}" if is_loss else f"{100 * v:.2f} %" for v in (values[-1], best))))
    blocks: list[Block] = [
        Heading(f"Training of `{name}`" + (f" on {Path(data).name}" if data else ""), 3),
        *([origin(found)] if found.content else [Paragraph(f"`{found.path.name}`")]),
        Grid(("metric", "last", "best"), tuple(cells(row, Mark.HERE) for row in rows)),
    ]
    if len(losses):
        from localmix.reports.curves import draw

        file = io.BytesIO()
        draw({name: metrics}, file)
        blocks.append(Picture(file.getvalue(), f"Loss, accuracy and learning rate of {name}"))
    return blocks


def _detection(found: Found) -> list[Block]:
    content = found.content
    header = ("", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
    keys = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    rows = [
        (name, *(_percent(content[kind][key]) for key in keys))
        for kind, name in (("box", "boxes"), ("mask", "masks"))
        if content.get(kind)
    ]
    return [
        *_evaluated(found, "box and mask AP as COCO has them, in per cent"),
        Grid(header, tuple(cells(row, Mark.HERE) for row in rows)),
        *_more(found),
    ]


def _segmentation(found: Found) -> list[Block]:
    content = found.content
    rows = [("the network", content), (f"all taken for {content['majority']['class']}", content["majority"])]
    keys = ("miou", "pixel_accuracy", "mean_accuracy")
    return [
        *_evaluated(found, "of all pixels of the split together"),
        Grid(
            ("", "mIoU %", "pixel accuracy %", "mean accuracy %"),
            tuple(cells((name, *(_percent(row.get(key)) for key in keys)), Mark.HERE) for name, row in rows),
        ),
        *picture(found, "confusion.png", "Confusion of the classes"),
        *_more(found),
    ]


def _evaluated(found: Found, what: str) -> list[Block]:
    """Heading, subject and origin of an evaluation of a detector or a segmenter."""
    content, model = found.content, found.content["model"]
    data = Path(content["data"]["name"]).name
    trained = f", trained for {model['step']:,} steps" if model.get("step") else ""
    return [
        Heading(_title(found) or f"{model['name']} on {data}, {content['split']}", 3),
        Paragraph(
            f"{model['name']} on {data}, {content['split']}: {content['images']:,} images, {model['classes']} classes, "
            f"{model['parameters'] / 1e6:.3f} M parameters{trained}; {what}."
        ),
        origin(found),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _title(found: Found) -> str | None:
    """Of the text beside the results, if there is one."""
    file = found.folder / README
    return file.read_text().partition("\n")[0].lstrip("# ") if file.is_file() else None


def _more(found: Found) -> list[Block]:
    """The text beside the results, which says what they are worth."""
    return [Beside(found.folder / README, "How it was trained, and what that is worth")] if _title(found) else []


SECTIONS: dict[str, Callable[[Found], list[Block]]] = {
    "compare": _compare,
    "evaluation": _evaluation,
    "fit": _fit,
    "detection": _detection,
    "segmentation": _segmentation,
    "ablation": _ablation,
}
"""In the order of the page."""
