"""`localmix fit`: one network, trained so that it can be interrupted anywhere and still ends with the same numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from torch import distributed

from localmix.causes import causes
from localmix.reports.environment import command, commit, environment
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.reports.training.kinds import kind
from localmix.reports.training.options import FREE, flat, parse
from localmix.reports.training.sizes import refuse_sizes
from localmix.reports.training.watch import Watch
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.claim import claim
from localmix.tasks.engine.distribution import is_helper, placement
from localmix.tasks.engine.guard import Guard, NonFinite
from localmix.tasks.engine.record import Record
from localmix.tasks.engine.saving import Saving, newest_checkpoint
from localmix.tasks.engine.stopping import STOPPED, Stopped, Stopping
from localmix.tasks.engine.task import Task
from localmix.tasks.engine.training import PATIENCE, batches, fit, loaders, new_task, new_trainer
from localmix.tasks.engine.workers import default_workers
from localmix.writing import write_atomically

CONFIG, RUN = "config.yaml", "run.json"
FEW = 8
"""Fewer values are too few for a batch norm: of 2, gradients of a new `dynamic_dwnet_nano` are 50 times those of 4."""


def main(arguments: Sequence[str]) -> int:
    """Run `localmix fit`; gives the exit status: 0 done, 1 failed under way, 75 stopped by a signal, ready to go on."""
    settings, text = parse(arguments)
    with Display() as display, ExitStack() as claims:
        try:
            run(settings, text, display, claims)
        except Stopped:
            if not distributed.is_initialized() or distributed.get_rank() == 0:
                display.say(f"stopped; the same command goes on from the last checkpoint in {settings.output}")
            return 0 if is_helper() else STOPPED
        except NonFinite as error:
            print(f"localmix: error: {error}", file=sys.stderr)
            return 0 if is_helper() else 1
        except Exception as error:
            # PyTorch says it wherever the process happens to be, also within code that answers by an error of its own
            words = next((str(behind) for behind in causes(error) if _is_of_a_worker(behind)), None)
            if words is None:
                raise
            print(
                f"localmix: error: data.workers: a process that loads images has ended ({words.strip()}), perhaps "
                f"for want of memory; the same command goes on from the last checkpoint in {settings.output}",
                file=sys.stderr,
            )
            # also of a helper: the others would wait for it
            return 1
    return 0


def _is_of_a_worker(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def run(settings: Namespace, text: str, display: Display, claims: ExitStack) -> None:
    """Train as the settings say; `text` is their YAML, and `claims` ends when nothing is written any more."""
    folder, options = Path(settings.output), settings.trainer.as_dict()
    placed = placement(**{name: options.pop(name) for name in ("accelerator", "devices", "num_nodes", "strategy")})
    trainer = new_trainer(folder, **placed, **options)
    say: Callable[[str], None] = display.say if trainer.is_global_zero else lambda text: None
    if trainer.is_global_zero:
        claims.enter_context(claim(folder, patience=PATIENCE))
    resumed = _checkpoint(settings, folder, say)
    what = kind(settings.task)
    with _as_settings("data", settings.data, {"data": "root", "data_root": "folder"}):
        data = what.load(settings.data, say)
    device = trainer.strategy.root_device.type
    if device == "cpu" and settings.trainer.precision == "16-mixed":
        raise ValueError("trainer.precision: 16-mixed needs a GPU, expected bf16-mixed or 32-true on a CPU")
    facts = {
        "settings": _plain(flat(settings.as_dict())),
        "fingerprint": data.fingerprint,
        "command": command(),
        "commit": commit(),
        **environment(device),
    }
    if resumed:
        _refuse_other_settings(facts, resumed[1], explicit=settings.resume != "auto")
    with _as_settings("model", settings.model, {"model": "name"}):
        task = new_task(what.task, _recipe(settings.model), data, settings.seed)
    if resumed:
        _refuse_other_net(task, resumed, settings.model.name)
    if settings.weights and not resumed:
        say(task.begin_with(settings.weights))
    workers = settings.data.workers
    if workers is None:
        processes = trainer.world_size // trainer.num_nodes
        workers = default_workers(in_memory=data.in_memory, device=device, processes=processes)
    with _as_settings("data", settings.data, {"steps": "steps_per_epoch"}):
        training, validation = loaders(
            data,
            settings.data.batch_size,
            trainer=trainer,
            seed=settings.seed,
            workers=workers,
            augment=settings.data.get("augment", True),
            steps=settings.data.get("steps_per_epoch"),
            validation_batch_size=what.validation_batch_size,
        )
    record = Record(folder, batches(training), seed=settings.seed)
    task.check_batch_size(record.batches.batch_size)
    task.images_per_step = record.batches.images_per_step
    seen = record.batches.batch_size * (trainer.world_size if task.sync_batch_norm else 1)
    refuse_sizes(task, data, settings.model.name, batch_size=record.batches.batch_size, seen=seen)
    watch, stopping = Watch(display, record), Stopping()
    if trainer.is_global_zero:
        record.on_epoch = watch.epoch
    if resumed:
        record.go_on(resumed[1])
        step = resumed[1]["global_step"]
        if record.batches.epoch >= settings.trainer.max_epochs:
            say(
                f"{folder} holds the whole run of {step} steps, nothing is left to do; to train longer: "
                f"--resume {resumed[0]} with more --trainer.max_epochs"
            )
        else:
            say(f"goes on from {resumed[0]}: epoch {record.batches.epoch + 1}, step {step}")
    trainer.loggers = _loggers(settings.log, folder, resumed)
    saving = Saving(
        record,
        every=settings.save.every,
        keep=settings.save.keep,
        monitor=task.monitor,
        stopping=stopping,
        facts=facts,
    )
    guard = Guard(folder, limit=settings.max_non_finite, announce=say)
    trainer.callbacks += [record, guard, stopping, saving, watch]  # ty: ignore[missing-attribute] -- set in its constructor
    say(
        f"{settings.model.name}: {trainer.max_epochs} epochs of {len(training) // record.batches.accumulate:,} steps "
        f"of {task.images_per_step} images; {len(data.train):,} images ({data}), {len(data.validation):,} for "
        f"validation; {trainer.world_size} process(es) on {device}, {settings.trainer.precision}"
    )
    if seen < FEW and task.norms_means():
        say(
            f"data.batch_size: a batch norm behind a mean over the whole image sees {seen} values at a time, which are "
            f"too few to be stable; {FEW} or more are better, by larger batches or more processes"
        )
    if trainer.is_global_zero:
        write_atomically(folder / CONFIG, lambda file: file.write(text.encode()))
        write_json(folder / RUN, facts)
    path = resumed[0] if resumed else None
    # Lightning reads it anew; held here, the weights and what the optimiser knows of them would lie in memory twice
    del resumed
    fit(trainer, task, training, validation, path, contexts=[record, stopping])


def _checkpoint(settings: Namespace, folder: Path, say: Callable[[str], Any]) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from and its content."""
    if settings.resume == "auto":
        return newest_checkpoint(folder, announce=say)
    if settings.resume == "never":
        if newest_checkpoint(folder):
            raise ValueError(f"output: {folder} holds a run; choose another folder, or resume it")
        return None
    path = Path(settings.resume)
    return path, load_checkpoint(path, name="resume")


