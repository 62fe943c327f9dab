"""Learning rates as a function of the step alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer


class ByFactor(Scheduler):
    """Sets the rate of each group of parameters to its first one times `factor(step)`.

    It has no state: the step that a run goes on from says all.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.factor = factor
        self.update_groups(self._get_lr(0))

    def _get_lr(self, t: int) -> list[float]:
        factor = self.factor(t)
        return [value * factor for value in self.base_values]

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def steps_down(step: int, *, drops: tuple[int, ...], warmup_steps: int, start: float = 1e-3) -> float:
    """Factor that falls to a tenth at each of `drops` [steps], behind a linear ramp from `start`.

    >>> [round(steps_down(step, drops=(4, 6), warmup_steps=2), 4) for step in (0, 1, 2, 3, 4, 5, 6, 7)]
    [0.001, 0.5005, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    factor = 0.1 ** sum(step >= drop for drop in drops)
    return factor * (start + (1 - start) * step / warmup_steps) if step < warmup_steps else factor
