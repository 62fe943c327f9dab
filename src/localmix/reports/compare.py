"""The main job: train the mixers in one skeleton with one recipe, and show what each costs and what it reaches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from localmix.arguments import choice, positive
from localmix.axes import MIXERS
from localmix.models import create_model
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.compare_report import report
from localmix.reports.cost import Cost, cost
from localmix.reports.environment import command, commit, environment
from localmix.reports.progress import Bar, Display
from localmix.reports.results import write_json
from localmix.reports.throughput import Throughput, throughput
from localmix.tasks.classification.data import EMBEDDED, Images, load_images
from localmix.tasks.classification.parallel import Events, Job, cpu_cores, train_all
from localmix.tasks.engine.batches import loader
from localmix.tasks.engine.claim import claim

RECIPE = ("model", "lr", "weight_decay", "drop_path_rate")
"""The settings that are arguments of `Classification`."""
THROUGHPUT = {"threads": 1, "rounds": 5}
"""How images per second are measured: threads of a CPU, timed turns of each net."""
SIZES = ("nano", "tiny", "small", "base")


def compare(
    *,
    data: str = EMBEDDED,
    data_root: str | None = None,
    download: bool = False,
    on_corrupt: str = "error",
    mixers: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    size: str = "nano",
    img_size: int | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    drop_path_rate: float = 0.0,
    augment: bool | None = None,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    processes: int | None = None,
    workers: int | None = None,
    output: Path | str = "runs/compare",
) -> dict[str, Any]:
    """Train each net with each seed, measure all, and write results.json, table.md and figure.png into `output`.

    Everything but the mixer is the same for all: images and their order, augmentation, schedule, seeds. Called again
    with the same `output`, finished runs are kept, and one that was interrupted goes on from its last epoch and ends
    with the numbers it would have ended with.

    Args:
        data: see `localmix.tasks.classification.data.load_images`, as data_root, download, on_corrupt and img_size.
        mixers: names in `localmix.axes.MIXERS`; by default all.
        models: names of nets that timm knows, instead of `mixers` and `size`.
        size: of the mixers' nets: "nano", "tiny", "small" or "base".
        epochs: by default 2 for the embedded set, else 10.
        lr: learning rate at the end of the warm-up.
        augment: random crops (embedded set: shifts) and flips; by default not for the embedded set, whose images one
            epoch shows once.
        device: "auto", "cpu" or "cuda".
        processes: runs that train at a time, each with its share of the cores; by default one per core on a CPU
            (a script then needs `if __name__ == "__main__":`), else 1.
        workers: processes that decode images for a run; by default its share of the cores, at most 8.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong, or `output` holds runs with other settings, or another comparison is at work
            there; names it.
    """
    nets = _nets(mixers, models, size)
    seeds = _distinct("seeds", seeds)
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(f"seeds: expected ints of at least 0, got {seeds}")
    epochs = positive("epochs", epochs if epochs is not None else 2 if data == EMBEDDED else 10)
    positive("batch_size", batch_size)
    if not lr > 0:
        raise ValueError(f"lr: expected more than 0, got {lr}")
    augment = data != EMBEDDED if augment is None else augment
    device = known_device(device)
    cores = cpu_cores()
    if processes is None:
        processes = min(cores, len(nets) * len(seeds)) if device == "cpu" else 1
    threads = max(1, cores // positive("processes", processes))
    workers = min(8, threads) if workers is None else workers
    output = Path(output)
    with Display() as display, ExitStack() as claims:
        images = load_images(
            data,
            img_size=img_size,
            data_root=data_root,
            download=download,
            on_corrupt=on_corrupt,
            announce=display.say,
            track=display.track,
        )
        settings = {
            "data": images.name,
            "fingerprint": images.fingerprint,
            "img_size": images.size,
            "epochs": epochs,
            "batch_size": batch_size,
            "augment": augment,
            "lr": lr,
            "weight_decay": weight_decay,
            "drop_path_rate": drop_path_rate,
            "device": device,
        }
        costs = {model: _cost(model, images) for model in nets}
        claims.enter_context(claim(output))
        runs = [
            Run(output / model / f"seed-{seed}", {"model": model, "seed": seed, **settings})
            for seed in seeds
            for model in nets
        ]
        for run in runs:
            run.refuse_other_settings()
        # the dearest first: a long run that began last would leave the other cores idle
        unfinished = sorted((r for r in runs if not r.result), key=lambda r: -costs[r.settings["model"]].macs)
        for run in runs:
            if run.result:
                display.say(f"{run.name}  finished before: top-1 {run.result['top1']:.2%}")
        display.say(
            f"{len(nets)} nets x {len(seeds)} seed(s), {epochs} epoch(s) of {len(images.train)} images "
            f"({images.name}, {images.size} px), {len(images.validation)} for validation, on {device}"
        )
        try:
            progress = Progress(unfinished, display)
            jobs = [run.job(workers, threads) for run in unfinished]
            train_all(jobs, images, processes=processes, events=progress)
            progress.whole.remove()
            speeds = _throughput(nets, images, batch_size, device, display)
        except KeyboardInterrupt:
            display.say(f"interrupted; the same command goes on from the last whole epoch in {output}")
            raise
    results = {
        "rows": [
            {
                **_axes(mixer, model),
                "parameters": costs[model].parameters,
                "macs": costs[model].macs,
                "training_images_per_second": speeds[model].training,
                "inference_images_per_second": speeds[model].inference,
                **_accuracy([run for run in runs if run.settings["model"] == model], output),
            }
            for model, mixer in nets.items()
        ],
        "settings": {**settings, "seeds": seeds, "classes": images.classes},
        "images": {"train": len(images.train), "validation": len(images.validation), "skipped": images.skipped},
        "throughput": {**THROUGHPUT, "batch_size": batch_size},
        "environment": environment(device),
        "command": command(),
        "commit": commit(),
    }
    write_json(output / "results.json", results)
    report(results, output)
    return results


@dataclass(frozen=True)
class Run:
    """One net trained with one seed, in a folder of its own."""

    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.settings['model']}  seed {self.settings['seed']}"

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
        return Job(
            recipe={name: self.settings[name] for name in RECIPE},
            folder=self.folder,
            **{name: self.settings[name] for name in ("epochs", "batch_size", "seed", "augment", "device")},
            workers=workers,
            threads=threads,
        )


class Progress(Events):
    """Shows how runs go and writes down their ends."""

    def __init__(self, runs: Sequence[Run], display: Display) -> None:
        self.runs, self.display = runs, display
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


def _nets(mixers: Sequence[str] | None, models: Sequence[str] | None, size: str) -> dict[str, str | None]:
    """The nets to train, each with its mixer; None for a net that is not of this package."""
    if models is not None:
        if mixers is not None:
            raise ValueError("models: expected either mixers or models, got both")
        by_stem = {row.network: name for name, row in MIXERS.items()}
        return {model: by_stem.get(model.rsplit("_", 1)[0]) for model in _distinct("models", models)}
    choice("size", size, SIZES)
    names = _distinct("mixers", list(MIXERS) if mixers is None else mixers)
    return {f"{MIXERS[choice('mixers', name, tuple(MIXERS))].network}_{size}": name for name in names}


def _distinct(name: str, values: Sequence[Any]) -> list[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: expected one or more different values, got {list(values)}")
    return list(values)


def _cost(model: str, images: Images) -> Cost:
    net = create_model(model, num_classes=len(images.classes), in_chans=images.channels)
    try:
        return cost(net, images.size, in_chans=images.channels)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"models: {model} does not take images of {images.size} px: {error}") from error


def _throughput(
    nets: Iterable[str], images: Images, batch_size: int, device: str, display: Display
) -> dict[str, Throughput]:
    pixels, labels = next(iter(loader(images.train, batch_size, seed=0)))
    modules = {
        model: create_model(model, num_classes=len(images.classes), in_chans=images.channels).to(device)
        for model in nets
    }
    threads = torch.get_num_threads()
    # With one thread, what else runs on the machine hardly shows; with several, each waits for the slowest.
    torch.set_num_threads(THROUGHPUT["threads"])
    bar, turns = display.bar("images per second"), count(1)
    speeds = throughput(
        modules,
        pixels.to(device),
        labels.to(device),
        rounds=THROUGHPUT["rounds"],
        tick=lambda: bar.move(next(turns), 2 * THROUGHPUT["rounds"] * len(modules)),
    )
    torch.set_num_threads(threads)
    bar.remove()
    return speeds


def _axes(mixer: str | None, model: str) -> dict[str, Any]:
    """Where the net stands on the axes of the paper; None where it does not stand on them."""
    row = MIXERS[mixer] if mixer else None
    return {
        "mixer": mixer,
        "model": model,
        "title": row.title if row else model,
        "connectivity": row.connectivity.value if row else None,
        "sharing_positions": row.sharing_positions.value if row else None,
        "sharing_channels": row.sharing_channels.value if row else None,
        "dynamics": row.dynamics.name.lower().replace("_", " ") if row else None,
    }


def _accuracy(runs: list[Run], output: Path) -> dict[str, Any]:
    ends = [run.result for run in runs if run.result]
    top1 = [end["top1"] for end in ends]
    return {
        "top1_mean": mean(top1),
        "top1_std": stdev(top1) if len(top1) > 1 else None,
        "runs": [
            {
                "folder": str(run.folder.relative_to(output)),
                "seed": run.settings["seed"],
                **{k: end[k] for k in ("top1", "val_loss", "train_loss_first", "train_loss_last", "steps", "seconds")},
            }
            for run, end in zip(runs, ends, strict=True)
        ],
    }
