"""What the folder of a run holds, by name: for those that write it and those that read it."""

from __future__ import annotations

METRICS = "metrics.csv"
"""Of every step."""
CHECKPOINT, BEST = "checkpoint.ckpt", "best.ckpt"
"""The newest checkpoint, and the best one."""
CHECKPOINTS = "checkpoints"
"""Folder of the last checkpoints, step-N.ckpt."""
