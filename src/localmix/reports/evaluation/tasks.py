"""Which task a trained network is for; its commands are in the module of that name beside this one."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from localmix.reports.evaluation.published import net_file
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.run_folder import CHECKPOINT

DEFAULT = "classification"


def task_of(model: str | Path, *, name: str = "model") -> str:
    """The task of a checkpoint, of the folder of a run, of a converted file or a published folder; else classification.

    Args:
        name: of the argument that errors name.

    Raises:
        ValueError: the checkpoint is truncated or foreign.
    """
    path = net_file(Path(model))
    if path.is_dir():
        path = path / CHECKPOINT
    if path.suffix == ".ckpt" and path.is_file():
        return load_checkpoint(path, name=name).get("task", DEFAULT)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get("task", DEFAULT)
        except SafetensorError as error:
            raise ValueError(f"{name}: {path} is truncated, damaged or not a safetensors file ({error})") from error
    return DEFAULT
