"""Detection as a task: a detector on any backbone, trained by the paper's recipe."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from localmix.arguments import choice
from localmix.tasks.detection.coco_scores import NAMES, CocoScores
from localmix.tasks.detection.detectors import DETECTORS
from localmix.tasks.detection.detectors import detector as new_detector
from localmix.tasks.detection.starting_weights import begin_with
from localmix.tasks.detection.targets import Target
from localmix.tasks.engine.schedule import ByFactor, steps_down
from localmix.tasks.engine.task import Task


class Detection(Task):
    """A detector with its optimiser and schedule.

    A linear warm-up from lr / 1000, then a constant rate, which falls to a tenth at some epochs. See `Task` for what it
    shares with other tasks.

    Args:
        model: name of the backbone that timm knows.
        classes: their names, in the order of the labels, without the ground.
        min_size: shorter side that images are scaled to in test [pixels].
        max_size: what the longer side is at most [pixels].
        detector: cascade_mask_rcnn, the paper's; mask_rcnn or retinanet.
        channels: of the pyramid and the heads.
        lr: learning rate between the warm-up and the first drop.
        lr_batch_size: number of images in a step that `lr` is meant for; the rate of a run with other steps is scaled
            in proportion. By default it is not.
        weight_decay: of AdamW.
        warmup_steps: of the warm-up.
        drop_epochs: done when the rate falls to a tenth; 27 and 33 of 36, or 8 and 11 of 12.
        drop_path_rate: stochastic depth of the last block.
        model_kwargs: further arguments of the backbone.
        detector_kwargs: further arguments of the detector.
        ema_decay: of the moving average of the weights, which is validated beside them, at step n at most n / (n + 10);
            none by default.
        grad_checkpointing: recompute blocks of the backbone in the backward pass, for less memory.
        sync_batch_norm: whether batch norms look at the batches of all processes.
    """

    kind = "detection"

    def __init__(
        self,
        *,
        model: str,
        classes: list[str],
        min_size: int,
        max_size: int,
        detector: str = "cascade_mask_rcnn",
        channels: int = 256,
        lr: float = 1e-4,
        lr_batch_size: int | None = None,
        weight_decay: float = 0.05,
        warmup_steps: int = 500,
        drop_epochs: list[int] = [27, 33],  # noqa: B006 -- it is only read
        drop_path_rate: float = 0.0,
        model_kwargs: dict[str, Any] | None = None,
        detector_kwargs: dict[str, Any] | None = None,
        ema_decay: float | None = None,
        grad_checkpointing: bool = False,
        sync_batch_norm: bool = True,
    ) -> None:
        if sorted(set(drop_epochs)) != drop_epochs or any(epoch < 1 for epoch in drop_epochs):
            raise ValueError(f"model.drop_epochs: expected rising numbers of at least 1, got {drop_epochs}")
        net = new_detector(
            choice("detector", detector, DETECTORS),
            model,
            num_classes=len(classes),
            channels=channels,
            min_size=min_size,
            max_size=max_size,
            resize_in_training=False,
            backbone_kwargs={"drop_path_rate": drop_path_rate, **(model_kwargs or {})},
            **(detector_kwargs or {}),
        )
        super().__init__(
            net,
            lr=lr,
            lr_batch_size=lr_batch_size,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
            grad_checkpointing=grad_checkpointing,
            sync_batch_norm=sync_batch_norm,
        )
        self.save_hyperparameters(logger=False)
        self.kinds = ("box",) if detector == "retinanet" else ("box", "mask")
        self.metrics = tuple(
            f"{prefix}{kind}_{name.lower()}" for prefix in self.nets() for kind in self.kinds for name in NAMES
        )
        self.shown = tuple(name for name in self.metrics if name.endswith("_ap"))
        self.monitor = f"{'val_ema_' if self.ema else 'val_'}{self.kinds[-1]}_ap"
        self.scores: dict[str, CocoScores] = {}

    @property
    def net_of_images(self) -> nn.Module:
        net: Any = self.net
        return net.backbone

    def begin_with(self, weights: str) -> str:
        net: Any = self.net
        done = begin_with(net, weights, self.hparams["model"], **(self.hparams["model_kwargs"] or {}))
        if self.ema:
            self.ema.set(self.net)
        return done

    def loss(self, batch: tuple[list[Tensor], list[Target]]) -> Tensor:
        images, targets = batch
        losses = self(_shown(images), targets)
        return torch.stack(list(losses.values())).sum()

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        return self.net(images, targets)

    def on_validation_epoch_start(self) -> None:
        loader: Any = self.trainer.val_dataloaders
        images = loader.dataset.images
        self.scores = {prefix: CocoScores(images, masks="mask" in self.kinds) for prefix in self.nets()}

    def validation_step(self, batch: tuple[list[int], list[Tensor]], batch_idx: int) -> None:
        indices, images = batch
        for prefix, net in self.nets().items():
            self.scores[prefix].update(indices, net(_shown(images)))

    def on_validation_epoch_end(self) -> None:
        # Here and not in the steps: a process may have none, and all take part.
        for prefix, collected in self.scores.items():
            scores = collected.compute_together()
            for kind in self.kinds:
                for name, value in getattr(scores, kind).items():
                    # COCO has no score where there is no object of the size
                    self.log(f"{prefix}{kind}_{name.lower()}", float("nan") if value is None else value)
        self.scores = {}

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
        options, epochs = self.hparams, self.trainer.max_epochs or 1
        drops = tuple(round(epoch * steps / epochs) for epoch in options["drop_epochs"])
        return ByFactor(optimizer, lambda step: steps_down(step, drops=drops, warmup_steps=options["warmup_steps"]))


def _shown(images: list[Tensor]) -> list[Tensor]:
    return [image.float() / 255 for image in images]
