"""Scenes as a data set in a folder, which has its name only once it is whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from localmix import arguments
from localmix.arguments import pair, positive
from localmix.tasks.classification.folders import Announce, Track
from localmix.tasks.classification.parallel import cpu_cores
from localmix.tasks.engine.claim import claim
from localmix.tasks.images import CorruptImage, read_image
from localmix.tasks.scenes import CLASSES, SPLITS
from localmix.tasks.scenes.composing import EncodedScene, compose, encode, objects
from localmix.tasks.scenes.description import readme
from localmix.tasks.scenes.sheet import contact_sheet
from localmix.writing import named, write_atomically

SETTINGS = "scenes.json"
"""Name of the file that says how a set was made, and makes the folder one that this command knows."""
FORMAT = 1
"""To be raised when the same settings make other scenes."""
LEAST_SIDE = 32
ROUND = 512
"""Scenes that are under way at a time."""
CHUNK = 8
"""Scenes that a process is given at a time."""
_Map: TypeAlias = Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]]


def write_scenes(
    output: Path,
    *,
    num_train: int = 4000,
    num_val: int = 500,
    size: tuple[int, int] = (192, 256),
    max_objects: int = 12,
    seed: int = 0,
    plain: bool = False,
    workers: int | None = None,
    announce: Announce = print,
    track: Track = lambda iterable, what, count: iterable,
) -> dict[str, Any]:
    """Compose scenes and write them with instance masks and label maps; `docs/scenes.md` shows the folder.

    All is written to a folder beside it, which is renamed at the end: `output` is there wholly or not at all.
    Interrupted, the same call goes on; called again at the end, it only says what is there.

    Args:
        output: the folder to make.
        num_train: scenes of garments from the embedded training images.
        num_val: scenes of garments from the embedded test images.
        size: height and width [pixels].
        max_objects: most garments in a scene, at most 200.
        seed: of the set; another one makes other scenes.
        plain: whether garments of one bright colour each lie on dark ground, which small nets learn in minutes.
        workers: processes (one per core); the files do not depend on it.
        announce: receives notices.
        track: shows progress.

    Returns:
        The settings, and the number of scenes and of garments of each class by their split.

    Raises:
        ValueError: an argument is wrong, `output` holds something else, or was made or begun with other settings.
    """
    if not 1 <= positive("max_objects", max_objects) <= 200:
        raise ValueError(f"max_objects: expected 1 to 200, got {max_objects}")
    settings = {
        "format": FORMAT,
        "num_train": positive("num_train", num_train),
        "num_val": positive("num_val", num_val),
        "size": [*pair("size", size, minimum=LEAST_SIDE)],
        "max_objects": max_objects,
        "seed": arguments.seed("seed", seed),
        "plain": bool(plain),
    }
    workers = cpu_cores() if workers is None else positive("workers", workers)
    output = Path(os.path.abspath(output))
    unfinished = output.with_name(f"{output.name}.unfinished")
    if not _whole(output, settings):
        if unfinished.exists():
            _refuse_other(unfinished, _settings(unfinished), settings, "begun")
        with claim(unfinished):
            if not (unfinished / SETTINGS).exists():
                _write_json(unfinished / SETTINGS, {"settings": settings})
            try:
                content = _write(unfinished, settings, workers, track)
            except KeyboardInterrupt:
                announce(f"interrupted; the same command goes on with what is in {unfinished}")
                raise
            # on the disk before it has its name
            if hasattr(os, "sync"):
                os.sync()
            if output.exists():
                output.rmdir()  # empty
            unfinished.replace(output)
            (output / ".claim").unlink(missing_ok=True)
    content = json.loads((output / SETTINGS).read_text())
    for split in SPLITS:
        counts = content["objects"][split]
        announce(f"{output}: {split}: {content['scenes'][split]:,} scenes with {sum(counts.values()):,} garments")
    return content


def _whole(output: Path, settings: dict[str, Any]) -> bool:
    """Whether the set is there; False if nothing is."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    _refuse_other(output, _settings(output), settings, "made")
    for split in SPLITS:
        for folder in (output / "images" / split, output / "annotations" / split):
            there = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
            if there != settings[f"num_{split}"]:
                raise ValueError(
                    f"output: {folder} had {settings[f'num_{split}']} files when it was made, and has {there}; "
                    f"remove {output} to write it anew"
                )
    return True


