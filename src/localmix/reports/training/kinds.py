"""The tasks that `localmix fit` trains, each described by a module beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from jsonargparse import Namespace

from localmix.tasks.engine import training
from localmix.tasks.engine.task import Task

KINDS = ("classification", "detection", "segmentation")


class Data(training.Data, Protocol):
    """What a run trains on, and what is said of it; `str` gives its name and what it is, for people."""

    @property
    def fingerprint(self) -> str:
        """Changes with the images."""
        ...

    def shapes(self, batch_size: int) -> dict[str, tuple[int, int, int, int]]:
        """B, C, H, W of a batch as the net sees it, by the setting that decides it."""
        ...


@dataclass(frozen=True)
class Kind:
    """What `localmix fit` has to know of a task.

    Args:
        task: its class.
        given_by_data: its arguments that the data decide.
        data_options: a dataclass of the settings `data.*`; `root`, `batch_size` and `workers` are among them.
        load: finds the data that the settings name; is told what to say on the way.
        validation_batch_size: images of a batch in validation; by default as many as in training.
    """

    task: type[Task]
    given_by_data: frozenset[str]
    data_options: type
    load: Callable[[Namespace, Callable[[str], None]], Data]
    validation_batch_size: int | None = None


def kind(name: str) -> Kind:
    """The task of that name in `KINDS`."""
    module: Any = import_module(f"localmix.reports.training.{name}")
    return module.KIND
