"""Images per second of several nets, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Throughput:
    """Images per second: training steps (forward, backward, AdamW) and inference."""

    training: float
    inference: float


def throughput(
    nets: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    rounds: int = 7,
    seconds: float = 0.05,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, Throughput]:
    """Time all nets on one batch.

    After a warm-up the nets take turns, so that a disturbance of the machine meets all of them; each figure is the
    median over the rounds. A turn repeats its pass until `seconds` are full. The nets must be on the device of
    `images`; their weights change.

    Args:
        images: [B, C, H, W].
        labels: [B].
        rounds: timed turns of each net.
        seconds: least duration of a turn [s].
        tick: called after each of the 2 * len(nets) * rounds turns.
    """
    training = _take_turns({name: _training(net, images, labels) for name, net in nets.items()}, rounds, seconds, tick)
    inference = _take_turns({name: _inference(net, images) for name, net in nets.items()}, rounds, seconds, tick)
    return {name: Throughput(len(images) / training[name], len(images) / inference[name]) for name in nets}


def _training(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = create_optimizer_v2(net, opt="adamw", lr=1e-4, fused=True)

    def step() -> None:
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def _inference(net: nn.Module, images: Tensor) -> Callable[[], None]:
    net.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def run() -> None:
        net.eval()
        net(images)

    return run


def _take_turns(
    passes: dict[str, Callable[[], None]], rounds: int, seconds: float, tick: Callable[[], Any]
) -> dict[str, float]:
    """Median seconds of each pass."""
    repeats = {}
    for name, run in passes.items():
        _time(run, 1)
        repeats[name] = max(1, round(seconds / _time(run, 1)))
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            times[name].append(_time(run, repeats[name]))
            tick()
    return {name: median(values) for name, values in times.items()}


def _time(run: Callable[[], None], repeats: int) -> float:
    _synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _synchronise()
    return (time.perf_counter() - start) / repeats


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
