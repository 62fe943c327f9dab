"""What is published of a classifier: a folder that timm loads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import save_for_hf

from localmix.models import Hierarchy
from localmix.reports.evaluation.classification import lines
from localmix.reports.evaluation.published import CONFIG, WEIGHTS
from localmix.reports.evaluation.trained import Trained, from_checkpoint
from localmix.reports.publishing.card import Content, measured, with_mixer
from localmix.reports.publishing.publication import Publication, chosen
from localmix.tasks.images import MODES

MEASURED = {"top1": ("top-1", "{:.2%}".format), "top5": ("top-5", "{:.2%}".format), "loss": ("loss", "{:.4f}".format)}
"""Columns of metrics.csv: their names and forms for people."""


def publication(checkpoint: Path, weights: str | None) -> Publication:
    """That of a checkpoint; raises as `from_checkpoint` does."""
    trained = from_checkpoint(checkpoint, weights)
    return Publication(trained.name, trained.source, "evaluation", partial(_save, trained), partial(_content, trained))


def _save(trained: Trained, folder: Path, license: str) -> None:
    """Weights and configuration in timm's form, with what training knows: the classes, how images are to be shown."""
    view = trained.view
    net: Any = trained.net
    net.pretrained_cfg = {
        **net.pretrained_cfg,
        "num_classes": trained.num_classes,
        "input_size": (view.channels, *view.size),
        "pool_size": None,
        # the largest square is all of the shorter side
        "crop_pct": 1.0 if view.crop_pct is None else view.crop_pct,
        "crop_mode": view.crop_mode,
        "interpolation": view.interpolation,
        "mean": view.mean,
        "std": view.std,
        "license": license,
    }
    model_args = trained.options | ({} if view.channels == 3 else {"in_chans": view.channels})
    labels = {"label_names": trained.classes}
    try:
        save_for_hf(net, str(folder), model_config=labels, model_args=model_args, safe_serialization=True)
    except SafetensorError as error:
        # of a full disk, say; safetensors before 0.6 words it in the second way
        number = re.search(r"(?:os error |Os \{ code: )(\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    # safetensors' is for its owner alone
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def _content(trained: Trained, columns: Mapping[str, float]) -> Content:
    ours = isinstance(trained.net, Hierarchy)
    return Content(
        library="timm",
        pipeline="image-classification",
        what=_what(trained),
        use=lambda folder: _use(folder, ours, MODES[trained.view.channels]),
        source=trained.source,
        settings=chosen(trained.training, "data", "model", "classes", "in_chans", "mean", "std", "run"),
        noted=trained.training.get("run"),
        measured=measured(columns, trained.source["weights"], MEASURED),
        rows=lambda results: lines(dict(results)),
        ours=ours,
    )


def _what(trained: Trained) -> str:
    parameters = sum(p.numel() for p in trained.net.parameters())
    root, _ = trained.data
    view = trained.view
    return (
        f"{with_mixer(trained.name)}, an image classifier with {parameters / 1e6:,.2f} M parameters and "
        f"{trained.num_classes} classes{f', trained on {Path(root).name}' if root else ''}, on "
        f"{'grey' if view.channels == 1 else 'RGB'} images of {view.size[0]} x {view.size[1]} pixels."
    )


def _use(folder: str, ours: bool, mode: str) -> str:
    register = "import localmix.models  # registers the network with timm\n" if ours else ""
    return f"""import timm
from PIL import Image
{register}
net = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # on the Hub: "hf-hub:OWNER/{folder}"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
probabilities = net(transform(Image.open("photo.jpg").convert("{mode}"))[None]).softmax(1)[0]
print(net.pretrained_cfg["label_names"][probabilities.argmax()])"""
