"""How long a GPU takes for a call, without the time that Python takes to start it.

A call of several short launches ends sooner than they can be started one after the other. In a network that does not
count: while the GPU is busy with what came before, Python is ahead of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

_SECONDS = 0.025
"""That measuring takes, about."""

_LEAST_REPEATS, _MOST_REPEATS = 5, 50

_MOST_CLEARS = 200


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of some calls on the current GPU, each with nothing of its data in the L2 cache [ms].

    Before each the GPU clears a piece of memory: once for the cache, and again until the whole call waits behind it.
    """
    call()  # the first one may compile
    piece = torch.empty(_piece_bytes(), dtype=torch.int8, device="cuda")
    piece.zero_()
    clearing = _on_gpu(piece.zero_)
    begin = time.perf_counter()
    call()
    starting = time.perf_counter() - begin
    torch.cuda.synchronize()
    # twice as long as it took now: another process may want the core
    clears = min(_MOST_CLEARS, 1 + math.ceil(2 * starting / clearing))

    def wait() -> None:
        for _ in range(clears):
            piece.zero_()

    repeats = round(_SECONDS / (clears * clearing + _on_gpu(call, wait)))
    repeats = min(max(_LEAST_REPEATS, repeats), _MOST_REPEATS)
    return 1e3 * median(_on_gpu(call, wait) for _ in range(repeats))


def _on_gpu(call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Seconds from the end of what `before` starts to the end of what the call starts."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before()
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def _piece_bytes() -> int:
    """Twice the L2 cache of the current GPU."""
    return 2 * max(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size, 2**24)