def _settings(folder: Path) -> dict[str, Any] | None:
    """Those of a set; None if the folder is something else."""
    try:
        content = json.loads((folder / SETTINGS).read_bytes())
        # sets that know of no plain scenes have none
        return {"plain": False, **content["settings"]} if isinstance(content["settings"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_other(folder: Path, there: dict[str, Any] | None, settings: dict[str, Any], how: str) -> None:
    if there is None:
        # a run that was ended in its first moment leaves its claim, and what it was writing
        if how == "begun" and folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()):
            return
        raise ValueError(f"output: {folder} holds something else than scenes; name a folder that is empty or not there")
    differing = [
        f"{name} = {json.dumps(there.get(name))} and not {json.dumps(value)}"
        for name, value in settings.items()
        if there.get(name) != value
    ]
    if differing:
        raise ValueError(f"output: {folder} was {how} with {', '.join(differing)}; name another folder or remove it")


def _write(folder: Path, settings: dict[str, Any], workers: int, track: Track) -> dict[str, Any]:
    """All files of the set; gives the content of its settings' file."""
    content: dict[str, Any] = {"settings": settings, "scenes": {}, "objects": {}}
    options = {"size": tuple(settings["size"]), "max_objects": settings["max_objects"], "seed": settings["seed"]}
    plain = settings["plain"]
    with _pool(workers) as mapped:
        for split in SPLITS:
            number = settings[f"num_{split}"]
            annotations: list[dict[str, Any]] = []
            for index, items in enumerate(track(_scenes(mapped, folder, split, number, options, plain), split, number)):
                annotations.extend(
                    [{"id": len(annotations) + k, "image_id": index, **o} for k, o in enumerate(items, 1)]
                )
            counts = Counter(item["category_id"] for item in annotations)
            content["scenes"][split] = number
            content["objects"][split] = {name: counts[label] for label, name in enumerate(CLASSES) if label}
            _write_json(
                folder / "annotations" / f"instances_{split}.json", _coco(annotations, number, settings["size"])
            )
    text, sheet = readme(content), contact_sheet(folder, "val", min(6, settings["num_val"]))
    write_atomically(folder / "README.md", lambda file: file.write(text.encode()))
    write_atomically(folder / "scenes.png", lambda file: sheet.save(file, "PNG"))
    _write_json(folder / SETTINGS, content, indent=2)
    return content


def _scenes(
    mapped: _Map, folder: Path, split: str, number: int, options: dict[str, Any], plain: bool
) -> Iterator[list[dict[str, Any]]]:
    """Write the scenes of a split that are missing; gives the annotations of each, in order."""
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    work = partial(_scene, folder, split, options, plain)
    for start in range(0, number, ROUND):
        indices = range(start, min(start + ROUND, number))
        yield from mapped(work, indices)


def _scene(folder: Path, split: str, options: dict[str, Any], plain: bool, index: int) -> list[dict[str, Any]]:
    image = folder / "images" / split / f"{index:06}.jpg"
    labels = folder / "annotations" / split / f"{index:06}.png"
    if labels.exists() and _decodes(image) and _decodes(labels):
        return objects(split, index, **options)
    files: EncodedScene = encode(compose(split, index, **options, plain=plain))
    # the label map last: where it is, the image is
    for path, data in ((image, files.image), (labels, files.labels)):
        partly = path.with_name(f".{path.name}")
        try:
            with named(path):
                partly.write_bytes(data)
            partly.replace(path)
        finally:
            partly.unlink(missing_ok=True)
    return files.objects


def _decodes(path: Path) -> bool:
    """Whether a file is whole; after a power failure it may be there and empty."""
    try:
        read_image(path, 3)
    except CorruptImage:
        return False
    return True


def _coco(annotations: list[dict[str, Any]], number: int, size: list[int]) -> dict[str, Any]:
    height, width = size
    return {
        "info": {"description": "Scenes of garments of Fashion-MNIST, composed by localmix"},
        "licenses": [],
        "images": [
            {"id": index, "file_name": f"{index:06}.jpg", "height": height, "width": width} for index in range(number)
        ],
        "annotations": annotations,
        "categories": [
            {"id": label, "name": name, "supercategory": "garment"} for label, name in enumerate(CLASSES) if label
        ],
    }


def _write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    text = json.dumps(content, indent=indent, allow_nan=False)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


@contextmanager
def _pool(workers: int) -> Generator[_Map]:
    """What maps over indices in processes, or in this one if one is asked for; an error ends them at once."""
    if workers == 1:
        yield map
        return
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if context.get_start_method() == "forkserver":
        from multiprocessing.forkserver import ensure_running

        with _waiting(signal.SIGINT):  # and what is forked from the server never hears it
            ensure_running()
    others = multiprocessing.active_children()
    with ExitStack() as stack:
        with _waiting(signal.SIGINT, signal.SIGTERM):  # a process that is begun by half says so
            pool = stack.enter_context(context.Pool(workers, initializer=_begin))
        processes = [process for process in multiprocessing.active_children() if process not in others]

        def mapped(work: Callable[[int], Any], indices: Sequence[int]) -> Iterator[Any]:
            chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
            for results in _answers(pool.imap(partial(_several, work), chunks), processes):
                yield from results

        yield mapped


def _several(work: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
    return [work(index) for index in indices]


@contextmanager
def _waiting(*signals: signal.Signals) -> Generator[None]:
    """Signals within it come at its end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answers(results: Any, processes: Sequence[BaseProcess]) -> Iterator[Any]:
    """The results; a pool waits for ever for those of a process that was killed."""
    while True:
        try:
            yield results.next(timeout=1.0)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            if not all(process.is_alive() for process in processes):
                raise ChildProcessError(
                    "workers: a process that composes scenes has ended, perhaps for want of memory; "
                    "the same command goes on"
                ) from None


def _begin() -> None:
    """A process of the pool ends with the one that began it, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
