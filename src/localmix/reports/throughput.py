"""Images per second: of several nets measured side by side, and of one by the protocol of the official code."""

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

from localmix.reports.benchmarks.timing import synchronise, take_turns
from localmix.tasks.classification.data import Track

Loss = Callable[[Any, Tensor], Tensor]


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
    loss: Loss = F.cross_entropy,
) -> dict[str, Throughput]:
    """Time all nets on one batch.

    After a warm-up the nets take turns, so that a disturbance of the machine meets all of them; each figure is the
    median over the rounds. A turn repeats its pass until `seconds` are full. The nets must be on the device of
    `images`; their weights change.

    Args:
        images: [B, C, H, W].
        labels: [B], or what else the loss takes.
        rounds: timed turns of each net.
        seconds: least duration of a turn [s].
        tick: called after each of the 2 * len(nets) * rounds turns.
        loss: of what a net gives in training and the labels.
    """
    turns = {"rounds": rounds, "seconds": seconds, "tick": tick}
    training = take_turns({name: training_step(net, images, labels, loss) for name, net in nets.items()}, **turns)
    inference = take_turns({name: inference_pass(net, images) for name, net in nets.items()}, **turns)
    return {name: Throughput(*(len(images) / median(times[name]) for times in (training, inference))) for name in nets}


def training_step(net: nn.Module, images: Tensor, labels: Tensor, loss: Loss = F.cross_entropy) -> Callable[[], None]:
    """A call that trains the net for one step: forward, backward, AdamW."""
    optimizer = create_optimizer_v2(net, opt="adamw", lr=1e-4, fused=True)

    def step() -> None:
        net.train()
        optimizer.zero_grad()
        loss(net(images), labels).backward()
        optimizer.step()

    return step


def inference_pass(net: nn.Module, images: Tensor) -> Callable[[], None]:
    """A call that runs the net in evaluation mode."""
    net.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def run() -> None:
        net.eval()
        net(images)

    return run


@torch.inference_mode()
def images_per_second(
    net: nn.Module,
    images: Tensor,
    *,
    warmup: int = 50,
    passes: int = 30,
    track: Track = lambda iterable, what, count: iterable,
) -> float:
    """By the protocol of the official code: evaluation mode, `warmup` passes, then the mean over `passes`.

    Args:
        net: on the device of `images`.
        images: [B, C, H, W].
    """
    net.eval()
    for _ in track(range(warmup), "warm-up", warmup):
        net(images)
    synchronise()
    start = time.perf_counter()
    for _ in range(passes):
        net(images)
    synchronise()
    return passes * len(images) / (time.perf_counter() - start)
