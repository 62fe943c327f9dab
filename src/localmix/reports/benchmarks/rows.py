"""Rows of a benchmark: what is timed in the same turns, against the floor and against each other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from localmix.arguments import choice, positive
from localmix.reports.benchmarks.limits import Limits, Work
from localmix.reports.benchmarks.timing import spread, take_turns, times_as_fast

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Entry:
    """One that takes part: how others call it, what its row says, its work, and the call.

    `refused` says why it must not be timed; None if its gate is green. `peak_bytes` is the memory of the call.
    """

    label: str
    facts: dict[str, Any]
    work: Work
    run: Callable[[], Any]
    refused: str | None = None
    peak_bytes: int | None = None


def timed_rows(
    entries: Sequence[Entry], limits: Limits, *, batch: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """The row of each entry; those that are not refused have taken turns."""
    passes = {entry.label: entry.run for entry in entries if entry.refused is None}
    times = take_turns(passes, rounds=rounds, seconds=seconds)
    return [{**_facts(entry, limits), **_times(entry.label, times, batch, entry.work, limits)} for entry in entries]


def _facts(entry: Entry, limits: Limits) -> dict[str, Any]:
    floor, unit = limits.floor(entry.work)
    return {
        **entry.facts,
        "label": entry.label,
        "bytes": entry.work.num_bytes,
        "matrix_macs": entry.work.matrix_macs,
        "vector_macs": entry.work.vector_macs,
        "floor_ms": 1e3 * floor,
        "floor_is": unit,
        "peak_bytes": entry.peak_bytes,
        "refused": entry.refused,
    }


def _times(label: str, times: dict[str, list[float]], batch: int, work: Work, limits: Limits) -> dict[str, Any]:
    if label not in times:
        return {"ms": None, "images_per_second": None, "over_floor": None, "times_as_fast_as": {}}
    own = spread(times[label])
    return {
        "ms": {name: 1e3 * value for name, value in own._asdict().items()},
        "images_per_second": batch / own.p50,
        "over_floor": own.p50 / limits.floor(work)[0],
        "times_as_fast_as": {name: times_as_fast(times[label], t) for name, t in times.items() if name != label},
    }


def known(argument: str, name: str, names: Iterable[str]) -> str:
    """`name`, which must be one of `names`; else the nearest are shown."""
    names = tuple(names)
    if name in names:
        return name
    nearest = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else f"there are {', '.join(names)}"
    raise ValueError(f"{argument}: expected known names, got {name!r}; {hint}")


def known_device(device: str) -> str:
    """The device that "auto" stands for, or the one that is named, if it is there."""
    choice("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected 'cpu' or 'auto', got 'cuda', and PyTorch sees no CUDA device")
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


def turns(rounds: int, seconds: float) -> dict[str, Any]:
    """How turns are taken, checked."""
    if not seconds >= 0:
        raise ValueError(f"seconds: expected at least 0, got {seconds}")
    return {"rounds": positive("rounds", rounds), "seconds": seconds}


@contextmanager
def threads_of_cpu(number: int | None) -> Generator[None]:
    """Within it PyTorch has so many threads; its own number if None."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else positive("threads", number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def best_of_cudnn() -> Generator[None]:
    """Within it cuDNN tries its ways for each shape, but none that rounds float32 to TF32, and takes the fastest."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield
