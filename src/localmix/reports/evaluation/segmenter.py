"""A trained segmenter with all that is known about it: of a run, a converted checkpoint or a published folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from localmix.reports.evaluation.published import net_file
from localmix.reports.evaluation.trained import source_of, weights_in
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.run_folder import CHECKPOINT
from localmix.tasks.net_file import SUFFIX
from localmix.tasks.segmentation.checkpoints import load_converted
from localmix.tasks.segmentation.inference import predict
from localmix.tasks.segmentation.labels import Labelling, ade20k
from localmix.tasks.segmentation.task import Segmentation, labelling_of
from localmix.tasks.segmentation.upernet import UPerNet
from localmix.tasks.segmentation.views import MEAN, STD

PAPER_SIDE = 512
"""Shorter side of the images that the published segmenters were made for [pixels]."""


@dataclass(frozen=True)
class Segmenter:
    """A net in evaluation mode, on the CPU.

    Args:
        backbone: its name.
        labelling: its classes.
        short_side: of the images that it was validated on [pixels]; None: their own.
        mean, std: of each channel, values in 0..1.
        source: where the weights come from, in plain values.
        facts: the arguments of `Segmentation` that a run was made with.
        run: what it has noted of itself.
    """

    net: UPerNet
    backbone: str
    labelling: Labelling
    short_side: int | None
    mean: list[float]
    std: list[float]
    source: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def __call__(self, image: Image.Image, **options: Any) -> Tensor:
        """The class of each pixel of an image, int64 [H, W]; `options` are those of `inference.predict`."""
        view: dict[str, Any] = {"short_side": self.short_side, "mean": self.mean, "std": self.std}
        return predict(self.net, image, **(view | options))

    @property
    def data(self) -> str | None:
        """What the run was trained on; None where nothing says."""
        return self.run.get("settings", {}).get("data.root")

    def changed(self, *, short_side: int | None = None) -> Segmenter:
        """The same with another size of the images, if one is given; 0: their own."""
        return self if short_side is None else replace(self, short_side=short_side or None)


def load_segmenter(model: Path | str, weights: str | None = None) -> Segmenter:
    """Build the net of a checkpoint, a run's folder, a published one, or a file that `localmix convert` has written.

    Args:
        weights: "ema" or "raw"; by default the moving average where there is one. For runs.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged or foreign; says why.
    """
    path = net_file(Path(model))
    if path.suffix == SUFFIX:
        if weights is not None:
            raise ValueError(f"weights: expected nothing, since {path} is no checkpoint of a run; got {weights!r}")
        net, facts = load_converted(path)
        view, labelling = (PAPER_SIDE, MEAN, STD), ade20k()
        if "labelling" in facts:
            known, seen = json.loads(facts["labelling"]), json.loads(facts["view"])
            view, labelling = (seen["short_side"], seen["mean"], seen["std"]), labelling_of(known)
        if net.num_classes != labelling.num_classes:
            raise ValueError(
                f"model: expected the {labelling.num_classes} classes of ADE20K in a converted file, since it holds no "
                f"names, got {net.num_classes} outputs"
            )
        return Segmenter(net, facts["architecture"], labelling, *view, source_of(path))
    path = path / CHECKPOINT if path.is_dir() else path
    content = load_checkpoint(path, name="model")
    if content.get("task") != Segmentation.kind:
        raise ValueError(f"model: expected a segmenter in {path}, got {content.get('task', 'classification')}")
    facts = content["hyper_parameters"]
    kind, state = weights_in(content, path, weights)
    try:
        arguments: dict[str, Any] = {**facts, "ema_decay": None}
        net: Any = Segmentation(**arguments).net
        net.load_state_dict(state)
        labelling = labelling_of(facts)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"checkpoint: {path} does not fit a segmenter: {str(error)[:300]}") from error
    source = {"weights": kind, "epoch": content.get("epoch"), "step": content.get("global_step")}
    view = (facts["short_side"], facts["mean"], facts["std"])
    source = {**source_of(path), **source}
    return Segmenter(net.eval(), facts["model"], labelling, *view, source, facts, content.get("run", {}))
