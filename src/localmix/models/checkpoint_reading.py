"""Checkpoints as others publish them, read without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from localmix import arguments
from localmix.models.layouts import Weights

PLAIN_VALUES: list[Callable | tuple[Callable, str]] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
"""Harmless stand-ins for the configuration that a training run stores next to the weights."""


def read_checkpoint(path: Path, *, name: str = "checkpoint") -> Mapping[str, Any]:
    """The content of a file that `torch.save` or safetensors has written, on the CPU; nothing in it can run code.

    Args:
        name: of the argument that errors name.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: the file is truncated or foreign, or wants to run code.
    """
    with arguments.existing_file(name, path).open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":  # the length of the header, then the header
            return safetensors.torch.load_file(path)
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"wrong checksum of {damaged}")
        with torch.serialization.safe_globals(PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the file is either harmless or an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise ValueError(
                f"{name}: {path} asks for {wanted[1]}, which could run code: refused, and nothing in it has been "
                "run; a checkpoint may hold tensors and plain values only"
            ) from error
        raise ValueError(
            f"{name}: {path} is damaged, or holds more than tensors and plain values: refused, and nothing in it "
            "has been run"
        ) from error
    except Exception as error:
        cause = str(error).split(". ")[0] or "it ends too early"
        raise ValueError(f"{name}: {path} is truncated, damaged or not a checkpoint ({cause})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}: expected {path} to hold a dictionary of tensors, got {type(content).__name__}")
    return content


def unwrap(state_dict: Mapping[str, Any]) -> Weights:
    """The weights by name, without what training has put around them."""
    if not all(isinstance(key, str) for key in state_dict):
        raise ValueError(f"checkpoint: expected names, got keys such as {list(state_dict)[:5]}")
    for wrapper in ("model", "state_dict"):
        inner = state_dict.get(wrapper)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    for prefix in ("module.", "_orig_mod."):
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            return unwrap({key.removeprefix(prefix): value for key, value in state_dict.items()})
    return dict(state_dict)
