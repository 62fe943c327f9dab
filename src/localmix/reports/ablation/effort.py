"""What an ablation took."""

from __future__ import annotations

from typing import Any


def effort(results: dict[str, Any]) -> str:
    """How many runs there were, and how long they took in all; a run of several studies counts once.

    >>> runs = [{"folder": f"runs/a/seed-{seed}", "seconds": 2700.0} for seed in range(3)]
    >>> effort({"studies": [{"points": [{"runs": runs}]}, {"points": [{"runs": runs}]}]})
    '3 runs, which took 2.2 hours one after the other'
    """
    points = [point for study in results["studies"] for point in study["points"]]
    seconds = {run["folder"]: run["seconds"] for point in points for run in point["runs"]}
    total = sum(seconds.values())
    took = f"{total / 3600:.1f} hours" if total >= 3600 else f"{total / 60:.1f} minutes"
    return f"{len(seconds)} runs, which took {took} one after the other"
