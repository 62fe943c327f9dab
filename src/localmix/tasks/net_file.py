"""A whole net in one file: its weights and, as metadata, what it is built of.

`localmix convert --task` and `localmix publish` write it for detectors and segmenters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from localmix import __version__
from localmix.models.checkpoint_reading import read_checkpoint
from localmix.writing import write_atomically

SUFFIX = ".safetensors"


def write_net(path: Path, weights: Mapping[str, Tensor], task: str, facts: Mapping[str, Any]) -> None:
    """Write the file wholly or not at all; `facts` are texts, or what json holds.

    Raises:
        ValueError: the name is that of another kind of file.
        OSError: it cannot be written.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"output: expected a name that ends in {SUFFIX}, got {path}")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    metadata = {"format": "pt", "task": task, **texts, "localmix": __version__}
    tensors = {name: value.contiguous() for name, value in weights.items()}
    content = safetensors.torch.save(tensors, metadata=metadata)
    write_atomically(path, lambda file: file.write(content))


def read_net(path: Path, task: str) -> tuple[Mapping[str, Any], dict[str, str]]:
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
        raise ValueError(
            f"model: expected a file for {task} that `localmix convert --task {task}` or `localmix publish` has "
            f"written, got {path}"
        )
    return weights, facts
