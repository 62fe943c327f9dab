"""A trained detector with all that is known about it: of a run, a converted checkpoint or a published folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localmix.reports.evaluation.published import net_file
from localmix.reports.evaluation.trained import source_of, weights_in
from localmix.tasks.detection.checkpoints import load_converted
from localmix.tasks.detection.detectors import RetinaNet
from localmix.tasks.detection.feature_pyramid import OnPyramid
from localmix.tasks.detection.task import Detection
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.run_folder import CHECKPOINT
from localmix.tasks.net_file import SUFFIX


@dataclass(frozen=True)
class Detector:
    """A net in evaluation mode, on the CPU.

    Args:
        name: of the detector and its backbone.
        classes: their names, that of label 1 first.
        masks: whether it knows masks.
        source: where the weights come from, in plain values.
        facts: the arguments of `Detection` that a run was made with.
        run: what it has noted of itself.
    """

    net: OnPyramid
    name: str
    classes: list[str]
    masks: bool
    source: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the run, by their names; none where there was no run."""
        return self.run.get("settings", {})

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """What is in an image, uint8 [3, H, W]; see `CascadeMaskRCNN`."""
        (found,) = self.net([image.float() / 255])
        return found


def load_detector(model: Path | str, weights: str | None = None) -> Detector:
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
        net, classes, backbone = load_converted(path)
        name = f"{type(net).__name__} on {backbone}"
        return Detector(net, name, classes, not isinstance(net, RetinaNet), source_of(path))
    path = path / CHECKPOINT if path.is_dir() else path
    content = load_checkpoint(path, name="model")
    if content.get("task") != Detection.kind:
        raise ValueError(f"model: expected a detector in {path}, got {content.get('task', 'classification')}")
    facts = content["hyper_parameters"]
    kind, state = weights_in(content, path, weights)
    try:
        arguments: dict[str, Any] = {**facts, "ema_decay": None}
        task = Detection(**arguments)
        net: Any = task.net
        net.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"checkpoint: {path} does not fit a detector: {str(error)[:300]}") from error
    source = {"weights": kind, "epoch": content.get("epoch"), "step": content.get("global_step")}
    name = f"{type(net).__name__} on {facts['model']}"
    source = {**source_of(path), **source}
    return Detector(net.eval(), name, facts["classes"], "mask" in task.kinds, source, facts, content.get("run", {}))
