"""`localmix publish`: a folder of a trained network, which others load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from localmix.arguments import existing_file
from localmix.reports.evaluation.published import CARD, CONFIG, WEIGHTS
from localmix.reports.evaluation.tasks import task_of
from localmix.reports.evaluation.trained import run_of
from localmix.reports.metrics import read_metrics
from localmix.reports.publishing.card import card
from localmix.reports.publishing.publication import Publication
from localmix.tasks.engine.claim import CLAIM, claim
from localmix.tasks.engine.output import output_folder
from localmix.tasks.engine.run_folder import CHECKPOINT, METRICS
from localmix.writing import named


def publish(
    source: Path | str,
    to: Path | str,
    *,
    weights: str | None = None,
    results: Sequence[Path | str] = (),
    license: str = "mit",
    overwrite: bool = False,
) -> str:
    """Make the folder `to`: the weights as safetensors, a configuration, a model card; returns what was done.

    A classifier is loaded by `timm.create_model("local-dir:TO", pretrained=True)`, a detector by `load_detector(TO)`
    and a segmenter by `load_segmenter(TO)`: the network of the checkpoint, bit for bit. The folder is there wholly or
    not at all.

    Args:
        source: a checkpoint, or the folder of a run.
        weights: "ema" or "raw"; by default the moving average where there is one.
        results: files results.json that `localmix validate` or `test` wrote for these weights: shown in the card and
            copied as they are, the command in them too.
        license: of the weights, as the Hub calls it.
        overwrite: replace the folder if it was published before.

    Raises:
        ValueError: an argument is wrong, or a result is of other weights; names it.
        OSError: the folder cannot be written.
    """
    source, to = Path(source), Path(to)
    if not license.strip() or not license.isprintable():
        raise ValueError(f"license: expected a name, got {license!r}")
    checkpoint = source / CHECKPOINT if source.is_dir() else source
    if existing_file("source", checkpoint).suffix != ".ckpt":
        raise ValueError(f"source: expected a run or a checkpoint of one, got {checkpoint}")
    _refuse_to_lose(to, overwrite)
    output_folder(to, name="to")
    # the module of the task knows what is published of it
    found: Publication = import_module(f"localmix.reports.publishing.{task_of(checkpoint, name='source')}").publication(
        checkpoint, weights
    )
    evaluations = [_evaluation(Path(file), found) for file in results]
    # beside it, for the renaming to be one step
    partial = to.with_name(f".{to.name}.partial")
    with claim(partial, name="to"), _emptied(partial):
        # another process may have made it while this one read
        _refuse_to_lose(to, overwrite)
        with named(to):
            found.save(partial, license)
            names = [f"results-{number}.json" for number, _ in enumerate(evaluations, 1)]
            for name, file in zip(names, results, strict=True):
                shutil.copyfile(file, partial / name)
            content = found.content(_measured(run_of(checkpoint), found.source["step"]))
            shown = dict(zip(names, evaluations, strict=True))
            (partial / CARD).write_text(card(content, folder=to.name, license=license, evaluations=shown))
        _put(partial, to)
    size = (to / WEIGHTS).stat().st_size / 1e6
    others = ", ".join((CONFIG, CARD, *names))
    return f"{to}: {WEIGHTS} ({found.name}, {found.source['weights']} weights, {size:,.1f} MB), {others}"


def _refuse_to_lose(to: Path, overwrite: bool) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise ValueError(f"to: expected the name of a folder, got the file {to}")
    if not overwrite:
        raise ValueError(f"to: expected a folder that does not exist, got {to}; pass overwrite to replace it")
    inside = {path.name for path in to.iterdir()}
    foreign = sorted(name for name in inside - {WEIGHTS, CONFIG, CARD, CLAIM} if not name.startswith("results-"))
    if foreign:
        raise ValueError(f"to: expected a folder that was published before, got {to}, which also holds {foreign[:5]}")


@contextmanager
def _emptied(folder: Path) -> Generator[None]:
    """In front of the block, of what a killed process left, and again where the block fails."""

    def empty() -> None:
        for path in folder.glob("*"):
            if path.name != CLAIM:
                path.unlink()

    empty()
    try:
        yield
    except BaseException:
        empty()
        raise


def _put(partial: Path, to: Path) -> None:
    before = to.with_name(f".{to.name}.before")
    # of a process that was killed
    shutil.rmtree(before, ignore_errors=True)
    if to.exists():
        to.rename(before)
    try:
        partial.rename(to)
    except OSError:
        if before.exists():
            before.rename(to)
        raise
    # behind the renaming: without it, another process would take the folder for one that was left
    (to / CLAIM).unlink(missing_ok=True)
    shutil.rmtree(before, ignore_errors=True)


def _evaluation(file: Path, found: Publication) -> dict[str, Any]:
    try:
        content = json.loads(existing_file("results", file).read_text())
        kind, model = content["kind"], content["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"results: expected a results.json of `localmix validate` or `test`, got {file}") from error
    if kind != found.evaluation:
        wanted = "an evaluation" if found.evaluation == "evaluation" else f"an evaluation of {found.evaluation}"
        raise ValueError(f"results: expected {wanted}, got {kind} in {file}")
    for name in ("sha256", "weights"):
        if model.get(name) != found.source[name]:
            raise ValueError(
                f"results: expected those of the {found.source['weights']} weights in "
                f"{found.source['checkpoint']}, got {file} of {model.get('checkpoint', model['name'])}, "
                f"whose {name} is {model.get(name)}"
            )
    return content


def _measured(run: Path, step: int | None) -> dict[str, float]:
    """What the run itself measured at the step of the checkpoint."""
    if step is None or not (run / METRICS).is_file():
        return {}
    return {name: value for name, value in read_metrics(run).at(step).items() if name.startswith("val_")}
