"""What is published of a segmenter: one file of weights that knows its net and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from localmix.models import Hierarchy
from localmix.reports.evaluation.published import WEIGHTS
from localmix.reports.evaluation.segmenter import Segmenter, load_segmenter
from localmix.reports.publishing.card import Content, Rows, measured, with_mixer
from localmix.reports.publishing.publication import Publication, chosen, write_config
from localmix.tasks.segmentation.checkpoints import save_segmenter

MEASURED = {
    "miou": ("mIoU", "{:.2%}".format),
    "pixel_accuracy": ("pixel accuracy", "{:.2%}".format),
    "mean_accuracy": ("mean accuracy", "{:.2%}".format),
    "loss": ("loss", "{:.4f}".format),
}
"""Columns of metrics.csv: their names and forms for people."""
SIZES = ("feature_norm", "channels", "auxiliary_channels", "dropout")
"""Arguments of `Segmentation` that are those of `upernet`."""


def publication(checkpoint: Path, weights: str | None) -> Publication:
    """That of a checkpoint; raises as `load_segmenter` does."""
    segmenter = load_segmenter(checkpoint, weights)
    name = f"UPerNet on {segmenter.backbone}"
    return Publication(name, segmenter.source, "segmentation", partial(_save, segmenter), partial(_content, segmenter))


def arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `upernet` behind the name, of the arguments of `Segmentation`."""
    # what is there already is not fetched, and chance is for training
    backbone = {name: value for name, value in (facts["model_kwargs"] or {}).items() if name != "pretrained"}
    return {"num_classes": len(facts["classes"]), **{name: facts[name] for name in SIZES}, **backbone}


def _save(segmenter: Segmenter, folder: Path, license: str) -> None:
    facts = segmenter.facts
    what = {
        "backbone": segmenter.backbone,
        "options": arguments(facts),
        "labelling": {name: facts[name] for name in ("classes", "colours", "first", "void")},
        "view": {name: facts[name] for name in ("short_side", "mean", "std")},
    }
    save_segmenter(folder / WEIGHTS, segmenter.net.state_dict(), source="localmix", **what)
    write_config(folder, {"task": "segmentation", "segmenter": "upernet", **what, "license": license})


def _content(segmenter: Segmenter, columns: Mapping[str, float]) -> Content:
    return Content(
        library="localmix",
        pipeline="image-segmentation",
        what=_what(segmenter),
        use=_use,
        source=segmenter.source,
        settings=chosen(segmenter.facts, "model", "classes", "colours", "first", "void", "mean", "std"),
        noted=segmenter.run or None,
        measured=measured(columns, segmenter.source["weights"], MEASURED),
        rows=_rows,
        ours=isinstance(segmenter.net.network, Hierarchy),
    )


def _what(segmenter: Segmenter) -> str:
    parameters, root, side = sum(p.numel() for p in segmenter.net.parameters()), segmenter.data, segmenter.short_side
    return (
        f"UPerNet on {with_mixer(segmenter.backbone)}, a segmenter with {parameters / 1e6:,.2f} M parameters and "
        f"{segmenter.labelling.num_classes} classes{f', trained on {Path(root).name}' if root else ''}. It was "
        f"validated on images {f'with a shorter side of {side} pixels' if side else 'of their own sizes'}."
    )


def _use(folder: str) -> str:
    return f"""from PIL import Image

from localmix.reports.evaluation.segmenter import load_segmenter

segmenter = load_segmenter("{folder}")
labels = segmenter(Image.open("photo.jpg"))  # the class of each pixel, [H, W]
for label, pixels in zip(*labels.unique(return_counts=True)):
    print(segmenter.labelling.classes[label], f"{{pixels / labels.numel():.1%}}")"""


def _rows(results: Mapping[str, Any]) -> Rows:
    return [
        ("mIoU", f"{results['miou']:.2%}"),
        ("pixel accuracy", f"{results['pixel_accuracy']:.2%}"),
        ("mean accuracy", f"{results['mean_accuracy']:.2%}"),
        ("images", f"{results['images']:,}"),
        *([("absent classes, in no mean", ", ".join(results["absent"]))] if results["absent"] else []),
    ]
