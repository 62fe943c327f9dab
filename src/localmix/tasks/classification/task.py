"""Image classification as a task: any timm net, one recipe."""

from __future__ import annotations

import logging
from typing import Any

import torch
from timm.data import Mixup
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from localmix.models import create_model
from localmix.tasks.engine.task import Task


class Classification(Task):
    """A net with its loss, optimiser and schedule.

    Linear warm-up from lr / 1000, then a cosine to `min_lr`, per step; cross entropy with soft targets. See `Task` for
    what it shares with other tasks.

    Args:
        model: name that timm knows.
        classes: their names, in the order of the labels.
        img_size: side of the square images the net is trained on [pixels].
        in_chans: 1 for grey, 3 for RGB.
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
        lr: learning rate at the end of the warm-up.
        lr_batch_size: number of images in a step that `lr` is meant for; the rates of a run with other steps are scaled
            in proportion. By default they are not.
        min_lr: learning rate at the end, scaled as `lr` is.
        weight_decay: of AdamW.
        warmup: share of all steps.
        warmup_epochs: epochs of warm-up, in place of `warmup`.
        layer_decay: factor of the learning rate from a layer to the one in front of it; by default all learn alike.
        label_smoothing: share of a target that goes to all classes.
        mixup: alpha of the blending of two images; 0 for none.
        cutmix: alpha of the pasting of one image into another; 0 for none. With both, a coin decides for each batch.
        drop_path_rate: stochastic depth of the last block.
        model_kwargs: further arguments of the net.
        ema_decay: of the moving average of the weights, which is validated beside them, at step n at most n / (n + 10);
            none by default.
        grad_checkpointing: recompute blocks in the backward pass, for less memory.
        compile: by torch.compile.
        channels_last: memory format of images and convolutions.
        sync_batch_norm: whether batch norms look at the batches of all processes.
    """

    kind = "classification"

    def __init__(
        self,
        *,
        model: str,
        classes: list[str],
        img_size: int,
        in_chans: int,
        mean: list[float],
        std: list[float],
        lr: float = 2e-3,
        lr_batch_size: int | None = None,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        warmup_epochs: float | None = None,
        layer_decay: float | None = None,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        drop_path_rate: float = 0.0,
        model_kwargs: dict[str, Any] | None = None,
        ema_decay: float | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        sync_batch_norm: bool = True,
    ) -> None:
        net = _net(model, drop_path_rate, num_classes=len(classes), in_chans=in_chans, **(model_kwargs or {}))
        super().__init__(
            net,
            lr=lr,
            lr_batch_size=lr_batch_size,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            ema_decay=ema_decay,
            grad_checkpointing=grad_checkpointing,
            compile=compile,
            channels_last=channels_last,
            sync_batch_norm=sync_batch_norm,
        )
        self.save_hyperparameters(logger=False)
        self.mix: Mixup | None = None
        if mixup or cutmix:
            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=len(classes))
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=0.0 if self.mix else label_smoothing)
        self.scores: Any = nn.ModuleDict()
        for prefix in self.nets():
            self.scores[f"{prefix}loss"] = MeanMetric()
            for top in (1, 5):
                self.scores[f"{prefix}top{top}"] = MulticlassAccuracy(
                    num_classes=len(classes), top_k=min(top, len(classes)), average="micro"
                )
        self.metrics = tuple(self.scores)
        self.shown = tuple(name for name in self.metrics if not name.endswith("loss"))
        self.monitor = "val_ema_top1" if self.ema else "val_top1"

    def check_batch_size(self, batch_size: int) -> None:
        if self.mix and batch_size % 2:
            raise ValueError(f"data.batch_size: expected an even number, as mixup and cutmix need it, got {batch_size}")

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        if self.mix:
            images, targets = self.mix(images, targets)
        return self.cross_entropy(self(self._laid_out(images)), targets)

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        images = self._laid_out(images)
        for prefix, net in self.nets().items():
            logits = net(images)
            self.scores[f"{prefix}loss"].update(F.cross_entropy(logits, labels), len(labels))
            for top in (1, 5):
                self.scores[f"{prefix}top{top}"].update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        # Here and not in the steps: a process may have none, and all take part in adding up.
        for name, score in self.scores.items():
            self.log(name, score)

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> CosineLRScheduler:
        options = self.hparams
        warmup = round(options["warmup"] * steps)
        if options["warmup_epochs"] is not None:
            warmup = round(options["warmup_epochs"] / (self.trainer.max_epochs or 1) * steps)
        if warmup >= steps:
            logging.getLogger(__name__).warning(
                "the run of %d steps ends in its warm-up of %d: the learning rate does not come to lr", steps, warmup
            )
        return CosineLRScheduler(
            optimizer,
            t_initial=max(1, steps - warmup),
            lr_min=self.lr_scale * options["min_lr"],
            warmup_t=warmup,
            warmup_lr_init=self.lr_scale * self.lr / 1000,
            warmup_prefix=True,
            t_in_epochs=False,
        )


def _net(model: str, drop_path_rate: float, **options: Any) -> nn.Module:
    """The net; one that has no stochastic depth needs no rate of it."""
    try:
        return create_model(model, drop_path_rate=drop_path_rate, **options)
    except ValueError as error:
        if drop_path_rate or "'drop_path_rate'" not in str(error):
            raise
        return create_model(model, **options)
