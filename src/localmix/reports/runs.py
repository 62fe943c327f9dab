"""Training runs that are compared: one recipe for all, each in a folder of its own that it can be gone on with.

A folder holds settings.json, what the run was asked for, and at its end result.json, how it ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix.arguments import not_negative, positive, seed, share
from localmix.models import create_model
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.cost import Cost, cost
from localmix.reports.progress import Bar, Display
from localmix.reports.results import write_json
from localmix.tasks.classification.data import EMBEDDED, Images
from localmix.tasks.classification.parallel import Events, Job, cpu_cores, gpus, train_all

RECIPE = ("model", "model_kwargs", "lr", "weight_decay", "drop_path_rate")
"""The settings that are arguments of `Classification`."""
JOB = ("epochs", "steps", "batch_size", "seed", "augment", "device")
"""The settings that are arguments of `Job`."""


@dataclass(frozen=True)
class Plan:
    """What all runs have in common, and how many train at a time."""

    seeds: list[int]
    recipe: dict[str, Any]
    device: str
    processes: int
    threads: int
    workers: int

    def settings(self, images: Images) -> dict[str, Any]:
        """Those of every run."""
        return {
            "data": images.name,
            "fingerprint": images.fingerprint,
            "img_size": images.size,
            **self.recipe,
            "device": self.device,
        }


def plan(
    *,
    data: str,
    seeds: Sequence[int],
    num_nets: int,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    drop_path_rate: float,
    augment: bool | None,
    device: str,
    processes: int | None,
    workers: int | None,
    **more: Any,
) -> Plan:
    """Checks what runs are asked for, and decides what was left open.

    Args:
        augment: by default not for the embedded set.
        processes: by default a run on each core of a CPU or on each GPU.
        workers: by default those of its share of the cores, at most 8.
        more: further settings that all runs have in common.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    seeds = [seed("seeds", value) for value in distinct("seeds", seeds)]
    positive("epochs", epochs)
    positive("batch_size", batch_size)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: expected more than 0, got {lr}")
    not_negative("weight_decay", weight_decay)
    share("drop_path_rate", drop_path_rate)
    if workers is not None:
        not_negative("workers", workers)
    device = known_device(device)
    cores = cpu_cores()
    if processes is None:
        processes = min(cores if device == "cpu" else len(gpus()), num_nets * len(seeds))
    threads = max(1, cores // positive("processes", processes))
    return Plan(
        seeds=seeds,
        recipe={
            "epochs": epochs,
            "batch_size": batch_size,
            "augment": data != EMBEDDED if augment is None else augment,
            "lr": lr,
            "weight_decay": weight_decay,
            "drop_path_rate": drop_path_rate,
            **more,
        },
        device=device,
        processes=processes,
        threads=threads,
        workers=min(8, threads) if workers is None else workers,
    )


@dataclass(frozen=True)
class Run:
    """One net trained with one seed."""

    label: str
    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}  seed {self.settings['seed']}"

    @property
    def result(self) -> dict[str, Any] | None:
        """Its end, or None if it has not come to that."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def refuse_other_settings(self) -> None:
        """Raise if the folder holds a run that is not this one."""
        path = self.folder / "settings.json"
        if not path.exists():
            return
        before = json.loads(path.read_text())
        names = [name for name, value in self.settings.items() if before.get(name) != value]
        if names:
            differences = ", ".join(f"{n} {before.get(n)!r} (now {self.settings[n]!r})" for n in names)
            raise ValueError(
                f"output: {self.folder} holds a run with other settings: {differences}; "
                "repeat those, choose another output, or delete this one"
            )

    def job(self, workers: int, threads: int) -> Job:
        """The training that the settings ask for; written down, to be compared when the folder is met again."""
        path = self.folder / "settings.json"
        if path.exists():
            # Sums depend on the number of threads: what was begun with so many goes on with as many.
            threads = json.loads(path.read_text())["threads"]
        else:
            write_json(path, {**self.settings, "threads": threads})

        def some(names: Sequence[str]) -> dict[str, Any]:
            return {name: self.settings[name] for name in names if name in self.settings}

        return Job(recipe=some(RECIPE), folder=self.folder, **some(JOB), workers=workers, threads=threads)


def train_runs(
    runs: Sequence[Run],
    images: Images,
    plan: Plan,
    display: Display,
    *,
    first: Callable[[Run], Any],
    then: Callable[[], Any] = lambda: None,
) -> None:
    """Train the runs that are not finished; the folder that holds them must be claimed.

    Args:
        first: what to sort by: runs with the least of it begin first.
        then: called after the end of each run.

    Raises:
        ValueError: a folder holds a run with other settings.
    """
    for run in runs:
        run.refuse_other_settings()
    ends = [(run, run.result) for run in runs]
    for run, end in ends:
        if end:
            display.say(f"{run.name}  finished before: top-1 {end['top1']:.2%}")
    unfinished = sorted((run for run, end in ends if not end), key=first)
    progress = Progress(unfinished, display, then)
    jobs = [run.job(plan.workers, plan.threads) for run in unfinished]
    train_all(jobs, images, processes=plan.processes, events=progress)
    progress.whole.remove()


class Progress(Events):
    """Shows how runs go and writes down their ends."""

    def __init__(self, runs: Sequence[Run], display: Display, then: Callable[[], Any]) -> None:
        self.runs, self.display, self.then = runs, display, then
        self.bars: dict[int, Bar] = {}
        self.steps = [0] * len(runs)
        self.whole = display.bar("all")

    def start(self, job: int) -> None:
        self.bars[job] = self.display.bar(self.runs[job].name)

    def step(self, job: int, done: int, total: int) -> None:
        self.bars[job].move(done, total)
        self.steps[job] = done
        # All runs have as many steps: they see the same batches.
        self.whole.move(sum(self.steps), len(self.runs) * total)

    def epoch(self, job: int, row: dict[str, float], seconds: float) -> None:
        run = self.runs[job]
        self.display.say(
            f"{run.name}  epoch {row['epoch'] + 1:.0f}/{run.settings['epochs']}  loss {row['loss']:.3f}  "
            f"validation loss {row['val_loss']:.3f}  top-1 {row['val_top1']:.2%}  {seconds:.0f} s"
        )

    def end(self, job: int, result: dict[str, Any]) -> None:
        self.bars.pop(job).remove()
        run = self.runs[job]
        write_json(run.folder / "result.json", {**run.settings, **result})
        self.then()


def ends(runs: Sequence[Run], output: Path) -> list[dict[str, Any]]:
    """How the runs ended, all of which have; folders relative to `output`."""
    facts = ("top1", "val_loss", "train_loss_first", "train_loss_last", "steps", "seconds")
    results = [(run, run.result or {}) for run in runs]
    return [
        {
            "folder": run.folder.relative_to(output).as_posix(),
            "seed": run.settings["seed"],
            **{name: end[name] for name in facts},
        }
        for run, end in results
    ]


def distinct(name: str, values: Sequence[Any]) -> list[Any]:
    """`values`, of which there must be some, all different."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: expected one or more different values, got {list(values)}")
    return list(values)


def cost_on(images: Images, model: str, **kwargs: Any) -> Cost:
    """What a net costs that is made for these images."""
    net = create_model(model, num_classes=len(images.classes), in_chans=images.channels, **kwargs)
    return cost(net, images.size, in_chans=images.channels)
