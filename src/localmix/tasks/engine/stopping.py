"""Being asked to stop: a signal is heard by all processes of a run at the same step."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import lightning
import torch
from torch import distributed

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; what schedulers send before they kill; what Slurm can send long before (`--signal=USR1@300`)."""
STOPPED = 75
"""Exit status of a run that was stopped and can go on: EX_TEMPFAIL, on which schedulers requeue."""
GRACE = 1.0
"""Signals within so many seconds count as one: a launcher may pass on what the terminal sends to all [s]."""


class Stopped(Exception):
    """The run was asked to stop, and has saved where it stands."""


class Stopping(lightning.Callback):
    """Notes SIGINT, SIGTERM and SIGUSR1, and agrees on them: `agreed` becomes true in all processes at the same step.

    A second signal ends the process at once. It is `Saving` that saves, and raises `Stopped`.
    """

    def __init__(self) -> None:
        self.asked: float | None = None
        self.agreed = False
        self.handlers: dict[signal.Signals, Any] = {}
        self.flag = torch.zeros(())
        self.work: distributed.Work | None = None

    def hear(self, number: int, frame: Any) -> None:
        """The handler of the signals."""
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            # print is not for handlers
            os.write(2, b"asked to stop: saving at the end of this step; once more to stop at once\n")
        elif now - self.asked > GRACE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        # Only now: Lightning has set handlers of its own, which communicate within the handler.
        for number in self.handlers:
            signal.signal(number, self.hear)
        # Lightning asks the first process in each step and waits for the answer, which leaves a GPU idle.
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.world_size > 1 and batch_idx % trainer.accumulate_grad_batches == 0:
            self.flag = torch.tensor(float(self.asked is not None), device=trainer.strategy.root_device)
            self.work = distributed.all_reduce(self.flag, distributed.ReduceOp.MAX, async_op=True)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        # Here the guard waits for the device anyway.
        if self.work:
            self.work.wait()
            self.agreed = bool(self.flag)
            self.work = None
        else:
            self.agreed = self.asked is not None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        flag = torch.tensor(float(self.asked is not None), device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        self.agreed = bool(flag)
