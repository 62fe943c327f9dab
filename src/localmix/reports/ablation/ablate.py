"""The job: train the nets of the studies that are asked for, each once, and say what the seeds support."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localmix.arguments import choice, positive
from localmix.reports.ablation.flips import flips
from localmix.reports.ablation.report import report, show
from localmix.reports.ablation.statistics import LEVEL, difference, estimate, holm
from localmix.reports.ablation.studies import STUDIES, Net, Study
from localmix.reports.benchmarks.rows import known
from localmix.reports.cost import Cost
from localmix.reports.environment import command, commit, environment
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.reports.runs import Plan, Run, cost_on, distinct, ends, plan, train_runs
from localmix.tasks.classification.data import EMBEDDED, Images, load_images
from localmix.tasks.engine.claim import claim

SIZES = ("nano", "tiny")
ALL = "all"
RUNS = "runs"
"""Folder of the runs, which studies share."""


def ablate(
    studies: Sequence[str] = (),
    *,
    start: str | None = None,
    data: str = EMBEDDED,
    data_root: str | None = None,
    download: bool = False,
    on_corrupt: str = "error",
    size: str = "nano",
    img_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    drop_path_rate: float = 0.0,
    augment: bool | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    processes: int | None = None,
    workers: int | None = None,
    output: Path | str = "runs/ablate",
) -> dict[str, Any]:
    """Train each net of the studies with each seed; write results.json, report.md, table.md, figure.png into `output`.

    Everything but the net is the same for all: images and their order, augmentation, schedule, seeds. A net of several
    studies is trained once. The files are written whenever a study is complete. Called again with the same `output`,
    finished runs are kept, and one that was interrupted goes on from its last epoch and ends with the numbers it would
    have ended with.

    Args:
        studies: names in `localmix.reports.ablation.studies.STUDIES`, or "all".
        start: name of a net from which one axis at a time is flipped, see `Net.parse`; beside `studies`.
        data: see `localmix.tasks.classification.data.load_images`, as data_root, download, on_corrupt and img_size.
        size: of the nets, "nano" or "tiny".
        epochs: by default 1 for the embedded set, else 10.
        steps: of an epoch; by default 160 for the embedded set, about half of its images, else a pass.
        lr, augment, device, processes, workers: see `localmix.reports.compare.compare`.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong, or `output` holds runs with other settings, or another command is at work
            there; names it.
    """
    chosen = _studies(studies, start)
    nets = list(dict.fromkeys(net for study in chosen for net in study.nets.values()))
    if steps is None and data == EMBEDDED:
        steps = 160
    planned = plan(
        data=data,
        seeds=seeds,
        num_nets=len(nets),
        epochs=epochs if epochs is not None else 1 if data == EMBEDDED else 10,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        drop_path_rate=drop_path_rate,
        augment=augment,
        device=device,
        processes=processes,
        workers=workers,
        steps=steps if steps is None else positive("steps", steps),
    )
    model = f"localmixer_{choice('size', size, SIZES)}"
    folder = Path(output)
    with Display() as display, claim(folder):
        images = load_images(
            data,
            img_size=img_size,
            data_root=data_root,
            download=download,
            on_corrupt=on_corrupt,
            announce=display.say,
            track=display.track,
        )
        costs = {net: _cost(model, net, images) for net in nets}
        runs = {net: _runs(model, net, planned, images, folder) for net in nets}
        display.say(
            f"{len(chosen)} studies, {len(nets)} nets x {len(planned.seeds)} seed(s), {planned.recipe['epochs']} "
            f"epoch(s) of {steps or len(images.train) // batch_size} steps of {batch_size} ({images}), "
            f"{len(images.validation)} images for validation, on {planned.device}"
        )
        for study in chosen:
            for reason in study.left_out:
                display.say(f"{study.name}: left out {reason}")
        facts = {
            "settings": {"model": model, **planned.settings(images), "seeds": planned.seeds, "classes": images.classes},
            "images": {"train": len(images.train), "validation": len(images.validation), "skipped": images.skipped},
            "level": LEVEL,
            "environment": environment(planned.device),
            "command": command(),
            "commit": commit(),
        }
        written: list[str] = []
        results: dict[str, Any] = {}

        def write() -> None:
            """Write what is complete by now, if that has become more."""
            complete = [s for s in chosen if all(run.result for net in s.nets.values() for run in runs[net])]
            names = [study.name for study in complete]
            if names == written:
                return
            written[:] = names
            rows = [_row(study, costs, runs, folder) for study in complete]
            results.update({"studies": rows, "missing": [s.name for s in chosen if s not in complete], **facts})
            write_json(folder / "results.json", results)
            report(results, folder)

        order = {net: place for place, study in reversed([*enumerate(chosen)]) for net in study.nets.values()}
        by_name = {net.name: net for net in nets}
        try:
            train_runs(
                [run for net in nets for run in runs[net]],
                images,
                planned,
                display,
                # study after study; within each the dearest first, so that none is left to run alone at the end
                first=lambda run: (order[by_name[run.label]], -costs[by_name[run.label]].macs),
                then=write,
            )
        except KeyboardInterrupt:
            display.say(f"interrupted; the same command goes on from the last whole epoch in {output}")
            raise
        write()
    show(results, folder)
    return results


def _studies(names: Sequence[str], start: str | None) -> list[Study]:
    if not names and start is None:
        raise ValueError(f"studies: expected names among {', '.join(STUDIES)}, or {ALL}, or a net to start from")
    if ALL in names:
        if len(names) > 1:
            raise ValueError(f"studies: expected {ALL} alone or names of studies, got {list(names)}")
        names = list(STUDIES)
    chosen = [STUDIES[known("studies", name, STUDIES)] for name in (distinct("studies", names) if names else ())]
    if start is None:
        return chosen
    try:
        return chosen + flips(Net.parse(start))
    except ValueError as error:
        # as the command calls it
        raise ValueError(f"from: {str(error).removeprefix('point: ')}") from error


def _cost(model: str, net: Net, images: Images) -> Cost:
    try:
        return cost_on(images, model, **net.arguments)
    except ValueError as error:
        raise ValueError(f"{net.name} is no net of {model}: {error}") from error


def _runs(model: str, net: Net, planned: Plan, images: Images, output: Path) -> list[Run]:
    settings = {"model": model, "model_kwargs": net.arguments, **planned.settings(images)}
    return [
        Run(net.name, output / RUNS / net.folder / f"seed-{seed}", {**settings, "seed": seed}) for seed in planned.seeds
    ]


def _row(study: Study, costs: dict[Net, Cost], runs: dict[Net, list[Run]], output: Path) -> dict[str, Any]:
    """A study in results.json: how each net did, and how it differs from the baseline, seed by seed."""
    ended = {label: ends(runs[net], output) for label, net in study.nets.items()}
    top1 = {label: [run["top1"] for run in rows] for label, rows in ended.items()}
    against = {label: difference(top1[label], top1[study.baseline]) for label in study.nets if label != study.baseline}
    adjusted = dict(zip(against, holm([d.p for d in against.values()]), strict=True))
    points = []
    for label, net in study.nets.items():
        other, mean = against.get(label), estimate(top1[label])
        p = adjusted.get(label)
        points.append(
            {
                "label": label,
                "net": net.name,
                "parameters": costs[net].parameters,
                "macs": costs[net].macs,
                "top1_mean": mean.mean,
                "top1_interval": mean.interval,
                "difference": other.mean if other else None,
                "difference_interval": other.interval if other else None,
                "p": other.p if other else None,
                "p_holm": p,
                "distinguishable": None if p is None else p < LEVEL,
                "runs": ended[label],
            }
        )
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "baseline": study.baseline,
        "left_out": study.left_out,
        "points": points,
    }
