"""A step whose loss or gradient is not finite leaves no trace; too many of them in a row end the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from localmix.tasks.engine.checkpoint import save_checkpoint


class NonFinite(ArithmeticError):
    """The loss or the gradient was not finite too many times in a row."""


class Guard(lightning.Callback):
    """Undoes what a skipped step has done to batch-norm statistics, and counts such steps.

    `Task` finds the norm of the gradient and skips the step, in all processes alike since the gradient is
    the sum of theirs. Weights, the state of the optimiser and the average of the weights are not touched by the step;
    the statistics of batch norms have been by its forward pass, and are put back.

    With float16 the scaler makes gradients overflow until it has found its scale. Such steps are skipped, too, but are
    no failure as long as the loss is finite and the scale above 1.

    Args:
        folder: receives the batch of each process when the run ends, `non-finite-PROCESS.ckpt`.
        limit: failures in a row that end the run.
        announce: is told of each skipped step.
    """

    def __init__(self, folder: Path, *, limit: int, announce: Callable[[str], Any] = lambda text: None) -> None:
        self.folder, self.limit, self.announce = folder, limit, announce
        self.failures = self.skipped = 0
        self.buffers: list[Tensor] = []
        self.copies: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"failures": self.failures, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.failures, self.skipped = state_dict["failures"], state_dict["skipped"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        norms = [m for m in pl_module.net.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.copies = [buffer.clone() for buffer in self.buffers]

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.buffers and batch_idx % trainer.accumulate_grad_batches == 0:
            torch._foreach_copy_(self.copies, self.buffers)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not pl_module.skipped:
            self.failures = 0
            return
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)
        self.skipped += 1
        loss = self._mean(trainer, outputs["loss"])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or not loss.isfinite() or scaler.get_scale() <= 1:
            self.failures += 1
        if trainer.is_global_zero:
            self.announce(
                f"step {trainer.global_step}: loss {loss.item():.4g}, norm of the gradient "
                f"{pl_module.gradient_norm.item():.4g}; step skipped ({self.failures} failures in a row)"
            )
        if self.failures >= self.limit:
            self._give_up(trainer, pl_module, batch)

    def _mean(self, trainer: lightning.Trainer, loss: Tensor) -> Tensor:
        # Processes must count alike, and the loss is that of one of them.
        return trainer.strategy.all_gather(loss).mean() if trainer.world_size > 1 else loss

    def _give_up(self, trainer: lightning.Trainer, task: Any, batch: Any) -> None:
        path = self.folder / f"non-finite-{trainer.global_rank}.ckpt"
        save_checkpoint(
            {
                "state_dict": trainer.strategy.lightning_module_state_dict(),
                "hyper_parameters": dict(task.hparams),
                "batch": move_data_to_device(batch, torch.device("cpu")),
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
            },
            path,
        )
        raise NonFinite(
            f"loss or gradient were not finite {self.failures} times in a row, up to step {trainer.global_step}; "
            f"the last batch and the weights are in {path}; a lower learning rate, or bf16-mixed in place of "
            "16-mixed, may help"
        )
