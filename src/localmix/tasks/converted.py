"""Files that `localmix convert --task` has written: weights, and as metadata what their net is built of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from localmix.models.convert import read_checkpoint


def read_converted(path: Path, task: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The weights and the metadata of a file for that task.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
    """
    weights = read_checkpoint(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, str] = file.metadata() or {}
    except SafetensorError:  # a checkpoint of PyTorch
        facts = {}
    if facts.get("task") != task:
        raise ValueError(f"model: expected a file that `localmix convert --task {task}` has written, got {path}")
    return weights, facts
