"""What the hardware can do, measured, and the floor that it sets: no call is faster than its data can be moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from localmix.reports.benchmarks.timing import take_turns

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Size of the tensor that is copied: far larger than any cache."""
MATRIX_SIZE = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied."""


@dataclass(frozen=True)
class Work:
    """What a call cannot avoid.

    `num_bytes` to move, if each input is read once and each output written once; multiply-adds of matrix products, and
    those that are none.
    """

    num_bytes: int
    matrix_macs: int = 0
    vector_macs: int = 0


@dataclass(frozen=True)
class Limits:
    """Rates of the hardware: bytes read and written by a copy, and multiply-adds, per second."""

    bytes_per_second: float
    matrix_macs_per_second: float
    vector_macs_per_second: float

    def floor(self, work: Work) -> tuple[float, str]:
        """The least duration of some work [s], and what sets it: "memory", "matrix" or "vector".

        >>> Limits(1e9, 4e9, 2e9).floor(Work(num_bytes=1000, matrix_macs=8000, vector_macs=6000))
        (3e-06, 'vector')
        """
        return max(
            (work.num_bytes / self.bytes_per_second, "memory"),
            (work.matrix_macs / self.matrix_macs_per_second, "matrix"),
            (work.vector_macs / self.vector_macs_per_second, "vector"),
        )


def measure(device: str, dtype: torch.dtype) -> Limits:
    """Measures the rates; each is that of the fastest of some turns.

    The matrix rate is that of a large matrix product in `dtype`. A float32 product in full precision runs on the vector
    units, which no elementwise operation can keep busy, and gives theirs; a CPU without matrix units for `dtype` may
    multiply in float32 too.
    """
    vector = _matrix_rate(device, torch.float32)
    matrix = vector if dtype == torch.float32 else max(vector, _matrix_rate(device, dtype))
    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device).view(torch.float32)
    target = torch.zeros_like(source)
    return Limits(2 * COPY_BYTES[device] / _fastest(lambda: target.copy_(source)), matrix, vector)


def _matrix_rate(device: str, dtype: torch.dtype) -> float:
    size = MATRIX_SIZE[device]
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return size**3 / _fastest(lambda: torch.mm(a, b, out=out))
    finally:
        torch.set_float32_matmul_precision(before)


def _fastest(run: Callable[[], Any]) -> float:
    return min(take_turns({"": run}, rounds=7, seconds=0.02)[""])