def _refuse_other_settings(facts: dict[str, Any], checkpoint: dict[str, Any], explicit: bool) -> None:
    """Raise if the checkpoint is of a run that computes something else."""
    if "run" not in checkpoint:
        raise ValueError("resume: the checkpoint is not one of `localmix fit`")
    before = checkpoint["run"]
    then, now = before["settings"], facts["settings"]
    differences = [
        f"{name} {then.get(name)!r} (now {value!r})"
        for name, value in now.items()
        if then.get(name) != value and not FREE.fullmatch(name)
    ]
    if differences and not explicit:
        raise ValueError(
            f"output: the run there has other settings: {', '.join(differences)}; repeat those, choose another output, "
            "or name the checkpoint with --resume to change them on the way"
        )
    if before["fingerprint"] != facts["fingerprint"]:
        raise ValueError("data.root: the images are not those that the run began with (names or sizes differ)")


def _refuse_other_net(task: Task, resumed: tuple[Path, dict[str, Any]], model: str) -> None:
    """Raise if the checkpoint holds the weights of another net, which Lightning would find once it has begun."""
    path, checkpoint = resumed
    there = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    expected = {name: value.shape for name, value in task.state_dict().items()}
    wrong = {
        "missing": [name for name in expected if name not in there],
        "left over": [name for name in there if name not in expected],
        "misshapen": [name for name in expected if name in there and there[name] != expected[name]],
    }
    if any(wrong.values()):
        found = "; ".join(f"{what} ({len(names)}) {', '.join(names[:3])}" for what, names in wrong.items() if names)
        raise ValueError(f"resume: expected a checkpoint of {model}, got {path}, which does not belong to it: {found}")


@contextmanager
def _as_settings(group: str, settings: Namespace, other_names: dict[str, str]) -> Generator[None]:
    """Errors of functions name their arguments; here they name the settings that these arguments come from.

    Args:
        group: "data" or "model".
        other_names: of settings of the group, by the name of the argument.
    """
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(": ")
        name = other_names.get(name, name)
        if name not in settings or not rest:
            raise
        raise ValueError(f"{group}.{name}: {rest}") from error


def _recipe(model: Namespace) -> dict[str, Any]:
    options = model.as_dict()
    return {"model": options.pop("name"), **options}


def _loggers(log: Namespace, folder: Path, resumed: tuple[Path, dict[str, Any]] | None) -> list[Any]:
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    loggers: list[Any] = []
    if log.tensorboard:
        # what was logged behind the checkpoint is not shown
        step = {"purge_step": resumed[1]["global_step"] + 1} if resumed else {}
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, **step))
    if log.wandb:
        if find_spec("wandb") is None:
            raise ValueError("log.wandb: wandb is not installed: pip install wandb")
        loggers.append(
            WandbLogger(project=log.wandb, save_dir=folder, name=folder.name, id=folder.name, resume="allow")
        )
    return loggers


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Values as they stand in YAML; without the files that they come from."""
    return yaml.safe_load(yaml.safe_dump({k: v for k, v in settings.items() if k != "config"}))
