"""Kernels are compiled before they are launched, several at a time, by threads.

Six sevenths of a compilation are C++ that releases Python's lock, or the assembler, which is another process.
Processes would each have to load PyTorch and Triton first, which takes seconds, as all kernels of a problem do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_THREADS = 8
"""Candidates of a problem are fewer, and other processes of a node, one for each GPU, compile at the same time."""


class _Pointer:
    """Stands for a tensor: all that Triton asks of one that a kernel is compiled for. It keeps no memory alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self._address = tensor.dtype, tensor.data_ptr()

    def data_ptr(self) -> int:
        return self._address


class _Compilation(NamedTuple):
    """Of a kernel for one launch."""

    kernel: Any
    programs: int
    arguments: Sequence[Any]
    options: dict[str, Any]
    device: int

    def run(self) -> None:
        with torch.cuda.device(self.device):  # each thread has its own current one
            self.kernel.warmup(*self.arguments, grid=(self.programs,), **self.options)


_noted: ContextVar[dict[Any, _Compilation] | None] = ContextVar("noted", default=None)


def is_noted(key: Any, kernel: Any, programs: int, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether launches are only noted now, and so was this one, whose first argument is a tensor."""
    compilations = _noted.get()
    if compilations is None:
        return False
    compilations[key] = noted(kernel, programs, arguments, options)
    return True


def noted(kernel: Any, programs: int, arguments: Sequence[Any], options: dict[str, Any]) -> _Compilation:
    """What compiles a launch, whose first argument is a tensor; it keeps no tensor alive."""
    pointers = [_Pointer(v) if isinstance(v, Tensor) else v for v in arguments]
    return _Compilation(kernel, programs, pointers, options, arguments[0].get_device())


def compile_together(calls: Sequence[Callable[[], Any]]) -> int:
    """Compiles all that these calls launch for the first time, and gives how many kernels these are.

    The calls are made, but for those launches: what they write is of no use. A call that fails, and what does not
    compile, is left to the launch, which fails in the same way. Nothing is done where it is of no use: on one core, or
    for one kernel.
    """
    # an AMD kernel is compiled for the size of the memory too
    threads = 1 if torch.version.hip else min(_MOST_THREADS, _cores())
    if threads == 1:
        return 0
    compilations: dict[Any, _Compilation] = {}
    token = _noted.set(compilations)
    try:
        for call in calls:
            with suppress(Exception):  # it comes again where the candidate is timed
                call()
    finally:
        _noted.reset(token)
    if len(compilations) < 2:
        return 0
    # threads that end here are in no forked process
    with ThreadPoolExecutor(min(threads, len(compilations)), "localmix-compile") as pool:
        for running in [pool.submit(compilation.run) for compilation in compilations.values()]:
            running.exception()
    return len(compilations)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
