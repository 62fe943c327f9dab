"""What all tasks have in common when they are trained: optimiser, schedule, average of the weights, devices."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.optim import create_optimizer_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, distributed, nn

from localmix.layers.source import HomogeneousKernel
from localmix.tasks.engine.sync_batch_norm import synchronise
from localmix.tasks.engine.weights import load_weights


class Task(lightning.LightningModule):
    """A net that is trained, with what does not depend on the task. One for each task is derived from it.

    AdamW without decay on biases, norms and other 1-d parameters; gradients are clipped by their norm, and a step whose
    gradient is not finite is skipped.

    A derived class gives `kind`, `metrics`, `monitor`, `shown`, `loss`, `schedule`, and Lightning's `validation_step`
    and `on_validation_epoch_end`, which log every metric by its name. It calls `save_hyperparameters(logger=False)`, so
    its arguments are plain values and lie in the checkpoint.

    Args:
        net: what is trained.
        lr: learning rate, which the schedule varies.
        lr_batch_size: number of images in a step that `lr` is meant for; the rates of a run with other steps are scaled
            in proportion. By default they are not.
        weight_decay: of AdamW.
        layer_decay: factor of the learning rate from a layer to the one in front of it; by default all learn alike.
        ema_decay: of the moving average of the weights, which is validated beside them, at step n at most n / (n + 10);
            none by default.
        grad_checkpointing: recompute blocks in the backward pass, for less memory.
        compile: by torch.compile.
        channels_last: memory format of the convolutions.
        sync_batch_norm: whether batch norms look at the batches of all processes.
    """

    kind: str
    """Its name in the settings."""
    metrics: tuple[str, ...]
    """What a validation finds, in the order of the columns of metrics.csv."""
    monitor: str
    """The metric whose highest value makes the best checkpoint."""
    shown: tuple[str, ...]
    """The metrics that are shown while the run goes on, shares of 1."""
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        net: nn.Module,
        *,
        lr: float,
        lr_batch_size: int | None = None,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        sync_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.lr, self.lr_batch_size, self.weight_decay, self.layer_decay = lr, lr_batch_size, weight_decay, layer_decay
        self.grad_checkpointing, self.compiled, self.channels_last = grad_checkpointing, compile, channels_last
        self.sync_batch_norm = sync_batch_norm
        self.net = net
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            # at step n at most n / (n + 10): with the full decay a short run would end near the weights it began with
            ema = ModelEmaV3(self.net, decay=ema_decay, use_warmup=True, warmup_gamma=10.0, warmup_power=1.0)
            self.ema = ema.requires_grad_(False)
        self.images_per_step: int | None = None
        self.skipped = self.configured = False
        self.gradient_norm = torch.zeros(())

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """What a batch of training costs, averaged over its images."""

    @abstractmethod
    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
        """Sets the rates of a run of so many steps; see `localmix.tasks.engine.schedule`."""

    @property
    def net_of_images(self) -> nn.Module:
        """What takes the images of a batch as one tensor [B, C, H, W]."""
        return self.net

    def nets(self) -> dict[str, nn.Module]:
        """The nets that are validated, by the beginning of the names of their metrics."""
        return {"val_": self.net} | ({"val_ema_": self.ema.module} if self.ema else {})

    def begin_with(self, weights: str) -> str:
        """Fill the net with weights for fine-tuning, see `load_weights`; gives what was done, in words."""
        done = load_weights(self.net, weights, self.hparams["model"])
        if self.ema:
            self.ema.set(self.net)
        return done

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError if batches of that size cannot be trained on."""

    def norms_means(self) -> bool:
        """Whether a batch norm follows a mean over the whole image, so that it sees one value of each image."""
        return any(isinstance(module, HomogeneousKernel) for module in self.net.modules())

    def forward(self, images: Any) -> Any:
        return self.net(images)

    def configure_model(self) -> None:
        """Prepares the net for training on the devices that the trainer has; called by Lightning."""
        if self.configured:
            return
        self.configured = True
        if self.sync_batch_norm and self.trainer.world_size > 1:
            self.net = synchronise(self.net, self.trainer.strategy.root_device.type)
        if self.grad_checkpointing:
            self.net.set_grad_checkpointing()  # ty: ignore[not-callable] -- every net that is trained has it
        for net in self.nets().values():
            if self.channels_last:
                net.to(memory_format=torch.channels_last)
            if isinstance(self.trainer.strategy, ModelParallelStrategy):
                _shard(net, self.trainer.strategy.device_mesh["data_parallel"])
        if self.ema and isinstance(self.trainer.strategy, ModelParallelStrategy):
            # sharded parameters and whole buffers do not go through one call
            self.ema.foreach = False
        if self.compiled:
            # in place: the keys of the state stay
            self.net.compile()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        # times 1, or NaN where the loss is not finite: the gradient then tells all processes
        return loss * (loss.detach() - loss.detach() + 1)

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
            self.ema.update(self.net, step=self.global_step + 1)

    def on_validation_start(self) -> None:
        if self.trainer.world_size > 1 and not self.sync_batch_norm:
            # each process has statistics of its own; those of the first are the ones that are saved
            for net in self.nets().values():
                for buffer in net.buffers():
                    distributed.broadcast(buffer, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["task"] = self.kind

    @property
    def lr_scale(self) -> float:
        """By what the number of images in a step multiplies all rates."""
        if not self.lr_batch_size:
            return 1.0
        if self.images_per_step is None:
            raise ValueError("lr_batch_size: expected images_per_step to be set where the rate is to be scaled")
        return self.images_per_step / self.lr_batch_size

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer_v2(
            self.net,
            opt="adamw",
            lr=self.lr_scale * self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            # the scaler of float16 would clip before it unscales
            fused=getattr(self.trainer.precision_plugin, "scaler", None) is None,
        )
        schedule = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
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
