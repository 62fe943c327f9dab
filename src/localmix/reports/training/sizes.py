"""Whether a net can be trained on images of the size that the settings give, asked before anything is written."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from localmix.reports.cost_memory import saved_bytes
from localmix.reports.training.kinds import Data
from localmix.tasks.engine.task import Task


def refuse_sizes(task: Task, data: Data, model: str, *, batch_size: int, seen: int) -> None:
    """Raise if the first batch would.

    Args:
        task: with the net, as it is before the trainer has it.
        data: says which sizes it shows.
        model: the name of the network, for errors.
        batch_size: images of a batch in a process.
        seen: images that a batch norm sees at a time; of more than two none depends on how many there are.

    Raises:
        ValueError: names the setting.
    """
    for setting, (images, channels, height, width) in data.shapes(batch_size).items():
        pixels = f"{height} x {width} pixels"
        needed, memory = 4 * images * channels * height * width, _memory()
        if memory and needed > memory:
            raise ValueError(
                f"data.{setting}: expected images of which a batch fits into the memory of {memory / 1e9:,.1f} GB, got "
                f"{images} of {pixels}, which take {needed / 1e9:,.1f} GB"
            )
        error = _refusal(task.net_of_images, (min(seen, 2), channels, height, width))
        # that of a batch norm, which has seen a single value of each channel
        if isinstance(error, ValueError):
            raise ValueError(
                f"data.batch_size: {model} cannot be trained on {seen} image of {pixels} at a time: {error}"
            ) from error
        if error:
            reason = str(error).rstrip(".")
            if _is_built_for_a_size(task.net):
                reason += "; model.model_kwargs.img_size builds it for another size"
            raise ValueError(f"data.{setting}: {model} does not take images of {pixels}: {reason}") from error


def _refusal(net: nn.Module, shape: tuple[int, int, int, int]) -> Exception | None:
    """What a pass in training ends in, or None."""
    try:
        saved_bytes(net, shape)
        return None
    except Exception:  # also what can be computed, but not without numbers
        pass
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            deepcopy(net).train()(torch.zeros(shape))
        return None
    except (AssertionError, RuntimeError, ValueError) as error:
        return error


def _is_built_for_a_size(net: nn.Module) -> bool:
    config: Any = getattr(net, "pretrained_cfg", None) or {}
    return bool(config.get("fixed_input_size"))


def _memory() -> int | None:
    """Of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
