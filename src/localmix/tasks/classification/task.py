"""Image classification as a Lightning module: any timm net, one recipe."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from localmix.models import create_model
from localmix.tasks.engine.sync_batch_norm import synchronise


class Classification(lightning.LightningModule):
    """A net with its loss, optimiser and schedule.

    AdamW without decay on biases, norms and other 1-d parameters; linear warm-up from lr / 1000, then a cosine to
    `min_lr`, per step; cross entropy with soft targets. A step whose gradient is not finite is skipped. All arguments
    are plain values and lie in the checkpoint.

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
        ema_decay: of the moving average of the weights, which is validated beside them; none by default.
        grad_checkpointing: recompute blocks in the backward pass, for less memory.
        compile: by torch.compile.
        channels_last: memory format of images and convolutions.
        sync_batch_norm: whether batch norms look at the batches of all processes.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

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
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.images_per_step: int | None = None
        self.net = create_model(
            model, num_classes=len(classes), in_chans=in_chans, drop_path_rate=drop_path_rate, **(model_kwargs or {})
        )
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            self.ema = ModelEmaV3(self.net, decay=ema_decay).requires_grad_(False)
        self.mix: Mixup | None = None
        if mixup or cutmix:
            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=len(classes))
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.0 if self.mix else label_smoothing)
        self.scores: Any = nn.ModuleDict()
        for prefix in ("val_", "val_ema_") if self.ema else ("val_",):
            self.scores[f"{prefix}loss"] = MeanMetric()
            for top in (1, 5):
                self.scores[f"{prefix}top{top}"] = MulticlassAccuracy(
                    num_classes=len(classes), top_k=min(top, len(classes)), average="micro"
                )
        self.metrics = tuple(self.scores)
        self.skipped = self.configured = False
        self.gradient_norm = torch.zeros(())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def _nets(self) -> list[nn.Module]:
        return [self.net, self.ema.module] if self.ema else [self.net]

    def configure_model(self) -> None:
        """Prepares the net for training on the devices that the trainer has; called by Lightning."""
        if self.configured:
            return
        self.configured = True
        if self.hparams["sync_batch_norm"] and self.trainer.world_size > 1:
            self.net = synchronise(self.net, self.trainer.strategy.root_device.type)
        if self.hparams["grad_checkpointing"]:
            self.net.set_grad_checkpointing()  # ty: ignore[not-callable] -- every net of timm has it
        for net in self._nets():
            if self.hparams["channels_last"]:
                net.to(memory_format=torch.channels_last)
            if isinstance(self.trainer.strategy, ModelParallelStrategy):
                _shard(net, self.trainer.strategy.device_mesh["data_parallel"])
        if self.ema and isinstance(self.trainer.strategy, ModelParallelStrategy):
            # sharded parameters and whole buffers do not go through one call
            self.ema.foreach = False
        if self.hparams["compile"]:
            # in place: the keys of the state stay
            self.net.compile()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        if self.mix:
            images, targets = self.mix(images, targets)
        loss = self.loss(self(self._laid_out(images)), targets)
        # times 1, or NaN where the loss is not finite: the gradient then tells all processes
        return loss * (loss.detach() - loss.detach() + 1)

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else images

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradient by its norm, or drops it if that is not finite, so that no parameter moves."""
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.skipped = not bool(self.gradient_norm.isfinite())
        if self.skipped:
            for parameter in parameters:
                parameter.grad = None
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema and not self.skipped:
            self.ema.update(self.net)

    def on_validation_start(self) -> None:
        if self.trainer.world_size > 1 and not self.hparams["sync_batch_norm"]:
            # each process has statistics of its own; those of the first are the ones that are saved
            for net in self._nets():
                for buffer in net.buffers():
                    distributed.broadcast(buffer, 0)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        images = self._laid_out(images)
        self._score("val_", self(images), labels)
        if self.ema:
            self._score("val_ema_", self.ema.module(images), labels)

    def _score(self, prefix: str, logits: Tensor, labels: Tensor) -> None:
        self.scores[f"{prefix}loss"].update(F.cross_entropy(logits, labels), len(labels))
        for top in (1, 5):
            self.scores[f"{prefix}top{top}"].update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        # Here and not in the steps: a process may have none, and all take part in adding up.
        for name, score in self.scores.items():
            self.log(name, score)

    def configure_optimizers(self) -> Any:
        options, scale = self.hparams, 1.0
        if options["lr_batch_size"]:
            if self.images_per_step is None:
                raise ValueError("lr_batch_size: expected images_per_step to be set where the rate is to be scaled")
            scale = self.images_per_step / options["lr_batch_size"]
        lr = scale * options["lr"]
        optimizer = create_optimizer_v2(
            self.net,
            opt="adamw",
            lr=lr,
            weight_decay=options["weight_decay"],
            layer_decay=options["layer_decay"],
            # the scaler of float16 would clip before it unscales
            fused=getattr(self.trainer.precision_plugin, "scaler", None) is None,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(options["warmup"] * steps)
        if options["warmup_epochs"] is not None:
            warmup = round(options["warmup_epochs"] / (self.trainer.max_epochs or 1) * steps)
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=max(1, steps - warmup),
            lr_min=scale * options["min_lr"],
            warmup_t=warmup,
            warmup_lr_init=lr / 1000,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step)


def _shard(net: nn.Module, mesh: Any) -> None:
    """Distribute the parameters of a net over the processes of `mesh`: each block on its own, then the rest."""
    from torch.distributed.fsdp import fully_shard

    blocks = [
        block
        for name, module in net.named_modules()
        if name.rpartition(".")[2] == "blocks" and isinstance(module, (nn.Sequential, nn.ModuleList))
        for block in module
    ]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
