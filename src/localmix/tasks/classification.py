"""Image classification as a Lightning module: any timm net, one recipe."""

from __future__ import annotations

from typing import Any

import lightning
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from localmix.models import create_model


class Classification(lightning.LightningModule):
    """A net with its loss, optimiser and schedule.

    AdamW without decay on biases, norms and other 1-d parameters; linear warm-up, then a cosine to zero, per step;
    cross entropy with label smoothing. All arguments are plain values and lie in the checkpoint.

    Args:
        model: name that timm knows.
        classes: their names, in the order of the labels.
        img_size: side of the square images the net is trained on [pixels].
        in_chans: 1 for grey, 3 for RGB.
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
        lr: learning rate at the end of the warm-up.
        warmup: share of all steps.
    """

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
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        label_smoothing: float = 0.1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.net = create_model(model, num_classes=len(classes), in_chans=in_chans, drop_path_rate=drop_path_rate)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.top1 = MulticlassAccuracy(num_classes=len(classes), average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return self.loss(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.top1(logits, labels)
        self.log("val_top1", self.top1, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log("val_loss", F.cross_entropy(logits, labels), on_step=False, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer_v2(self.net, opt="adamw", lr=self.lr, weight_decay=self.weight_decay, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.warmup * steps)
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=self.lr / 1000,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step)
