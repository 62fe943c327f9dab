"""How long calls take, measured side by side, and how much memory they allocate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

# PyTorch's profiler reports on itself otherwise
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class Spread(NamedTuple):
    """Percentiles of a duration [s]."""

    p20: float
    p50: float
    p80: float


def take_turns(
    passes: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    seconds: float,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds that each pass takes, one number per round.

    After a warm-up the passes take turns, so that a disturbance of the machine meets all of them. A turn of
    several calls begins with one that is not timed: the caches then hold what this pass has left there, and not the one
    before.

    Args:
        passes: by name.
        rounds: timed turns of each pass.
        seconds: a turn repeats its pass until so much time is full [s].
        tick: called after each of the len(passes) * rounds turns.
    """
    repeats = {}
    for name, run in passes.items():
        _time(run, 1)
        repeats[name] = max(1, round(seconds / _time(run, 1)))
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            if repeats[name] > 1:
                run()
            times[name].append(_time(run, repeats[name]))
            tick()
    return times


def spread(times: Sequence[float]) -> Spread:
    """The percentiles of some durations, between two of them by linear interpolation.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    Spread(p20=2.0, p50=3.5, p80=5.0)
    """
    return Spread(*map(float, np.percentile(times, (20, 50, 80))))


def times_as_fast(times: Sequence[float], others: Sequence[float]) -> float:
    """How many times as fast one pass is as another: the median over the rounds, in each of which both had a turn.

    >>> times_as_fast([1.0, 1.0, 5.0], [2.0, 3.0, 10.0])
    2.0
    """
    return median(other / own for own, other in zip(times, others, strict=True))


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """The most that is allocated at once while `call` runs, above what was allocated before.

    As PyTorch's allocator of the device reports it, on the CPU through its profiler.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _time(run: Callable[[], Any], repeats: int) -> float:
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronise()
    return (time.perf_counter() - start) / repeats


def synchronise() -> None:
    """Wait for what the GPU has been given to do, if it has been used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
