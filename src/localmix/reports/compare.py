"""The main job: train the mixers in one skeleton with one recipe, and show what each costs and what it reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from localmix.arguments import choice
from localmix.axes import MIXERS
from localmix.models import create_model
from localmix.reports.benchmarks.rows import threads_of_cpu
from localmix.reports.compare_report import report
from localmix.reports.cost import Cost
from localmix.reports.environment import command, commit, environment
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.reports.runs import Run, cost_on, distinct, ends, plan, train_runs
from localmix.reports.throughput import Throughput, throughput
from localmix.tasks.classification.data import EMBEDDED, Images, load_images
from localmix.tasks.engine.batches import loader
from localmix.tasks.engine.claim import claim

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
    planned = plan(
        data=data,
        seeds=seeds,
        num_nets=len(nets),
        epochs=epochs if epochs is not None else 2 if data == EMBEDDED else 10,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        drop_path_rate=drop_path_rate,
        augment=augment,
        device=device,
        processes=processes,
        workers=workers,
    )
    output = Path(output)
    with Display() as display, claim(output):
        images = load_images(
            data,
            img_size=img_size,
            data_root=data_root,
            download=download,
            on_corrupt=on_corrupt,
            announce=display.say,
            track=display.track,
        )
        settings, device = planned.settings(images), planned.device
        costs = {model: _cost(model, images) for model in nets}
        runs = [
            Run(model, output / model / f"seed-{seed}", {"model": model, "seed": seed, **settings})
            for seed in planned.seeds
            for model in nets
        ]
        display.say(
            f"{len(nets)} nets x {len(planned.seeds)} seed(s), {settings['epochs']} epoch(s) of {len(images.train)} "
            f"images ({images}), {len(images.validation)} for validation, on {device}"
        )
        try:
            # the dearest first: a long run that began last would leave the other cores idle
            train_runs(runs, images, planned, display, first=lambda run: -costs[run.label].macs)
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
                **_accuracy([run for run in runs if run.label == model], output),
            }
            for model, mixer in nets.items()
        ],
        "settings": {**settings, "seeds": planned.seeds, "classes": images.classes},
        "images": {"train": len(images.train), "validation": len(images.validation), "skipped": images.skipped},
        "throughput": {**THROUGHPUT, "batch_size": batch_size},
        "environment": environment(device),
        "command": command(),
        "commit": commit(),
    }
    write_json(output / "results.json", results)
    report(results, output)
    return results


def _nets(mixers: Sequence[str] | None, models: Sequence[str] | None, size: str) -> dict[str, str | None]:
    """The nets to train, each with its mixer; None for a net that is not of this package."""
    if models is not None:
        if mixers is not None:
            raise ValueError("models: expected either mixers or models, got both")
        by_stem = {row.network: name for name, row in MIXERS.items()}
        return {model: by_stem.get(model.rsplit("_", 1)[0]) for model in distinct("models", models)}
    choice("size", size, SIZES)
    names = distinct("mixers", list(MIXERS) if mixers is None else mixers)
    return {f"{MIXERS[choice('mixers', name, tuple(MIXERS))].network}_{size}": name for name in names}


def _cost(model: str, images: Images) -> Cost:
    try:
        return cost_on(images, model)
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
    bar, turns = display.bar("images per second"), count(1)
    # With one thread, what else runs on the machine hardly shows; with several, each waits for the slowest.
    with threads_of_cpu(THROUGHPUT["threads"]):
        speeds = throughput(
            modules,
            pixels.to(device),
            labels.to(device),
            rounds=THROUGHPUT["rounds"],
            tick=lambda: bar.move(next(turns), 2 * THROUGHPUT["rounds"] * len(modules)),
        )
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
    rows = ends(runs, output)
    top1 = [row["top1"] for row in rows]
    return {
        "top1_mean": mean(top1),
        "top1_std": stdev(top1) if len(top1) > 1 else None,
        "runs": rows,
    }
