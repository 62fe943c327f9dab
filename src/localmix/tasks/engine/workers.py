"""How many processes load images beside those that train."""

from __future__ import annotations

from localmix.arguments import positive
from localmix.tasks.classification.parallel import cpu_cores

MOST = 32
"""More workers than this hold more batches in memory than they save time."""


def default_workers(*, in_memory: bool = False, device: str = "cuda", processes: int = 1) -> int:
    """Processes that load images for each process that trains.

    None for images in memory: to pick a batch out of them takes less than to send it. For a GPU all cores but the one
    that feeds it, shared among the training processes of the machine. On a CPU one: the net itself needs the cores.

    Args:
        in_memory: whether the images lie in memory, decoded.
        device: that trains, "cpu" or "cuda".
        processes: that train on this machine.
    """
    positive("processes", processes)
    if in_memory:
        return 0
    if device == "cpu":
        return 1
    return min(MOST, max(1, cpu_cores() // processes - 1))
